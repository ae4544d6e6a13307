//! Names and groups of processes, on the command line.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration;

#[derive(Debug, Args)]
pub(crate) struct ScopeArgs {
    /// The scope
    #[arg(long, default_value = "default")]
    pub(crate) scope: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    /// List the names of processes in the cluster
    #[command(after_help = "\
Examples:
  purlin registry ls
  purlin registry ls cart/ --scope shop
  purlin registry ls --shared                    keys that several processes share
  purlin registry ls --local --node n2           names that only n2 knows")]
    Ls {
        /// Only names that start with this
        #[arg(default_value = "")]
        prefix: String,
        #[command(flatten)]
        scope: ScopeArgs,
        /// Processes under keys that several may share, instead of unique names
        #[arg(long)]
        shared: bool,
        /// Names and keys that only the node asked knows
        #[arg(long, conflicts_with_all = ["shared", "scope"])]
        local: bool,
    },
    /// Say which process has a name; exit code 1 if none has
    #[command(after_help = "Examples:\n  purlin registry whereis cart/42")]
    Whereis {
        /// The name
        name: String,
        #[command(flatten)]
        scope: ScopeArgs,
    },
    /// Print changes of names as they happen, with the reason of each
    #[command(
        after_help = "Examples:\n  purlin registry watch\n  purlin registry watch cart/ --count 1"
    )]
    Watch {
        /// Only names that start with this
        #[arg(default_value = "")]
        prefix: String,
        #[command(flatten)]
        scope: ScopeArgs,
        /// End after this many changes
        #[arg(long)]
        count: Option<u64>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupsCommand {
    /// List groups of processes, or the members of one
    #[command(after_help = "\
Examples:
  purlin groups ls
  purlin groups ls --prefix room/
  purlin groups ls room/7                        its members")]
    Ls {
        /// The group whose members to list
        group: Option<String>,
        /// Only groups that start with this
        #[arg(long, default_value = "", conflicts_with = "group")]
        prefix: String,
        #[command(flatten)]
        scope: ScopeArgs,
    },
    /// Print who joins and leaves groups as it happens, with the reason
    #[command(after_help = "Examples:\n  purlin groups watch room/")]
    Watch {
        /// Only groups that start with this
        #[arg(default_value = "")]
        prefix: String,
        #[command(flatten)]
        scope: ScopeArgs,
        /// End after this many changes
        #[arg(long)]
        count: Option<u64>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PresenceCommand {
    /// List topics in which somebody is present, or who is present in one
    #[command(after_help = "\
Examples:
  purlin presence ls
  purlin presence ls --prefix room/
  purlin presence ls room/7                      who is in it")]
    Ls {
        /// The topic whose presences to list
        topic: Option<String>,
        /// Only topics that start with this
        #[arg(long, default_value = "", conflicts_with = "topic")]
        prefix: String,
    },
    /// Be present in a topic until Ctrl-C
    #[command(after_help = "\
Examples:
  purlin presence track room/7 ada
  purlin presence track room/7 ada --meta device=phone --meta mood=good --session phone

Renews a lease while it runs. If it is killed, the presence ends when the lease is over.")]
    Track {
        /// The topic
        topic: String,
        /// Who is present
        key: String,
        /// Something to say about it, as name=value; may be given several times
        #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
        meta: Vec<(String, String)>,
        /// Tells apart several presences of one key
        #[arg(long, default_value = "")]
        session: String,
        /// How long it lasts when this command dies
        #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
        lease: Duration,
    },
    /// Print how many are in each topic, and on which nodes, as it changes
    #[command(
        after_help = "Examples:\n  purlin presence counts\n  purlin presence counts --prefix room/"
    )]
    Counts {
        /// Only topics that start with this
        #[arg(long, default_value = "")]
        prefix: String,
        /// End after it was told so many times
        #[arg(long)]
        count: Option<u64>,
    },
    /// Print who comes and goes in a topic, with the reason
    #[command(
        after_help = "Examples:\n  purlin presence watch room/7\n  purlin presence watch room/7 --count 1"
    )]
    Watch {
        /// The topic
        topic: String,
        /// End after this many changes
        #[arg(long)]
        count: Option<u64>,
    },
}

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it looks like name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}
