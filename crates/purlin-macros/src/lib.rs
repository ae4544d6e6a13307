//! `#[server]`: the face of Purlin's processes.
//!
//! A user writes a plain `impl` block; methods marked as calls or casts become messages, and a
//! handle with the same method names sends them. What the attribute writes is the trait form of
//! `purlin-process`, nothing else: there is no hidden runtime behind it.
//!
//! Everything that cannot work is refused here, with the method's name and the reason, instead of
//! as an error somewhere in generated code.
//!
//! `#[cached]` and its siblings put a cache around a function (`cached`).
//!
//! In reading order: `server` (what the block says), `method` (what one method says), `expand`
//! (what is written for it).

mod cached;
mod expand;
mod method;
mod server;

use proc_macro::TokenStream;

/// Turns an `impl` block into a server, and writes the handle that talks to it.
///
/// ```text
/// #[purlin::server]
/// impl Cart {
///     #[init]
///     fn open(owner: String) -> Self { .. }
///
///     #[call]
///     pub async fn add_item(&mut self, sku: String, count: u32) -> u32 { .. }
///
///     #[cast]
///     pub fn clear(&mut self) { .. }
/// }
///
/// let cart = CartHandle::spawn(&processes, "ada".to_owned()).await?;
/// let total = cart.add_item("oak-beam".to_owned(), 2).await?;
/// ```
///
/// # The block's methods
/// - `#[init]`, exactly one: arguments by value, optionally `&mut Context<Self>`; returns `Self`,
///   or a `Result<Self, E>` whose error can be displayed.
/// - `#[call]`: the caller waits for the value it returns.
/// - `#[cast]`: nobody waits; it returns nothing.
/// - `#[timer]`: runs when the timer with the method's name fires; `#[timer(every = "30s")]`
///   also starts it with the process. Units: `ms`, `s`, `m`, `h`.
/// - `#[info]`: gets every other `Info`; takes it by value.
/// - `#[terminate]`: the last callback; takes `&ExitReason` if it wants it.
/// - `#[summary]`: `&self -> String`, the state in a line for people.
/// - unmarked methods stay what they are.
///
/// All but `#[init]` take `&mut self` or `&self`; all but `#[summary]` may be `async` and may take
/// `&mut Context<Self>` anywhere in their arguments. Arguments of calls and casts are owned: the
/// message outlives the caller.
///
/// # What is written
/// For `Cart` with a method `add_item`: the message `CartAddItem`, its `Message` and `Handle`,
/// `impl Server for Cart`, `impl RemoteServer for Cart`, and `CartHandle`, whose methods return
/// `Result<_, CallError>` or `Result<(), CastError>`. A message is called `Cart.add_item` on the
/// wire: renaming type or method changes the protocol between nodes.
///
/// # Options
/// - `#[server(local)]`: reachable on its own node only; arguments and replies need no serde.
/// - `#[server(kind = "Cart")]`: its name on the wire and in introspection.
/// - `#[server(handle = "CartHandle")]`: the handle's name.
/// - `#[server(crate = "::purlin_process")]`: where `purlin-process` is, for crates that do not
///   depend on `purlin` (default `::purlin::process`).
#[proc_macro_attribute]
pub fn server(options: TokenStream, block: TokenStream) -> TokenStream {
    let options = syn::parse_macro_input!(options as server::Options);
    let block = syn::parse_macro_input!(block as syn::ItemImpl);
    let krate = options.krate.clone();
    match server::Server::read(options, block) {
        Ok(server) => expand::expand(&server).into(),
        Err(refused) => expand::refused(&krate, &refused).into(),
    }
}

/// Answers from a cache, and runs the function only if the cache knows nothing.
///
/// ```text
/// #[purlin::cached(cache = self.carts, key = format!("cart/{id}"))]
/// async fn cart(&self, id: u64) -> Result<Option<Cart>, LoadError> {
///     self.database.load(id).await.map_err(LoadError::failed)
/// }
/// ```
///
/// Of all who ask for one key on this node at the same time, one runs the function, in a task of
/// its own; the others get the same end. A stale value is returned at once while it is loaded
/// anew. All this is `Cache::get_or_load`; this writes the call.
///
/// # The function
/// `async`, with arguments by value (a load may outlive the caller), and `Result<Option<V>, E>` with
/// `E: From<LoadError>`. `&self` is cloned for the load.
///
/// # Options
/// - `cache = EXPR`: a `Cache<V>`; cloned.
/// - `key = EXPR`: may use the arguments.
/// - `when = EXPR`: if this is false, the cache is neither asked nor told.
/// - `crate = "::purlin_cache"`: where `purlin-cache` is, for crates that do not depend on `purlin`.
#[proc_macro_attribute]
pub fn cached(options: TokenStream, function: TokenStream) -> TokenStream {
    decorate(cached::Decorator::Cached, options, function)
}

/// Runs the function; if it succeeds, what it returns is the value under the key from then on.
///
/// ```text
/// #[purlin::cache_put(cache = self.carts, key = format!("cart/{}", cart.id))]
/// async fn save(&self, cart: Cart) -> Result<Cart, sqlx::Error> { .. }
/// ```
///
/// The work is done whatever the cache says: a value that cannot be put is removed, so that the
/// old one is not served, and if that fails too, it is logged and the old one lives until its TTL
/// ends.
///
/// Options are those of [`macro@cached`]; the function returns `Result<V, E>`.
#[proc_macro_attribute]
pub fn cache_put(options: TokenStream, function: TokenStream) -> TokenStream {
    decorate(cached::Decorator::Put, options, function)
}

/// Runs the function; if it succeeds, what the cache has under the key is gone.
///
/// ```text
/// #[purlin::cache_evict(cache = self.carts, key = format!("cart/{id}"))]
/// async fn delete(&self, id: u64) -> Result<(), sqlx::Error> { .. }
/// ```
///
/// As [`macro@cache_put`], and `all` instead of `key` removes everything.
#[proc_macro_attribute]
pub fn cache_evict(options: TokenStream, function: TokenStream) -> TokenStream {
    decorate(cached::Decorator::Evict, options, function)
}

fn decorate(
    decorator: cached::Decorator,
    options: TokenStream,
    function: TokenStream,
) -> TokenStream {
    let options = syn::parse_macro_input!(options as cached::Options);
    let function = syn::parse_macro_input!(function as syn::ItemFn);
    match cached::expand(decorator, &options, &function) {
        Ok(written) => written.into(),
        Err(error) => {
            // The function stays: the only error is ours.
            let error = error.to_compile_error();
            quote::quote!(#error #function).into()
        }
    }
}
