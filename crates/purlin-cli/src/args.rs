//! What can be said on the command line, with help that teaches by example.

mod names;
mod programs;
mod state;
mod supervisor;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use self::names::{GroupsCommand, PresenceCommand, RegistryCommand};
pub(crate) use self::programs::{LogsArgs, PsArgs, RunArgs, StopArgs};
pub(crate) use self::state::{
    CacheCommand, CounterCommand, EphemeralCommand, FlagCommand, MapCommand, RegisterCommand,
    SetCommand, Signature, StateCommand, SwitchCommand, TextCommand,
};
pub(crate) use self::supervisor::{SimulateSplitArgs, SupervisorCommand};

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 not done, 2 usage, 3 outcome unknown, 4 cannot reach a node.";

/// Ties processes on many machines together: clusters, calls, publish and subscribe.
#[derive(Debug, Parser)]
#[command(
    name = "purlin",
    version,
    arg_required_else_help = true,
    after_help = EXIT_CODES,
    after_long_help = "\
First steps:
  purlin up                          a local cluster of three nodes, with a console
  purlin members --watch             who is alive, as it changes        (another terminal)
  purlin sub 'feed/**'               print what is published
  seq 3 | purlin pub feed/numbers -  publish each line
  purlin drain n3                    let one node go in peace

Which node is asked: --node, else PURLIN_NODE, else the nodes of the last `purlin up`,
else http://127.0.0.1:4900. The token comes from --token-file, else PURLIN_TOKEN_FILE,
else from the last `purlin up`, for its own nodes only.

Exit codes: 0 done, 1 not done, 2 usage, 3 outcome unknown, 4 cannot reach a node."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Node to ask: a URL, host:port, or the name of a node of the last `purlin up`
    #[arg(
        long,
        global = true,
        env = "PURLIN_NODE",
        value_name = "URL",
        help_heading = "Global options"
    )]
    pub(crate) node: Option<String>,
    /// File whose first line is the bearer token
    #[arg(
        long,
        global = true,
        env = "PURLIN_TOKEN_FILE",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// Text for people or JSON for programs
    #[arg(long, global = true, value_enum, default_value_t = OutputForm::Text, help_heading = "Global options")]
    pub(crate) output: OutputForm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputForm {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a local cluster: one process per node, certificates included
    #[command(after_help = "\
Examples:
  purlin up                                      n1, n2, n3 on ports 4900.. and 7400..
  purlin up --nodes 5 --data /tmp/five           five nodes, files in /tmp/five
  purlin up --http-port 5900 --cluster-port 8400 --data /tmp/second
                                                 a second cluster beside the first

Each node has its own directory DIR/nI with purlin.toml, pid, log and data. A later `up` on the
same DIR resumes it. Ctrl-C drains all nodes; a second Ctrl-C stops them at once.
Bring a killed node back with `purlin node --data DIR/nI`.")]
    Up(UpArgs),
    /// Run one node in the foreground
    #[command(after_help = "\
Examples:
  purlin node --config /etc/purlin.toml
  purlin node --data ./n2                        reads ./n2/purlin.toml, keeps ./n2/data
  purlin node --config base.toml --name n7 --join 10.0.0.1:7400,10.0.0.2:7400
  PURLIN_LOG__LEVEL=debug purlin node --data ./n2

Flags win over PURLIN_SECTION__KEY variables, those over the file. Ctrl-C or SIGTERM drains and
leaves; a second one stops at once. `purlin config show` lists every key.")]
    Node(NodeArgs),
    /// Say in a few lines how the cluster is
    #[command(after_help = "\
Examples:
  purlin status
  purlin status --node http://10.0.0.1:4900 --output json")]
    Status,
    /// List the members with state, address, zone and round-trip time
    #[command(after_help = "\
Examples:
  purlin members
  purlin members --watch
  purlin members --output json | jq -r '.members[] | select(.state != \"alive\") | .name'")]
    Members(MembersArgs),
    /// Ask the contacted node to ping a member over the cluster
    #[command(after_help = "\
Examples:
  purlin ping n2
  purlin ping n3 --count 5 --node n1")]
    Ping(PingArgs),
    /// Let a node finish its work and leave
    #[command(after_help = "\
Examples:
  purlin drain n3
  purlin drain n3 --deadline 2m
  purlin drain --node http://127.0.0.1:4902      the node asked

Waits until the node has left. Needs the token.")]
    Drain(DrainArgs),
    /// Print what happened in the cluster
    #[command(after_help = "\
Examples:
  purlin events                                  what the node still remembers
  purlin events --follow
  purlin events --follow --output json")]
    Events(EventsArgs),
    /// Publish text, or each line of standard input
    #[command(after_help = "\
Examples:
  purlin pub feed 'hello'
  purlin pub feed - < lines.txt                  one message a line, in order
  tail -f app.log | purlin pub logs/app -

At most once: a message reaches the subscribers there are now. When a connection breaks while a
batch is under way the exit code is 3 and the count says how many are known to be published.")]
    Pub(PubArgs),
    /// Print what is published on matching topics
    #[command(after_help = "\
Examples:
  purlin sub feed
  purlin sub 'logs/*/error'                      * stands for one level
  purlin sub 'logs/**'                           ** for all below
  purlin sub feed --count 10 --json

Payloads go to standard output, one a line; notes about gaps go to standard error.")]
    Sub(SubArgs),
    /// Read, add to and delete counters that every side of a cut may write
    #[command(subcommand)]
    Counter(CounterCommand),
    /// Read and change sets that every side of a cut may write
    #[command(subcommand)]
    Set(SetCommand),
    /// Read and change maps that every side of a cut may write
    #[command(subcommand)]
    Map(MapCommand),
    /// Read and write single values that every side of a cut may write
    #[command(subcommand)]
    Register(RegisterCommand),
    /// Turn switches on and off that every side of a cut may turn
    #[command(subcommand)]
    Switch(SwitchCommand),
    /// Read and edit text that every side of a cut may edit
    #[command(subcommand)]
    Text(TextCommand),
    /// See what is kept of all this, how it changes, and how far copies are behind
    #[command(subcommand)]
    State(StateCommand),
    /// Read and write values that are everywhere, in memory, and may end by themselves
    #[command(subcommand)]
    Ephemeral(EphemeralCommand),
    /// Find processes by name, on whichever node they are
    #[command(subcommand)]
    Registry(RegistryCommand),
    /// See who is in which group of processes
    #[command(subcommand)]
    Groups(GroupsCommand),
    /// See who is present where, and be present
    #[command(subcommand)]
    Presence(PresenceCommand),
    /// See what becomes of children that any node can run
    #[command(subcommand)]
    Supervisor(SupervisorCommand),
    /// Keep a command running on some node of the cluster
    #[command(after_help = "\
Examples:
  purlin run web -- ./server --port 8080
  purlin run --singleton nightly -- ./job.sh     it finds the number of this start in PURLIN_FENCE
  purlin run once --restart never -- sh -c 'date; hostname'
  purlin run big --memory-max 512MiB --user nobody --env LEVEL=debug -- ./big

It is started again when it ends (--restart) and, on another node, when its node dies. A program that
fails at once again and again is left alone until it is run again. On both sides of a cut a copy runs;
after the heal the one that was started later stays. Whoever must not be written to by two gives each
write PURLIN_FENCE and refuses a smaller one than it has seen.
Variables: PURLIN_CHILD, PURLIN_FENCE, PURLIN_RESTARTS, PURLIN_NODE_NAME, PURLIN_NODE (its node's URL).
Needs the token, and nodes with exec.enabled; those of `purlin up` have it.")]
    Run(RunArgs),
    /// List the programs of the cluster with where they run
    #[command(after_help = "\
Examples:
  purlin ps
  purlin ps web
  purlin ps --output json | jq -r '.programs[] | select(.state != \"running\") | .name'")]
    Ps(PsArgs),
    /// Print what a program writes, from whichever node it runs on
    #[command(after_help = "\
Examples:
  purlin logs web
  purlin logs -f web                             goes on when it is started elsewhere
  purlin logs web --tail 20 --timestamps
  purlin logs web --on n1                        what n1 kept of it

What it wrote to standard error goes to standard error; so do lines about it, which begin with --.
Each node keeps the last 1 MiB per program in memory, and up to 16 MiB in DATA_DIR/exec/NAME.log.")]
    Logs(LogsArgs),
    /// Stop a program for good
    #[command(after_help = "\
Examples:
  purlin stop web

It gets its stop signal and, if it is still there after its grace, is killed with all it started.")]
    Stop(StopArgs),
    /// Keep values that may be forgotten at any time, and see what caches hold
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Decide who gets a feature, and see who decided what
    #[command(
        subcommand,
        after_help = "\
A feature from first try to everybody:
  purlin flag set new-cart '{\"rules\": [{\"groups\": [\"staff\"], \"then\": \"on\"}]}' --why 'staff first'
  purlin flag percent new-cart 10 --why 'first tenth'
  purlin flag eval new-cart --actor user-4711
  purlin flag kill new-cart --why 'it loses carts'
  purlin flag unkill new-cart --why 'fixed'
  purlin flag on new-cart --why 'launch day'
  purlin flag audit new-cart"
    )]
    Flag(FlagCommand),
    /// Look at and validate configuration without starting anything
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make and read the certificates nodes show each other
    #[command(
        subcommand,
        after_help = "\
A cluster from nothing, on one machine:
  purlin cert new-ca --out ca
  purlin cert gossip-key --out gossip.key
  purlin cert issue n1 --ca ca --out n1"
    )]
    Cert(CertCommand),
    /// Print a completion script
    #[command(after_help = "\
Examples:
  purlin completions bash > /etc/bash_completion.d/purlin
  purlin completions zsh  > ~/.zfunc/_purlin
  purlin completions fish > ~/.config/fish/completions/purlin.fish")]
    Completions {
        /// Shell to complete in
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// How many nodes: n1, n2, ...
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub(crate) nodes: u16,
    /// Directory of the cluster [default: the user's data directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// HTTP port of n1; n2 has the next, and so on
    #[arg(long, default_value_t = 4900, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) http_port: u16,
    /// Cluster port of n1 (TCP and UDP); n2 has the next, and so on
    #[arg(long, default_value_t = 7400, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) cluster_port: u16,
    /// Start a node again when it dies
    #[arg(long)]
    pub(crate) restart: bool,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Lines for people or objects for machines
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) log_format: Option<LogForm>,
    /// Level or filter, e.g. debug or info,purlin_net=debug
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogForm {
    Text,
    Json,
}

impl LogForm {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
    /// Drain when standard input ends: `purlin up` holds the other end
    #[arg(long, hide = true)]
    pub(crate) stop_with_stdin: bool,
}

/// Where a node's configuration comes from, shared by `node` and `config`.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file [default: DIR/purlin.toml of --data]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The node's directory: purlin.toml, pid and data are in it
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// node.name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// cluster.bind
    #[arg(long, value_name = "ADDR")]
    pub(crate) cluster_bind: Option<String>,
    /// cluster.seeds, separated by commas
    #[arg(long, value_name = "HOST:PORT,...")]
    pub(crate) join: Option<String>,
    /// http.bind
    #[arg(long, value_name = "ADDR")]
    pub(crate) http_bind: Option<String>,
    /// node.zone
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// node.region
    #[arg(long)]
    pub(crate) region: Option<String>,
    /// node.roles, separated by commas
    #[arg(long, value_name = "ROLE,...")]
    pub(crate) roles: Option<String>,
    /// Any other key
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = key_value)]
    pub(crate) set: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.trim().to_owned(), value.to_owned()))
        .ok_or_else(|| "expected SECTION.KEY=VALUE".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct MembersArgs {
    /// Keep showing, as it changes
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    /// Member to ping
    pub(crate) member: String,
    /// How often
    #[arg(long, default_value_t = 1)]
    pub(crate) count: u32,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Member to drain [default: the node given by --node]
    pub(crate) member: Option<String>,
    /// Longest wait for accepted work [default: the node's node.drain_deadline]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) deadline: Option<std::time::Duration>,
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    purlin::config::parse_duration(text)
        .ok_or_else(|| "expected a duration such as 250ms, 30s or 2m".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Keep printing as things happen
    #[arg(long, short)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PubArgs {
    /// Topic, e.g. feed or logs/app
    pub(crate) topic: String,
    /// The message; '-' or nothing publishes each line of standard input
    #[arg(allow_hyphen_values = true)]
    pub(crate) text: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SubArgs {
    /// Topic or pattern: 'logs/*/error', 'logs/**'
    pub(crate) pattern: String,
    /// Stop after this many messages
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// One JSON object a message, with topic and publisher; same as --output json
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Read everything a node would read and say what is wrong
    #[command(
        after_help = "Examples:\n  purlin config check --config purlin.toml\n  purlin config check --data ./n2"
    )]
    Check(ConfigArgs),
    /// Print every key with its value and who set it, as TOML
    #[command(
        after_help = "Examples:\n  purlin config show --data ./n2\n  purlin config show --name n1 --output json"
    )]
    Show(ConfigArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Make a new authority: ca.pem and ca.key
    NewCa {
        /// The cluster it is for
        #[arg(long, value_name = "NAME", default_value = "purlin")]
        cluster: String,
        /// Directory for the two files
        #[arg(long, value_name = "DIR", default_value = "ca")]
        out: PathBuf,
    },
    /// Issue a certificate for one node: node.pem and node.key
    Issue {
        /// The node's name
        name: String,
        /// Directory of the authority
        #[arg(long, value_name = "DIR", default_value = "ca")]
        ca: PathBuf,
        /// Directory for the two files [default: the node's name]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Make a gossip key
    GossipKey {
        /// File for the key
        #[arg(long, value_name = "FILE", default_value = "gossip.key")]
        out: PathBuf,
    },
    /// Print whom a certificate names and until when it is valid
    Show {
        /// PEM file
        file: PathBuf,
    },
}
