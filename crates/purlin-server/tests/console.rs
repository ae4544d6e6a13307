//! Pages of the console as a person sees them: in a headless browser, on a real cluster.
//!
//! With `PURLIN_PICTURES=DIR` each test leaves pictures of its page there: light, dark, narrow.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

#[allow(dead_code, reason = "shared by several test programs, each of which uses a part of it")]
mod world;

use std::path::PathBuf;

use purlin::{dist::Tracked, process::Metadata};
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
