//! Patterns over topics, and the tree that finds every pattern matching a topic.
//!
//! Asking each of 10,000 patterns in turn would make one publish cost 10,000 comparisons. The tree
//! shares their prefixes: a publish walks one node per level and live wildcard instead. It is pure
//! and ordered, so the same insertions give the same walk.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use crate::topic::{Topic, TopicError, check_shape};

/// What a subscription listens to: a topic, or a topic with wildcards.
///
/// `*` stands for exactly one level; `**`, only as the last level, for any number of levels, none
/// included: `a/**` matches `a`, `a/b` and `a/b/c`; `**` matches everything. A wildcard fills its
/// whole level. The bounds of [`Topic`] apply.
///
/// ```
/// use purlin_pubsub::Pattern;
/// let pattern: Pattern = "orders/*/created".parse().unwrap();
/// assert!(pattern.matches("orders/eu/created"));
/// assert!(!pattern.matches("orders/eu/paid"));
/// ```
///
/// # Source
/// MQTT 5.0 §4.7 (`+` and `#`), with a shell's spelling.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// Checks `text` and makes it a pattern.
    ///
    /// # Errors
    /// A [`TopicError`] that names the value and the rule it breaks.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        check_shape(text)?;
        let last = text.split('/').count();
        for (at, level) in text.split('/').enumerate().map(|(i, level)| (i + 1, level)) {
            match level {
                "*" => {}
                "**" if at == last => {}
                "**" => return Err(TopicError::RestNotLast { pattern: text.into(), level: at }),
                mixed if mixed.contains('*') => {
                    return Err(TopicError::PartialWildcard { pattern: text.into(), level: at });
                }
                _ => {}
            }
        }
        Ok(Self(text.into()))
    }

    /// The pattern that matches every topic, `**`.
    #[must_use]
    pub fn everything() -> Self {
        Self("**".into())
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one topic this pattern matches, if it has no wildcard.
    #[must_use]
    pub fn as_topic(&self) -> Option<Topic> {
        (!self.0.contains('*')).then(|| Topic::from_checked(Arc::clone(&self.0)))
    }

    /// Whether `topic` matches. For one pattern; many are asked through [`PatternTree`].
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        let mut levels = topic.split('/');
        for want in self.0.split('/') {
            if want == "**" {
                return true;
            }
            match levels.next() {
                Some(level) if want == "*" || want == level => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }

    pub(crate) fn text(&self) -> &Arc<str> {
        &self.0
    }
}

impl From<Topic> for Pattern {
    fn from(topic: Topic) -> Self {
        Self(topic.as_str().into())
    }
}

impl FromStr for Pattern {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        Self::parse(text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({})", self.0)
    }
}

/// A map from patterns to values that finds all values whose pattern matches a topic.
///
/// A lookup visits at most one tree node per stored prefix that matches, and never more nodes than
/// the tree has. Depth is bounded by [`crate::TOPIC_LEVELS_MAX`], so the recursion is, too.
#[derive(Debug, Clone)]
pub struct PatternTree<V> {
    root: Node<V>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Node<V> {
    literal: BTreeMap<Box<str>, Self>,
    /// The subtree behind `*`.
    one: Option<Box<Self>>,
    /// Value of the pattern that ends here.
    here: Option<V>,
    /// Value of the pattern that ends here in `**`.
    rest: Option<V>,
}

impl<V> Default for PatternTree<V> {
    fn default() -> Self {
        Self { root: Node::default(), len: 0 }
    }
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Self { literal: BTreeMap::new(), one: None, here: None, rest: None }
    }
}

impl<V> PatternTree<V> {
    /// Stores `value` under `pattern` and returns the value it replaces.
    pub fn insert(&mut self, pattern: &Pattern, value: V) -> Option<V> {
        let old = self.root.slot_of(pattern.as_str()).replace(value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes the value of `pattern` out, with every node only it needed.
    pub fn remove(&mut self, pattern: &Pattern) -> Option<V> {
        let old = self.root.remove(Some(pattern.as_str()));
        self.len -= usize::from(old.is_some());
        old
    }

    /// The value stored under exactly `pattern`.
    #[must_use]
    pub fn get(&self, pattern: &Pattern) -> Option<&V> {
        let mut node = &self.root;
        for level in pattern.as_str().split('/') {
            node = match level {
                "**" => return node.rest.as_ref(),
                "*" => node.one.as_deref()?,
                literal => node.literal.get(literal)?,
            };
        }
        node.here.as_ref()
    }

    /// Calls `found` with the value of every pattern that matches `topic`, each once.
    pub fn for_each_match<'a>(&'a self, topic: &str, mut found: impl FnMut(&'a V)) {
        self.root.visit(Some(topic), &mut found);
    }

    /// Calls `found` with every value.
    pub fn for_each<'a>(&'a self, mut found: impl FnMut(&'a V)) {
        self.root.visit_all(&mut found);
    }

    /// Whether any pattern matches `topic`.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        self.root.any(Some(topic))
    }

    /// How many patterns are stored.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no pattern is stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The first level of `path` and what follows it.
fn split_first(path: &str) -> (&str, Option<&str>) {
    match path.split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path, None),
    }
}

impl<V> Node<V> {
    fn slot_of(&mut self, pattern: &str) -> &mut Option<V> {
        let mut node = self;
        for level in pattern.split('/') {
            node = match level {
                "**" => return &mut node.rest,
                "*" => node.one.get_or_insert_default(),
                literal => node.literal.entry(literal.into()).or_default(),
            };
        }
        &mut node.here
    }

    fn remove(&mut self, path: Option<&str>) -> Option<V> {
        let Some(path) = path else { return self.here.take() };
        match split_first(path) {
            ("**", _) => self.rest.take(),
            ("*", rest) => {
                let child = self.one.as_deref_mut()?;
                let old = child.remove(rest);
                if child.is_bare() {
                    self.one = None;
                }
                old
            }
            (literal, rest) => {
                let child = self.literal.get_mut(literal)?;
                let old = child.remove(rest);
                if child.is_bare() {
                    self.literal.remove(literal);
                }
                old
            }
        }
    }

    fn is_bare(&self) -> bool {
        self.literal.is_empty() && self.one.is_none() && self.here.is_none() && self.rest.is_none()
    }

    fn visit<'a>(&'a self, path: Option<&str>, found: &mut impl FnMut(&'a V)) {
        self.rest.iter().for_each(&mut *found);
        let Some(path) = path else {
            self.here.iter().for_each(found);
            return;
        };
        let (level, rest) = split_first(path);
        if let Some(child) = self.literal.get(level) {
            child.visit(rest, found);
        }
        if let Some(child) = &self.one {
            child.visit(rest, found);
        }
    }

    fn visit_all<'a>(&'a self, found: &mut impl FnMut(&'a V)) {
        self.here.iter().chain(&self.rest).for_each(&mut *found);
        self.literal.values().chain(self.one.as_deref()).for_each(|child| child.visit_all(found));
    }

    fn any(&self, path: Option<&str>) -> bool {
        if self.rest.is_some() {
            return true;
        }
        let Some(path) = path else { return self.here.is_some() };
        let (level, rest) = split_first(path);
        self.literal.get(level).is_some_and(|child| child.any(rest))
            || self.one.as_ref().is_some_and(|child| child.any(rest))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn a_star_is_one_level_and_two_stars_are_any_number() {
        let cases = [
            ("a/*/c", "a/b/c", true),
            ("a/*/c", "a/c", false),
            ("a/*/c", "a/b/b/c", false),
            ("a/**", "a", true),
            ("a/**", "a/b/c", true),
            ("a/**", "ab", false),
            ("**", "x/y", true),
            ("*", "x", true),
            ("*", "x/y", false),
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
        ];
        for (text, topic, expected) in cases {
            assert_eq!(pattern(text).matches(topic), expected, "{text} on {topic}");
        }
    }

    #[test]
    fn wildcards_fill_whole_levels_and_the_rest_comes_last() {
        assert_eq!(
            Pattern::parse("a/b*/c").unwrap_err().to_string(),
            "pattern \"a/b*/c\" mixes '*' with other characters in level 2: a wildcard fills a whole level"
        );
        assert_eq!(
            Pattern::parse("a/**/c").unwrap_err().to_string(),
            "pattern \"a/**/c\" has '**' in level 2: it may only be the last level"
        );
        assert!(Pattern::parse("a/***").is_err());
    }

    #[test]
    fn only_a_pattern_without_wildcards_is_a_topic() {
        assert_eq!(pattern("a/b").as_topic(), Some(Topic::parse("a/b").unwrap()));
        assert_eq!(pattern("a/*").as_topic(), None);
    }

    fn levels(wild: bool) -> impl Strategy<Value = Vec<&'static str>> {
        let names: &'static [&'static str] =
            if wild { &["a", "b", "c", "*", "*"] } else { &["a", "b", "c"] };
        proptest::collection::vec(proptest::sample::select(names), 1..6)
    }

    fn any_pattern() -> impl Strategy<Value = Pattern> {
        (levels(true), any::<bool>(), any::<bool>()).prop_map(|(mut levels, rest, only)| {
            if rest {
                levels.push("**");
            }
            if rest && only {
                levels = vec!["**"];
            }
            pattern(&levels.join("/"))
        })
    }

    /// The definition, written as slowly and plainly as possible.
    fn naive(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            ([], []) | (["**"], _) => true,
            (["*", pattern @ ..], [_, topic @ ..]) => naive(pattern, topic),
            ([want, pattern @ ..], [level, topic @ ..]) => want == level && naive(pattern, topic),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn one_pattern_matches_as_the_naive_matcher_says(pattern in any_pattern(), topic in levels(false)) {
            let split: Vec<&str> = pattern.as_str().split('/').collect();
            prop_assert_eq!(pattern.matches(&topic.join("/")), naive(&split, &topic));
        }

        #[test]
        fn the_tree_finds_what_asking_each_pattern_finds(
            steps in proptest::collection::vec((any::<bool>(), any_pattern()), 0..60),
            topics in proptest::collection::vec(levels(false), 1..10),
        ) {
            let mut tree = PatternTree::default();
            let mut model = BTreeSet::new();
            for (add, pattern) in steps {
                if add {
                    prop_assert_eq!(tree.insert(&pattern, pattern.clone()).is_none(), model.insert(pattern.clone()));
                } else {
                    prop_assert_eq!(tree.remove(&pattern).is_some(), model.remove(&pattern));
                }
                prop_assert_eq!(tree.get(&pattern).is_some(), model.contains(&pattern));
                prop_assert_eq!(tree.len(), model.len());
            }
            for topic in topics {
                let topic = topic.join("/");
                let mut found = Vec::new();
                tree.for_each_match(&topic, |p| found.push(p.clone()));
                found.sort();
                let expected: Vec<Pattern> = model.iter().filter(|p| p.matches(&topic)).cloned().collect();
                prop_assert_eq!(tree.matches(&topic), !expected.is_empty());
                prop_assert_eq!(found, expected);
            }
            let mut all = Vec::new();
            tree.for_each(|p| all.push(p.clone()));
            all.sort();
            prop_assert_eq!(&all, &model.iter().cloned().collect::<Vec<_>>());
            for pattern in model {
                tree.remove(&pattern);
            }
            prop_assert!(tree.root.is_bare(), "removal leaves no node behind");
        }
    }
}
