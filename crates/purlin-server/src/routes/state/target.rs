//! What every route of replicated state reads first: the name, the kind, the parameters.
//!
//! A [`Family`] is a prefix and the kinds behind it. Which kind a request means: the one `type`
//! names, else the one the name has, else the family's first. A name that holds another kind is
//! refused with both named; so handlers begin with a name that is theirs.

use std::{marker::PhantomData, sync::Arc};

use axum::{
    Json,
    extract::FromRequestParts,
    http::{Method, request::Parts},
};
use bytes::Bytes;
use purlin_core::Advice;
use purlin_replica::{Kind, ReplicaSet, StateError};

use crate::{
    app::App,
    input::{Params, decode_path},
    problem::Problem,
    shapes::RemovedReport,
    state::{Page, persisted, refused},
};

/// A prefix of routes, and the kinds of state behind it.
pub(in crate::routes) trait Family: Send {
    /// What the path begins with.
    const PREFIX: &'static str;
    /// The kinds; the first is what a write makes when nobody says.
    const KINDS: &'static [Kind];
    /// Whether the name is one segment, and what follows is an entry of it.
    const HAS_ENTRIES: bool = false;
}

/// What one request is about.
#[derive(Debug)]
pub(in crate::routes) struct Target<F> {
    pub(super) app: Arc<App>,
    pub(super) name: String,
    pub(super) kind: Kind,
    /// As it stands in the path.
    entry: Option<String>,
    params: Params,
    family: PhantomData<F>,
}

impl<F: Family> FromRequestParts<Arc<App>> for Target<F> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let raw = parts.uri.path().strip_prefix(F::PREFIX).expect("the router matched the prefix");
        let (name, entry) = match raw.split_once('/') {
            Some((name, entry)) if F::HAS_ENTRIES => (name, Some(entry.to_owned())),
            Some(_) | None => (raw, None),
        };
        let lists = F::HAS_ENTRIES && entry.is_none() && parts.method == Method::GET;
        let known: &[&str] = if lists { &["type", "after", "limit"] } else { &["type"] };
        let params = Params::read(&parts.uri, known)?;
        let name = decode_path("name", name)?;
        let kind = kind::<F>(app.host.crdt(), &name, params.get("type"))?;
        Ok(Self { app: Arc::clone(app), name, kind, entry, params, family: PhantomData })
    }
}

fn kind<F: Family>(set: &ReplicaSet, name: &str, asked: Option<&str>) -> Result<Kind, Problem> {
    let asked = asked.map(|word| {
        let kind = word.parse::<Kind>().ok().filter(|kind| F::KINDS.contains(kind));
        kind.ok_or_else(|| {
            let words: Vec<&str> = F::KINDS.iter().map(|kind| kind.word()).collect();
            let bound = words.join(", ");
            let detail = format!("there is no type {word:?} here; this route knows {bound}");
            Problem::bad_input("type", word, &bound, detail)
        })
    });
    let held = set.kinds_of(name.as_bytes());
    let kind = match asked.transpose()? {
        Some(asked) => asked,
        None => held.into_iter().find(|kind| F::KINDS.contains(kind)).unwrap_or(F::KINDS[0]),
    };
    set.expect_kind(name.as_bytes(), kind).map_err(|error| refused(&error))?;
    Ok(kind)
}

/// A path of a nested map as one text.
pub(in crate::routes) fn path_text(path: &[Bytes]) -> String {
    let key = |key: &Bytes| String::from_utf8_lossy(key).replace('%', "%25").replace('/', "%2F");
    path.iter().map(key).collect::<Vec<_>>().join("/")
}

/// The path that `raw` means: keys divided by slashes, a slash in one of them as `%2F`.
pub(super) fn path_of(raw: &str) -> Result<Vec<Bytes>, Problem> {
    raw.split('/').map(|key| decode_path("key", key).map(Bytes::from)).collect()
}

impl<F: Family> Target<F> {
    pub(super) fn set(&self) -> &ReplicaSet {
        self.app.host.crdt()
    }

    pub(super) fn word(&self) -> String {
        self.kind.word().to_owned()
    }

    /// The entry, slashes and all.
    pub(super) fn entry(&self) -> Result<String, Problem> {
        decode_path("key", self.entry.as_deref().expect("the router matched two segments"))
    }

    /// The entry as a path of a nested map.
    pub(super) fn path(&self) -> Result<Vec<Bytes>, Problem> {
        path_of(self.entry.as_deref().expect("the router matched two segments"))
    }

    pub(super) fn page(&self) -> Result<Page, Problem> {
        Page::read(&self.params)
    }

    /// Ends a write: what came of it, once it is on disk. `again` is what a client may do when that
    /// is in doubt.
    pub(super) async fn written<T>(
        &self,
        done: Result<T, StateError>,
        again: &Advice,
    ) -> Result<T, Problem> {
        let value = done.map_err(|error| refused(&error))?;
        persisted(self.set(), again).await?;
        Ok(value)
    }

    /// Ends a removal.
    pub(super) async fn removed(
        &self,
        done: Result<bool, StateError>,
    ) -> Result<Json<RemovedReport>, Problem> {
        let removed = self.written(done, &Advice::Retry).await?;
        Ok(Json(RemovedReport { removed }))
    }

    /// Removes whatever the name holds of the kind meant.
    pub(super) async fn remove(&self) -> Result<Json<RemovedReport>, Problem> {
        self.removed(self.set().remove_kind(self.name.clone(), self.kind)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_back_from_its_text() {
        let path: Vec<Bytes> = ["a", "b/c", "50%", "ü"].into_iter().map(Bytes::from).collect();
        assert_eq!(path_text(&path), "a/b%2Fc/50%25/ü");
        assert_eq!(path_of(&path_text(&path)).unwrap(), path);
    }
}
