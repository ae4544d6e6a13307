//! Panics of tasks, which tokio catches and a simulation must not miss.

use std::{
    cell::RefCell,
    panic::{self, PanicHookInfo},
    sync::Once,
};

thread_local! {
    static SEEN: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on panics on any thread are remembered there, and shown as before.
pub(crate) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            remember(info);
            before(info);
        }));
    });
}

fn remember(info: &PanicHookInfo<'_>) {
    let text = info.to_string();
    // A thread that is ending has nowhere to keep it and nobody who would ask.
    SEEN.try_with(|seen| {
        seen.borrow_mut().get_or_insert(text);
    })
    .ok();
}

/// The first panic on this thread since the last time somebody asked.
pub(crate) fn take() -> Option<String> {
    SEEN.take()
}
