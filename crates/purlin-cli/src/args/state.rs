//! Commands about replicated state and flags.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration;

#[derive(Debug, Subcommand)]
pub(crate) enum CounterCommand {
    /// Print a counter's value; one that nobody added to is 0
    #[command(after_help = "Examples:\n  purlin counter get visits")]
    Get {
        /// The counter
        name: String,
    },
    /// Add to a counter, and print its value
    #[command(after_help = "\
Examples:
  purlin counter add visits
  purlin counter add stock/apples -- -3
  purlin counter add since-lunch 5 --type resettable_counter

Not repeatable blindly: when the exit code is 3, read the counter before adding again.")]
    Add {
        /// The counter
        name: String,
        /// What to add; may be negative, except for a grow_counter
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        by: i64,
        /// What a new one is to be; grow_counter only grows [default: what it is, else counter]
        #[arg(long = "type", value_name = "TYPE", value_parser = ["counter", "grow_counter", "resettable_counter"])]
        kind: Option<String>,
    },
    /// Set a resettable_counter back to zero; what others add meanwhile counts
    #[command(after_help = "Examples:\n  purlin counter reset since-lunch")]
    Reset {
        /// The counter
        name: String,
    },
    /// Remove what was added, as far as the node asked has seen it
    #[command(after_help = "Examples:\n  purlin counter delete visits")]
    Delete {
        /// The counter
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SetCommand {
    /// Print the elements, one a line, in order
    #[command(after_help = "Examples:\n  purlin set ls tags\n  purlin set ls tags --output json")]
    Ls {
        /// The set
        name: String,
    },
    /// Add elements
    #[command(after_help = "\
Examples:
  purlin set add tags red 'deep blue'
  purlin set add banned mallory --type remove_wins_set

When one side of a cut adds what another removes, the add wins; in a remove_wins_set the removal.
Nothing is ever removed from a grow_set.")]
    Add {
        /// The set
        name: String,
        /// What to add
        #[arg(required = true)]
        elements: Vec<String>,
        /// What a new one is to be [default: what it is, else set]
        #[arg(long = "type", value_name = "TYPE", value_parser = ["set", "grow_set", "remove_wins_set"])]
        kind: Option<String>,
    },
    /// Remove elements
    #[command(after_help = "Examples:\n  purlin set remove tags red")]
    Remove {
        /// The set
        name: String,
        /// What to remove
        #[arg(required = true)]
        elements: Vec<String>,
    },
    /// Say whether an element is in the set: exit code 0 if it is, 1 if not
    #[command(after_help = "Examples:\n  purlin set has tags red && echo yes")]
    Has {
        /// The set
        name: String,
        /// The element
        element: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MapCommand {
    /// Print the entries: key, value, who wrote it
    #[command(after_help = "Examples:\n  purlin map ls cart\n  purlin map ls cart --output json")]
    Ls {
        /// The map
        name: String,
    },
    /// Print the value of a key, byte for byte
    #[command(after_help = "Examples:\n  purlin map get cart apples")]
    Get {
        /// The map
        name: String,
        /// The key
        key: String,
    },
    /// Write the value of a key
    #[command(after_help = "\
Examples:
  purlin map put cart apples '3 kg'
  purlin map put files logo.png - < logo.png
  purlin map put shop eu/de/vat 19 --type nested_map

In a nested_map slashes divide the keys of maps in maps; `map delete shop eu` removes a whole map.")]
    Put {
        /// The map
        name: String,
        /// The key
        key: String,
        /// The value; '-' or nothing takes standard input, byte for byte
        #[arg(allow_hyphen_values = true)]
        value: Option<String>,
        /// What a new one is to be [default: what it is, else map]
        #[arg(long = "type", value_name = "TYPE", value_parser = ["map", "nested_map"])]
        kind: Option<String>,
    },
    /// Remove a key, or the whole map as far as the node asked has seen it
    #[command(after_help = "Examples:\n  purlin map delete cart apples\n  purlin map delete cart")]
    Delete {
        /// The map
        name: String,
        /// The key [default: all of them]
        key: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegisterCommand {
    /// Print the value, byte for byte
    #[command(
        after_help = "Examples:\n  purlin register get motd\n  purlin register get owner --multi"
    )]
    Get {
        /// The register
        name: String,
        /// It keeps concurrent values: print all of them, one a line
        #[arg(long)]
        multi: bool,
    },
    /// Write the value
    #[command(after_help = "\
Examples:
  purlin register put motd 'back at noon'
  purlin register put owner ada --multi

Of two writes at the same time the later by hybrid time holds; with --multi both stay until
somebody who saw both writes again.")]
    Put {
        /// The register
        name: String,
        /// The value; '-' or nothing takes standard input, byte for byte
        #[arg(allow_hyphen_values = true)]
        value: Option<String>,
        /// Keep concurrent values
        #[arg(long)]
        multi: bool,
    },
    /// Remove the value, as far as the node asked has seen it
    #[command(after_help = "Examples:\n  purlin register delete motd")]
    Delete {
        /// The register
        name: String,
        /// It keeps concurrent values
        #[arg(long)]
        multi: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SwitchCommand {
    /// Print `on` or `off`; one that nobody touched is off
    #[command(after_help = "Examples:\n  purlin switch get alarm")]
    Get {
        /// The switch
        name: String,
    },
    /// Turn it on
    #[command(after_help = "\
Examples:
  purlin switch on alarm
  purlin switch on line --type disable_wins

When one side of a cut turns it on and another off, on wins; in one of type disable_wins off.")]
    On {
        /// The switch
        name: String,
        /// What a new one is to be [default: what it is, else enable_wins]
        #[arg(long = "type", value_name = "TYPE", value_parser = ["enable_wins", "disable_wins"])]
        kind: Option<String>,
    },
    /// Turn it off
    #[command(after_help = "Examples:\n  purlin switch off alarm")]
    Off {
        /// The switch
        name: String,
        /// What a new one is to be [default: what it is, else enable_wins]
        #[arg(long = "type", value_name = "TYPE", value_parser = ["enable_wins", "disable_wins"])]
        kind: Option<String>,
    },
    /// Remove it, as far as the node asked has seen it
    #[command(after_help = "Examples:\n  purlin switch delete alarm")]
    Delete {
        /// The switch
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TextCommand {
    /// Print a text
    #[command(after_help = "Examples:\n  purlin text get notes > notes.txt")]
    Get {
        /// The text
        name: String,
    },
    /// Make it read as given; what stays the same stays untouched, with what others write there
    #[command(after_help = "\
Examples:
  purlin text put notes 'milk, eggs'
  purlin text put notes - < notes.txt")]
    Put {
        /// The text
        name: String,
        /// What it shall read; '-' or nothing takes standard input
        #[arg(allow_hyphen_values = true)]
        text: Option<String>,
    },
    /// Insert at a place, or at the end; prints how many characters it has then
    #[command(after_help = "\
Examples:
  purlin text insert notes ', bread'
  purlin text insert notes 'Milk' --at 0 --delete 4

Characters count from 0 in the text as the node asked has it.")]
    Insert {
        /// The text
        name: String,
        /// What to insert; '-' takes standard input
        #[arg(allow_hyphen_values = true)]
        text: String,
        /// Before which character [default: at the end]
        #[arg(long)]
        at: Option<u64>,
        /// How many characters from there on to take out
        #[arg(long, default_value_t = 0, requires = "at")]
        delete: u64,
    },
    /// Remove it, as far as the node asked has seen it
    #[command(after_help = "Examples:\n  purlin text delete notes")]
    Delete {
        /// The text
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// List names with kind, size, and who wrote last
    #[command(after_help = "Examples:\n  purlin state ls\n  purlin state ls shop/")]
    Ls {
        /// Only names that begin with this
        #[arg(default_value = "")]
        prefix: String,
        /// Which copies
        #[arg(long, value_parser = ["crdt", "ephemeral"], default_value = "crdt")]
        set: String,
    },
    /// Print changes as they happen: what, how, and told by whom
    #[command(after_help = "\
Examples:
  purlin state watch shop/
  purlin state watch --output json")]
    Watch {
        /// Only names that begin with this
        #[arg(default_value = "")]
        prefix: String,
        /// Which copies
        #[arg(long, value_parser = ["crdt", "ephemeral"], default_value = "crdt")]
        set: String,
        /// Stop after this many changes
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
    /// Show how far the other nodes' copies are behind
    #[command(after_help = "Examples:\n  purlin state lag")]
    Lag,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Print a value, byte for byte
    #[command(after_help = "Examples:\n  purlin cache get cart user/42")]
    Get {
        /// The cache
        cache: String,
        /// The key
        key: String,
    },
    /// Write a value; opens the cache with its default bounds if need be
    #[command(after_help = "\
Examples:
  purlin cache put cart user/42 'three apples' --ttl 10m
  purlin cache put prices eur - --kind replicated < prices.json
  purlin cache put cart user/42 pears --if-absent")]
    Put {
        /// The cache
        cache: String,
        /// The key
        key: String,
        /// The value; '-' or nothing takes standard input, byte for byte
        #[arg(allow_hyphen_values = true)]
        value: Option<String>,
        /// How long it counts [default: as the cache says]
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Option<Duration>,
        /// What to open the cache as [default: partitioned]
        #[arg(long, value_parser = ["local", "near", "partitioned", "replicated"])]
        kind: Option<String>,
        /// Only if there is no value
        #[arg(long, conflicts_with = "if_present")]
        if_absent: bool,
        /// Only if there is a value
        #[arg(long)]
        if_present: bool,
    },
    /// Add to a number, nothing there being 0, and print the sum
    #[command(after_help = "\
Examples:
  purlin cache incr hits page/home
  purlin cache incr limits ada -5 --ttl 1m")]
    Incr {
        /// The cache
        cache: String,
        /// The key
        key: String,
        /// What to add
        #[arg(default_value_t = 1, allow_hyphen_values = true)]
        by: i64,
        /// How long a number that begins counts [default: as the cache says]
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Option<Duration>,
    },
    /// Remove a value and print it
    #[command(after_help = "Examples:\n  purlin cache take vouchers ada")]
    Take {
        /// The cache
        cache: String,
        /// The key
        key: String,
    },
    /// Let a value count for so long from now
    #[command(after_help = "Examples:\n  purlin cache touch cart user/42 --ttl 10m")]
    Touch {
        /// The cache
        cache: String,
        /// The key
        key: String,
        /// How long it counts [default: as the cache says]
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Option<Duration>,
    },
    /// Remove everything of a cache, on all nodes
    #[command(after_help = "Examples:\n  purlin cache clear cart")]
    Clear {
        /// The cache
        cache: String,
    },
    /// Remove a value
    #[command(after_help = "Examples:\n  purlin cache delete cart user/42")]
    Delete {
        /// The cache
        cache: String,
        /// The key
        key: String,
    },
    /// Show what the caches of a node hold and did
    #[command(
        after_help = "Examples:\n  purlin cache stats\n  purlin cache stats cart\n  purlin cache stats --everywhere"
    )]
    Stats {
        /// One cache [default: all]
        #[arg(conflicts_with = "everywhere")]
        cache: Option<String>,
        /// Those of every member
        #[arg(long)]
        everywhere: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EphemeralCommand {
    /// Print a value, byte for byte
    #[command(after_help = "Examples:\n  purlin ephemeral get session/7")]
    Get {
        /// The key
        key: String,
    },
    /// Write a value that may end by itself; prints its version
    #[command(after_help = "\
Examples:
  purlin ephemeral put session/7 ada --ttl 30s
  purlin ephemeral put leader n1 --if-absent --ttl 10s
  v=$(purlin ephemeral put leader n1) && purlin ephemeral put leader n2 --if-version $v

Conditions are checked against what the node asked has seen; two sides of a partition may both
succeed, and the later write holds.")]
    Put {
        /// The key
        key: String,
        /// The value; '-' or nothing takes standard input, byte for byte
        #[arg(allow_hyphen_values = true)]
        value: Option<String>,
        /// How long it counts [default: until deleted]
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Option<Duration>,
        /// Only if this is the version there
        #[arg(long, value_name = "VERSION", conflicts_with = "if_absent")]
        if_version: Option<String>,
        /// Only if there is no value
        #[arg(long)]
        if_absent: bool,
    },
    /// Remove a value
    #[command(after_help = "Examples:\n  purlin ephemeral delete session/7")]
    Delete {
        /// The key
        key: String,
        /// Only if this is the version there
        #[arg(long, value_name = "VERSION")]
        if_version: Option<String>,
    },
    /// List keys with values, writers and how long they still count
    #[command(after_help = "Examples:\n  purlin ephemeral ls session/")]
    Ls {
        /// Only keys that begin with this
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Print changes as they happen
    #[command(after_help = "\
Examples:
  purlin ephemeral watch session/
  purlin ephemeral watch --output json")]
    Watch {
        /// Only keys that begin with this
        #[arg(default_value = "")]
        prefix: String,
        /// Stop after this many changes
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
}

/// Who changes a flag, and why: kept in its history.
#[derive(Debug, Args)]
pub(crate) struct Signature {
    /// Who changes it
    #[arg(long, env = "USER", hide_env_values = true, default_value = "anonymous")]
    pub(crate) who: String,
    /// Why, for those who ask later
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) why: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FlagCommand {
    /// List flags with how they stand and who changed them last
    #[command(after_help = "Examples:\n  purlin flag ls\n  purlin flag ls shop/")]
    Ls {
        /// Only names that begin with this
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Print a flag's definition as JSON, ready for `flag set`
    #[command(after_help = "Examples:\n  purlin flag get shop/new-cart > new-cart.json")]
    Get {
        /// The flag
        name: String,
    },
    /// Give a flag a whole definition
    #[command(after_help = "\
Examples:
  purlin flag set shop/new-cart '{\"otherwise\": {\"basis_points\": 2500}}' --why 'first quarter'
  purlin flag set shop/new-cart - --why 'staff first' < new-cart.json
  purlin flag set beta '{\"rules\": [{\"groups\": [\"staff\"], \"then\": \"on\"}], \"otherwise\": \"off\"}'

Rules are read from the top and the first that matches decides; `otherwise` holds when none does.
The kill switch stays as it is unless the definition says `killed`.")]
    Set {
        /// The flag
        name: String,
        /// The definition as JSON; '-' takes standard input
        definition: String,
        #[command(flatten)]
        signature: Signature,
    },
    /// Turn it on for everybody no rule decides for; makes the flag if there is none
    #[command(after_help = "Examples:\n  purlin flag on shop/new-cart --why 'launch day'")]
    On {
        /// The flag
        name: String,
        #[command(flatten)]
        signature: Signature,
    },
    /// Turn it off for everybody no rule decides for; makes the flag if there is none
    #[command(after_help = "Examples:\n  purlin flag off shop/new-cart --why 'not yet'")]
    Off {
        /// The flag
        name: String,
        #[command(flatten)]
        signature: Signature,
    },
    /// Turn it on for a share of the actors, always the same ones
    #[command(after_help = "\
Examples:
  purlin flag percent shop/new-cart 10 --why 'first tenth'
  purlin flag percent shop/new-cart 0.5

Whoever had it at 10 % has it at 20 % too: growing a share takes it from nobody.")]
    Percent {
        /// The flag
        name: String,
        /// 0 to 100, down to hundredths
        #[arg(value_parser = basis_points)]
        percent: u16,
        #[command(flatten)]
        signature: Signature,
    },
    /// Turn it off for everybody at once, whatever its rules say
    #[command(after_help = "Examples:\n  purlin flag kill shop/new-cart --why 'it loses carts'")]
    Kill {
        /// The flag
        name: String,
        #[command(flatten)]
        signature: Signature,
    },
    /// Take the kill switch off: its definition counts again
    #[command(after_help = "Examples:\n  purlin flag unkill shop/new-cart --why 'fixed in 1.4.2'")]
    Unkill {
        /// The flag
        name: String,
        #[command(flatten)]
        signature: Signature,
    },
    /// Ask whether it is on for somebody, and why
    #[command(after_help = "\
Examples:
  purlin flag eval shop/new-cart --actor user-4711
  purlin flag eval shop/new-cart --actor ada --group staff --attribute country=de

Prints `on` or `off` and the reason; an unknown flag is off. The exit code is 0 either way.")]
    Eval {
        /// The flag
        name: String,
        /// Who asks, such as a user's id; without one, shares are off
        #[arg(long)]
        actor: Option<String>,
        /// A group the actor is in; may be given several times
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
        /// Something known of the actor; may be given several times
        #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = super::key_value)]
        attributes: Vec<(String, String)>,
    },
    /// Print who changed it, when and why, the newest first
    #[command(after_help = "Examples:\n  purlin flag audit shop/new-cart")]
    Audit {
        /// The flag
        name: String,
    },
    /// Remove it: off for everybody; its history stays
    #[command(
        after_help = "Examples:\n  purlin flag delete shop/new-cart --why 'launched for good'"
    )]
    Delete {
        /// The flag
        name: String,
        #[command(flatten)]
        signature: Signature,
    },
}

/// `12.5` as 1250, without a detour over doubles.
fn basis_points(text: &str) -> Result<u16, String> {
    let bad = || format!("{text:?} is not a number from 0 to 100 with at most two decimals");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 2 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let whole: u16 = whole.parse().map_err(|_not_a_number| bad())?;
    let part: u16 = format!("{part:0<2}").parse().map_err(|_not_a_number| bad())?;
    let points = whole.checked_mul(100).and_then(|points| points.checked_add(part));
    points.filter(|points| *points <= 10_000).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_percentage_has_two_decimals_and_ends_at_everybody() {
        for (text, points) in
            [("0", 0), ("10", 1000), ("0.5", 50), ("33.33", 3333), ("100", 10_000)]
        {
            assert_eq!(super::basis_points(text), Ok(points), "{text}");
        }
        for text in ["100.01", "-1", "", "1.234", "1.x", "700", "1e2"] {
            assert!(super::basis_points(text).is_err(), "{text}");
        }
    }
}
