//! Game rooms that move to another machine in the middle of the game.
//!
//! `cargo run -p examples --bin game_room`
//!
//! Three nodes in one program run twelve rooms; two players score in all of them without a pause.
//! Then the node `n2` is drained, as in a deploy: each of its rooms gives its score board to its
//! successor on another node, what players send meanwhile waits for it, and nobody notices.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    io::{Write as _, stdout},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use purlin::{
    dist::supervisor::{Birth, ChildOptions, Kind, KindError, Supervisor},
    prelude::*,
};

const WITHIN: Duration = Duration::from_secs(60);
const ROOMS: usize = 12;

type Scores = BTreeMap<String, u64>;

/// One game: who has how many points.
struct Room {
    name: String,
    scores: Scores,
}

#[purlin::server]
impl Room {
    #[init]
    fn open(name: String, scores: Scores) -> Self {
        Self { name, scores }
    }

    /// A point for `player`; tells how many they have now.
    #[call]
    fn score(&mut self, player: String) -> u64 {
        let points = self.scores.entry(player).or_default();
        *points += 1;
        *points
    }

    #[call]
    fn scores(&self) -> Scores {
        self.scores.clone()
    }

    #[summary]
    fn summary(&self) -> String {
        format!("{}: {} players", self.name, self.scores.len())
    }
}

/// How any node opens a room, and what one room gives to the next when it moves.
struct Rooms;

impl Kind for Rooms {
    const NAME: &'static str = "room";
    type Server = Room;
    type Args = String;
    type State = Scores;

    fn args(&self, name: String, birth: Birth<Scores>) -> Result<(String, Scores), KindError> {
        Ok((name, birth.state.unwrap_or_default()))
    }

    fn hand_off(&self, room: &mut Room) -> Option<Scores> {
        Some(room.scores.clone())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut out = stdout();
    let authority = DevAuthority::new()?;
    let mut nodes: Vec<Node> = Vec::new();
    for name in ["n1", "n2", "n3"] {
        let seeds: Vec<_> = nodes.iter().map(Node::cluster_addr).collect();
        let node = Node::builder().name(name).dev(&authority).join(seeds).start().await?;
        node.supervisor("rooms")?.register_kind(Rooms)?;
        nodes.push(node);
    }
    let rooms = nodes[0].supervisor("rooms")?;
    until(|| rooms.hosts("room").len() == 3).await?;
    nodes[0].cluster().wait_for_members(3, WITHIN).await?;

    for n in 0..ROOMS {
        let name = format!("room {n}");
        rooms.start_child::<Rooms>(&name, &name, ChildOptions::default()).await?;
    }
    let on: BTreeSet<String> = rooms.counts().keys().map(|node| node.name.to_string()).collect();
    writeln!(out, "{ROOMS} rooms are open on {}", on.into_iter().collect::<Vec<_>>().join(", "))?;

    let over = Arc::new(AtomicBool::new(false));
    let ada = tokio::spawn(play("ada", rooms.clone(), Arc::clone(&over)));
    let bob = tokio::spawn(play("bob", nodes[2].supervisor("rooms")?, Arc::clone(&over)));
    let score = RoomHandle::from(rooms.child::<Room>("room 0").address());
    while score.scores().await?.values().sum::<u64>() < 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let before = rooms.counts().get(nodes[1].id()).copied().unwrap_or(0);
    let progress = nodes[1].drain(None).await;
    writeln!(
        out,
        "n2 is drained: {}",
        if before > 0 { "its rooms moved on" } else { "it had none" }
    )?;
    if !progress.problems.is_empty() {
        return Err(progress.problems.join("; ").into());
    }
    over.store(true, Ordering::Relaxed);
    let (ada, bob) = (ada.await??, bob.await??);
    writeln!(out, "ada and bob played on, and not one call failed")?;

    let mut kept = 0;
    for n in 0..ROOMS {
        let room = RoomHandle::from(rooms.child::<Room>(&format!("room {n}")).address());
        kept += room.scores().await?.values().sum::<u64>();
    }
    assert_eq!(kept, ada + bob, "no point is lost or counted twice");
    writeln!(out, "every room has kept its score")?;
    Ok(())
}

/// Scores in every room, again and again; tells how many points that were.
async fn play(
    player: &'static str,
    rooms: Supervisor,
    over: Arc<AtomicBool>,
) -> Result<u64, CallError> {
    let all: Vec<RoomHandle> = (0..ROOMS)
        .map(|n| RoomHandle::from(rooms.child::<Room>(&format!("room {n}")).address()))
        .collect();
    let mut points = 0;
    while !over.load(Ordering::Relaxed) {
        for room in &all {
            room.score(player.to_owned()).await?;
            points += 1;
        }
    }
    Ok(points)
}

/// Waits until something holds that others have to tell first.
async fn until(mut holds: impl FnMut() -> bool) -> Result<(), tokio::time::error::Elapsed> {
    tokio::time::timeout(WITHIN, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}
