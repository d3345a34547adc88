//! Every diagnostic: on the tokens that are wrong, with what to write instead.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident};
use syn::ext::IdentExt as _;
use syn::parse::ParseStream;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Error, FnArg, GenericParam, Lifetime, Pat, PatType, Path, ReturnType, Safety, Signature,
    Token, Type, TypeFnPtr, TypeImplTrait, TypeNever, TypePath, TypeReference, TypeTraitObject, parse_quote,
};

use crate::attribute::{Entry, Options};
use crate::model::{Argument, Function, Task};

/// The task written with `tokens` in its attribute, when no check on the function itself failed, and every complaint.
///
/// A wrong option leaves the function a task, so that what calls it needs no complaints of its own.
pub(crate) fn task(tokens: TokenStream, item: TokenStream) -> (Option<Task>, Problems) {
    let mut problems = Problems::default();
    let options = options(tokens, &mut problems);
    let wrong_options = problems.0.len();
    let task = match syn::parse2(item) {
        Ok(function) => function_to_task(function, options, &mut problems),
        Err(error) => {
            problems.0.push(error);
            return (None, problems);
        }
    };
    let is_task = problems.0.len() == wrong_options;
    (is_task.then_some(task), problems)
}

/// The complaints about one use of the attribute, all of which reach the user.
#[derive(Default)]
pub(crate) struct Problems(Vec<Error>);

impl Problems {
    fn report(&mut self, tokens: impl ToTokens, message: impl std::fmt::Display) {
        self.0.push(Error::new_spanned(tokens, message));
    }
}

impl ToTokens for Problems {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        tokens.extend(self.0.iter().map(Error::to_compile_error));
    }
}

/// `#[task]` on something else than a function.
pub(crate) fn not_a_function(input: ParseStream<'_>) -> Error {
    input.error("`#[task]` goes on a free function: `#[task] fn resize(image: Vec<u8>, width: u32) -> Vec<u8> { .. }`")
}

/// `#[task]` in a trait or an `extern` block.
pub(crate) fn no_body(signature: &Signature) -> Error {
    Error::new_spanned(
        signature,
        "a task needs a body: move it out of the trait or `extern` block and write it as a free function",
    )
}

fn options(tokens: TokenStream, problems: &mut Problems) -> Options {
    let entries = Entry::parse_all(tokens).unwrap_or_else(|error| {
        problems.0.push(error);
        Punctuated::new()
    });
    let (mut name, mut library) = (None, None);
    for entry in &entries {
        let option = entry.option();
        let (given, expected) = match option.as_deref() {
            Some("name") => (&mut name, NAME_IS_A_STRING),
            Some("crate") => (&mut library, CRATE_IS_A_PATH),
            _ => {
                problems
                    .report(entry, "unknown option: `#[task]` takes `name = \"..\"` and `crate = \"..\"`");
                continue;
            }
        };
        match entry.text() {
            None => problems.report(entry, expected),
            Some(_) if given.is_some() => problems.report(entry, "given twice: keep one"),
            Some(text) => *given = Some(text),
        }
    }
    Options {
        name: name.and_then(|text| {
            let name = text.value();
            if name.trim().is_empty() {
                problems.report(text, "the name is empty: leave it out to use the path of the function");
                return None;
            }
            Some(name)
        }),
        library: library
            .and_then(|text| {
                let path = text.parse_with(Path::parse_mod_style);
                path.map_err(|_| problems.report(text, CRATE_IS_A_PATH)).ok()
            })
            .unwrap_or_else(|| parse_quote!(::concurrent_futures)),
    }
}

fn function_to_task(function: Function, options: Options, problems: &mut Problems) -> Task {
    let Function { attributes, visibility, signature } = function;
    attributes_of_function(&attributes, problems);
    qualifiers(&signature, problems);
    generics(&signature, problems);
    arguments(&signature, problems);
    output(&signature.output, problems);
    Task {
        options,
        attributes: attributes.into_iter().filter(holds_for_companion).collect(),
        visibility,
        ident: signature.ident,
        arguments: name_arguments(signature.inputs),
        output: match signature.output {
            ReturnType::Default => parse_quote!(()),
            ReturnType::Type(_, ty) => *ty,
        },
    }
}

fn attributes_of_function(attributes: &[Attribute], problems: &mut Problems) {
    for attribute in attributes {
        if attribute.path().is_ident("target_feature") {
            problems.report(
                attribute,
                "a task cannot be `#[target_feature]`: call the function from a task that has checked for the feature",
            );
        } else if attribute.path().is_ident("task") {
            problems.report(attribute, "`#[task]` is given twice: keep one");
        }
    }
}

fn qualifiers(signature: &Signature, problems: &mut Problems) {
    if let Some(asyncness) = &signature.asyncness {
        problems.report(
            asyncness,
            "a task cannot be `async`: write a plain `fn`, which may block, or use `spawn_future` of the thread pool",
        );
    }
    if let Safety::Unsafe(keyword) = &signature.safety {
        problems.report(
            keyword,
            "a task cannot be `unsafe`, an executor calls it like any function: write a safe one that makes the unsafe call",
        );
    }
    if let Some(abi) = &signature.abi {
        problems.report(abi, "a task cannot be `extern`: write a Rust function that makes the foreign call");
    }
    if PRIMITIVE_TYPES.iter().any(|primitive| signature.ident == primitive) {
        problems.report(
            &signature.ident,
            format!(
                "the companion of this task would hide the primitive type `{0}`: rename the function",
                signature.ident
            ),
        );
    }
}

fn generics(signature: &Signature, problems: &mut Problems) {
    for parameter in &signature.generics.params {
        match parameter {
            GenericParam::Lifetime(_) => problems.report(
                parameter,
                "a task cannot have lifetimes, its arguments go to another thread or process: take owned values",
            ),
            GenericParam::Type(_) | GenericParam::Const(_) => problems
                .report(parameter, "a task cannot be generic: write one `#[task]` function for each concrete type"),
        }
    }
}

fn arguments(signature: &Signature, problems: &mut Problems) {
    for argument in &signature.inputs {
        match argument {
            FnArg::Receiver(receiver) => problems.report(
                receiver,
                "a task cannot be a method: write a free function that takes the value as an argument",
            ),
            FnArg::Typed(argument) => {
                conditional(&argument.attrs, problems);
                Types { of: Place::Argument, problems }.visit_type(&argument.ty);
            }
        }
    }
    if let Some(variadic) = &signature.variadic {
        problems.report(variadic, "a task cannot take a variable number of arguments: take a `Vec`");
    }
    if signature.inputs.len() > MOST_ARGUMENTS {
        let excess: Punctuated<_, Token![,]> = signature.inputs.iter().skip(MOST_ARGUMENTS).collect();
        problems.report(
            excess,
            format!("a task takes at most {MOST_ARGUMENTS} arguments: take a struct that holds them"),
        );
    }
}

fn conditional(attributes: &[Attribute], problems: &mut Problems) {
    for attribute in attributes {
        if attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr") {
            problems.report(
                attribute,
                "an argument of a task cannot be conditional: put `#[cfg]` on the function and write one for each case",
            );
        }
    }
}

fn output(output: &ReturnType, problems: &mut Problems) {
    let ReturnType::Type(_, ty) = output else { return };
    Types { of: Place::Output, problems }.visit_type(ty);
}

/// Looks through one type for what cannot leave the caller's thread.
struct Types<'a> {
    of: Place,
    problems: &'a mut Problems,
}

#[derive(Clone, Copy)]
enum Place {
    Argument,
    Output,
}

impl<'ast> Visit<'ast> for Types<'_> {
    /// One complaint for each borrow: its own lifetime and what it borrows need none.
    fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
        let owned = owned(&reference.elem);
        self.problems.report(
            reference,
            match (self.of, reference.mutability) {
                (Place::Argument, None) => {
                    format!("a task cannot borrow, its arguments go to another thread or process: take {owned}")
                }
                (Place::Argument, Some(_)) => {
                    format!("a task cannot borrow, its arguments go to another thread or process: take {owned} and return it")
                }
                (Place::Output, _) => {
                    format!("a task cannot return a borrow, its result comes from another thread or process: return {owned}")
                }
            },
        );
    }

    fn visit_type_impl_trait(&mut self, ty: &'ast TypeImplTrait) {
        self.problems.report(
            ty,
            match self.of {
                Place::Argument => {
                    "a task cannot take `impl Trait`, which is generic: write one `#[task]` function for each concrete type"
                }
                Place::Output => "a task cannot return `impl Trait`: name the type it returns",
            },
        );
    }

    fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
        if lifetime.ident != "static" {
            self.problems.report(
                lifetime,
                "a task cannot have lifetimes: use `'static`, or a type that owns what it holds",
            );
        }
    }

    fn visit_type_never(&mut self, ty: &'ast TypeNever) {
        self.problems
            .report(ty, "a task returns a value, or its future would never have one: leave out `-> !`");
    }

    fn visit_type_path(&mut self, ty: &'ast TypePath) {
        if let Some(segment) = ty.path.segments.first()
            && segment.ident == "Self"
        {
            self.problems.report(
                ty,
                "a task cannot be in an `impl` block: write a free function, and the type's name instead of `Self`",
            );
        }
        visit::visit_type_path(self, ty);
    }

    /// The references in it belong to its own calls. (That it cannot be sent is for the compiler to say.)
    fn visit_type_fn_ptr(&mut self, _: &'ast TypeFnPtr) {}

    /// As in a function pointer: `Box<dyn Fn(&str)>`.
    fn visit_type_trait_object(&mut self, _: &'ast TypeTraitObject) {}
}

/// What to write instead of a reference to `borrowed`.
fn owned(borrowed: &Type) -> String {
    match borrowed {
        Type::Path(TypePath { qself: None, path, .. }) => {
            match path.get_ident().map(Ident::to_string).as_deref() {
                Some("str") => "`String`".to_owned(),
                Some("Path") => "`PathBuf`".to_owned(),
                Some("OsStr") => "`OsString`".to_owned(),
                Some("CStr") => "`CString`".to_owned(),
                Some(name) => format!("`{name}` by value"),
                None => "the value itself".to_owned(),
            }
        }
        Type::Slice(slice) => match &*slice.elem {
            Type::Path(TypePath { qself: None, path, .. }) => match path.get_ident() {
                Some(name) => format!("`Vec<{name}>`"),
                None => "a `Vec`".to_owned(),
            },
            _ => "a `Vec`".to_owned(),
        },
        _ => "the value itself".to_owned(),
    }
}

fn holds_for_companion(attribute: &Attribute) -> bool {
    let is_hidden = || {
        attribute.path().is_ident("doc")
            && attribute.parse_args::<Ident>().is_ok_and(|option| option == "hidden")
    };
    attribute.path().is_ident("cfg") || attribute.path().is_ident("deprecated") || is_hidden()
}

/// The companion takes over the names a reader knows, and invents one where a pattern has none or the name says unused.
fn name_arguments(inputs: Punctuated<FnArg, Token![,]>) -> Vec<Argument> {
    let typed = inputs.into_iter().filter_map(|input| match input {
        FnArg::Typed(argument) => Some(argument),
        FnArg::Receiver(_) => None,
    });
    typed
        .enumerate()
        .map(|(index, PatType { pat, ty, .. })| Argument {
            ident: match *pat {
                Pat::Ident(pattern) if !pattern.ident.unraw().to_string().starts_with('_') => pattern.ident,
                _ => format_ident!("argument_{index}", span = Span::mixed_site()),
            },
            ty: *ty,
        })
        .collect()
}

/// As many as serde's tuples and a readable call allow.
const MOST_ARGUMENTS: usize = 12;

const NAME_IS_A_STRING: &str = "the name is a string: `#[task(name = \"images.resize.v1\")]`";

const CRATE_IS_A_PATH: &str =
    "`crate` is the path of `concurrent_futures`, in quotes: `#[task(crate = \"crate::reexports\")]`";

const PRIMITIVE_TYPES: [&str; 17] = [
    "bool", "char", "f32", "f64", "i8", "i16", "i32", "i64", "i128", "isize", "str", "u8", "u16", "u32",
    "u64", "u128", "usize",
];
