//! purlin-macros
use proc_macro::TokenStream;
/// Placeholder while the expansion is being written.
#[proc_macro_attribute]
pub fn server(_args: TokenStream, item: TokenStream) -> TokenStream { item }
