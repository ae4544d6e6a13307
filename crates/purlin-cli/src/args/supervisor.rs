//! Supervisors whose children may run on any node, on the command line.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum SupervisorCommand {
    /// List supervisors, or the children of one: where each runs, and why there
    #[command(after_help = "\
Examples:
  purlin supervisor ls
  purlin supervisor ls rooms
  purlin supervisor ls rooms --prefix chess/ --output json")]
    Ls {
        /// The supervisor whose children to list
        name: Option<String>,
        /// Only children whose id starts with this
        #[arg(long, default_value = "", requires = "name")]
        prefix: String,
    },
    /// Show what would move to level the load and to satisfy all wishes; nothing is moved
    #[command(after_help = "Examples:\n  purlin supervisor plan rooms")]
    Plan {
        /// The supervisor
        name: String,
        /// Show at most so many moves
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
    },
    /// Level the load now, at the configured rate
    #[command(after_help = "Examples:\n  purlin supervisor rebalance rooms\n\nNeeds the token.")]
    Rebalance {
        /// The supervisor
        name: String,
    },
    /// Have moves that level the load wait, on all nodes; failover and drains go on
    #[command(after_help = "Examples:\n  purlin supervisor pause rooms\n\nNeeds the token.")]
    Pause {
        /// The supervisor
        name: String,
    },
    /// Take a pause back
    #[command(after_help = "Examples:\n  purlin supervisor resume rooms\n\nNeeds the token.")]
    Resume {
        /// The supervisor
        name: String,
    },
    /// Print what happens to children as it happens: starts, moves, copies that lose, and why
    #[command(
        after_help = "Examples:\n  purlin supervisor events rooms\n  purlin supervisor events rooms --recent 20 --count 20"
    )]
    Events {
        /// The supervisor
        name: String,
        /// Begin with so many that are remembered
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=10_000))]
        recent: u64,
        /// End after so many
        #[arg(long)]
        count: Option<u64>,
    },
    /// Show which side of a cut would go on under each policy, before anybody depends on one
    #[command(after_help = "\
Examples:
  purlin supervisor simulate-split --cut n3/*           the members there are now, n3 cut off
  purlin supervisor simulate-split --cut n1,n2/n3..n5 --members n1..n5
                                                        no cluster needed; the oldest first
  purlin supervisor simulate-split --crash n4,n5 --members n1..n5 --policy keep-majority
  purlin supervisor simulate-split --broken n1~n2 --members n1..n3
                                                        two that only meet through the third

Nothing is cut: this only computes. A * stands for all members not named elsewhere. Policies:
  none                    every side goes on
  keep-majority           more than half of the voters; of two halves the one with the least name
  static-quorum=SIZE      at least SIZE voters
  keep-oldest             the side of the oldest, unless that one is alone
  keep-oldest-even-alone  the side of the oldest
  down-all                nobody
  lease                   the side that gets a lease")]
    SimulateSplit(SimulateSplitArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SimulateSplitArgs {
    /// Sides that do not reach each other: members separated by commas, sides by slashes
    #[arg(long, value_name = "A,B/C", help_heading = "What breaks")]
    pub(crate) cut: Option<String>,
    /// Pairs that do not reach each other directly: A~B, separated by commas
    #[arg(long, value_name = "A~B,...", help_heading = "What breaks")]
    pub(crate) broken: Option<String>,
    /// Members that die, separated by commas
    #[arg(long, value_name = "A,...", help_heading = "What breaks")]
    pub(crate) crash: Option<String>,
    /// Members of an imagined cluster, the oldest first, such as n1..n5 [default: those of the
    /// node asked]
    #[arg(long, value_name = "A,...")]
    pub(crate) members: Option<String>,
    /// Who counts, seen or not [default: all members]
    #[arg(long, value_name = "A,...", conflicts_with = "role")]
    pub(crate) voters: Option<String>,
    /// Only members with this role count
    #[arg(long, conflicts_with = "members")]
    pub(crate) role: Option<String>,
    /// Policy, or all of them; may be given several times
    #[arg(long, value_name = "POLICY", default_value = "all")]
    pub(crate) policy: Vec<String>,
}
