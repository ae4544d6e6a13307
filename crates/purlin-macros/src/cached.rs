//! `#[cached]`, `#[cache_put]` and `#[cache_evict]`: a cache around a function.
//!
//! A load serves everybody who waits for it, so it must not end with the first who asked: the
//! function's work moves to a method of its own, which gets what it needs by value.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Error, Expr, FnArg, GenericArgument, Ident, ItemFn, LitStr, Pat, Path, PathArguments,
    ReturnType, Token, Type,
    parse::{Parse, ParseStream},
};

/// What a decorator does around the function.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decorator {
    Cached,
    Put,
    Evict,
}

impl Decorator {
    fn name(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Put => "cache_put",
            Self::Evict => "cache_evict",
        }
    }
}

/// The options in the parentheses.
pub(crate) struct Options {
    krate: Path,
    cache: Option<Expr>,
    key: Option<Expr>,
    when: Option<Expr>,
    all: bool,
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let krate = syn::parse_str("::purlin::cache").expect("it is a path");
        let mut options = Self { krate, cache: None, key: None, when: None, all: false };
        while !input.is_empty() {
            if input.peek(Token![crate]) {
                input.parse::<Token![crate]>()?;
                input.parse::<Token![=]>()?;
                options.krate = input.parse::<LitStr>()?.parse()?;
            } else {
                let name: Ident = input.parse()?;
                let slot = match name.to_string().as_str() {
                    "all" => {
                        options.all = true;
                        None
                    }
                    "cache" => Some(&mut options.cache),
                    "key" => Some(&mut options.key),
                    "when" => Some(&mut options.when),
                    other => {
                        let known =
                            "`cache = ..`, `key = ..`, `when = ..`, `all` and `crate = \"..\"`";
                        let text = format!("unknown option `{other}`; known are {known}");
                        return Err(Error::new(name.span(), text));
                    }
                };
                if let Some(slot) = slot {
                    input.parse::<Token![=]>()?;
                    if slot.replace(input.parse()?).is_some() {
                        return Err(Error::new(name.span(), format!("`{name}` is given twice")));
                    }
                }
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(options)
    }
}

/// Writes the function with the decorator around it.
pub(crate) fn expand(
    decorator: Decorator,
    options: &Options,
    function: &ItemFn,
) -> syn::Result<TokenStream> {
    let (name, signature) = (&function.sig.ident, &function.sig);
    let refuse = |text: &str| {
        let text = format!("`{name}` cannot be `#[{}]`: {text}", decorator.name());
        Error::new(name.span(), text)
    };
    let Some(cache) = &options.cache else {
        return Err(refuse("say which cache, as in `cache = self.carts`"));
    };
    match (decorator, &options.key, options.all) {
        (Decorator::Evict, None, true) | (_, Some(_), false) => {}
        (Decorator::Evict, None, false) => {
            return Err(refuse("say `key = ..`, or `all` to evict everything"));
        }
        (Decorator::Evict, Some(_), true) => {
            return Err(refuse("`key` and `all` exclude each other"));
        }
        (_, None, _) => return Err(refuse("say which key, as in `key = format!(\"cart/{id}\")`")),
        (_, Some(_), true) => return Err(refuse("`all` is for `#[cache_evict]`")),
    }
    if signature.asyncness.is_none() {
        return Err(refuse("it is not `async`, and a cache may have to ask other nodes"));
    }
    match decorator {
        Decorator::Cached => cached(options, cache, function, &refuse),
        Decorator::Put | Decorator::Evict => Ok(after(decorator, options, cache, function)),
    }
}

/// Looks first, and runs the function in a task of its own if there is nothing.
fn cached(
    options: &Options,
    cache: &Expr,
    function: &ItemFn,
    refuse: &dyn Fn(&str) -> Error,
) -> syn::Result<TokenStream> {
    let ItemFn { attrs, vis, sig, block } = function;
    if !returns_option(&sig.output) {
        return Err(refuse(
            "it must return `Result<Option<V>, E>`: a value, that there is none, or why that is unknown",
        ));
    }
    if !sig.generics.params.is_empty() {
        return Err(refuse("it is generic, and one cache holds one type"));
    }
    let mut args = Vec::new();
    let mut receiver = None;
    for input in &sig.inputs {
        match input {
            FnArg::Receiver(this) => {
                if this.mutability.is_some() && this.reference.is_some() {
                    return Err(refuse(
                        "`&mut self` ends with the caller, and the load may outlive it",
                    ));
                }
                receiver = Some(this);
            }
            FnArg::Typed(arg) => {
                let Pat::Ident(pattern) = &*arg.pat else {
                    return Err(refuse("its arguments must have plain names"));
                };
                if let Type::Reference(_) = &*arg.ty {
                    let text = format!(
                        "`{}` is borrowed, and the load may outlive the caller: take it by value",
                        pattern.ident
                    );
                    return Err(refuse(&text));
                }
                args.push(pattern.ident.clone());
            }
        }
    }
    let inner = format_ident!("__uncached_{}", sig.ident);
    let inner_sig = syn::Signature { ident: inner.clone(), ..sig.clone() };
    let args = quote!(#(#args),*);
    // Here and now, without the cache; and later, with what the load owns.
    let (now, own, later) = match receiver {
        None => (quote!(#inner(#args)), quote!(), quote!(#inner(#args))),
        Some(this) => {
            let (own, subject) = match this.reference {
                Some(_) => (quote!(<Self as ::core::clone::Clone>::clone(self)), quote!(&__this)),
                None => (quote!(self), quote!(__this)),
            };
            let own = quote!(let __this = #own;);
            (quote!(Self::#inner(self, #args)), own, quote!(Self::#inner(#subject, #args)))
        }
    };
    let bypass = options.when.as_ref().map(|when| {
        quote! {
            if !(#when) {
                return #now.await;
            }
        }
    });
    let key = &options.key;
    Ok(quote! {
        #(#attrs)*
        #vis #sig {
            #bypass
            let (__cache, __key) = (::core::clone::Clone::clone(&#cache), #key);
            #own
            let __loaded = __cache.get_or_load(__key, move || async move { #later.await }).await;
            __loaded.map_err(::core::convert::From::from)
        }

        #[doc(hidden)]
        #inner_sig #block
    })
}

/// Runs the function, and tells the cache once it was done.
fn after(decorator: Decorator, options: &Options, cache: &Expr, function: &ItemFn) -> TokenStream {
    let ItemFn { attrs, vis, sig, block } = function;
    let krate = &options.krate;
    let when = options.when.as_ref().map_or_else(|| quote!(true), |when| quote!(#when));
    let (key, tell) = match (decorator, &options.key) {
        (Decorator::Put, key) => {
            (quote!(#key), quote!(#krate::decorate::put(&__cache, __key, __value).await))
        }
        (_, Some(key)) => (quote!(#key), quote!(#krate::decorate::evict(&__cache, __key).await)),
        (_, None) => (quote!(()), quote!(#krate::decorate::evict_all(&__cache).await)),
    };
    let value = match decorator {
        Decorator::Put => quote!(__value),
        Decorator::Cached | Decorator::Evict => quote!(_),
    };
    quote! {
        #(#attrs)*
        #vis #sig {
            // Before the work: it may take what they are made of.
            let __told = if #when {
                ::core::option::Option::Some((::core::clone::Clone::clone(&#cache), #key))
            } else {
                ::core::option::Option::None
            };
            let __done = async move #block.await;
            if let (::core::result::Result::Ok(#value), ::core::option::Option::Some((__cache, __key))) =
                (&__done, __told)
            {
                #tell;
            }
            __done
        }
    }
}

/// Whether the function says that it returns `Result<Option<..>, ..>`.
fn returns_option(output: &ReturnType) -> bool {
    let ReturnType::Type(_, ty) = output else { return false };
    let first = |ty: &Type| -> Option<(String, Option<Type>)> {
        let Type::Path(path) = ty else { return None };
        let last = path.path.segments.last()?;
        let PathArguments::AngleBracketed(args) = &last.arguments else { return None };
        let first = args.args.iter().find_map(|arg| match arg {
            GenericArgument::Type(ty) => Some(ty.clone()),
            _ => None,
        });
        Some((last.ident.to_string(), first))
    };
    let Some((_, Some(inner))) = first(ty) else { return false };
    first(&inner).is_some_and(|(name, _)| name == "Option")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(decorator: Decorator, options: &str, function: &str) -> String {
        let written = syn::parse_str::<Options>(options).and_then(|options| {
            expand(decorator, &options, &syn::parse_str::<ItemFn>(function).unwrap())
        });
        written.expect_err("it cannot work").to_string()
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_functions_name_and_the_reason() {
        let good = "cache = self.carts, key = id";
        let load = "async fn cart(&self, id: u64) -> Result<Option<Cart>, E> { todo!() }";
        for (decorator, options, function, says) in [
            (Decorator::Cached, "key = id", load, "`cart` cannot be `#[cached]`: say which cache"),
            (Decorator::Cached, "cache = c", load, "say which key"),
            (Decorator::Cached, "cache = c, key = id, all", load, "`all` is for"),
            (Decorator::Evict, "cache = c", load, "or `all` to evict everything"),
            (Decorator::Evict, "cache = c, key = id, all", load, "exclude each other"),
            (Decorator::Put, "cache = c, kee = id", load, "unknown option `kee`"),
            (Decorator::Put, "cache = c, cache = d", load, "given twice"),
            (
                Decorator::Cached,
                good,
                "fn cart(id: u64) -> Result<Option<Cart>, E> {}",
                "not `async`",
            ),
            (
                Decorator::Cached,
                good,
                "async fn cart(id: u64) -> Cart { todo!() }",
                "Result<Option<V>, E>",
            ),
            (
                Decorator::Cached,
                good,
                "async fn cart(id: u64) -> Result<Cart, E> { todo!() }",
                "Result<Option<V>, E>",
            ),
            (
                Decorator::Cached,
                good,
                "async fn cart(id: &str) -> Result<Option<C>, E> {}",
                "`id` is borrowed",
            ),
            (
                Decorator::Cached,
                good,
                "async fn cart(&mut self) -> Result<Option<C>, E> {}",
                "`&mut self`",
            ),
            (
                Decorator::Cached,
                good,
                "async fn cart<T>(id: T) -> Result<Option<C>, E> {}",
                "it is generic",
            ),
            (
                Decorator::Cached,
                good,
                "async fn cart((a, b): P) -> Result<Option<C>, E> {}",
                "plain names",
            ),
        ] {
            let refusal = refusal(decorator, options, function);
            assert!(refusal.contains(says), "{says:?} is not in {refusal:?}");
        }
    }
}
