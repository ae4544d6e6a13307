//! What a whole block says.

use std::collections::BTreeMap;

use proc_macro2::Span;
use syn::{
    Error, Ident, ImplItem, ItemImpl, LitStr, Path, Token, Type, Visibility,
    parse::{Parse, ParseStream},
    spanned::Spanned,
};

use crate::method::{Method, Role};

/// The options in `#[server(..)]`.
pub(crate) struct Options {
    pub(crate) krate: Path,
    pub(crate) local: bool,
    pub(crate) kind: Option<LitStr>,
    pub(crate) handle: Option<Ident>,
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let default = syn::parse_str("::purlin::process").expect("it is a path");
        let mut options = Self { krate: default, local: false, kind: None, handle: None };
        while !input.is_empty() {
            if input.peek(Token![crate]) {
                input.parse::<Token![crate]>()?;
                input.parse::<Token![=]>()?;
                options.krate = input.parse::<LitStr>()?.parse()?;
            } else {
                let key: Ident = input.parse()?;
                match key.to_string().as_str() {
                    "local" => options.local = true,
                    "kind" => {
                        input.parse::<Token![=]>()?;
                        options.kind = Some(input.parse()?);
                    }
                    "handle" => {
                        input.parse::<Token![=]>()?;
                        options.handle = Some(input.parse::<LitStr>()?.parse()?);
                    }
                    other => {
                        return Err(Error::new(
                            key.span(),
                            format!(
                                "unknown option `{other}`; `#[server]` knows `local`, \
                                 `kind = \"..\"`, `handle = \"..\"` and `crate = \"..\"`"
                            ),
                        ));
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

/// A block that was understood.
pub(crate) struct Server {
    pub(crate) options: Options,
    /// The block without our attributes.
    pub(crate) block: ItemImpl,
    pub(crate) ty: Type,
    pub(crate) name: Ident,
    pub(crate) methods: Vec<Method>,
    /// How visible handle and messages are: as its most visible call or cast.
    pub(crate) visibility: Visibility,
}

/// A block that was not understood.
pub(crate) struct Refused {
    pub(crate) error: Error,
    pub(crate) block: ItemImpl,
    /// Whether at least its type could be a server's: then it is emitted all the same, so that
    /// the only errors are ours.
    pub(crate) could_be_server: bool,
}

/// Names the handle uses itself.
const HANDLE_METHODS: [&str; 6] = ["spawn", "spawn_with", "within", "address", "pid", "clone"];

impl Server {
    pub(crate) fn read(options: Options, mut block: ItemImpl) -> Result<Self, Box<Refused>> {
        let name = match block_name(&block) {
            Ok(name) => name,
            Err(error) => return Err(Box::new(Refused { error, block, could_be_server: false })),
        };
        let mut errors = Errors(None);
        let tries_init = tries_init(&block);
        let mut methods = Vec::new();
        for item in &mut block.items {
            if let ImplItem::Fn(method) = item {
                let read = Method::take(method, options.local);
                methods.extend(errors.note(read).flatten());
            }
        }
        errors.note(check_together(&block, &methods, tries_init));
        if let Some(error) = errors.0 {
            return Err(Box::new(Refused { error, block, could_be_server: true }));
        }
        let visibility = most_visible(&methods);
        Ok(Self { options, ty: (*block.self_ty).clone(), block, name, methods, visibility })
    }

    pub(crate) fn role(&self, role: Role) -> impl Iterator<Item = &Method> {
        self.methods.iter().filter(move |method| method.role.is(&role))
    }

    pub(crate) fn messages(&self) -> impl Iterator<Item = &Method> {
        self.methods.iter().filter(|method| method.role.is_message())
    }

    pub(crate) fn kind(&self) -> String {
        self.options.kind.as_ref().map_or_else(|| self.name.to_string(), LitStr::value)
    }
}

/// All errors of a block, told at once.
struct Errors(Option<Error>);

impl Errors {
    fn note<T>(&mut self, result: syn::Result<T>) -> Option<T> {
        match (result, &mut self.0) {
            (Ok(value), _) => Some(value),
            (Err(error), Some(errors)) => {
                errors.combine(error);
                None
            }
            (Err(error), none) => {
                *none = Some(error);
                None
            }
        }
    }
}

fn block_name(block: &ItemImpl) -> syn::Result<Ident> {
    if let Some((_, path, _)) = &block.trait_ {
        let message =
            "`#[server]` goes on a plain `impl Type` block, not on an implementation of a trait";
        return Err(Error::new(path.span(), message));
    }
    if !block.generics.params.is_empty() {
        let message = "a server cannot be generic: its messages need one name on the wire; \
                       put `#[server]` on a struct with the parameters filled in";
        return Err(Error::new(block.generics.span(), message));
    }
    let Type::Path(path) = &*block.self_ty else {
        return Err(Error::new(
            block.self_ty.span(),
            "`#[server]` needs a struct or enum of yours",
        ));
    };
    let last = path.path.segments.last().expect("a path has a segment");
    if !last.arguments.is_none() {
        let message = "a server cannot have type parameters: its messages need one name on the wire; \
                       put `#[server]` on a struct of its own around the type";
        return Err(Error::new(last.arguments.span(), message));
    }
    Ok(last.ident.clone())
}

fn check_together(block: &ItemImpl, methods: &[Method], tries_init: bool) -> syn::Result<()> {
    let mut errors = Errors(None);
    for role in [Role::Init, Role::Info, Role::Terminate, Role::Summary] {
        let mut of_role = methods.iter().filter(|method| method.role.is(&role));
        let first = of_role.next();
        if let Some(second) = of_role.next() {
            let word = role.word();
            let first = &first.expect("there is a second").name;
            errors.note::<()>(Err(Error::new(
                second.name.span(),
                format!("`{}` is a second `#[{word}]`; `{first}` is one already", second.name),
            )));
        } else if first.is_none() && matches!(role, Role::Init) && !tries_init {
            let message = "a server needs a method marked `#[init]` that makes the state";
            errors.note::<()>(Err(Error::new(block.self_ty.span(), message)));
        }
    }
    let mut messages: BTreeMap<String, &Ident> = BTreeMap::new();
    for method in methods.iter().filter(|method| method.role.is_message()) {
        let name = &method.name;
        if HANDLE_METHODS.contains(&name.to_string().as_str()) {
            errors.note::<()>(Err(Error::new(
                name.span(),
                format!("`{name}` is a method every handle has; call this one something else"),
            )));
        }
        if let Some(other) = messages.insert(method.camel(), name) {
            errors.note::<()>(Err(Error::new(
                name.span(),
                format!(
                    "`{name}` and `{other}` would both become the message `{}`; rename one",
                    method.camel()
                ),
            )));
        }
    }
    errors.0.map_or(Ok(()), Err)
}

/// Whether an `#[init]` is there at all, if only a wrong one: then its own error is enough.
fn tries_init(block: &ItemImpl) -> bool {
    block.items.iter().any(|item| match item {
        ImplItem::Fn(method) => method.attrs.iter().any(|attr| attr.path().is_ident("init")),
        _ => false,
    })
}

fn most_visible(methods: &[Method]) -> Visibility {
    let rank = |visibility: &Visibility| match visibility {
        Visibility::Public(_) => 2,
        Visibility::Restricted(_) => 1,
        Visibility::Inherited => 0,
    };
    methods
        .iter()
        .filter(|method| method.role.is_message())
        .map(|method| &method.visibility)
        .max_by_key(|visibility| rank(visibility))
        .cloned()
        .unwrap_or(Visibility::Inherited)
}

/// The span of a block's own words, for what is said about the whole.
pub(crate) fn call_site() -> Span {
    Span::call_site()
}
