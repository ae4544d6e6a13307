//! What a log promises, under crashes, full disks, failed flushes and damage.
#![expect(clippy::unwrap_used, reason = "a test that cannot build its input should fail loudly")]

use std::{collections::BTreeMap, path::Path, time::Duration};

use purlin_core::{Outcome, Rng};
use purlin_store::{
    AppendError, Disk, FaultyDisk, LockError, Log, LogConfig, Lsn, OpenError, RealDisk, Recovered,
    disk::{self, CrashStyle},
    segment,
};

const DIR: &str = "/log";

fn small() -> LogConfig {
    LogConfig { segment_bytes: 400, waiting_bytes_max: 10_000 }
}

type Records = BTreeMap<Lsn, Vec<u8>>;

fn open(disk: &FaultyDisk) -> Result<(Log, Recovered, Records), OpenError> {
    let mut records = Records::new();
    let (log, recovered) = Log::open(disk.mount(), Path::new(DIR), small(), |lsn, payload| {
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
    for life in 0..8 {
        disk.slow_down(Duration::from_millis(rng.next_u64() % 3));
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
        // The last write is under way when the end comes.
        payload += 1;
        let bytes = payload.to_le_bytes().to_vec();
        let mut last = log.append_later(bytes.clone()).unwrap();
        for _ in 0..rng.below(3) {
            tokio::task::yield_now().await;
        }
        if rng.chance(0.3) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let lingers = rng.chance(0.7).then(|| log.clone());
        drop(log);
        let styles = [CrashStyle::Killed, CrashStyle::Kept, CrashStyle::Lost, CrashStyle::Torn];
        disk.crash(styles[rng.below(4)]);
        // What is left of the old life must not touch the new one.
        drop(lingers);
        if let Ok(Ok(lsn)) = last.try_recv() {
            acked.insert(lsn, bytes);
        }
    }
}

#[tokio::test(start_paused = true)]
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
async fn what_only_the_cache_held_after_a_failed_flush_does_not_become_a_hole() {
    let disk = FaultyDisk::new(1);
    let (log, ..) = open(&disk).unwrap();
    log.append(b"one".to_vec()).await.unwrap();
    disk.fail_syncs(1);
    log.append(b"two".to_vec()).await.unwrap_err();
    drop(log);
    // The next life reads the second record from the system's cache, which takes it for clean.
    disk.crash(CrashStyle::Killed);
    let (log, _, records) = open(&disk).unwrap();
    log.append(b"three".to_vec()).await.unwrap();
    drop(log);
    disk.crash(CrashStyle::Lost);
    let (.., after) = open(&disk).unwrap();
    assert_eq!(after.len(), records.len() + 1, "{after:?}");
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

#[tokio::test(start_paused = true)]
async fn a_record_that_a_killed_process_left_behind_outlives_a_power_cut_once_it_was_read() {
    let disk = FaultyDisk::new(1);
    let (log, ..) = open(&disk).unwrap();
    log.append(b"one".to_vec()).await.unwrap();
    disk.slow_down(Duration::from_secs(1));
    let _unknown = log.append_later(b"two".to_vec()).unwrap();
    tokio::task::yield_now().await;
    disk.crash(CrashStyle::Killed);
    let (_log, _, records) = open(&disk).unwrap();
    assert_eq!(records.len(), 2, "the write was under way");
    disk.crash(CrashStyle::Lost);
    let (.., records) = open(&disk).unwrap();
    assert_eq!(records.len(), 2, "somebody may have acted on it");
}

#[tokio::test]
async fn a_segment_that_a_killed_process_just_made_keeps_its_name_in_a_power_cut() {
    let disk = FaultyDisk::new(1);
    let file = disk.open(&Path::new(DIR).join(format!("{:020}.seg", 1)), true).unwrap();
    file.set_len(400).unwrap();
    file.write_all_at(&segment::header(Lsn(1)), 0).unwrap();
    disk.crash(CrashStyle::Killed);
    let (log, ..) = open(&disk).unwrap();
    log.append(b"one".to_vec()).await.unwrap();
    disk.crash(CrashStyle::Lost);
    let (.., records) = open(&disk).unwrap();
    assert_eq!(records.len(), 1);
}

#[tokio::test]
async fn a_segment_made_again_after_a_refused_write_is_not_forgotten_for_its_elder() {
    let disk = FaultyDisk::new(1);
    let (log, ..) = open(&disk).unwrap();
    log.append(vec![1; 300]).await.unwrap();
    // It needs a segment, which is there when the record is refused.
    disk.limit(disk.bytes() + 24 + 50);
    let error = log.append(vec![2; 100]).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotDone, "{error}");
    disk.limit(u64::MAX);
    // Too large for it, so another is made for the same number.
    log.append(vec![3; 390]).await.unwrap();
    log.forget_before(Lsn(2));
    log.append(vec![4; 10]).await.unwrap();
    drop(log);
    let (.., records) = open(&disk).unwrap();
    let kept: Vec<(u64, u8)> = records.iter().map(|(lsn, bytes)| (lsn.0, bytes[0])).collect();
    assert_eq!(kept, [(2, 3), (3, 4)]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_flush_takes_virtual_time_and_is_shared_by_all_who_wait() {
    let disk = FaultyDisk::new(1);
    disk.slow_down(Duration::from_millis(100));
    let (log, ..) = open(&disk).unwrap();
    let start = tokio::time::Instant::now();
    let first = log.append_later(vec![1]).unwrap();
    tokio::task::yield_now().await;
    let later: Vec<_> = (0..50).map(|n| log.append_later(vec![n]).unwrap()).collect();
    first.await.unwrap().unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(100));
    for done in later {
        done.await.unwrap().unwrap();
    }
    assert_eq!(start.elapsed(), Duration::from_millis(200));
}

#[test]
fn a_file_replaced_whole_is_the_old_or_the_new_one_after_any_crash() {
    let path = Path::new("/data/incarnation");
    let (mut old, mut new) = (0, 0);
    for seed in 0..400 {
        let disk = FaultyDisk::new(seed);
        let mut rng = Rng::from_seed(seed);
        disk::replace(&disk, path, b"old").unwrap();
        // It stops anywhere: at a full disk, at a failed flush, or behind the rename.
        let done = match rng.below(4) {
            0 => {
                disk.limit(disk.bytes() + rng.next_u64() % 3);
                disk::replace(&disk, path, b"newer").is_ok()
            }
            1 => {
                disk.fail_syncs(1);
                disk::replace(&disk, path, b"newer").is_ok()
            }
            2 => {
                let beside = disk.open(Path::new("/data/incarnation.new"), true).unwrap();
                beside.write_all_at(b"newer", 0).unwrap();
                beside.sync_data().unwrap();
                disk.rename(Path::new("/data/incarnation.new"), path).unwrap();
                false
            }
            _ => disk::replace(&disk, path, b"newer").is_ok(),
        };
        let styles = [CrashStyle::Killed, CrashStyle::Kept, CrashStyle::Lost, CrashStyle::Torn];
        disk.crash(styles[rng.below(4)]);
        match disk::read(&disk, path).unwrap().as_deref() {
            Some(b"old") if !done => old += 1,
            Some(b"newer") => new += 1,
            other => panic!("seed {seed}: {other:?}, done: {done}"),
        }
    }
    assert!(old > 100 && new > 100, "{old} old, {new} new");
}

#[test]
fn a_real_file_is_replaced_whole_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mark");
    let disk = RealDisk::shared();
    assert_eq!(disk::read(&*disk, &path).unwrap(), None);
    for text in ["a longer one", "short"] {
        disk::replace(&*disk, &path, text.as_bytes()).unwrap();
        assert_eq!(disk::read(&*disk, &path).unwrap().unwrap(), text.as_bytes());
    }
    assert_eq!(disk.list(dir.path()).unwrap(), ["mark"]);
}

#[test]
fn a_lock_has_one_holder_and_ends_with_the_life_of_the_machine() {
    let disk = FaultyDisk::new(1);
    let path = Path::new("/data/lock");
    let old = disk.mount();
    let lock = old.lock(path).unwrap();
    assert!(matches!(disk.lock(path), Err(LockError::Held { .. })));
    disk.crash(CrashStyle::Killed);
    let next = disk.mount().lock(path).unwrap();
    drop(lock);
    assert!(matches!(disk.lock(path), Err(LockError::Held { .. })), "the next life holds it");
    drop(next);
    drop(disk.lock(path).unwrap());
    assert!(old.lock(path).is_err() && old.list(Path::new("/data")).is_err());
}

#[test]
fn a_disk_in_memory_tells_how_often_it_failed() {
    let disk = FaultyDisk::new(1);
    let path = Path::new("/file");
    let file = disk.open(path, true).unwrap();
    disk.limit(5);
    file.write_all_at(b"abcdefgh", 0).unwrap_err();
    assert_eq!(disk::read(&disk, path).unwrap().unwrap(), b"abcde", "as far as there was room");
    disk.limit(u64::MAX);
    disk.fail_syncs(1);
    file.sync_data().unwrap_err();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    file.write_all_at(b"xyz", 5).unwrap();
    disk.crash(CrashStyle::Lost);
    assert_eq!(disk::read(&disk, path).unwrap().unwrap(), b"", "a failed flush is for good");
    let faults = disk.faults();
    assert_eq!((faults.writes_refused, faults.flushes_failed), (1, 1));
    assert_eq!((faults.crashes, faults.writes_lost), (1, 1));
}
