use std::{path::Path, sync::Arc};

use futures_util::FutureExt;
use purlin_core::{Rng, SystemClock};

use super::{
    conformance::{Breach, Harness, check},
    *,
};

type Addrs = BTreeSet<SocketAddr>;

fn addrs(texts: &[&str]) -> Addrs {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn quick() -> Schedule {
    Schedule {
        refresh_min: Duration::from_millis(50),
        refresh_max: Duration::from_millis(200),
        keep_absent: Duration::from_secs(1),
    }
}

fn fixed(texts: &[&str]) -> StaticSeeds {
    StaticSeeds::parse(texts, quick(), Arc::new(SystemClock::new()), Rng::from_seed(1)).unwrap()
}

fn watched(path: &Path) -> SeedFile {
    SeedFile::watch(path.to_owned(), quick(), Arc::new(SystemClock::new()), Rng::from_seed(1))
}

async fn next(source: &mut dyn Discovery) -> Result<Addrs, DiscoveryError> {
    tokio::time::timeout(Duration::from_secs(30), source.next()).await.expect("news in time")
}

#[tokio::test]
async fn addresses_are_told_at_once_and_names_when_they_are_resolved() {
    let mut seeds = fixed(&["10.0.0.1:1", "localhost:2"]);
    assert_eq!(next(&mut seeds).await.unwrap(), addrs(&["10.0.0.1:1"]));
    let resolved = next(&mut seeds).await.unwrap();
    assert!(
        resolved.len() > 1
            && resolved.iter().filter(|addr| addr.port() == 2).all(|addr| addr.ip().is_loopback())
    );
    assert!(
        StaticSeeds::parse(["n1"], quick(), Arc::new(SystemClock::new()), Rng::from_seed(1))
            .is_err()
    );
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_told_and_tried_again() {
    let mut seeds = fixed(&["no-such-host.invalid:7400"]);
    for _ in 0..3 {
        let error = next(&mut seeds).await;
        assert!(
            matches!(&error, Err(DiscoveryError::Resolve { seed, .. }) if seed == "no-such-host.invalid:7400")
                || error == Ok(Addrs::new()),
            "{error:?}"
        );
    }
}

/// A source whose list is fixed.
struct Fixed;

impl Harness for Fixed {
    fn start<'a>(&'a mut self, addrs: &'a Addrs) -> BoxFuture<'a, Box<dyn Discovery>> {
        let texts: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
        let seeds = fixed(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        async move { Box::new(seeds) as Box<dyn Discovery> }.boxed()
    }

    fn publish<'a>(&'a mut self, _addrs: &'a Addrs) -> BoxFuture<'a, bool> {
        std::future::ready(false).boxed()
    }

    fn fail(&mut self) -> BoxFuture<'_, bool> {
        std::future::ready(false).boxed()
    }
}

#[tokio::test]
async fn static_seeds_keep_the_promises_of_a_discovery() {
    check(&mut Fixed, Duration::from_secs(60)).await.unwrap();
}

/// How a test writes the file, because people and programs do it differently.
#[derive(Debug, Clone, Copy)]
enum Writing {
    InPlace,
    Rename,
    /// A symbolic link to a directory is switched, as Kubernetes does with mounted config maps.
    Link(u32),
}

struct FileHarness {
    dir: tempfile::TempDir,
    writing: Writing,
    combined: bool,
}

impl FileHarness {
    fn new(writing: Writing, combined: bool) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), writing, combined }
    }

    fn path(&self) -> PathBuf {
        match self.writing {
            Writing::Link(_) => self.dir.path().join("current/seeds"),
            Writing::InPlace | Writing::Rename => self.dir.path().join("seeds"),
        }
    }

    fn write(&mut self, content: &str) {
        let path = self.path();
        match &mut self.writing {
            Writing::InPlace => std::fs::write(path, content).unwrap(),
            Writing::Rename => {
                let fresh = self.dir.path().join("seeds.new");
                std::fs::write(&fresh, content).unwrap();
                std::fs::rename(fresh, path).unwrap();
            }
            Writing::Link(number) => {
                *number += 1;
                let target = self.dir.path().join(number.to_string());
                std::fs::create_dir(&target).unwrap();
                std::fs::write(target.join("seeds"), content).unwrap();
                let fresh = self.dir.path().join("current.new");
                std::os::unix::fs::symlink(target, &fresh).unwrap();
                std::fs::rename(fresh, self.dir.path().join("current")).unwrap();
            }
        }
    }
}

fn lines(addrs: &Addrs) -> String {
    addrs.iter().map(|addr| format!("{addr}\n")).collect()
}

impl Harness for FileHarness {
    fn start<'a>(&'a mut self, addrs: &'a Addrs) -> BoxFuture<'a, Box<dyn Discovery>> {
        self.write(&lines(addrs));
        let file = watched(&self.path());
        let source: Box<dyn Discovery> = if self.combined {
            Box::new(Combined::new(vec![Box::new(file), Box::new(fixed(&[]))]))
        } else {
            Box::new(file)
        };
        async move { source }.boxed()
    }

    fn publish<'a>(&'a mut self, addrs: &'a Addrs) -> BoxFuture<'a, bool> {
        self.write(&lines(addrs));
        std::future::ready(true).boxed()
    }

    fn fail(&mut self) -> BoxFuture<'_, bool> {
        self.write("127.0.0.1:7400\nhalf a li");
        std::future::ready(true).boxed()
    }
}

#[tokio::test]
async fn a_watched_file_keeps_the_promises_however_it_is_written() {
    for writing in [Writing::InPlace, Writing::Rename, Writing::Link(0)] {
        let mut harness = FileHarness::new(writing, false);
        check(&mut harness, Duration::from_secs(60))
            .await
            .unwrap_or_else(|breach| panic!("{writing:?}: {breach}"));
    }
}

#[tokio::test]
async fn a_combination_keeps_the_promises_of_a_discovery() {
    check(&mut FileHarness::new(Writing::Rename, true), Duration::from_secs(60)).await.unwrap();
}

#[tokio::test]
async fn a_missing_file_is_told_once_and_noticed_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seeds");
    let mut file = watched(&path);
    let error = next(&mut file).await.unwrap_err();
    assert!(
        error.to_string().starts_with(&format!("cannot read seed file {}: ", path.display())),
        "{error}"
    );
    std::fs::write(&path, "10.0.0.1:1\n").unwrap();
    assert_eq!(next(&mut file).await.unwrap(), addrs(&["10.0.0.1:1"]));
    std::fs::write(&path, "10.0.0.1:1\nbad\n").unwrap();
    let error = next(&mut file).await.unwrap_err();
    assert!(matches!(error, DiscoveryError::Line { line: 2, .. }), "{error}");
    std::fs::write(&path, "#\n10.0.0.1:1\n").unwrap();
    std::fs::write(dir.path().join("other"), "").unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(2_500), file.next()).await.is_err(),
        "the same list is no news"
    );
}

#[tokio::test]
async fn a_file_above_the_limit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seeds");
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    let error = watched(&path).next().await.unwrap_err();
    assert!(error.to_string().ends_with("it exceeds limit 1048576 bytes"), "{error}");
}

#[tokio::test]
async fn a_combination_is_the_union_and_one_failing_source_harms_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seeds");
    let sources: Vec<Box<dyn Discovery>> = vec![
        Box::new(fixed(&["10.0.0.1:1"])),
        Box::new(watched(&path)),
        Box::new(fixed(&["10.0.0.2:2", "10.0.0.1:1"])),
    ];
    let mut all = Combined::new(sources);
    assert!(all.describe().contains("static seeds 10.0.0.1:1; seed file "));
    let (mut list, mut troubles) = (Addrs::new(), Vec::new());
    while list.len() < 2 || troubles.is_empty() {
        match next(&mut all).await {
            Ok(news) => list = news,
            Err(trouble) => troubles.push(trouble),
        }
    }
    assert!(matches!(troubles[..], [DiscoveryError::File { .. }]), "{troubles:?}");
    std::fs::write(&path, "10.0.0.3:3").unwrap();
    assert_eq!(next(&mut all).await.unwrap(), addrs(&["10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3"]));
}

/// Implementations that break a promise, to see that the check notices.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    /// Loses what a dropped future had begun.
    Forgets,
    /// Reports the same list over and over.
    Chatters,
    /// Reports an empty list instead of a failure.
    Empties,
    /// Reports only what was added.
    Deltas,
}

#[derive(Debug)]
struct BrokenSource {
    broken: Broken,
    wanted: tokio::sync::watch::Receiver<Option<Addrs>>,
    told: Addrs,
    begun: bool,
}

impl Discovery for BrokenSource {
    fn describe(&self) -> String {
        format!("{:?}", self.broken)
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Addrs, DiscoveryError>> {
        async move {
            if self.broken == Broken::Forgets {
                if std::mem::replace(&mut self.begun, true) {
                    std::future::pending::<()>().await;
                }
                tokio::task::yield_now().await;
            }
            loop {
                let wanted = self.wanted.borrow_and_update().clone();
                match wanted {
                    Some(list) if list != self.told || self.broken == Broken::Chatters => {
                        tokio::task::yield_now().await;
                        let fresh = list.difference(&self.told).copied().collect();
                        self.told = list.clone();
                        return Ok(if self.broken == Broken::Deltas { fresh } else { list });
                    }
                    None if self.broken == Broken::Empties && !self.told.is_empty() => {
                        return Ok(Addrs::new());
                    }
                    Some(_) | None => self.wanted.changed().await.unwrap(),
                }
            }
        }
        .boxed()
    }
}

struct BrokenHarness {
    broken: Broken,
    wanted: tokio::sync::watch::Sender<Option<Addrs>>,
}

impl Harness for BrokenHarness {
    fn start<'a>(&'a mut self, addrs: &'a Addrs) -> BoxFuture<'a, Box<dyn Discovery>> {
        self.wanted.send_replace(Some(addrs.clone()));
        let wanted = self.wanted.subscribe();
        let source = BrokenSource { broken: self.broken, wanted, told: Addrs::new(), begun: false };
        async move { Box::new(source) as Box<dyn Discovery> }.boxed()
    }

    fn publish<'a>(&'a mut self, addrs: &'a Addrs) -> BoxFuture<'a, bool> {
        self.wanted.send_replace(Some(addrs.clone()));
        std::future::ready(true).boxed()
    }

    fn fail(&mut self) -> BoxFuture<'_, bool> {
        self.wanted.send_replace(None);
        std::future::ready(true).boxed()
    }
}

#[tokio::test]
async fn the_check_names_the_promise_a_source_breaks() {
    for (broken, expected) in [
        (Broken::Forgets, "the first list is complete, even after dropped futures"),
        (Broken::Chatters, "while nothing changes, nothing is reported"),
        (Broken::Empties, "a failure is reported, and is not an empty list"),
        (Broken::Deltas, "a changed list is reported, complete"),
    ] {
        let mut harness = BrokenHarness { broken, wanted: tokio::sync::watch::Sender::new(None) };
        let Breach { promise, evidence } =
            check(&mut harness, Duration::from_secs(3)).await.unwrap_err();
        assert_eq!(promise, expected, "{broken:?}: {evidence}");
    }
}
