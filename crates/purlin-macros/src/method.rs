//! What one method says: its role, its arguments, its reply; and every way it can be wrong.

use std::time::Duration;

use proc_macro2::Ident;
use syn::{
    Attribute, Error, FnArg, ImplItemFn, LitStr, Pat, PathArguments, ReturnType, Type, Visibility,
    spanned::Spanned,
    visit_mut::{self, VisitMut},
};

/// What a method is for.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    Init,
    Call,
    Cast,
    Timer(Option<Duration>),
    Info,
    Terminate,
    Summary,
}

const WORDS: [&str; 7] = ["init", "call", "cast", "timer", "info", "terminate", "summary"];

/// Words of similar libraries that a newcomer may try, and ours for them.
const OTHERS: [(&str, &str); 10] = [
    ("handle", "call"),
    ("handler", "call"),
    ("message", "call"),
    ("handle_call", "call"),
    ("handle_cast", "cast"),
    ("handle_info", "info"),
    ("tell", "cast"),
    ("ask", "call"),
    ("new", "init"),
    ("stop", "terminate"),
];

impl Role {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Call => "call",
            Self::Cast => "cast",
            Self::Timer(_) => "timer",
            Self::Info => "info",
            Self::Terminate => "terminate",
            Self::Summary => "summary",
        }
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.word() == other.word()
    }

    pub(crate) fn is_message(&self) -> bool {
        matches!(self, Self::Call | Self::Cast)
    }
}

/// One argument, in the order the method takes them.
pub(crate) enum Arg {
    /// Filled from the message.
    Value { name: Ident, ty: Box<Type> },
    /// The process's context.
    Context,
    /// What the callback is about: the info, or the exit reason.
    Subject,
}

/// A method with a role.
pub(crate) struct Method {
    pub(crate) role: Role,
    pub(crate) name: Ident,
    pub(crate) visibility: Visibility,
    pub(crate) is_async: bool,
    pub(crate) args: Vec<Arg>,
    /// What it returns, with `Self` spelled out; `None` for nothing.
    pub(crate) output: Option<Type>,
    pub(crate) docs: Vec<Attribute>,
    pub(crate) cfgs: Vec<Attribute>,
}

impl Method {
    /// Reads a method's role and removes our attribute from it; `None` if it has no role.
    pub(crate) fn take(method: &mut ImplItemFn, local: bool) -> syn::Result<Option<Self>> {
        let Some(role) = take_role(method)? else { return Ok(None) };
        let signature = &method.sig;
        let name = signature.ident.clone();
        let refuse = |span, why: &str| Err(Error::new(span, format!("`{name}` {why}")));
        if let Some(generic) = signature.generics.params.first() {
            return refuse(
                generic.span(),
                "is generic; a message has one type, so name the types it takes",
            );
        }
        if let Some(unsafety) = &signature.unsafety {
            return refuse(unsafety.span(), "is unsafe; a handle could not promise what it needs");
        }
        if let Some(constness) = &signature.constness {
            return refuse(constness.span(), "is const; a server's methods run in its process");
        }
        if let Some(variadic) = &signature.variadic {
            return refuse(variadic.span(), "takes a variable number of arguments");
        }
        if let Some(asyncness) = &signature.asyncness
            && matches!(role, Role::Summary)
        {
            return refuse(asyncness.span(), "is async; a summary only reads the state it has");
        }
        check_receiver(&role, method)?;
        let args = read_args(&role, method, local)?;
        let output = read_output(&role, method, local)?;
        let only = |word: &str| {
            method.attrs.iter().filter(|attr| attr.path().is_ident(word)).cloned().collect()
        };
        Ok(Some(Self {
            visibility: method.vis.clone(),
            is_async: signature.asyncness.is_some(),
            docs: only("doc"),
            cfgs: only("cfg"),
            role,
            name,
            args,
            output,
        }))
    }

    /// The method's name as the last part of a type's name.
    pub(crate) fn camel(&self) -> String {
        let mut camel = String::new();
        let name = self.name.to_string();
        for part in name.trim_start_matches("r#").split('_').filter(|part| !part.is_empty()) {
            let mut letters = part.chars();
            camel.extend(letters.next().into_iter().flat_map(char::to_uppercase));
            camel.push_str(letters.as_str());
        }
        camel
    }

    /// The arguments that travel in the message.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&Ident, &Type)> {
        self.args.iter().filter_map(|arg| match arg {
            Arg::Value { name, ty } => Some((name, &**ty)),
            Arg::Context | Arg::Subject => None,
        })
    }
}

fn take_role(method: &mut ImplItemFn) -> syn::Result<Option<Role>> {
    let name = method.sig.ident.clone();
    let mut found: Option<(Role, &'static str)> = None;
    let mut kept = Vec::new();
    let mut wrong: Option<Error> = None;
    for attr in std::mem::take(&mut method.attrs) {
        let word = attr.path().get_ident().map(Ident::to_string).unwrap_or_default();
        let Some(&ours) = WORDS.iter().find(|&&ours| ours == word) else {
            match meant(&word) {
                // Ours to refuse, and to remove: the compiler would only say that it knows none.
                Some(meant) => {
                    wrong.get_or_insert_with(|| Error::new(
                        attr.span(),
                        format!(
                            "unknown attribute `#[{word}]` on `{name}`; did you mean `#[{meant}]`? \
                             A server knows init, call, cast, timer, info, terminate and summary"
                        ),
                    ));
                }
                None => kept.push(attr),
            }
            continue;
        };
        if let Some((_, first)) = found {
            wrong.get_or_insert_with(|| {
                Error::new(
                    attr.span(),
                    format!(
                        "`{name}` is marked `#[{first}]` and `#[{ours}]`; it can have one role"
                    ),
                )
            });
            continue;
        }
        match read_role(ours, &attr, &name) {
            Ok(role) => found = Some((role, ours)),
            Err(error) => {
                wrong.get_or_insert(error);
            }
        }
    }
    method.attrs = kept;
    match wrong {
        Some(error) => Err(error),
        None => Ok(found.map(|(role, _)| role)),
    }
}

fn read_role(word: &str, attr: &Attribute, name: &Ident) -> syn::Result<Role> {
    let role = match word {
        "init" => Role::Init,
        "call" => Role::Call,
        "cast" => Role::Cast,
        "info" => Role::Info,
        "terminate" => Role::Terminate,
        "summary" => Role::Summary,
        _ => return read_timer(attr, name).map(Role::Timer),
    };
    if matches!(attr.meta, syn::Meta::Path(_)) {
        Ok(role)
    } else {
        Err(Error::new(attr.span(), format!("`#[{word}]` on `{name}` takes no options")))
    }
}

fn read_timer(attr: &Attribute, name: &Ident) -> syn::Result<Option<Duration>> {
    if matches!(attr.meta, syn::Meta::Path(_)) {
        return Ok(None);
    }
    let mut every = None;
    attr.parse_nested_meta(|meta| {
        if !meta.path.is_ident("every") {
            return Err(meta.error(format!(
                "the timer `{name}` has an unknown option; it knows `every = \"30s\"`"
            )));
        }
        let text: LitStr = meta.value()?.parse()?;
        every = Some(parse_duration(&text.value()).ok_or_else(|| {
            Error::new(
                text.span(),
                format!(
                    "{:?} of the timer `{name}` is not a duration above zero; write it like \
                     \"250ms\", \"30s\", \"5m\" or \"1h\"",
                    text.value()
                ),
            )
        })?);
        Ok(())
    })?;
    Ok(every)
}

fn parse_duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..unit_at].parse().ok()?;
    let millis = match &text[unit_at..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let every = Duration::from_millis(number.checked_mul(millis)?);
    (!every.is_zero()).then_some(every)
}

/// The word of ours that a wrong one stands for, if it looks like one.
fn meant(word: &str) -> Option<&'static str> {
    // Attributes of the language that happen to be near.
    if word.is_empty() || ["cold", "test", "cfg", "doc", "inline"].contains(&word) {
        return None;
    }
    if let Some((_, ours)) = OTHERS.iter().find(|(other, _)| *other == word) {
        return Some(ours);
    }
    WORDS.into_iter().find(|ours| distance(word, ours) <= 1 + ours.len() / 6)
}

/// How many letters differ (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let swap = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = swap.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn check_receiver(role: &Role, method: &ImplItemFn) -> syn::Result<()> {
    let name = &method.sig.ident;
    let word = role.word();
    match (role, method.sig.receiver()) {
        (Role::Init, None) => Ok(()),
        (Role::Init, Some(receiver)) => Err(Error::new(
            receiver.span(),
            format!("`{name}` makes the state, so it cannot take `self`"),
        )),
        (_, None) => Err(Error::new(
            name.span(),
            format!(
                "`{name}` has no `self`; a `#[{word}]` works on the state, take `&mut self` or `&self`"
            ),
        )),
        (_, Some(receiver)) if receiver.reference.is_none() || receiver.colon_token.is_some() => {
            Err(Error::new(
                receiver.span(),
                format!(
                    "`{name}` takes the state away; a `#[{word}]` takes `&mut self` or `&self`"
                ),
            ))
        }
        (Role::Summary, Some(receiver)) if receiver.mutability.is_some() => Err(Error::new(
            receiver.span(),
            format!("`{name}` takes `&mut self`; a summary only reads the state, take `&self`"),
        )),
        _ => Ok(()),
    }
}

fn read_args(role: &Role, method: &ImplItemFn, local: bool) -> syn::Result<Vec<Arg>> {
    let name = &method.sig.ident;
    let mut args = Vec::new();
    let mut has_context = false;
    let mut has_subject = false;
    for arg in &method.sig.inputs {
        let FnArg::Typed(arg) = arg else { continue };
        if is_context(&arg.ty) {
            if matches!(role, Role::Summary) {
                return Err(Error::new(
                    arg.span(),
                    format!("`{name}` is a summary and gets no context"),
                ));
            }
            if std::mem::replace(&mut has_context, true) {
                return Err(Error::new(arg.span(), format!("`{name}` takes the context twice")));
            }
            args.push(Arg::Context);
            continue;
        }
        match role {
            Role::Init | Role::Call | Role::Cast => {
                args.push(read_value(role, name, arg, local)?);
            }
            Role::Info | Role::Terminate => {
                if std::mem::replace(&mut has_subject, true) {
                    return Err(Error::new(arg.span(), subject_wanted(role, name)));
                }
                let wrong = match role {
                    Role::Terminate => !matches!(&*arg.ty, Type::Reference(_)),
                    _ => matches!(&*arg.ty, Type::Reference(_)),
                };
                if wrong {
                    return Err(Error::new(arg.ty.span(), subject_wanted(role, name)));
                }
                args.push(Arg::Subject);
            }
            Role::Timer(_) | Role::Summary => {
                let word = role.word();
                return Err(Error::new(
                    arg.span(),
                    format!(
                        "`{name}` is a {word} and there is nobody to give it `{}`",
                        quote::quote!(#arg)
                    ),
                ));
            }
        }
    }
    if matches!(role, Role::Info) && !has_subject {
        return Err(Error::new(name.span(), subject_wanted(role, name)));
    }
    Ok(args)
}

fn subject_wanted(role: &Role, name: &Ident) -> String {
    match role {
        Role::Terminate => {
            format!("`{name}` may take the reason as `&ExitReason` and the context, nothing else")
        }
        _ => format!("`{name}` must take the `Info` by value, and may take the context"),
    }
}

fn read_value(role: &Role, method: &Ident, arg: &syn::PatType, local: bool) -> syn::Result<Arg> {
    let Pat::Ident(pattern) = &*arg.pat else {
        return Err(Error::new(
            arg.pat.span(),
            format!(
                "`{method}` takes an argument apart; give it a name, it names a field of the message"
            ),
        ));
    };
    if pattern.by_ref.is_some() || pattern.subpat.is_some() {
        return Err(Error::new(
            arg.pat.span(),
            format!("`{method}` binds an argument by pattern; give it a plain name"),
        ));
    }
    let name = pattern.ident.clone();
    let travels = role.is_message() && !local;
    check_owned(&arg.ty, travels, |what| {
        format!(
            "argument `{name}` of `{method}` {what}; a message outlives its sender, so take it \
             by value (`String` instead of `&str`, `Vec<T>` instead of `&[T]`)"
        )
    })?;
    Ok(Arg::Value { name, ty: arg.ty.clone() })
}

fn read_output(role: &Role, method: &ImplItemFn, local: bool) -> syn::Result<Option<Type>> {
    let name = &method.sig.ident;
    let output = match &method.sig.output {
        ReturnType::Default => None,
        ReturnType::Type(_, ty) => match &**ty {
            Type::Tuple(tuple) if tuple.elems.is_empty() => None,
            ty => Some(ty.clone()),
        },
    };
    match (role, &output) {
        (Role::Init, None) => Err(Error::new(
            name.span(),
            format!("`{name}` returns nothing; an `#[init]` returns `Self` or `Result<Self, E>`"),
        )),
        (Role::Cast, Some(ty)) => Err(Error::new(
            ty.span(),
            format!(
                "`{name}` is a cast and returns a value that nobody would get; make it a \
                 `#[call]`, or return nothing"
            ),
        )),
        (Role::Timer(_) | Role::Info | Role::Terminate, Some(ty)) => Err(Error::new(
            ty.span(),
            format!("`{name}` returns a value that nobody would get; return nothing"),
        )),
        (Role::Summary, None) => {
            Err(Error::new(name.span(), format!("`{name}` is a summary and must return `String`")))
        }
        (Role::Call, Some(ty)) => {
            check_owned(ty, !local, |what| {
                format!(
                    "the reply of `{name}` {what}; it outlives the state it came from, so return \
                     it by value"
                )
            })?;
            Ok(output)
        }
        _ => Ok(output),
    }
}

/// Whether `ty` is `&mut Context<..>` or `&Context<..>`.
fn is_context(ty: &Type) -> bool {
    let Type::Reference(reference) = ty else { return false };
    let Type::Path(path) = &*reference.elem else { return false };
    path.path.segments.last().is_some_and(|last| {
        last.ident == "Context" && matches!(last.arguments, PathArguments::AngleBracketed(_))
    })
}

/// Refuses what cannot be kept or sent: borrowed data, `impl Trait`, inferred types.
fn check_owned(ty: &Type, travels: bool, why: impl Fn(&str) -> String) -> syn::Result<()> {
    let mut finder = Borrowed { travels, found: None };
    finder.visit_type_mut(&mut ty.clone());
    match finder.found {
        Some((span, what)) => Err(Error::new(span, why(what))),
        None => Ok(()),
    }
}

struct Borrowed {
    travels: bool,
    found: Option<(proc_macro2::Span, &'static str)>,
}

impl Borrowed {
    fn note(&mut self, span: proc_macro2::Span, what: &'static str) {
        self.found.get_or_insert((span, what));
    }
}

impl VisitMut for Borrowed {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        match ty {
            Type::Reference(reference) => {
                let is_static =
                    reference.lifetime.as_ref().is_some_and(|lifetime| lifetime.ident == "static");
                if !is_static {
                    self.note(reference.span(), "is borrowed");
                } else if self.travels {
                    self.note(
                        reference.span(),
                        "is a reference, which cannot come from another node",
                    );
                }
            }
            Type::ImplTrait(_) => self.note(ty.span(), "is an `impl Trait`, not one type"),
            Type::Infer(_) => self.note(ty.span(), "has no type"),
            Type::Ptr(_) => self.note(ty.span(), "is a raw pointer"),
            _ => visit_mut::visit_type_mut(self, ty),
        }
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut syn::Lifetime) {
        if lifetime.ident != "static" {
            self.note(lifetime.span(), "is borrowed");
        }
    }
}

/// Spells `Self` out, for types that are used outside the block.
pub(crate) fn without_self(ty: &Type, server: &Type) -> Type {
    struct Spell<'a>(&'a Type);
    impl VisitMut for Spell<'_> {
        fn visit_type_mut(&mut self, ty: &mut Type) {
            if let Type::Path(path) = ty
                && path.qself.is_none()
                && path.path.is_ident("Self")
            {
                *ty = self.0.clone();
            } else {
                visit_mut::visit_type_mut(self, ty);
            }
        }
    }
    let mut ty = ty.clone();
    Spell(server).visit_type_mut(&mut ty);
    ty
}
