//! Which ports the nodes get, and whether they are free.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

use super::Planned;
use crate::{
    args::UpArgs,
    exit::{Done, Failure},
    state,
};

/// Gives each node its ports.
pub(super) fn plan(args: &UpArgs) -> Result<Vec<Planned>, Failure> {
    let last = args.nodes - 1;
    for (flag, first) in [("--http-port", args.http_port), ("--cluster-port", args.cluster_port)] {
        if first.checked_add(last).is_none() {
            return Err(Failure::Usage(format!(
                "{flag} {first} leaves no room for {} nodes below port 65536",
                args.nodes
            )));
        }
    }
    if args.http_port.abs_diff(args.cluster_port) <= last {
        return Err(Failure::Usage(format!(
            "--http-port {} and --cluster-port {} overlap for {} nodes",
            args.http_port, args.cluster_port, args.nodes
        )));
    }
    Ok((0..args.nodes)
        .map(|index| Planned {
            name: format!("n{}", index + 1),
            http_port: args.http_port + index,
            cluster_port: args.cluster_port + index,
        })
        .collect())
}

/// Tries every port before any process is started, so that a taken one is told by its flag.
pub(super) fn probe(plan: &[Planned]) -> Done {
    for (index, node) in plan.iter().enumerate() {
        let here = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let tcp = |port| TcpListener::bind(here(port)).map(drop);
        let udp = |port| UdpSocket::bind(here(port)).map(drop);
        let checks = [
            ("TCP", "--http-port", node.http_port, tcp(node.http_port)),
            ("TCP", "--cluster-port", node.cluster_port, tcp(node.cluster_port)),
            ("UDP", "--cluster-port", node.cluster_port, udp(node.cluster_port)),
        ];
        for (protocol, flag, port, result) in checks {
            match result {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    return Err(Failure::NotDone(taken(protocol, port, &node.name, flag, index)));
                }
                Err(error) => {
                    return Err(Failure::NotDone(format!(
                        "cannot use {protocol} port {port} of {}, chosen by {flag}: {error}",
                        node.name
                    )));
                }
            }
        }
    }
    Ok(())
}

fn taken(protocol: &str, port: u16, name: &str, flag: &str, index: usize) -> String {
    let holder =
        holder(port).map(|(pid, program)| format!(" by {program} (pid {pid})")).unwrap_or_default();
    let another = state::clusters()
        .into_iter()
        .find(|cluster| cluster.nodes.iter().any(|node| node.url.ends_with(&format!(":{port}"))))
        .map(|cluster| {
            format!(
                ", part of the cluster in {} that `purlin up` (pid {}) runs",
                cluster.dir.display(),
                cluster.pid
            )
        })
        .unwrap_or_default();
    let next = if index == 0 { String::new() } else { format!(" (its first port plus {index})") };
    let other_dir = if another.is_empty() { "" } else { ", and another directory with --data" };
    format!(
        "{protocol} port {port}, wanted for {name}, is taken{holder}{another}: choose another with {flag}{next}{other_dir}"
    )
}

/// The process that listens on `port`, as far as this user may see.
fn holder(port: u16) -> Option<(u32, String)> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp", "/proc/net/udp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .find_map(|table| inode_of(&table, port).map(str::to_owned))?;
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        if files.flatten().any(|file| {
            fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
        }) {
            let program = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((pid, program.trim().to_owned()));
        }
    }
    None
}

/// Finds the socket bound to `port` in a table of `/proc/net` that is listening (TCP state 0A) or
/// unconnected (UDP, 07).
fn inode_of(table: &str, port: u16) -> Option<&str> {
    let wanted = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        (local.ends_with(&wanted) && matches!(*state, "0A" | "07")).then_some(*inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &[&str]) -> UpArgs {
        let line: Vec<&str> = ["purlin", "up"].iter().chain(line).copied().collect();
        match <Cli as clap::Parser>::try_parse_from(line).unwrap().command {
            Command::Up(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_node_has_the_next_ports() {
        let plan = plan(&args(&["--nodes", "2", "--http-port", "5000"])).unwrap();
        assert_eq!(plan[1], Planned { name: "n2".into(), http_port: 5001, cluster_port: 7401 });
    }

    #[test]
    fn ranges_that_meet_or_end_are_refused() {
        assert!(matches!(plan(&args(&["--http-port", "7399"])), Err(Failure::Usage(_))));
        assert!(matches!(plan(&args(&["--http-port", "65534"])), Err(Failure::Usage(_))));
        plan(&args(&["--http-port", "65533"])).unwrap();
    }

    #[test]
    fn a_taken_port_is_told_with_its_holder_and_its_flag() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = [Planned { name: "n1".into(), http_port: port, cluster_port: 1 }];
        let Err(Failure::NotDone(text)) = probe(&plan) else { panic!("the port is taken") };
        assert!(text.contains(&format!("TCP port {port}")), "{text}");
        assert!(text.contains(&format!("(pid {})", std::process::id())), "{text}");
        assert!(text.contains("--http-port"), "{text}");
    }

    #[test]
    fn the_listening_socket_is_found_among_others() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:1324 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 111 1\n   1: 0100007F:1324 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1\n";
        assert_eq!(inode_of(table, 0x1324), Some("222"));
        assert_eq!(inode_of(table, 0x1325), None);
    }
}
