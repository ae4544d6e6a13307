//! Replicated state in the shapes of this crate: what handlers and the console's stream share.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use purlin_core::{Advice, Outcome, WallTime};
use purlin_replica::{
    Interest, KEY_BYTES_MAX, NamedState, PATH_KEYS_MAX, ReplicaSet, StateError, TEXT_BYTES_MAX,
    TextError, VALUE_BYTES_MAX, WriteError, Written, replica::SetStatus, wire::Versions,
};
use purlin_store::log::AppendError;

use crate::{
    input::Params,
    origins::Origins,
    problem::Problem,
    shapes::{
        EntryReport, NamedStateReport, ReplicaContext, ReplicaCounters, ReplicaPeerReport,
        ReplicaSetReport,
    },
};
use axum::http::StatusCode;

/// The most rows of a page, and how many there are when nobody says.
pub(crate) const PAGE_MAX: u32 = 10_000;
const PAGE_DEFAULT: u32 = 1_000;

/// A page ends once its keys and values together have this many bytes.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// How keys that are not text stand in a cursor.
const BASE64: &str = "base64:";

/// Bytes as JSON can hold them: exactly one of the two is there.
pub(crate) fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// Where a page begins and how long it is.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) after: Option<Vec<u8>>,
    pub(crate) limit: usize,
}

impl Page {
    /// Reads `after` and `limit`.
    pub(crate) fn read(params: &Params) -> Result<Self, Problem> {
        Self::read_up_to(params, PAGE_MAX)
    }

    pub(crate) fn read_up_to(params: &Params, max: u32) -> Result<Self, Problem> {
        let limit = params.number("limit", &(1..=max))?.unwrap_or_else(|| PAGE_DEFAULT.min(max));
        let after = params.get("after").map(cursor_bytes).transpose()?;
        Ok(Self { after, limit: usize::try_from(limit).expect("a page has at most 10,000 rows") })
    }

    /// Cuts rows, one more than asked for, to a page: by number and by bytes. Returns the cursor
    /// of the next page if there is one.
    pub(crate) fn cut<T>(
        &self,
        rows: &mut Vec<T>,
        key: impl Fn(&T) -> &[u8],
        bytes: impl Fn(&T) -> usize,
    ) -> Option<String> {
        let mut held = 0;
        let fit = rows.iter().take(self.limit).take_while(|row| {
            let fits = held == 0 || held + bytes(row) <= PAGE_BYTES_MAX;
            held += bytes(row) + 1;
            fits
        });
        let fit = fit.count();
        let more = rows.len() > fit;
        rows.truncate(fit);
        rows.last().filter(|_| more).map(|row| cursor(key(row)))
    }
}

fn cursor(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if !text.starts_with(BASE64) => text.to_owned(),
        Ok(_) | Err(_) => format!("{BASE64}{}", STANDARD.encode(key)),
    }
}

fn cursor_bytes(text: &str) -> Result<Vec<u8>, Problem> {
    match text.strip_prefix(BASE64).map(|code| STANDARD.decode(code)) {
        None => Ok(text.as_bytes().to_vec()),
        Some(Ok(bytes)) => Ok(bytes),
        Some(Err(_)) => Err(Problem::bad_input(
            "after",
            text,
            "a key, or the `next` of the page before",
            format!("after of {text:?} is no cursor"),
        )),
    }
}

/// One entry with its key as callers know it.
pub(crate) fn entry(
    key: &[u8],
    written: &Written,
    origins: &Origins,
    now: WallTime,
) -> EntryReport {
    let (key, key_base64) = text_or_base64(key);
    let (value, value_base64) = text_or_base64(&written.value);
    EntryReport {
        key,
        key_base64,
        value,
        value_base64,
        hlc: written.at.to_string(),
        origin: origins.name(written.at.node()),
        expires_in_ms: expires_in_ms(written, now),
    }
}

/// How long a value still counts at `now`.
pub(crate) fn expires_in_ms(written: &Written, now: WallTime) -> Option<u64> {
    written.expires.map(|at| at.as_millis().saturating_sub(now.as_millis()))
}

/// One row of a catalogue.
pub(crate) fn named(row: &NamedState, origins: &Origins) -> NamedStateReport {
    let (name, name_base64) = text_or_base64(&row.name);
    NamedStateReport {
        name,
        name_base64,
        kinds: row.kinds.iter().map(ToString::to_string).collect(),
        entries: row.entries as u64,
        bytes: row.bytes as u64,
        hlc: row.last.map(|at| at.to_string()),
        written_at_ms: row.last.map(|at| at.millis().as_millis()),
        origin: row.last.map(|at| origins.name(at.node())),
        writers: row.writers.iter().map(|&tag| origins.name(tag)).collect(),
    }
}

/// How a set stands.
pub(crate) fn set_report(set: &ReplicaSet) -> ReplicaSetReport {
    let status = set.status();
    let SetStatus { name, keys, keeps, wants, lag, context, counters, unsent, unpersisted } =
        status;
    let peers = lag.into_iter().map(|peer| ReplicaPeerReport {
        node: peer.node.name.to_string(),
        id: peer.node.to_string(),
        version: peer.version,
        incompatible: peer.incompatible.map(|theirs| {
            format!("it speaks {theirs} of replica messages, this node {}", Versions::OURS)
        }),
        keeps: peer.keeps.as_ref().map(prefixes),
        refused: peer.refused,
        unconfirmed_writes: peer.writes,
        caught_up_ms_ago: peer
            .caught_up
            .map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
    });
    ReplicaSetReport {
        name: name.to_owned(),
        durable: set.is_durable(),
        keys: keys as u64,
        keeps: prefixes(&keeps),
        wants: prefixes(&wants),
        context: ReplicaContext {
            lives: context.lives as u64,
            gaps: context.gaps as u64,
            claims: context.claims as u64,
            pruned: context.pruned as u64,
        },
        changes: set.changes(),
        peers: peers.collect(),
        unsent,
        unpersisted,
        counters: ReplicaCounters {
            updates_joined: counters.updates_joined,
            updates_refused: counters.updates_refused,
            future: counters.future,
            too_large: counters.too_large,
            malformed: counters.malformed,
            incompatible: counters.incompatible,
            forged: counters.forged,
            strangers: counters.strangers,
            revenants: counters.revenants,
            mixed: counters.mixed,
            compared: counters.compared,
            differed: counters.differed,
            entries_pulled: counters.entries_pulled,
            pruned: counters.pruned,
        },
    }
}

/// The prefixes of an interest as JSON can hold them; one that is empty means every key.
fn prefixes(interest: &Interest) -> Vec<String> {
    interest.iter().map(|prefix| cursor(prefix)).collect()
}

/// A refused write or name as a problem document.
pub(crate) fn refused(error: &StateError) -> Problem {
    let conflict = |code, title| Problem::new(StatusCode::CONFLICT, code, title, error.to_string());
    let bad = |field, value: &str, bound: &str| {
        Problem::bad_input(field, value, bound, error.to_string())
    };
    let problem = match error {
        StateError::Key(size) => {
            bad("key", &format!("{} bytes", size.0), &format!("1 to {KEY_BYTES_MAX} bytes"))
        }
        StateError::Name => bad("name", "(a zero byte)", "no zero bytes"),
        StateError::Write(WriteError::WrongKind { key, is, asked }) => {
            let name = String::from_utf8_lossy(key.key()).into_owned();
            conflict("wrong_kind", "The name holds another kind of value")
                .about("name", &name, &format!("a {asked}; it holds a {is}"))
                .between_kinds(is.word(), asked.word())
        }
        StateError::Write(WriteError::OnlyGrows { key, kind }) => {
            let name = String::from_utf8_lossy(key.key()).into_owned();
            let title = "Nothing is ever removed from it";
            conflict("only_grows", title).about("name", &name, &format!("a {kind} only grows"))
        }
        StateError::Write(WriteError::Text(TextError::OutOfRange { at, chars })) => {
            bad("at", &at.to_string(), &format!("0 to {chars}, the end of the text"))
        }
        StateError::Write(WriteError::Text(TextError::TooLong { .. })) => {
            Problem::too_large("the text", TEXT_BYTES_MAX)
        }
        StateError::Write(WriteError::Text(error)) => Problem::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "text_full",
            "The text was written in as many places as it may",
            error.to_string(),
        ),
        StateError::Write(WriteError::Path { keys, .. }) => {
            let bound = format!("1 to {PATH_KEYS_MAX} keys, none empty, {KEY_BYTES_MAX} bytes");
            bad("key", &format!("{keys} keys"), &bound)
        }
        StateError::Write(WriteError::TooLarge { .. }) => {
            Problem::too_large("the value", VALUE_BYTES_MAX)
        }
        StateError::Write(WriteError::Overflow { by, .. }) => {
            let bound = "this node's share stays within 64 bits";
            Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "counter_overflow",
                "The counter would leave its range",
                error.to_string(),
            )
            .about("by", &by.to_string(), bound)
        }
        StateError::Write(WriteError::Overwritten { is, .. }) => {
            conflict("version_mismatch", "The value there has another version")
                .found_version(is.map(|version| version.to_string()))
        }
        StateError::Write(WriteError::OutsideInterest { key, keeps }) => Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "outside_interest",
            "This node does not keep such keys",
            error.to_string(),
        )
        .about("name", &String::from_utf8_lossy(key.key()), &keeps.to_string()),
        StateError::Full { max, .. } => Problem::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "state_full",
            "The set has as many keys as it may",
            error.to_string(),
        )
        .about("keys", &error.to_string(), &format!("{max} keys")),
        StateError::Write(_) | StateError::Clock(_) | _ => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "clock_refused",
            "This node's clock refuses to stamp the write",
            error.to_string(),
        ),
    };
    problem.ended(error.outcome(), &error.advice())
}

/// The name holds nothing.
pub(crate) fn absent(field: &str, name: &str) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "absent",
        "There is nothing of that name",
        format!("{field} {name:?} holds nothing on this node"),
    )
    .about(field, name, "something that was written")
}

/// Waits until what was just written is on disk, for sets that are kept there.
///
/// `again` is what a client may do if that fails: the write holds in memory and was sent on.
pub(crate) async fn persisted(set: &ReplicaSet, again: &Advice) -> Result<(), Problem> {
    set.persisted().await.map_err(|error| not_persisted(&error, again))
}

fn not_persisted(error: &AppendError, again: &Advice) -> Problem {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "not_persisted",
        "The change is made but not known to be on disk",
        format!(
            "it holds in memory and goes to the other nodes, but this node's disk said: {error}"
        ),
    )
    .ended(Outcome::Unknown, again)
}

/// The key of an entry, for cutting pages.
pub(crate) fn pair_key<T>(pair: &(Bytes, T)) -> &[u8] {
    &pair.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_leads_back_to_its_key_text_or_not() {
        for key in [&b"a/b"[..], b"\xff\0", b"base64:YQ=="] {
            assert_eq!(cursor_bytes(&cursor(key)).unwrap(), key);
        }
        assert!(cursor_bytes("base64:*").is_err());
    }

    #[test]
    fn a_page_ends_by_number_or_by_bytes_and_holds_at_least_one_row() {
        let page = Page { after: None, limit: 3 };
        let rows = |sizes: &[usize]| -> Vec<(Bytes, usize)> {
            let row = |(at, &size): (usize, &usize)| (Bytes::from(at.to_string()), size);
            sizes.iter().enumerate().map(row).collect()
        };
        for (sizes, kept, next) in [
            (&[1, 1, 1][..], 3, None),
            (&[1, 1, 1, 1][..], 3, Some("2")),
            (&[PAGE_BYTES_MAX * 2, 1][..], 1, Some("0")),
            (&[][..], 0, None),
        ] {
            let mut rows = rows(sizes);
            let cursor = page.cut(&mut rows, pair_key, |row| row.1);
            assert_eq!((rows.len(), cursor.as_deref()), (kept, next), "{sizes:?}");
        }
    }

    #[test]
    fn a_flush_that_failed_is_unknown_not_failed() {
        let problem = not_persisted(&AppendError::Write("disk full".to_owned()), &Advice::Retry);
        assert_eq!(problem.document().outcome, "unknown");
        assert!(problem.document().detail.contains("disk full"));
    }
}
