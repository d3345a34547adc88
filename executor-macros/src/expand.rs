//! Writes the companion: a type of the function's name that is never built, with the calls as its associated functions.
//!
//! Why a type and not a module: a module sees nothing of the scope it stands in. `use super::*` gives it the scope of
//! the enclosing *module*, but not of an enclosing function body. An `impl` block stands in the very scope of the
//! function, so the types in a signature mean there what they mean in the function, private and local ones too. Types
//! and functions have different namespaces as modules and functions do.
//!
//! For `fn resize(image: Vec<u8>, width: u32) -> Vec<u8>` it is, without paths, documentation and lint levels:
//!
//! ```text
//! enum resize {}
//! const _: () = {
//!     trait __Task {
//!         type Argument0: Payload;
//!         type Argument1: Payload;
//!         type Output: Payload;
//!         fn call(arguments: (Self::Argument0, Self::Argument1)) -> Self::Output;
//!         fn submit<E: Executor>(executor: &E, arguments: ..) -> TaskFuture<Self::Output> {
//!             Executor::submit(&executor.options().label(resize::NAME), Self::call, arguments)
//!         }
//!         fn map<E: Executor, I: IntoIterator<Item = ..>>(executor: &E, items: I) -> Map<..> { .. }
//!     }
//!     impl __Task for resize {
//!         type Argument0 = Vec<u8>;       // the bounds are checked here, on the user's own tokens
//!         type Argument1 = u32;
//!         type Output = Vec<u8>;
//!         fn call((argument_0, argument_1): ..) -> Self::Output { resize(argument_0, argument_1) }
//!     }
//!     impl resize {
//!         const NAME: &'static str = concat!(module_path!(), "::resize");
//!         fn submit<E: Executor>(executor: &E, image: Vec<u8>, width: u32) -> TaskFuture<Vec<u8>> { .. }
//!         fn map<..>(..) -> .. { .. }
//!     }
//! };
//! ```
//!
//! The trait is there so that a type that cannot be sent is refused on the user's own tokens, and not again in every use the
//! companion makes of it: those rely on the bounds of the associated types. Only the return type of the inherent `map`,
//! which has bounds of its own, repeats the complaint. (A where clause moves it to the callers, where it is worse.)

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt as _;

use crate::model::{Argument, Task};
use crate::valid;

/// The function as it was, what is wrong with it, and its companion when it can be a task.
pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let (task, problems) = valid::task(attribute, item.clone());
    let companion = task.as_ref().map(companion);
    quote!(#item #problems #companion)
}

fn companion(task: &Task) -> TokenStream {
    let Task { options, attributes, visibility, ident, arguments, output } = task;
    let library = &options.library;
    let (name, call, doc) = (name(task), call(task), Docs::new(task));
    let Docs { companion: companion_doc, name: name_doc, submit: submit_doc, map: map_doc } = doc;

    let associated: Vec<_> = (0..arguments.len()).map(|index| format_ident!("Argument{index}")).collect();
    let names: Vec<_> = arguments.iter().map(|Argument { ident, .. }| ident).collect();
    let types: Vec<_> = arguments.iter().map(|Argument { ty, .. }| ty).collect();
    let item = one_value(&types);
    let associated_item = one_value(&associated.iter().map(|ty| quote!(Self::#ty)).collect::<Vec<_>>());
    let argument = one_value(&names);
    let cfgs = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));

    // Hygienic: an argument may have any name.
    let executor = format_ident!("executor", span = Span::mixed_site());
    let items = format_ident!("items", span = Span::mixed_site());

    quote! {
        #(#attributes)*
        #[doc = #companion_doc]
        #[allow(
            dead_code,
            missing_debug_implementations,
            non_camel_case_types,
            unnameable_types,
            unreachable_pub,
            clippy::all,
            clippy::exhaustive_enums,
            reason = "written by `#[task]`"
        )]
        #visibility enum #ident {}

        #(#cfgs)*
        #[allow(
            dead_code,
            deprecated,
            non_snake_case,
            private_interfaces,
            unreachable_pub,
            clippy::all,
            clippy::pedantic,
            reason = "written by `#[task]`"
        )]
        const _: () = {
            trait __Task {
                #(type #associated: #library::Payload;)*
                type Output: #library::Payload;

                fn call(arguments: #associated_item) -> Self::Output;

                fn submit<__E: #library::Executor>(
                    executor: &__E,
                    arguments: #associated_item,
                ) -> #library::TaskFuture<Self::Output> {
                    let options = #library::Executor::options(executor).label(#ident::NAME);
                    #library::Executor::submit(&options, Self::call, arguments)
                }

                fn map<__E, __I>(
                    executor: &__E,
                    items: __I,
                ) -> #library::Map<
                    __I::IntoIter,
                    #library::CallMapper<#library::Options<'_, __E>, (), #associated_item, Self::Output>,
                >
                where
                    __E: #library::Executor,
                    __I: ::core::iter::IntoIterator<Item = #associated_item>,
                {
                    let options = #library::Executor::options(executor).label(#ident::NAME);
                    #library::Executor::map(&options, Self::call, items)
                }
            }

            impl __Task for #ident {
                #(type #associated = #types;)*
                type Output = #output;

                #call
            }

            impl #ident {
                #[doc = #name_doc]
                #visibility const NAME: &'static ::core::primitive::str = #name;

                #[doc = #submit_doc]
                #visibility fn submit<__E: #library::Executor>(
                    #executor: &__E,
                    #(#names: #types),*
                ) -> #library::TaskFuture<#output> {
                    <Self as __Task>::submit(#executor, #argument)
                }

                #[doc = #map_doc]
                #visibility fn map<__E, __I>(
                    #executor: &__E,
                    #items: __I,
                ) -> #library::Map<
                    __I::IntoIter,
                    #library::CallMapper<#library::Options<'_, __E>, (), #item, #output>,
                >
                where
                    __E: #library::Executor,
                    __I: ::core::iter::IntoIterator<Item = #item>,
                {
                    <Self as __Task>::map(#executor, #items)
                }
            }
        };
    }
}

/// The expression for `NAME`.
fn name(task: &Task) -> TokenStream {
    match &task.options.name {
        Some(name) => quote!(#name),
        None => {
            let function = task.ident.unraw().to_string();
            quote!(::core::concat!(::core::module_path!(), "::", #function))
        }
    }
}

/// The function whose address goes to the executor. The call in it has the place of the function's name, which is what
/// `#[track_caller]` shows.
fn call(task: &Task) -> TokenStream {
    let names: Vec<_> = (0..task.arguments.len())
        .map(|index| format_ident!("argument_{index}", span = Span::mixed_site()))
        .collect();
    let types: Vec<_> = task.arguments.iter().map(|argument| &argument.ty).collect();
    let (pattern, item, ident, output) = (one_value(&names), one_value(&types), &task.ident, &task.output);
    let call = quote_spanned!(ident.span()=> #ident(#(#names),*));
    quote! {
        fn call(#pattern: #item) -> #output {
            #call
        }
    }
}

/// Several as a tuple, one as it is: what `Executor::submit` takes as its one argument.
fn one_value<T: ToTokens>(parts: &[T]) -> TokenStream {
    match parts {
        [one] => quote!(#one),
        _ => quote!((#(#parts),*)),
    }
}

/// What rustdoc shows, and `missing_docs` asks for.
struct Docs {
    companion: String,
    name: String,
    submit: String,
    map: String,
}

impl Docs {
    fn new(task: &Task) -> Self {
        let ident = &task.ident;
        let arguments: Vec<_> = task.arguments.iter().map(|argument| argument.ident.to_string()).collect();
        let arguments_in_call: String = arguments.iter().map(|argument| format!(", {argument}")).collect();
        let items = match &arguments[..] {
            [] => "`()`, one for each call".to_owned(),
            [one] => format!("the values of `{one}`"),
            several => format!("tuples `({})`", several.join(", ")),
        };
        Self {
            companion: format!(
                "Runs [`{ident}`](fn@{ident}) on any executor: `{ident}::submit(&executor{arguments_in_call})` and \
                 `{ident}::map(&executor, items)`."
            ),
            name: format!("The name of [`{ident}`](fn@{ident}) in errors and statistics."),
            submit: format!(
                "Submits the call [`{ident}`](fn@{ident})`({})` to `executor`, labelled with [`NAME`](Self::NAME).",
                arguments.join(", ")
            ),
            map: format!(
                "Calls [`{ident}`](fn@{ident}) on `executor` for each of `items`, labelled with \
                 [`NAME`](Self::NAME).\n\nThe items are {items}."
            ),
        }
    }
}
