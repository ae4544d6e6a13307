//! What `#[cache_put]` and `#[cache_evict]` do once the function is done.
//!
//! The work cannot be taken back then, so nothing here fails: what could not be told is logged.

use serde::{Serialize, de::DeserializeOwned};

use crate::Cache;

/// Puts `value`; if that cannot be, removes what is there.
///
/// # Cancel safety
/// Dropping the future may leave the old value until its TTL ends.
pub async fn put<V: Serialize + DeserializeOwned>(
    cache: &Cache<V>,
    key: impl AsRef<[u8]>,
    value: &V,
) {
    let Err(error) = cache.put(&key, value).await else { return };
    tracing::warn!(cache = cache.raw().name(), %error, "what was written is not cached");
    evict(cache, key).await;
}

/// Removes what is under `key`.
///
/// # Cancel safety
/// As [`put`].
pub async fn evict<V: Serialize + DeserializeOwned>(cache: &Cache<V>, key: impl AsRef<[u8]>) {
    if let Err(error) = cache.remove(key).await {
        tracing::warn!(cache = cache.raw().name(), %error, "a value of the past may be served until its TTL ends");
    }
}

/// Removes everything.
///
/// # Cancel safety
/// As [`put`].
pub async fn evict_all<V: Serialize + DeserializeOwned>(cache: &Cache<V>) {
    if let Err(error) = cache.clear().await {
        tracing::warn!(cache = cache.raw().name(), %error, "values of the past may be served until their TTL ends");
    }
}
