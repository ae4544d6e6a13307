//! Feature flags: who gets a feature, decided locally, the same on every node.
//!
//! The usual percentage is drawn anew for each call, so one user sees the feature come and go.
//! Here a percentage is a property of the actor: the hash of flag and actor decides, so an actor
//! keeps its side while the percentage grows, and two flags at 10 % reach different tenths. Rules
//! are read top-down, the first that matches decides, and the kill switch stands above all.
//!
//! # Source
//! rollout (Elixir) for the idea of flags on replicated registers; Google's "Overlapping
//! Experiment Infrastructure" (Tang et al. 2010) for hashing flag and actor together.

use std::collections::{BTreeMap, BTreeSet};

use purlin_core::WallTime;
use purlin_ring::key_hash;
use serde::{Deserialize, Serialize};

/// The most rules a flag may have.
pub const RULES_MAX: usize = 64;
/// The most actors, groups or values one condition may list.
pub const LIST_MAX: usize = 1_000;
/// The most bytes of a flag's name, an actor, a group or an attribute.
pub const TEXT_BYTES_MAX: usize = 256;
/// All actors: percentages are in hundredths of a percent.
pub const BASIS_POINTS: u16 = 10_000;

/// What a flag says, before anybody asks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flag {
    /// What it is for, in a sentence.
    pub description: String,
    /// The kill switch: while it is on, the flag is off for everybody, whatever the rules say.
    pub killed: bool,
    /// What holds when no rule matches.
    pub otherwise: Rollout,
    /// Read top-down; the first that matches decides.
    pub rules: Vec<Rule>,
}

/// One rule: whom it is about, when, and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Actors it is about by name. With every list empty it is about everybody.
    pub actors: BTreeSet<String>,
    /// Groups it is about: one in common is enough.
    pub groups: BTreeSet<String>,
    /// Attributes that must all have one of the listed values.
    pub attributes: BTreeMap<String, BTreeSet<String>>,
    /// From when on it counts, in milliseconds since 1970.
    pub from: Option<WallTime>,
    /// Until when it counts, in milliseconds since 1970.
    pub until: Option<WallTime>,
    /// What it says.
    pub then: Rollout,
}

/// For whom the feature is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rollout {
    /// For nobody.
    #[default]
    Off,
    /// For everybody.
    On,
    /// For this share of the actors, in hundredths of a percent; always the same ones.
    BasisPoints(u16),
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Asker {
    /// The actor, such as a user's id. Without one, percentages are off: there is nothing to
    /// stick to.
    pub actor: Option<String>,
    /// Its groups.
    pub groups: BTreeSet<String>,
    /// What else is known of it.
    pub attributes: BTreeMap<String, String>,
}

/// The answer, with the reason: for logs, and for whoever wonders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Whether the feature is on for the asker.
    pub on: bool,
    /// Why.
    pub because: Because,
}

/// What decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// There is no flag of that name.
    Unknown,
    /// The kill switch.
    Killed,
    /// The rule at this place, from 0.
    Rule(usize),
    /// No rule matched.
    Otherwise,
}

/// Why a flag was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlagError {
    /// A list or text is too long.
    #[error("flag field {field} has {len}, more than the limit {max}")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its length.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// A percentage is above everybody.
    #[error("{0} basis points exceed limit {BASIS_POINTS}, which is everybody")]
    BasisPoints(u16),
    /// The name is empty or holds more than letters, digits, `-`, `_`, `.` and `/`.
    #[error(
        "flag name {0:?} is not 1 to {TEXT_BYTES_MAX} letters, digits, `-`, `_`, `.` or `/`, and not under `audit/`"
    )]
    Name(String),
}

impl Flag {
    /// Checks the bounds of every field.
    ///
    /// # Errors
    /// [`FlagError`] names the field and the bound.
    pub fn check(&self, name: &str) -> Result<(), FlagError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        // Histories are kept under `audit/`.
        let reserved = name.starts_with("audit/");
        if name.is_empty() || name.len() > TEXT_BYTES_MAX || !name.chars().all(allowed) || reserved
        {
            return Err(FlagError::Name(name.chars().take(80).collect()));
        }
        let within = |field, len, max| {
            if len > max { Err(FlagError::TooLong { field, len, max }) } else { Ok(()) }
        };
        within("description", self.description.len(), 4 * TEXT_BYTES_MAX)?;
        within("rules", self.rules.len(), RULES_MAX)?;
        for rollout in self.rules.iter().map(|rule| rule.then).chain([self.otherwise]) {
            if let Rollout::BasisPoints(points) = rollout
                && points > BASIS_POINTS
            {
                return Err(FlagError::BasisPoints(points));
            }
        }
        for rule in &self.rules {
            within("actors", rule.actors.len(), LIST_MAX)?;
            within("groups", rule.groups.len(), LIST_MAX)?;
            within("attributes", rule.attributes.len(), LIST_MAX)?;
            for values in rule.attributes.values() {
                within("attribute values", values.len(), LIST_MAX)?;
            }
            let keys = rule.attributes.keys();
            let values = rule.attributes.values().flatten();
            let texts = rule.actors.iter().chain(&rule.groups).chain(keys).chain(values);
            texts.map(String::len).try_for_each(|len| within("text", len, TEXT_BYTES_MAX))?;
        }
        Ok(())
    }

    /// Whether the feature `name` is on for `asker` at `now`.
    ///
    /// Pure: the same everywhere for the same flag, asker and time. Costs a hash and the rules.
    #[must_use]
    pub fn evaluate(&self, name: &str, asker: &Asker, now: WallTime) -> Evaluation {
        if self.killed {
            return Evaluation { on: false, because: Because::Killed };
        }
        let rule = self.rules.iter().position(|rule| rule.is_about(asker, now));
        let (rollout, because) = match rule {
            Some(at) => (self.rules[at].then, Because::Rule(at)),
            None => (self.otherwise, Because::Otherwise),
        };
        Evaluation { on: rollout.includes(name, asker), because }
    }
}

impl Rule {
    fn is_about(&self, asker: &Asker, now: WallTime) -> bool {
        let in_time =
            self.from.is_none_or(|from| from <= now) && self.until.is_none_or(|until| now < until);
        let everybody = self.actors.is_empty() && self.groups.is_empty();
        let listed = asker.actor.as_ref().is_some_and(|actor| self.actors.contains(actor))
            || !self.groups.is_disjoint(&asker.groups);
        let fits = self.attributes.iter().all(|(name, values)| {
            asker.attributes.get(name).is_some_and(|value| values.contains(value))
        });
        in_time && (everybody || listed) && fits
    }
}

impl Rollout {
    fn includes(self, flag: &str, asker: &Asker) -> bool {
        match self {
            Self::Off => false,
            Self::On => true,
            Self::BasisPoints(points) => {
                asker.actor.as_ref().is_some_and(|actor| place(flag, actor) < points)
            }
        }
    }
}

/// The place of `actor` among all, from 0 up to [`BASIS_POINTS`], for `flag`.
fn place(flag: &str, actor: &str) -> u16 {
    let mut text = Vec::with_capacity(flag.len() + actor.len() + 1);
    text.extend_from_slice(flag.as_bytes());
    text.push(0);
    text.extend_from_slice(actor.as_bytes());
    // The upper half times the range: no modulo, so no place is likelier than another.
    let upper = key_hash(&text).0 >> 32;
    u16::try_from((upper * u64::from(BASIS_POINTS)) >> 32).expect("below the number of points")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn actor(name: &str) -> Asker {
        Asker { actor: Some(name.to_owned()), ..Asker::default() }
    }

    fn share(points: u16) -> Flag {
        Flag { otherwise: Rollout::BasisPoints(points), ..Flag::default() }
    }

    const NOW: WallTime = WallTime::from_millis(1_000);

    #[test]
    fn a_percentage_reaches_about_its_share_and_another_flag_other_actors() {
        let on = |flag: &str| -> BTreeSet<u32> {
            (0..20_000)
                .filter(|n| share(1_000).evaluate(flag, &actor(&n.to_string()), NOW).on)
                .collect()
        };
        let (one, two) = (on("one"), on("two"));
        assert!((1_800..2_200).contains(&one.len()), "{}", one.len());
        let both = one.intersection(&two).count();
        assert!((120..280).contains(&both), "independent flags share a hundredth: {both}");
    }

    #[test]
    fn the_kill_switch_stands_above_every_rule() {
        let rule = Rule { then: Rollout::On, ..Rule::default() };
        let flag =
            Flag { killed: true, rules: vec![rule], otherwise: Rollout::On, ..Flag::default() };
        let answer = flag.evaluate("f", &actor("a"), NOW);
        assert_eq!(answer, Evaluation { on: false, because: Because::Killed });
    }

    #[test]
    fn the_first_matching_rule_decides_and_a_schedule_ends() {
        let staff = Rule {
            groups: BTreeSet::from(["staff".to_owned()]),
            until: Some(WallTime::from_millis(2_000)),
            then: Rollout::On,
            ..Rule::default()
        };
        let flag =
            Flag { rules: vec![staff, Rule::default()], otherwise: Rollout::On, ..Flag::default() };
        let asker = Asker { groups: BTreeSet::from(["staff".to_owned()]), ..actor("a") };
        assert_eq!(flag.evaluate("f", &asker, NOW).because, Because::Rule(0));
        assert!(flag.evaluate("f", &asker, NOW).on);
        let later = flag.evaluate("f", &asker, WallTime::from_millis(2_000));
        assert_eq!(later, Evaluation { on: false, because: Because::Rule(1) });
    }

    #[test]
    fn without_an_actor_a_percentage_is_off() {
        assert!(!share(BASIS_POINTS).evaluate("f", &Asker::default(), NOW).on);
        assert!(share(BASIS_POINTS).evaluate("f", &actor("a"), NOW).on);
    }

    #[test]
    fn bounds_are_named() {
        assert_eq!(
            share(10_001).check("f").unwrap_err().to_string(),
            "10001 basis points exceed limit 10000, which is everybody"
        );
        assert!(matches!(Flag::default().check("a b"), Err(FlagError::Name(_))));
        let flag = Flag { rules: vec![Rule::default(); RULES_MAX + 1], ..Flag::default() };
        assert!(matches!(flag.check("f"), Err(FlagError::TooLong { field: "rules", .. })));
    }

    proptest! {
        #[test]
        fn an_actor_keeps_the_feature_while_the_percentage_grows(name in "[a-z]{1,8}", low in 0..10_000_u16, more in 0..10_000_u16) {
            let high = (low + more).min(BASIS_POINTS);
            if share(low).evaluate("f", &actor(&name), NOW).on {
                prop_assert!(share(high).evaluate("f", &actor(&name), NOW).on);
            }
        }
    }
}
