//! What this process costs, read from `/proc` when somebody asks.
//!
//! Nothing is sampled in the background: an idle node stays idle. On systems without `/proc` the
//! figures are absent rather than zero.

use std::fs;

use parking_lot::Mutex;
use purlin_core::Instant;

use crate::shapes::ProcessCost;

/// Ticks per second in `/proc/self/stat`. The kernel ABI fixes USER_HZ at 100 on every
/// architecture this builds for (proc(5), time(7)).
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads the process's cost and remembers the last reading, to tell the share of a core since.
#[derive(Debug, Default)]
pub(crate) struct CostMeter {
    last: Mutex<Option<(Instant, f64, Option<f64>)>>,
}

impl CostMeter {
    /// The cost now. The share of a core is averaged since the previous reading that is at least
    /// half a second old, because ticks are too coarse below that.
    pub(crate) fn read(&self, now: Instant) -> ProcessCost {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let cpu_seconds =
            fs::read_to_string("/proc/self/stat").ok().and_then(|stat| cpu_seconds(&stat));
        let field = |name| status_field(&status, name);
        ProcessCost {
            rss_bytes: field("VmRSS:").map(|kib| kib * 1024),
            cpu_seconds,
            cpu_percent: cpu_seconds.and_then(|used| self.share(now, used)),
            threads: field("Threads:"),
        }
    }

    fn share(&self, now: Instant, used: f64) -> Option<f64> {
        let mut last = self.last.lock();
        match *last {
            Some((at, before, share)) => {
                let elapsed = now.saturating_since(at).as_secs_f64();
                if elapsed < 0.5 {
                    return share;
                }
                let share = Some((used - before).max(0.0) / elapsed * 100.0);
                *last = Some((now, used, share));
                share
            }
            None => {
                *last = Some((now, used, None));
                None
            }
        }
    }
}

fn status_field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// User and system time, fields 14 and 15. The second field is the command in parentheses and may
/// itself hold spaces and parentheses, so counting starts after the last one.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut after_command = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().skip(11);
    let user: u32 = after_command.next()?.parse().ok()?;
    let system: u32 = after_command.next()?.parse().ok()?;
    Some((f64::from(user) + f64::from(system)) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_full_of_traps_does_not_shift_the_fields() {
        let stat = "7 (a ) b (c) R 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 1";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("nonsense"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_memory_and_has_a_thread() {
        let cost = CostMeter::default().read(Instant::default());
        assert!(cost.rss_bytes.unwrap() > 100_000, "{cost:?}");
        assert!(cost.threads.unwrap() >= 1 && cost.cpu_percent.is_none(), "{cost:?}");
    }
}
