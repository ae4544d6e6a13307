//! Fencing tokens only grow, and nothing older is accepted after something newer.
//!
//! # Source
//! Lamport 1998 and Burrows 2006 (Chubby's sequencers): a lease alone cannot stop a holder that
//! was paused past its end; the resource must refuse its token.

use std::collections::BTreeMap;

/// Something that happened to a token, in the order in which the resource's owner saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<R> {
    /// A token was given out.
    Granted {
        /// For what.
        resource: R,
        /// The token.
        token: u64,
    },
    /// A write that carried the token was accepted.
    Accepted {
        /// By what.
        resource: R,
        /// The token.
        token: u64,
    },
}

/// A violation, at a place of the history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation<R: std::fmt::Debug> {
    /// A token was given out that is not above all before.
    #[error("event {at}: token {token} of {resource:?} was granted after {before}")]
    NotAbove {
        /// Where in the history.
        at: usize,
        /// For what.
        resource: R,
        /// The token.
        token: u64,
        /// The highest before.
        before: u64,
    },
    /// A write of an older holder was accepted after one of a newer.
    #[error("event {at}: {resource:?} accepted token {token} after {newer}")]
    Stale {
        /// Where in the history.
        at: usize,
        /// By what.
        resource: R,
        /// The token.
        token: u64,
        /// The newer one accepted before.
        newer: u64,
    },
    /// A token was accepted that nobody was given.
    #[error("event {at}: {resource:?} accepted token {token}, which was never granted")]
    Forged {
        /// Where in the history.
        at: usize,
        /// By what.
        resource: R,
        /// The token.
        token: u64,
    },
}

#[derive(Default)]
struct Seen {
    granted: Vec<u64>,
    accepted: Option<u64>,
}

/// Checks a history of tokens.
///
/// # Errors
/// The first [`Violation`].
pub fn check<R: Ord + Clone + std::fmt::Debug>(history: &[Event<R>]) -> Result<(), Violation<R>> {
    let mut seen: BTreeMap<&R, Seen> = BTreeMap::new();
    for (at, event) in history.iter().enumerate() {
        match event {
            Event::Granted { resource, token } => {
                let seen = seen.entry(resource).or_default();
                if let Some(&before) = seen.granted.last()
                    && *token <= before
                {
                    let (resource, token) = (resource.clone(), *token);
                    return Err(Violation::NotAbove { at, resource, token, before });
                }
                seen.granted.push(*token);
            }
            Event::Accepted { resource, token } => {
                let seen = seen.entry(resource).or_default();
                let (resource, token) = (resource.clone(), *token);
                if seen.granted.binary_search(&token).is_err() {
                    return Err(Violation::Forged { at, resource, token });
                }
                if let Some(newer) = seen.accepted
                    && token < newer
                {
                    return Err(Violation::Stale { at, resource, token, newer });
                }
                seen.accepted = Some(token);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(token: u64) -> Event<&'static str> {
        Event::Granted { resource: "lock", token }
    }

    fn accepted(token: u64) -> Event<&'static str> {
        Event::Accepted { resource: "lock", token }
    }

    #[test]
    fn a_paused_holder_that_is_refused_leaves_no_trace() {
        let history = [granted(1), accepted(1), granted(2), accepted(2), accepted(2), granted(7)];
        assert_eq!(check(&history), Ok(()));
    }

    #[test]
    fn a_forged_write_of_a_paused_holder_is_caught() {
        let error = check(&[granted(1), granted(2), accepted(2), accepted(1)]).unwrap_err();
        assert_eq!(error.to_string(), "event 3: \"lock\" accepted token 1 after 2");
    }

    #[test]
    fn a_token_granted_twice_is_caught() {
        let error = check(&[granted(2), granted(2)]).unwrap_err();
        assert!(matches!(error, Violation::NotAbove { at: 1, before: 2, .. }), "{error}");
    }

    #[test]
    fn a_token_nobody_was_given_is_caught() {
        assert!(matches!(check(&[accepted(5)]), Err(Violation::Forged { token: 5, .. })));
    }
}
