//! A value that one side changes and others wait for, in the order in which they began to.
//!
//! The same idea as `tokio::sync::watch`, whose waiters are woken in a random order, so that what
//! two of them then do differs from run to run. Here they form a queue: a simulation with the same
//! seed repeats itself. Only the latest value is kept; who is slow skips what was in between.

use std::{
    fmt,
    future::poll_fn,
    ops::Deref,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    task::{Context, Poll, Waker},
};

/// The sending side is gone, so the value changes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody is left to change the value")]
pub struct Closed;

struct Shared<T> {
    value: RwLock<T>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// How often the value has changed.
    version: u64,
    is_closed: bool,
    next_ticket: u64,
    waiting: Vec<(u64, Waker)>,
}

impl<T> Shared<T> {
    fn borrow(&self) -> Ref<'_, T> {
        // A panic while the value was changed leaves it as it is; nothing here depends on it.
        Ref(self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.queue();
        change(&mut queue);
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        for (_, waker) in waiting {
            waker.wake();
        }
    }
}

/// The value, locked against change for as long as this lives: keep it short, never across an
/// await.
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Ref<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Changes the value. Dropping it tells all receivers that it changes no more.
pub struct Sender<T>(Arc<Shared<T>>);

/// Reads the value and waits for its changes. A clone has seen what its original had.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// A sender of `value` and a receiver that has seen it.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    /// Begins with `value`.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Arc::new(Shared { value: RwLock::new(value), queue: Mutex::default() }))
    }

    /// A receiver that has seen the present value.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<T> {
        let seen = self.0.queue().version;
        Receiver { shared: Arc::clone(&self.0), seen }
    }

    /// The value now.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        self.0.borrow()
    }

    /// Replaces the value and wakes who waits. Returns the old one.
    pub fn send_replace(&self, value: T) -> T {
        let mut old = value;
        self.send_modify(|now| std::mem::swap(now, &mut old));
        old
    }

    /// Changes the value in place and wakes who waits.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Lets `change` change the value; wakes who waits if it says that it did. Returns that.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let mut value = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
        let is_changed = change(&mut value);
        if is_changed {
            // Under the value's lock, so that versions and values have one order.
            self.0.queue().version += 1;
        }
        drop(value);
        if is_changed {
            self.0.wake(|_| {});
        }
        is_changed
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.wake(|queue| queue.is_closed = true);
    }
}

impl<T> Receiver<T> {
    /// The value now. It stays unseen.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.borrow()
    }

    /// The value now, as seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.borrow();
        self.seen = self.shared.queue().version;
        value
    }

    /// Takes the present value for seen.
    pub fn mark_unchanged(&mut self) {
        self.seen = self.shared.queue().version;
    }

    /// Waits until the value has changed since it was last seen.
    ///
    /// # Errors
    /// [`Closed`] when it has not and nobody is left to change it.
    ///
    /// # Cancel safety
    /// Safe: a change seen by nobody ends the next wait at once.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        let mut place = Place { shared: &self.shared, ticket: None };
        let seen = self.seen;
        self.seen = poll_fn(|cx| Pin::new(&mut place).poll_past(seen, cx)).await?;
        Ok(())
    }

    /// Waits until `is_wanted` holds for the value, now or later; the value is then seen.
    ///
    /// # Errors
    /// [`Closed`] when it does not and nobody is left to change it.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn wait_for(
        &mut self,
        mut is_wanted: impl FnMut(&T) -> bool,
    ) -> Result<Ref<'_, T>, Closed> {
        loop {
            if is_wanted(&self.borrow_and_update()) {
                return Ok(self.borrow());
            }
            self.changed().await?;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

/// A place in the queue, left when it is dropped.
struct Place<'a, T> {
    shared: &'a Shared<T>,
    ticket: Option<u64>,
}

impl<T> Place<'_, T> {
    /// The version, once it is another than `seen`.
    fn poll_past(
        mut self: Pin<&mut Self>,
        seen: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<u64, Closed>> {
        let mut queue = self.shared.queue();
        if queue.version != seen {
            return Poll::Ready(Ok(queue.version));
        }
        if queue.is_closed {
            return Poll::Ready(Err(Closed));
        }
        let ticket = self.ticket.unwrap_or_else(|| {
            queue.next_ticket += 1;
            queue.next_ticket
        });
        match queue.waiting.iter_mut().find(|(other, _)| *other == ticket) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => queue.waiting.push((ticket, cx.waker().clone())),
        }
        drop(queue);
        self.ticket = Some(ticket);
        Poll::Pending
    }
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.shared.queue().waiting.retain(|(other, _)| *other != ticket);
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&*self.borrow()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&*self.borrow()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Wake};

    use super::*;

    struct Named(usize, Arc<Mutex<Vec<usize>>>);

    impl Wake for Named {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    fn poll<F: Future>(future: Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(waker))
    }

    #[test]
    fn waiters_are_woken_in_the_order_in_which_they_began_to_wait() {
        let sender = Sender::new(0);
        let woken = Arc::default();
        let mut receivers: Vec<_> = (0..20).map(|_| sender.subscribe()).collect();
        let mut waits: Vec<_> = receivers.iter_mut().map(|r| Box::pin(r.changed())).collect();
        let wakers: Vec<Waker> =
            (0..20).map(|n| Arc::new(Named(n, Arc::clone(&woken))).into()).collect();
        for (wait, waker) in waits.iter_mut().zip(&wakers) {
            assert!(poll(wait.as_mut(), waker).is_pending());
        }
        // Asking again loses nobody their place, going away frees it.
        assert!(poll(waits[3].as_mut(), &wakers[3]).is_pending());
        drop(waits.remove(7));
        assert_eq!(sender.send_replace(1), 0);
        let expected: Vec<usize> = (0..20).filter(|n| *n != 7).collect();
        assert_eq!(*woken.lock().unwrap(), expected);
        for wait in &mut waits {
            assert_eq!(poll(wait.as_mut(), Waker::noop()), Poll::Ready(Ok(())));
        }
    }

    #[test]
    fn a_change_before_the_wait_is_not_missed_and_a_seen_one_is_not_told_again() {
        let (sender, mut receiver) = channel(0);
        sender.send_modify(|value| *value += 1);
        assert_eq!(*receiver.borrow(), 1);
        assert_eq!(poll(pin!(receiver.changed()), Waker::noop()), Poll::Ready(Ok(())));
        assert!(poll(pin!(receiver.changed()), Waker::noop()).is_pending());
        assert!(!sender.send_if_modified(|_| false));
        sender.send_replace(2);
        assert_eq!(*receiver.borrow_and_update(), 2);
        assert!(poll(pin!(receiver.changed()), Waker::noop()).is_pending());
        assert!(poll(pin!(receiver.clone().changed()), Waker::noop()).is_pending());
    }

    #[test]
    fn waiting_for_a_value_ends_with_it_or_with_the_sender() {
        let (sender, mut receiver) = channel(0);
        let mut other = receiver.clone();
        {
            let mut wanted = pin!(receiver.wait_for(|value| *value == 2));
            assert!(poll(wanted.as_mut(), Waker::noop()).is_pending());
            sender.send_replace(1);
            assert!(poll(wanted.as_mut(), Waker::noop()).is_pending());
            sender.send_replace(2);
            assert!(matches!(poll(wanted, Waker::noop()), Poll::Ready(Ok(value)) if *value == 2));
        }
        let mut never = pin!(other.wait_for(|value| *value == 3));
        assert!(poll(never.as_mut(), Waker::noop()).is_pending());
        drop(sender);
        assert!(matches!(poll(never, Waker::noop()), Poll::Ready(Err(Closed))));
        assert!(matches!(
            poll(pin!(receiver.wait_for(|value| *value == 2)), Waker::noop()),
            Poll::Ready(Ok(_))
        ));
    }
}
