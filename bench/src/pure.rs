//! What takes no message and no disk: timestamps and placement.
//!
//! Measured inside this program: nothing here waits, so processes of its own would add nothing but
//! their start. The jump rows, which have peers, run in processes like all contests.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use purlin_core::{Hlc, Incarnation, LocalHlc, NodeId, NodeName, WallTime};
use purlin_ring::{Bucket, KeyHash, Ring};

use crate::case::{Bar, Case, Contender, Contest, Gauge, GaugeRow, Readings, RowSpec, Unit};
use crate::failure::Failure;
use crate::puppet::{Arguments, Puppet, Role};
use crate::rig::Rig;
use crate::stats::Median;
use crate::workshop::Workshop;

/// What this program can be re-executed as for the jump rows.
pub(crate) const ROLES: &[(&str, Role)] =
    &[("jump-ours", jump_ours), ("jump-jumpch", jump_jumpch), ("jump-paper", jump_paper)];

/// As many buckets as a large cluster has nodes.
const BUCKETS: u32 = 1_000;

/// The rows of clocks and placement.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::Gauge(Gauge {
            name: "clock",
            about: "one timestamp of a hybrid logical clock: with one owner, and shared by two threads that do nothing else",
            rows: &[
                // 200 M/s and 50 M/s.
                GaugeRow { name: "clock-local", unit: "ns", limit: 5.0 },
                GaugeRow { name: "clock-shared", unit: "ns", limit: 20.0 },
            ],
            read: clock,
        }),
        Case::Gauge(Gauge {
            name: "ring",
            about: "the owner of a hashed key on a ring of 128 virtual nodes for each of 100 or 1,000 nodes",
            rows: &[
                // 20 M/s.
                GaugeRow { name: "ring-lookup-100", unit: "ns", limit: 50.0 },
                GaugeRow { name: "ring-lookup-1000", unit: "ns", limit: f64::INFINITY },
            ],
            read: ring,
        }),
        Case::Contest(Contest {
            name: "jump",
            about: "the bucket of a hashed key among 1,000 by jump consistent hash",
            contenders: &[
                Contender {
                    name: "ours",
                    needs: &[],
                    start: |workshop| workshop.role("jump-ours", &[]).map(Rig::alone),
                },
                Contender {
                    name: "jumpch",
                    needs: &[],
                    start: |workshop| workshop.role("jump-jumpch", &[]).map(Rig::alone),
                },
                Contender {
                    name: "jump-consistent-hash",
                    needs: &[],
                    start: |workshop| workshop.role("jump-paper", &[]).map(Rig::alone),
                },
            ],
            rows: &[RowSpec {
                name: "jump",
                unit: Unit::Nanos,
                peers: &["jumpch", "jump-consistent-hash"],
                bar: Bar::AtMost(1.2),
            }],
        }),
    ]
}

/// The median over rounds of the nanoseconds that one of `count` operations took.
fn nanos(brief: bool, count: u64, mut round: impl FnMut() -> Duration) -> f64 {
    let rounds = if brief { 3 } else { 9 };
    // The first warms up; it is not counted.
    let readings: Vec<f64> =
        (0..=rounds).map(|_| round().as_secs_f64() * 1e9 / count as f64).skip(1).collect();
    Median::of(&readings).value
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn clock(_: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let name = NodeName::parse("n1").map_err(Failure::role("naming a node"))?;
    let node = NodeId::new(name, Incarnation(1));
    let count: u64 = if brief { 2_000_000 } else { 20_000_000 };
    // The wall's millisecond stays: at such rates nearly all of them fall into one that has begun.
    let wall = WallTime::from_millis(1_800_000_000_000);
    let mut own = LocalHlc::new(&node);
    let local = nanos(brief, count, || {
        timed(|| {
            for _ in 0..count {
                // Consumed by the optimizer's blind eye: each timestamp is really made.
                black_box(own.now(black_box(wall)).is_ok());
                black_box(&own);
            }
        })
    });
    let shared = Hlc::new(&node);
    let each = count / 2;
    let by_two = nanos(brief, count, || {
        timed(|| {
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        for _ in 0..each {
                            black_box(shared.now(black_box(wall)).is_ok());
                        }
                    });
                }
            });
        })
    });
    Ok(vec![vec![local], vec![by_two]])
}

fn ring(_: &Workshop, brief: bool) -> Result<Readings, Failure> {
    [100, 1_000].map(|nodes| lookups(nodes, brief)).into_iter().collect()
}

fn lookups(nodes: usize, brief: bool) -> Result<Vec<f64>, Failure> {
    let buckets = (0..nodes).map(|n| Bucket::new(format!("node-{n}"))).collect();
    let ring = Ring::with_virtual_nodes(buckets, 128).map_err(Failure::role("building a ring"))?;
    let count: u64 = if brief { 500_000 } else { 5_000_000 };
    Ok(vec![nanos(brief, count, || {
        timed(|| {
            for key in keys(count) {
                black_box(ring.owner(key));
            }
        })
    })])
}

/// Keys as hashes are: all over the ring, none predictable.
fn keys(count: u64) -> impl Iterator<Item = KeyHash> {
    (0..count).map(|n| KeyHash(purlin_ring::hash::mix(black_box(n))))
}

fn jump_ours(puppet: &mut Puppet, _: &Arguments) -> Result<(), Failure> {
    let buckets = NonZeroU32::new(BUCKETS).expect("1,000 is not 0");
    jumps(puppet, |key| purlin_ring::jump(key, buckets))
}

fn jump_jumpch(puppet: &mut Puppet, _: &Arguments) -> Result<(), Failure> {
    jumps(puppet, |key| jumpch::hash(key.0, BUCKETS))
}

fn jump_paper(puppet: &mut Puppet, _: &Arguments) -> Result<(), Failure> {
    let buckets = usize::try_from(BUCKETS).map_err(Failure::role("counting buckets"))?;
    jumps(puppet, |key| jump_consistent_hash::hash(key.0, buckets))
}

fn jumps(puppet: &Puppet, bucket: impl Fn(KeyHash) -> u32) -> Result<(), Failure> {
    puppet.ready("");
    while let Some(count) = puppet.next_round() {
        let done = keys(count).filter(|key| black_box(bucket(*key)) < BUCKETS).count();
        puppet.done(u64::try_from(done).map_err(Failure::role("counting"))?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, keys};
    use std::num::NonZeroU32;

    #[test]
    fn the_peers_of_the_jump_row_give_the_same_buckets() {
        let buckets = NonZeroU32::new(BUCKETS).unwrap();
        for key in keys(10_000) {
            let ours = purlin_ring::jump(key, buckets);
            assert_eq!(ours, jumpch::hash(key.0, BUCKETS));
        }
    }
}
