//! What a node costs that has nothing to do.
//!
//! Real nodes: `purlin up` starts three, each an OS process of the release binary. They are left
//! alone until joining is over, then read from `/proc`; the worst of the three counts.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::case::{Case, Gauge, GaugeRow, Readings};
use crate::failure::Failure;
use crate::machine::{proc_file, processor_seconds};
use crate::rig::Daemon;
use crate::workshop::{Workshop, free_port};

const NODES: usize = 3;

/// The rows of an idle node.
pub(crate) fn cases() -> Vec<Case> {
    vec![Case::Gauge(Gauge {
        name: "idle-node",
        about: "the worst node of an idle three-node cluster: memory after 10 s, processor over 20 s",
        rows: &[
            GaugeRow { name: "idle-node-memory", unit: "MB RSS", limit: 25.0 },
            GaugeRow { name: "idle-node-processor", unit: "% of a core", limit: 0.5 },
        ],
        read,
    })]
}

fn read(workshop: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let (settle, watch) = if brief { (3, 5) } else { (10, 20) };
    let data = workshop.scratch().join("idle");
    let mut command = Command::new(workshop.purlin()?);
    command.args(["up", "--nodes", &NODES.to_string(), "--data"]).arg(&data).args([
        "--http-port",
        &free_port()?.to_string(),
        "--cluster-port",
        &free_port()?.to_string(),
    ]);
    let _cluster = Daemon::start("purlin up", command)?;
    let nodes = pids(&data)?;
    std::thread::sleep(Duration::from_secs(settle));
    let memory = nodes.iter().map(|&pid| resident_megabytes(pid)).collect::<Result<_, _>>()?;
    let started = Instant::now();
    let before = nodes.iter().map(|&pid| processor_seconds(pid)).collect::<Result<Vec<_>, _>>()?;
    std::thread::sleep(Duration::from_secs(watch));
    let after = nodes.iter().map(|&pid| processor_seconds(pid)).collect::<Result<Vec<_>, _>>()?;
    let elapsed = started.elapsed().as_secs_f64();
    let share = before
        .iter()
        .zip(after)
        .map(|(before, after)| (after - before) / elapsed * 100.0)
        .collect();
    Ok(vec![memory, share])
}

/// The process ids that `up` writes, once all are there.
fn pids(data: &Path) -> Result<Vec<u32>, Failure> {
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let found: Vec<u32> = (1..=NODES)
            .filter_map(|node| fs::read_to_string(data.join(format!("n{node}")).join("pid")).ok())
            .filter_map(|text| text.trim().parse().ok())
            .collect();
        if found.len() == NODES {
            return Ok(found);
        }
        if Instant::now() > until {
            return Err(Failure::Process {
                who: "purlin up".to_owned(),
                what: format!("{} of {NODES} nodes had started after 15 s", found.len()),
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn resident_megabytes(pid: u32) -> Result<f64, Failure> {
    let status = proc_file(pid, "status")?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
        .ok_or_else(|| Failure::Role(format!("no VmRSS for process {pid}")))?;
    Ok(kilobytes * 1_024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::resident_megabytes;

    #[test]
    fn a_living_process_has_memory() {
        assert!((0.5..2_000.0).contains(&resident_megabytes(std::process::id()).unwrap()));
    }
}
