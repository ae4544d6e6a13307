//! Pages of the console as a person sees them: in a headless browser, on a real cluster.
//!
//! With `PURLIN_PICTURES=DIR` each test leaves pictures of its page there: light, dark, narrow.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

#[allow(dead_code, reason = "shared by several test programs, each of which uses a part of it")]
mod world;

use std::path::PathBuf;

use purlin::{
    dist::{
        Tracked,
        supervisor::{Birth, ChildOptions, Kind, KindError},
    },
    process::{Metadata, SpawnOptions},
};
use purlin_browser::{Browser, Page};
use tokio::task::block_in_place;
use world::{World, eventually};

fn browser() -> Option<Browser> {
    match block_in_place(Browser::start) {
        Ok(browser) => Some(browser),
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

/// Looks at the page in light and dark, wide and narrow: nothing may stick out.
fn look_at(page: &Page, name: &str) {
    let folder = std::env::var_os("PURLIN_PICTURES").map(PathBuf::from);
    for (width, height, dark, how) in [
        (1_600, 1_000, false, "light"),
        (1_600, 1_000, true, "dark"),
        (1_024, 800, false, "tablet"),
        (400, 860, false, "narrow"),
        (400, 860, true, "narrow-dark"),
    ] {
        page.show(width, height, dark);
        page.until(&format!("{name} fits into {width} px"), "document.readyState === 'complete'");
        assert!(page.fits(), "{name} sticks out at {width} px");
        if let Some(folder) = &folder {
            std::fs::create_dir_all(folder).unwrap();
            page.picture(&folder.join(format!("{name}-{how}.png")));
        }
    }
    page.show(1_600, 1_000, false);
}

fn track(world: &World, at: usize, topic: &str, key: &str, metadata: &[(&str, &str)]) -> Tracked {
    let metadata = metadata.iter().copied().collect::<Metadata>();
    world.node(at).presence().track_while_held(topic, key, metadata).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_presence_wall_shows_who_is_where_and_how_they_come_and_go() {
    let Some(browser) = browser() else { return };
    let world = World::start(3).await;
    world.all_alive().await;
    let names = ["bob", "cleo", "dev", "eve", "fred", "grace", "heidi", "ivan", "judy", "kim"];
    let crowd: Vec<Tracked> = names
        .iter()
        .enumerate()
        .map(|(n, name)| {
            let device = ["phone", "desk", "tablet"][n % 3];
            track(&world, n % 3, "room/7", name, &[("device", device), ("status", "online")])
        })
        .collect();
    let phone = [("device", "phone"), ("status", "online")];
    let ada = track(&world, 0, "room/7", "ada", &phone);
    let _desk = track(&world, 1, "room/7", "ada", &[("device", "desk")]);
    let _street = track(&world, 2, "street", "zoe", &[]);
    let _docs = [0, 1].map(|at| track(&world, at, "docs/plan", "max", &[("cursor", "12:3")]));
    // Whoever arrives later would be somebody who came.
    eventually("n1 knows of all", async || {
        let counts = ["room/7", "street", "docs/plan"];
        let counts = counts.map(|topic| world.node(0).presence().count(topic));
        (counts == [12, 1, 2]).then_some(())
    })
    .await;
    let page = block_in_place(|| browser.open(&format!("{}/#presence", world.url(0))));
    block_in_place(|| {
        // The fullest topic is shown to whoever has not chosen one.
        page.sees("#rooms", "room/7");
        page.sees("#rooms", "n1 5 · n2 4 · n3 3");
        page.sees("#h-wall", "room/7");
        page.sees("#wall-note", "11 keys, 12 presences, live");
        page.sees("#wall", "device=desk");
        page.sees("#comings-empty", "Nobody has come or gone since.");
    });
    // Somebody changes, comes and goes.
    ada.update(Metadata::from_iter([("device", "phone"), ("status", "away")])).unwrap();
    block_in_place(|| page.sees("#comings", "status online → away"));
    let lou = track(&world, 1, "room/7", "lou", &[("device", "watch")]);
    block_in_place(|| {
        page.sees("#comings", "lou came");
        page.sees("#wall", "device=watch");
        page.sees("#rooms", "n1 5 · n2 5 · n3 3");
        look_at(&page, "presence");
        page.types("#wall-search", "watch");
        page.sees_no("#wall", "grace");
        page.sees("#wall", "lou");
        page.types("#wall-search", "nobody at all");
        page.sees("#wall-empty", "Nobody fits the search.");
        page.types("#wall-search", " ");
        page.sees("#wall", "grace");
    });
    drop(lou);
    block_in_place(|| page.sees("#comings", "said goodbye, on n2"));
    // A node goes, and what was there goes with it once its clients had time to come back.
    world.stop_node(2).await;
    block_in_place(|| {
        page.sees_no("#wall-nodes", "n3");
        page.sees_no("#rooms", "street");
        page.sees("#comings", "on n3");
    });
    // Another topic, by the list and by the address.
    block_in_place(|| {
        page.click("#rooms li:nth-child(2) button");
        page.sees("#h-wall", "docs/plan");
        page.sees("#wall", "cursor=12:3");
        page.go(&format!("{}/#presence/room%2F7", world.url(1)));
        page.sees("#h-wall", "room/7");
        page.sees("#wall", "heidi");
        assert_eq!(page.complaints(), Vec::<String>::new());
    });
    drop(crowd);
    block_in_place(|| page.sees_no("#wall", "heidi"));
    world.stop().await;
}

struct Cart;

#[purlin::server]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[summary]
    fn summary(&self) -> String {
        "three apples".to_owned()
    }

    #[cast]
    fn clear(&mut self) {}
}

struct Carts;

impl Kind for Carts {
    const NAME: &'static str = "cart";
    type Server = Cart;
    type Args = ();
    type State = ();

    fn args(&self, (): (), _birth: Birth<()>) -> Result<(), KindError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_all_nodes_are_searched_and_their_names_followed() {
    let Some(browser) = browser() else { return };
    let world = World::start(2).await;
    world.all_alive().await;
    let spawn = async |at: usize| {
        let processes = world.node(at).processes();
        processes.spawn_remote::<Cart>((), SpawnOptions::default()).await.unwrap()
    };
    let (here, there) = (spawn(0).await, spawn(1).await);
    let metadata = || Metadata::from_iter([("shop", "oslo")]);
    world.node(0).registry().register("cart/ada", &here, metadata()).unwrap();
    world.node(1).registry().register("cart/bob", &there, metadata()).unwrap();
    let page = block_in_place(|| browser.open(&format!("{}/#processes", world.url(0))));
    block_in_place(|| {
        page.sees("#processes-nodes", "n2");
        page.sees("#processes", "three apples");
        page.sees("#names", "cart/ada");
        page.sees("#names", "cart/bob");
        page.sees("#names", "shop=oslo");
        page.sees("#changes", "cart/bob is n2#");
        look_at(&page, "processes");
        page.types("#processes-search", &there.pid().to_string());
        page.sees("#processes-note", "1, live");
        page.types("#processes-search", "nothing of the kind");
        page.sees("#processes-empty", "No process fits the search.");
    });
    there.kill();
    block_in_place(|| {
        page.sees("#changes", "cart/bob is gone from n2#");
        page.sees_no("#names", "cart/bob");
        page.types("#names-prefix", "cart/z");
        page.sees("#names-empty", "No name fits.");
        assert_eq!(page.complaints(), Vec::<String>::new());
    });
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_are_seen_where_they_run_and_a_plan_is_shown_before_it_is_made() {
    let Some(browser) = browser() else { return };
    let world = World::start(2).await;
    world.all_alive().await;
    for at in 0..2 {
        world.node(at).supervisor("carts").unwrap().register_kind(Carts).unwrap();
    }
    let carts = world.node(0).supervisor("carts").unwrap();
    for name in ["ada", "bob", "cleo"] {
        carts.start_child::<Carts>(name, &(), ChildOptions::default()).await.unwrap();
    }
    let page =
        block_in_place(|| browser.open(&format!("{}/#token={}", world.url(0), world::TOKEN)));
    block_in_place(|| {
        page.go(&format!("{}/#supervisors", world.url(0)));
        page.sees("#supervisors", "3 children");
        page.sees("#children", "cleo");
        page.sees("#child-events", "cleo runs on n");
        look_at(&page, "supervisors");
        page.click("#plan-show");
        page.sees("#plan-note", "ould move");
        page.click("#plan-pause");
        page.sees("#supervisors", "rebalancing paused");
        page.click("#plan-pause");
        page.sees_no("#supervisors", "rebalancing paused");
        page.types("#children-prefix", "b");
        page.sees_no("#children", "ada");
    });
    carts.stop_child("bob").await.unwrap();
    block_in_place(|| {
        page.sees("#child-events", "bob was stopped");
        page.sees("#children-empty", "No child fits.");
        assert_eq!(page.complaints(), Vec::<String>::new());
    });
    world.stop().await;
}
