//! A closure as a message: looking into a process, or taking something out of it, without a message
//! type of its own.
//!
//! For what stands above all kinds of servers, such as a supervisor that moves one to another node.

use std::{fmt, marker::PhantomData, time::Duration};

use crate::{Call, Context, Handle, Message, ProcessRef, Server};

/// A closure that runs once in a process, between two of its messages. See [`ProcessRef::visit`].
pub struct Visit<S, F, R> {
    run: F,
    types: PhantomData<fn(S) -> R>,
}

impl<S, F, R> fmt::Debug for Visit<S, F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Visit")
    }
}

impl<S, F, R> Message for Visit<S, F, R>
where
    S: Server,
    F: FnOnce(&mut S, &mut Context<S>) -> R + Send + 'static,
    R: Send + 'static,
{
    type Reply = R;
    const NAME: &'static str = "purlin.visit";
}

impl<S, F, R> Handle<Visit<S, F, R>> for S
where
    S: Server,
    F: FnOnce(&mut S, &mut Context<S>) -> R + Send + 'static,
    R: Send + 'static,
{
    async fn handle(&mut self, visit: Visit<S, F, R>, ctx: &mut Context<Self>) -> R {
        (visit.run)(self, ctx)
    }

    fn handle_now(
        &mut self,
        visit: Visit<S, F, R>,
        ctx: &mut Context<Self>,
    ) -> Result<R, Visit<S, F, R>> {
        Ok((visit.run)(self, ctx))
    }
}

impl<S: Server> ProcessRef<S> {
    /// Runs `run` in the process after the messages that wait now, and waits for what it returns,
    /// `within` at most. When it ends the process by [`Context::stop`], no message is handled
    /// after it.
    ///
    /// Local only: a closure cannot travel. A panic in it is a panic of the process.
    ///
    /// # Errors
    /// As [`ProcessRef::call_within`].
    ///
    /// # Cancel safety
    /// As [`ProcessRef::call_within`].
    pub fn visit<F, R>(&self, run: F, within: Duration) -> Call<'_, S, Visit<S, F, R>>
    where
        F: FnOnce(&mut S, &mut Context<S>) -> R + Send + 'static,
        R: Send + 'static,
    {
        self.call_within(Visit { run, types: PhantomData }, within)
    }
}
