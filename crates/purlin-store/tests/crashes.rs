//! What a log promises, under crashes, full disks, failed flushes and damage.
#![expect(clippy::unwrap_used, reason = "a test that cannot build its input should fail loudly")]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use purlin_core::{Outcome, Rng};
use purlin_store::{
    AppendError, Disk, FaultyDisk, Log, LogConfig, Lsn, OpenError, RealDisk, Recovered,
    disk::CrashStyle,
};

const DIR: &str = "/log";

fn small() -> LogConfig {
    LogConfig { segment_bytes: 400, waiting_bytes_max: 10_000 }
}

type Records = BTreeMap<Lsn, Vec<u8>>;

fn open(disk: &FaultyDisk) -> Result<(Log, Recovered, Records), OpenError> {
    let mut records = Records::new();
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let (log, recovered) = Log::open(disk, Path::new(DIR), small(), |lsn, payload| {
        records.insert(lsn, payload.to_vec());
    })?;
    Ok((log, recovered, records))
}

/// One life after the other on one disk: whatever was acknowledged is there in the next, nothing
/// that was refused is, and the numbers have no gaps.
async fn lives(seed: u64) {
    let mut rng = Rng::from_seed(seed);
    let disk = FaultyDisk::new(rng.next_u64());
    let mut acked = Records::new();
    let mut refused: Vec<Vec<u8>> = Vec::new();
    let mut payload = 0_u64;
    for life in 0..6 {
        let (log, recovered, records) = open(&disk).unwrap();
        for (lsn, payload) in &acked {
            assert_eq!(records.get(lsn), Some(payload), "seed {seed} life {life}: {lsn} was lost");
        }
        for (lsn, payload) in &records {
            assert!(!refused.contains(payload), "seed {seed} life {life}: {lsn} was refused");
        }
        let numbers: Vec<u64> = records.keys().map(|lsn| lsn.0).collect();
        let expected: Vec<u64> = (recovered.first.0..=recovered.last.0).collect();
        assert_eq!(numbers, expected, "seed {seed} life {life}: gaps");
        // What was unknown and is here stays.
        acked.clone_from(&records);
        for _ in 0..rng.below(40) {
            if rng.chance(0.1) {
                disk.fail_writes(1);
            }
            let batch = 1 + rng.below(4);
            let waiting: Vec<_> = (0..batch)
                .map(|_| {
                    payload += 1;
                    let bytes = [payload.to_le_bytes().to_vec(), vec![7; rng.below(60)]].concat();
                    (bytes.clone(), log.append_later(bytes))
                })
                .collect();
            for (bytes, sent) in waiting {
                match sent.unwrap().await.unwrap() {
                    Ok(lsn) => drop(acked.insert(lsn, bytes)),
                    Err(error) => {
                        assert_eq!(error.outcome(), Outcome::NotDone, "{error}");
                        refused.push(bytes);
                    }
                }
            }
        }
        // The last write is under way when the power goes.
        payload += 1;
        let last = log.append_later(payload.to_le_bytes().to_vec()).unwrap();
        if rng.chance(0.5) {
            drop(last.await.unwrap().map(|lsn| acked.insert(lsn, payload.to_le_bytes().to_vec())));
        }
        drop(log);
        let styles = [CrashStyle::Kept, CrashStyle::Lost, CrashStyle::Torn];
        disk.crash(styles[rng.below(3)]);
    }
}

#[tokio::test]
async fn acknowledged_records_survive_every_crash_and_refused_ones_never_appear() {
    if let Ok(seed) = std::env::var("PURLIN_STORE_SEED") {
        return lives(seed.parse().unwrap()).await;
    }
    for seed in 0..300 {
        lives(seed).await;
    }
}

#[tokio::test]
async fn a_failed_flush_is_final_until_the_restart() {
    let disk = FaultyDisk::new(1);
    let (log, ..) = open(&disk).unwrap();
    log.append(b"one".to_vec()).await.unwrap();
    disk.fail_syncs(1);
    let error = log.append(b"two".to_vec()).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    let again = log.append(b"three".to_vec()).await.unwrap_err();
    assert!(matches!(again, AppendError::Flush(_)), "{again}");
    drop(log);
    disk.crash(CrashStyle::Lost);
    let (_, recovered, records) = open(&disk).unwrap();
    assert_eq!((records.len(), recovered.last), (1, Lsn(1)));
}

#[tokio::test]
async fn a_full_disk_refuses_and_the_log_goes_on_when_there_is_room() {
    let disk = FaultyDisk::new(1);
    let (log, ..) = open(&disk).unwrap();
    disk.limit(500);
    let mut kept = 0;
    let error = loop {
        match log.append(vec![1; 100]).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AppendError::Write(_)), "{error}");
    disk.limit(u64::MAX);
    assert_eq!(log.append(vec![2; 100]).await.unwrap(), Lsn(kept + 1));
    drop(log);
    disk.crash(CrashStyle::Lost);
    let (_, _, records) = open(&disk).unwrap();
    assert_eq!(records.len() as u64, kept + 1);
}

#[tokio::test]
async fn a_flipped_bit_in_front_of_acknowledged_records_refuses_the_start() {
    let disk = FaultyDisk::new(1);
    let (log, ..) = open(&disk).unwrap();
    for n in 1..=3 {
        log.append(vec![n; 20]).await.unwrap();
    }
    drop(log);
    let path = Path::new(DIR).join(format!("{:020}.seg", 1));
    disk.flip_bit(&path, 24 + 16 + 3, 2);
    let error = open(&disk).unwrap_err();
    let OpenError::Damaged { offset: 24, expected: Lsn(1), next: Lsn(2), .. } = &error else {
        panic!("{error}");
    };
    let text = error.to_string();
    assert!(text.contains("is damaged at byte 24") && text.contains("restore"), "{text}");
}

#[tokio::test]
async fn a_missing_segment_refuses_the_start() {
    let disk = FaultyDisk::new(1);
    let (log, ..) = open(&disk).unwrap();
    for n in 1..=30 {
        log.append(vec![n; 60]).await.unwrap();
    }
    drop(log);
    let names = disk.list(Path::new(DIR)).unwrap();
    assert!(names.len() > 3, "{names:?}");
    disk.remove(&Path::new(DIR).join(&names[1])).unwrap();
    assert!(matches!(open(&disk).unwrap_err(), OpenError::Hole { .. }));
}

#[tokio::test]
async fn old_segments_go_when_nobody_needs_them() {
    let disk = FaultyDisk::new(1);
    let (log, ..) = open(&disk).unwrap();
    for n in 1..=50 {
        log.append(vec![n; 60]).await.unwrap();
    }
    log.forget_before(Lsn(40));
    log.append(vec![51]).await.unwrap();
    drop(log);
    let (_, recovered, records) = open(&disk).unwrap();
    assert!(recovered.first > Lsn(30) && recovered.first <= Lsn(40), "{recovered:?}");
    assert_eq!(records.last_key_value().unwrap().0, &Lsn(51));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_share_a_real_disk_and_all_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(RealDisk::shared(), dir.path(), small(), |_, _| {}).unwrap();
    let tasks: Vec<_> = (0..200_u8)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(async move { (log.append(vec![n; 10]).await.unwrap(), n) })
        })
        .collect();
    let mut acked = Records::new();
    for task in tasks {
        let (lsn, n) = task.await.unwrap();
        acked.insert(lsn, vec![n; 10]);
    }
    drop(log);
    let mut records = Records::new();
    Log::open(RealDisk::shared(), dir.path(), small(), |lsn, payload| {
        records.insert(lsn, payload.to_vec());
    })
    .unwrap();
    assert_eq!(records, acked);
}
