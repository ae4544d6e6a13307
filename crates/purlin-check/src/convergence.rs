//! After healing, all replicas are equal.
//!
//! # Source
//! Shapiro et al. 2011: strong eventual consistency, "correct replicas that have delivered the same
//! updates have equal state".

use std::fmt;

/// Two replicas that should be equal and are not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{one} and {other} differ: {differences}")]
pub struct Diverged<N: fmt::Debug + fmt::Display> {
    /// A replica.
    pub one: N,
    /// One that differs from it.
    pub other: N,
    /// The first entries in which they differ.
    pub differences: String,
}

/// How many differing entries an error names.
const NAMED_MAX: usize = 5;

/// Checks that all `replicas`, each a list of entries in the same order, are equal.
///
/// # Errors
/// [`Diverged`] names the first pair that differs, and where.
pub fn check<N, E>(replicas: &[(N, Vec<E>)]) -> Result<(), Diverged<N>>
where
    N: Clone + fmt::Debug + fmt::Display,
    E: PartialEq + fmt::Debug,
{
    for pair in replicas.windows(2) {
        let [(one, ours), (other, theirs)] = pair else { unreachable!("windows of two") };
        if ours != theirs {
            let only = |side: &str, these: &[E], those: &[E]| -> Vec<String> {
                let missing = these.iter().filter(|entry| !those.contains(entry));
                missing.take(NAMED_MAX).map(|entry| format!("{side} {entry:?}")).collect()
            };
            let mut differences = only("only the first has", ours, theirs);
            differences.extend(only("only the second has", theirs, ours));
            let differences = differences.join("; ");
            return Err(Diverged { one: one.clone(), other: other.clone(), differences });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_replicas_pass() {
        assert_eq!(check(&[("a", vec![1, 2]), ("b", vec![1, 2]), ("c", vec![1, 2])]), Ok(()));
        assert_eq!(check::<&str, u8>(&[]), Ok(()));
    }

    #[test]
    fn a_forged_difference_in_the_last_replica_is_caught_and_named() {
        let error = check(&[("a", vec![1, 2]), ("b", vec![1, 2]), ("c", vec![1, 3])]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "b and c differ: only the first has 2; only the second has 3"
        );
    }
}
