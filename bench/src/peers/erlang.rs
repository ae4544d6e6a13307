//! Erlang: Debian's `erlang-base`, its plain `gen_server` and `pg`, modules compiled when needed.
//!
//! Configuration: the emulator's defaults (one scheduler per core, kernel poll, JIT where the
//! build has it), distribution over loopback TCP without TLS (its default; ours has TLS on) with
//! `TCP_NODELAY` (its default), a distribution buffer of 128 MB so that a sender is not suspended
//! after every megabyte (the size RabbitMQ ships with), and an `epmd` of our own on a free port so
//! that no other Erlang on the machine is touched. Busy-waiting of the schedulers (`+sbwt`) made no
//! difference beyond noise in any row and stays at its default. Measured loops run in processes of their own, compiled, not in the shell.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::failure::Failure;
use crate::machine::{ERL, ERLC};
use crate::rig::{Daemon, Process, Rig};
use crate::workshop::{Workshop, free_port, wait_for_listener};

/// The peers' programs, kept as source.
const MODULES: &[(&str, &str)] = &[
    ("bench_puppet", include_str!("erlang/bench_puppet.erl")),
    ("bench_adder", include_str!("erlang/bench_adder.erl")),
    ("bench_calls", include_str!("erlang/bench_calls.erl")),
    ("bench_broadcast", include_str!("erlang/bench_broadcast.erl")),
    ("bench_global", include_str!("erlang/bench_global.erl")),
];

/// Compiled modules and a running `epmd`.
#[derive(Debug)]
pub(crate) struct Erlang {
    modules: PathBuf,
    epmd_port: u16,
    _epmd: Daemon,
}

impl Erlang {
    /// Compiles [`MODULES`] under `scratch` and starts `epmd`.
    pub(crate) fn prepare(scratch: &Path) -> Result<Self, Failure> {
        let modules = scratch.join("erlang");
        fs::create_dir_all(&modules)
            .map_err(Failure::os("making a directory for Erlang modules"))?;
        let mut compiler = Command::new(ERLC.find()?);
        compiler.current_dir(&modules).arg("+inline").arg("-o").arg(&modules);
        for (name, source) in MODULES {
            let file = modules.join(format!("{name}.erl"));
            fs::write(&file, source).map_err(Failure::os(format!("writing {name}.erl")))?;
            compiler.arg(file);
        }
        let output = compiler.output().map_err(Failure::os("running erlc"))?;
        if !output.status.success() {
            return Err(Failure::Process {
                who: "erlc".to_owned(),
                what: String::from_utf8_lossy(&output.stdout).into_owned(),
            });
        }
        let epmd_port = free_port()?;
        // In the foreground: a daemon of epmd's own making would outlive us.
        let mut epmd = Command::new(ERL.find()?.with_file_name("epmd"));
        epmd.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()]);
        let daemon = Daemon::start("epmd", epmd)?;
        wait_for_listener("epmd", SocketAddr::from(([127, 0, 0, 1], epmd_port)))?;
        Ok(Self { modules, epmd_port, _epmd: daemon })
    }

    /// Starts a node called `name` that runs `module:function(arguments)`.
    fn node(
        &self,
        name: &str,
        module: &str,
        function: &str,
        arguments: &[&str],
    ) -> Result<Process, Failure> {
        let mut command = Command::new(ERL.find()?);
        command
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_CRASH_DUMP_BYTES", "0")
            // A cookie file of the user's is neither read nor made.
            .env("HOME", &self.modules)
            .args(["-noshell", "-start_epmd", "false", "-setcookie", "purlin-bench"])
            .args(["-name", &format!("{name}@127.0.0.1")])
            .args(["-kernel", "inet_dist_use_interface", "{127,0,0,1}"])
            .args(["+zdbbl", "128000"])
            .arg("-pa")
            .arg(&self.modules)
            .args(["-run", module, function])
            .args(arguments);
        // Flags of the user's shell would make the figures somebody else's.
        for (key, _) in env::vars_os().filter(|(key, _)| key.to_string_lossy().ends_with("_FLAGS"))
        {
            command.env_remove(key);
        }
        Process::start(format!("Erlang node {name}"), command)
    }
}

/// Calls within one node.
pub(crate) fn local_call(workshop: &Workshop) -> Result<Rig, Failure> {
    Ok(Rig::alone(workshop.erlang()?.node("local_call", "bench_calls", "local_call", &[])?))
}

/// Casts within one node.
pub(crate) fn local_cast(workshop: &Workshop) -> Result<Rig, Failure> {
    Ok(Rig::alone(workshop.erlang()?.node("local_cast", "bench_calls", "local_cast", &[])?))
}

/// One process calls a `gen_server` on another node.
pub(crate) fn remote_call(workshop: &Workshop) -> Result<Rig, Failure> {
    remote(workshop, "remote_call", &["1"])
}

/// 64 processes call one `gen_server` on another node.
pub(crate) fn remote_call_64(workshop: &Workshop) -> Result<Rig, Failure> {
    remote(workshop, "remote_call", &["64"])
}

/// One process casts to a `gen_server` on another node.
pub(crate) fn remote_cast(workshop: &Workshop) -> Result<Rig, Failure> {
    remote(workshop, "remote_cast", &[])
}

fn remote(workshop: &Workshop, function: &str, arguments: &[&str]) -> Result<Rig, Failure> {
    let erlang = workshop.erlang()?;
    let tag = format!("{function}{}", arguments.concat());
    let server = erlang.node(&format!("{tag}_server"), "bench_calls", "serve", &[])?;
    let mut with_server = vec![server.ready.as_str()];
    with_server.extend(arguments);
    let client = erlang.node(&format!("{tag}_client"), "bench_calls", function, &with_server)?;
    Ok(Rig::alone(client).passive(server))
}

/// Names in `global` of three nodes, given by one caller on the first.
pub(crate) fn global_names(workshop: &Workshop) -> Result<Rig, Failure> {
    let erlang = workshop.erlang()?;
    let other = |number: u8| erlang.node(&format!("global_{number}"), "bench_global", "stay", &[]);
    let (second, third) = (other(2)?, other(3)?);
    let caller =
        erlang.node("global_1", "bench_global", "register", &[&second.ready, &third.ready])?;
    Ok(Rig::alone(caller).passive(second).passive(third))
}

/// How a message gets to the members of a `pg` group.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Broadcast {
    /// One message to each member, wherever it is: what `pg` itself offers.
    Members,
    /// One message to a relay on each node, which sends it to the members there: what
    /// Phoenix.PubSub does on top of `pg`.
    Relays,
}

/// A `pg` group with `members` on each of three nodes, and one sender on the first.
pub(crate) fn broadcast(
    workshop: &Workshop,
    how: Broadcast,
    members: u64,
    payload: usize,
) -> Result<Rig, Failure> {
    let erlang = workshop.erlang()?;
    let how = match how {
        Broadcast::Members => "members",
        Broadcast::Relays => "relays",
    };
    let (per_node, payload) = (members.to_string(), payload.to_string());
    let listener = |number: u8| {
        erlang.node(&format!("{how}_{number}"), "bench_broadcast", "listen", &[&per_node])
    };
    let (second, third) = (listener(2)?, listener(3)?);
    let arguments = [how, &per_node, &payload, &second.ready, &third.ready];
    let sender = erlang.node(&format!("{how}_1"), "bench_broadcast", "send", &arguments)?;
    Ok(Rig::default().receiver(second, members).receiver(third, members).driver(sender, members))
}
