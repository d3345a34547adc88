//! Our view of the function: first as written, then as the task it is once every check has passed.

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::parse::{Parse, ParseStream};
use syn::{Abi, Attribute, Result, Signature, Token, Type, Visibility, braced, token};

use crate::attribute::Options;
use crate::valid;

/// A function as written. Its body is never looked into.
pub(crate) struct Function {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) visibility: Visibility,
    pub(crate) signature: Signature,
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let attributes = Attribute::parse_outer(input)?;
        let visibility = input.parse()?;
        if !is_function(input) {
            return Err(valid::not_a_function(input));
        }
        let function = Self { attributes, visibility, signature: input.parse()? };
        if !input.peek(token::Brace) {
            return Err(valid::no_body(&function.signature));
        }
        let body;
        braced!(body in input);
        body.parse::<TokenStream>()?;
        Ok(function)
    }
}

fn is_function(input: ParseStream<'_>) -> bool {
    let ahead = input.fork();
    while ahead.peek(Token![const]) || ahead.peek(Token![async]) || ahead.peek(Token![unsafe]) {
        if ahead.parse::<TokenTree>().is_err() {
            return false;
        }
    }
    if ahead.peek(Token![extern]) && ahead.parse::<Abi>().is_err() {
        return false;
    }
    ahead.peek(Token![fn])
}

/// A function that can be a task, and all that its companion is written from.
pub(crate) struct Task {
    pub(crate) options: Options,
    /// `#[cfg]`, `#[deprecated]`, `#[doc(hidden)]`: what must hold for the companion as it does for the function.
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) visibility: Visibility,
    pub(crate) ident: Ident,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) output: Type,
}

/// One argument of the task.
pub(crate) struct Argument {
    /// What the companion calls it: the function's own name for it, where its pattern is one.
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
}
