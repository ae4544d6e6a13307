//! Caches around functions: `#[cached]`, `#[cache_put]`, `#[cache_evict]`.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use purlin::{
    Node,
    cache::{Cache, CacheConfig, Kind, LoadError},
};

/// A shop's carts: a slow store with a cache in front.
#[derive(Clone)]
struct Carts {
    cache: Cache<String>,
    stored: Arc<Mutex<Vec<Option<String>>>>,
    loads: Arc<AtomicUsize>,
    is_broken: Arc<AtomicBool>,
}

#[derive(Debug, PartialEq, thiserror::Error)]
enum ShopError {
    #[error("the store is broken")]
    Broken,
    #[error("{0}")]
    Load(String),
}

impl From<LoadError> for ShopError {
    fn from(error: LoadError) -> Self {
        Self::Load(error.to_string())
    }
}

impl Carts {
    async fn open(kind: Kind) -> Self {
        let node = Node::builder().name("shop").local().start().await.unwrap();
        let stored = vec![Some("flour".to_owned()), None, Some("milk".to_owned())];
        Self {
            cache: node.cache("carts", CacheConfig::new(kind)).unwrap(),
            stored: Arc::new(Mutex::new(stored)),
            loads: Arc::default(),
            is_broken: Arc::default(),
        }
    }

    #[purlin::cached(cache = self.cache, key = format!("cart/{id}"), when = !fresh)]
    async fn cart(&self, id: usize, fresh: bool) -> Result<Option<String>, ShopError> {
        let _ = fresh;
        self.loads.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(ShopError::Broken);
        }
        Ok(self.stored.lock().unwrap()[id].clone())
    }

    #[purlin::cache_put(cache = self.cache, key = format!("cart/{id}"))]
    async fn save(&self, id: usize, cart: String) -> Result<String, ShopError> {
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(ShopError::Broken);
        }
        self.stored.lock().unwrap()[id] = Some(cart.clone());
        Ok(cart)
    }

    #[purlin::cache_evict(cache = self.cache, key = format!("cart/{id}"), when = !quietly)]
    async fn delete(&self, id: usize, quietly: bool) -> Result<(), ShopError> {
        let _ = quietly;
        self.stored.lock().unwrap()[id] = None;
        Ok(())
    }

    #[purlin::cache_evict(cache = self.cache, all)]
    async fn close(self) -> Result<usize, ShopError> {
        Ok(self.loads.load(Ordering::SeqCst))
    }

    fn loads(&self) -> usize {
        self.loads.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_decorated_function_runs_once_for_all_who_ask_and_only_when_the_cache_knows_nothing() {
    let carts = Carts::open(Kind::Local).await;
    let (a, b) = tokio::join!(carts.cart(0, false), carts.cart(0, false));
    assert_eq!((a, b), (Ok(Some("flour".into())), Ok(Some("flour".into()))));
    assert_eq!(carts.cart(0, false).await, Ok(Some("flour".into())));
    assert_eq!(carts.loads(), 1);
    // Another key; nothing there; and past the cache.
    assert_eq!(carts.cart(2, false).await, Ok(Some("milk".into())));
    assert_eq!(carts.cart(1, false).await, Ok(None));
    assert_eq!(carts.cart(0, true).await, Ok(Some("flour".into())));
    assert_eq!(carts.loads(), 4);
}

#[tokio::test]
async fn a_decorated_write_shows_at_once_and_a_failed_one_changes_nothing() {
    for kind in [Kind::Local, Kind::Partitioned] {
        let carts = Carts::open(kind).await;
        carts.cart(0, false).await.unwrap();
        carts.save(0, "eggs".into()).await.unwrap();
        assert_eq!(carts.cart(0, false).await, Ok(Some("eggs".into())), "{kind:?}");
        carts.is_broken.store(true, Ordering::SeqCst);
        assert_eq!(carts.save(0, "gold".into()).await, Err(ShopError::Broken));
        assert_eq!(carts.cart(0, false).await, Ok(Some("eggs".into())), "{kind:?}");
        let failed = carts.cart(2, false).await;
        assert_eq!(failed, Err(ShopError::Load("load failed: the store is broken".into())));
        carts.is_broken.store(false, Ordering::SeqCst);
        // Not told, then told.
        carts.delete(0, true).await.unwrap();
        assert_eq!(carts.cart(0, false).await, Ok(Some("eggs".into())), "{kind:?}");
        carts.delete(0, false).await.unwrap();
        assert_eq!(carts.cart(0, false).await, Ok(None), "{kind:?}");
        carts.cart(2, false).await.unwrap();
        let before = carts.loads();
        carts.clone().close().await.unwrap();
        carts.cart(2, false).await.unwrap();
        assert_eq!(carts.loads(), before + 1, "{kind:?}");
    }
}
