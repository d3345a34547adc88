//! What stands in the parentheses of `#[task(..)]`, as written: `valid` decides what of it is allowed.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::parse::{Parse, ParseStream, Parser as _};
use syn::punctuated::Punctuated;
use syn::{Expr, ExprLit, Lit, LitStr, Meta, Path, Result, Token};

/// The options of one `#[task]`, checked.
pub(crate) struct Options {
    /// The name errors and statistics use; the function's path when absent.
    pub(crate) name: Option<String>,
    /// Where generated code finds `concurrent_futures`.
    pub(crate) library: Path,
}

/// One comma-separated part of the attribute.
pub(crate) enum Entry {
    /// A bare value, as in `#[task("images.resize.v1")]`: the name.
    Value(Lit),
    /// A word, with or without a value, as in `#[task(crate = "path")]`.
    Option(Meta),
}

impl Entry {
    /// Splits the tokens of the attribute.
    pub(crate) fn parse_all(tokens: TokenStream) -> Result<Punctuated<Self, Token![,]>> {
        Punctuated::parse_terminated.parse2(tokens)
    }

    /// The word; `None` for a path of several, which no option has.
    pub(crate) fn option(&self) -> Option<String> {
        match self {
            Self::Value(_) => Some("name".to_owned()),
            Self::Option(meta) => meta.path().get_ident().map(ToString::to_string),
        }
    }

    /// The value, if it is a string.
    pub(crate) fn text(&self) -> Option<&LitStr> {
        let value = match self {
            Self::Value(value) => value,
            Self::Option(Meta::NameValue(pair)) => match &pair.value {
                Expr::Lit(ExprLit { lit, .. }) => lit,
                _ => return None,
            },
            Self::Option(_) => return None,
        };
        match value {
            Lit::Str(text) => Some(text),
            _ => None,
        }
    }
}

impl Parse for Entry {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        if input.peek(Lit) { input.parse().map(Self::Value) } else { input.parse().map(Self::Option) }
    }
}

impl ToTokens for Entry {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        match self {
            Self::Value(value) => value.to_tokens(tokens),
            Self::Option(meta) => meta.to_tokens(tokens),
        }
    }
}
