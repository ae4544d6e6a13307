//! At most one owner at any time.
//!
//! # Source
//! Gray and Cheriton 1989 (leases). Times are those of one observer's clock, such as a simulation's.

use std::{collections::BTreeMap, time::Duration};

/// That somebody believed to own something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held<R, O> {
    /// What.
    pub resource: R,
    /// Who.
    pub owner: O,
    /// From when on, counted from the start of the history.
    pub from: Duration,
    /// Until when; `None` while it lasts.
    pub until: Option<Duration>,
}

/// Two owners at one time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{resource:?} had two owners at {at:?}: {one:?} and {other:?}")]
pub struct TwoOwners<R: std::fmt::Debug, O: std::fmt::Debug> {
    /// Of what.
    pub resource: R,
    /// Who had it.
    pub one: O,
    /// Who had it too.
    pub other: O,
    /// When.
    pub at: Duration,
}

/// Checks that no resource was held by two owners at once. Ending and beginning at the same
/// moment is no overlap.
///
/// # Errors
/// [`TwoOwners`] names the first overlap in time.
pub fn check<R, O>(held: &[Held<R, O>]) -> Result<(), TwoOwners<R, O>>
where
    R: Ord + Clone + std::fmt::Debug,
    O: PartialEq + Clone + std::fmt::Debug,
{
    let mut of: BTreeMap<&R, Vec<&Held<R, O>>> = BTreeMap::new();
    for one in held {
        of.entry(&one.resource).or_default().push(one);
    }
    let mut first: Option<TwoOwners<R, O>> = None;
    for (resource, mut periods) in of {
        periods.sort_by_key(|period| period.from);
        let mut longest: Option<&Held<R, O>> = None;
        for period in periods {
            if let Some(before) = longest
                && before.owner != period.owner
                && before.until.is_none_or(|until| until > period.from)
                && first.as_ref().is_none_or(|found| period.from < found.at)
            {
                first = Some(TwoOwners {
                    resource: resource.clone(),
                    one: before.owner.clone(),
                    other: period.owner.clone(),
                    at: period.from,
                });
            }
            let lasts = |held: &Held<R, O>| held.until.unwrap_or(Duration::MAX);
            if longest.is_none_or(|before| lasts(before) < lasts(period)) {
                longest = Some(period);
            }
        }
    }
    first.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(
        owner: &'static str,
        from: u64,
        until: Option<u64>,
    ) -> Held<&'static str, &'static str> {
        let until = until.map(Duration::from_secs);
        Held { resource: "lock", owner, from: Duration::from_secs(from), until }
    }

    #[test]
    fn a_handover_without_a_gap_passes() {
        assert_eq!(check(&[held("b", 5, None), held("a", 0, Some(5))]), Ok(()));
    }

    #[test]
    fn a_forged_overlap_is_caught_even_behind_a_short_period() {
        let history = [held("a", 0, Some(10)), held("a", 1, Some(2)), held("b", 9, Some(11))];
        let error = check(&history).unwrap_err();
        assert_eq!(error.to_string(), "\"lock\" had two owners at 9s: \"a\" and \"b\"");
    }

    #[test]
    fn an_owner_that_never_let_go_is_caught() {
        assert!(check(&[held("a", 0, None), held("b", 100, Some(101))]).is_err());
    }

    #[test]
    fn renewing_is_not_a_second_owner() {
        assert_eq!(check(&[held("a", 0, Some(5)), held("a", 3, Some(8))]), Ok(()));
    }
}
