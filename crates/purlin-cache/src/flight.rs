//! One load per key: who comes while it runs shares what it finds.
//!
//! When a popular entry ends, a thousand requests miss at once and all ask the database. Here the
//! first starts the load in a task of its own and everybody waits for that task, so it matters
//! neither who gives up nor who came first.

use std::{
    any::Any,
    collections::HashMap,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use purlin_core::watch;

use crate::error::LoadError;

/// How a load ended: the value found, or that there is none.
pub type Landed = Result<Option<Bytes>, LoadError>;

/// The loads of one cache that are under way.
#[derive(Debug, Default)]
pub struct Flights {
    running: Mutex<HashMap<Bytes, Flight>>,
}

#[derive(Debug)]
struct Flight {
    landed: watch::Receiver<Option<Landed>>,
    spoiled: Spoiled,
}

/// Whether the key was written or removed while its load ran, so that what the load found may be
/// the past: its waiters get it, the cache does not.
#[derive(Debug, Clone, Default)]
pub struct Spoiled(Arc<AtomicBool>);

impl Spoiled {
    /// Whether it was.
    #[must_use]
    pub fn is_spoiled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A place among those who wait for a load.
#[derive(Debug)]
pub struct Ticket {
    landed: watch::Receiver<Option<Landed>>,
    /// Whether this one started it.
    pub is_first: bool,
}

impl Ticket {
    /// Waits for the load to end.
    ///
    /// # Cancel safety
    /// Safe: the load goes on.
    pub async fn wait(mut self) -> Landed {
        let landed = self.landed.wait_for(Option::is_some).await;
        match landed {
            Ok(landed) => landed.clone().unwrap_or(Err(LoadError::Abandoned)),
            // Its task is gone, so the runtime ends.
            Err(_closed) => Err(LoadError::Abandoned),
        }
    }
}

impl Flights {
    /// Joins the load of `key` that is under way, or spawns `load` as its load.
    pub fn join<F>(self: &Arc<Self>, key: &Bytes, load: impl FnOnce(Spoiled) -> F) -> Ticket
    where
        F: Future<Output = Landed> + Send + 'static,
    {
        let mut running = self.running.lock();
        if let Some(flight) = running.get(key) {
            return Ticket { landed: flight.landed.clone(), is_first: false };
        }
        let (land, landed) = watch::channel(None);
        let spoiled = Spoiled::default();
        let load = AssertUnwindSafe(load(spoiled.clone())).catch_unwind();
        running.insert(key.clone(), Flight { landed: landed.clone(), spoiled });
        drop(running);
        let (flights, key) = (Arc::clone(self), key.clone());
        tokio::spawn(async move {
            let end = load.await.unwrap_or_else(|panic| Err(LoadError::Panicked(text_of(&*panic))));
            // First out of the table: who comes now must look into the cache, not here.
            flights.running.lock().remove(&key);
            land.send_replace(Some(end));
        });
        Ticket { landed, is_first: true }
    }

    /// Keeps a load of `key` that is under way from being cached.
    pub fn spoil(&self, key: &[u8]) {
        if let Some(flight) = self.running.lock().get(key) {
            flight.spoiled.0.store(true, Ordering::SeqCst);
        }
    }

    /// Keeps all loads under way from being cached.
    pub fn spoil_all(&self) {
        #[expect(clippy::iter_over_hash_type, reason = "the order of flags does not show")]
        for flight in self.running.lock().values() {
            flight.spoiled.0.store(true, Ordering::SeqCst);
        }
    }

    /// How many loads are under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.running.lock().len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn text_of(panic: &(dyn Any + Send)) -> Arc<str> {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a text").into()
}
