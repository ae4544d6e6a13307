//! The `purlin` binary: the library's node ready-made, and commands that ask running nodes.

mod args;
mod cache;
mod catalogue;
mod cert;
mod client;
mod config;
mod drain;
mod ephemeral;
mod events;
mod exit;
mod files;
mod flag;
mod listing;
mod logging;
mod members;
mod names;
mod node;
mod output;
mod ping;
mod presence;
mod programs;
mod publish;
mod replicated;
mod signals;
mod sse;
mod state;
mod subscribe;
mod supervisor;
mod up;
mod watching;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use self::{
    args::{Cli, Command},
    client::Client,
    exit::{Done, Failure},
    output::Output,
};

fn main() -> ExitCode {
    // Before anything else: a program that a node runs is guarded by this one, started again.
    if let Some(code) = purlin::dist::exec::guarded() {
        return code;
    }
    let cli = Cli::parse();
    let mut output = Output::new(cli.global.output);
    let done = run(&cli, &mut output).and_then(|()| output.flush());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Whatever was found out before the failure still counts.
            drop(output.flush());
            if let Some(text) = failure.text() {
                output.failure(text);
            }
            failure.code()
        }
    }
}

fn run(cli: &Cli, output: &mut Output) -> Done {
    match &cli.command {
        Command::Node(args) => node::run(args, output),
        Command::Config(command) => config::run(command, output),
        Command::Cert(command) => cert::run(command, output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "purlin", &mut script);
            output.bytes_line(&script)
        }
        Command::Up(args) => on_runtime(up::up(args, output)),
        Command::Status => on_runtime(members::status(&Client::new(&cli.global)?, output)),
        Command::Members(args) => {
            on_runtime(members::members(&Client::new(&cli.global)?, args, output))
        }
        Command::Ping(args) => on_runtime(ping::ping(&Client::new(&cli.global)?, args, output)),
        Command::Drain(args) => on_runtime(drain::drain(&Client::new(&cli.global)?, args, output)),
        Command::Events(args) => {
            on_runtime(events::events(&Client::new(&cli.global)?, args, output))
        }
        Command::Pub(args) => {
            on_runtime(publish::publish(&Client::new(&cli.global)?, args, output))
        }
        Command::Counter(command) => {
            on_runtime(replicated::counter(&Client::new(&cli.global)?, command, output))
        }
        Command::Set(command) => {
            on_runtime(replicated::set(&Client::new(&cli.global)?, command, output))
        }
        Command::Map(command) => {
            on_runtime(replicated::map(&Client::new(&cli.global)?, command, output))
        }
        Command::Register(command) => {
            on_runtime(replicated::register(&Client::new(&cli.global)?, command, output))
        }
        Command::Switch(command) => {
            on_runtime(replicated::switch(&Client::new(&cli.global)?, command, output))
        }
        Command::Text(command) => {
            on_runtime(replicated::text(&Client::new(&cli.global)?, command, output))
        }
        Command::State(command) => {
            on_runtime(catalogue::catalogue(&Client::new(&cli.global)?, command, output))
        }
        Command::Ephemeral(command) => {
            on_runtime(ephemeral::ephemeral(&Client::new(&cli.global)?, command, output))
        }
        Command::Cache(command) => {
            on_runtime(cache::cache(&Client::new(&cli.global)?, command, output))
        }
        Command::Registry(command) => {
            on_runtime(names::registry(&Client::new(&cli.global)?, command, output))
        }
        Command::Groups(command) => {
            on_runtime(names::groups(&Client::new(&cli.global)?, command, output))
        }
        Command::Presence(command) => {
            on_runtime(presence::presence(&Client::new(&cli.global)?, command, output))
        }
        Command::Supervisor(command) => {
            on_runtime(supervisor::supervisor(&cli.global, command, output))
        }
        Command::Run(args) => on_runtime(programs::run(&Client::new(&cli.global)?, args, output)),
        Command::Ps(args) => on_runtime(programs::ps(&Client::new(&cli.global)?, args, output)),
        Command::Logs(args) => on_runtime(programs::logs(&Client::new(&cli.global)?, args, output)),
        Command::Stop(args) => on_runtime(programs::stop(&Client::new(&cli.global)?, args, output)),
        Command::Flag(command) => {
            on_runtime(flag::flag(&Client::new(&cli.global)?, command, output))
        }
        Command::Sub(args) => {
            on_runtime(subscribe::subscribe(&Client::new(&cli.global)?, args, output))
        }
    }
}

/// Commands wait for one thing at a time; a node has its own, larger runtime.
fn on_runtime(work: impl Future<Output = Done>) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::NotDone(format!("cannot start: {error}")))?;
    let done = runtime.block_on(work);
    // A thread may be blocked reading a terminal; it must not keep the process alive.
    runtime.shutdown_background();
    done
}
