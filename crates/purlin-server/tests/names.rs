//! Names, groups and children over real HTTP, against a real cluster on loopback.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

#[allow(dead_code, reason = "shared by several test programs, each of which uses a part of it")]
mod world;

use purlin::{
    dist::supervisor::{Birth, ChildOptions, Kind, KindError},
    process::{ExitReason, Metadata, ProcessRef, SpawnOptions},
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use world::{TOKEN, World, eventually};

struct Cart;

#[purlin::server]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[cast]
    fn clear(&mut self) {}
}

async fn cart(world: &World, at: usize) -> ProcessRef<Cart> {
    let processes = world.node(at).processes();
    processes.spawn_remote::<Cart>((), SpawnOptions::default()).await.unwrap()
}

async fn problem(world: &World, path: &str) -> (StatusCode, Value) {
    let response = world.http.get(format!("{}{path}", world.url(0))).send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_registered_on_one_node_is_listed_and_found_on_every_other() {
    let world = World::start(2).await;
    world.all_alive().await;
    let process = cart(&world, 0).await;
    let registry = world.node(0).registry();
    for n in 0..5 {
        let metadata = Metadata::from_iter([("n", n.to_string())]);
        registry.register(&format!("cart/{n}"), &process, metadata).unwrap();
    }
    registry.register_shared("pool", &process, Metadata::default()).unwrap();
    registry.scope("night").unwrap().register("cart/0", &process, Metadata::default()).unwrap();
    let url = format!("{}/v1/registry", world.url(1));
    let found = eventually("n2 knows it", async || {
        let response = world.http.get(format!("{url}/cart/4")).send().await.unwrap();
        (response.status() == StatusCode::OK).then_some(response)
    })
    .await;
    let found: Value = found.json().await.unwrap();
    assert_eq!(found["pid"], process.pid().to_string());
    assert_eq!((&found["node"], &found["kind"]), (&json!("n1"), &json!("Cart")));
    assert_eq!(found["metadata"], json!({"n": "4"}));
    assert!(found["version"].is_string() && found["unique"] == true);
    // In pages, once all are there.
    eventually("n2 knows the others", async || {
        let all = world.get(&format!("{url}?prefix=cart%2F")).await;
        (all["entries"].as_array().unwrap().len() == 5).then_some(())
    })
    .await;
    let page = world.get(&format!("{url}?prefix=cart%2F&limit=3")).await;
    assert_eq!(page["entries"].as_array().unwrap().len(), 3);
    assert_eq!((&page["truncated"], &page["next"]), (&json!(true), &json!("cart/2")));
    let page = world.get(&format!("{url}?prefix=cart%2F&limit=3&after=cart%2F2")).await;
    assert_eq!(page["entries"][0]["name"], "cart/3");
    assert_eq!((&page["truncated"], &page["next"]), (&json!(false), &json!(null)));
    // Shared keys, other scopes, and names of one node.
    eventually("the rest has arrived", async || {
        let night = world.get(&format!("{url}?scope=night")).await;
        let shared = world.get(&format!("{url}?shared=true")).await;
        let is_there = |report: &Value| report["entries"].as_array().unwrap().len() == 1;
        (is_there(&night) && is_there(&shared) && shared["entries"][0]["name"] == "pool")
            .then_some(())
    })
    .await;
    let here = world.node(1).processes();
    here.spawn_remote::<Cart>((), SpawnOptions::named("only here")).await.unwrap();
    let local = world.get(&format!("{url}?local=true")).await;
    assert_eq!(
        (&local["entries"][0]["name"], &local["scope"]),
        (&json!("only here"), &json!(null))
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_names_and_groups_are_streamed_with_reasons_and_resumed_by_id() {
    let world = World::start(2).await;
    world.all_alive().await;
    let mut names = world.open(1, "/v1/registry-watch?prefix=cart%2F").await;
    let mut groups = world.open(1, "/v1/groups-watch").await;
    let ready = names.next().await.unwrap();
    assert_eq!((ready.name.as_str(), &ready.data["revision"]), ("ready", &json!(0)));
    assert_eq!(groups.next().await.unwrap().name, "ready");
    let process = cart(&world, 0).await;
    let node = world.node(0);
    node.registry().register("other", &process, Metadata::default()).unwrap();
    node.registry().register("cart/1", &process, Metadata::default()).unwrap();
    node.groups().join("carts", &process, Metadata::default()).unwrap();
    let change = names.next().await.unwrap();
    assert_eq!(change.name, "change");
    assert_eq!(
        (&change.data["name"], &change.data["why"]),
        (&json!("cart/1"), &json!("registered"))
    );
    assert_eq!(change.data["now"]["pid"], process.pid().to_string());
    let joined = groups.next().await.unwrap();
    assert_eq!(
        (&joined.data["name"], &joined.data["why"]),
        (&json!("carts"), &json!("registered"))
    );
    let listed = world.get(&format!("{}/v1/groups", world.url(1))).await;
    assert_eq!(listed["groups"], json!([{"name": "carts", "members": 1}]));
    let members = world.get(&format!("{}/v1/groups/carts", world.url(1))).await;
    assert_eq!(members["members"][0]["pid"], process.pid().to_string());
    drop(names);
    process.stop(ExitReason::failed("no room"));
    let left = groups.next().await.unwrap();
    assert_eq!((&left.data["why"], &left.data["now"]), (&json!("crashed"), &json!(null)));
    assert_eq!(left.data["error"], "failed: no room");
    // Whoever comes back hears exactly what it missed.
    let path = "/v1/registry-watch?prefix=cart%2F";
    let mut names = world.open_after(1, path, change.id.as_deref()).await;
    assert_eq!(names.next().await.unwrap().name, "ready");
    let gone = names.next().await.unwrap();
    assert_eq!(
        (&gone.data["why"], &gone.data["before"]["name"]),
        (&json!("crashed"), &json!("cart/1"))
    );
    // An id of another life of the node is told apart.
    let mut names = world.open_after(1, path, Some("1.7")).await;
    assert_eq!(names.next().await.unwrap().name, "gap");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_listing_cannot_use_is_refused_by_name() {
    let world = World::start(1).await;
    for (path, field) in [
        ("/v1/registry?scope=", "scope"),
        ("/v1/registry?limit=0", "limit"),
        ("/v1/registry?shared=true&after=nonsense", "after"),
        ("/v1/registry?local=true&limit=5", "limit"),
        ("/v1/registry?perfix=a", "perfix"),
        ("/v1/groups/a?after=x", "after"),
    ] {
        let (status, problem) = problem(&world, path).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path}: {problem}");
        assert_eq!((&problem["field"], &problem["outcome"]), (&json!(field), &json!("not_done")));
    }
    let (status, problem) = problem(&world, "/v1/registry/nobody").await;
    assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("absent")));
    let nobody = world.get(&format!("{}/v1/groups/nobody", world.url(0))).await;
    assert_eq!((&nobody["count"], &nobody["members"]), (&json!(0), &json!([])));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_is_said_on_one_node_listed_on_another_and_streamed_with_reasons() {
    let world = World::start(2).await;
    world.all_alive().await;
    let put = async |at: usize, path: &str, body: &'static str| {
        let url = format!("{}{path}", world.url(at));
        let response = world.http.put(url).body(body).send().await.unwrap();
        (response.status(), response.json::<Value>().await.unwrap())
    };
    let mut watch = world.open(1, "/v1/presence-watch?topic=room%2F7").await;
    assert_eq!(watch.next().await.unwrap().name, "ready");
    let ada = "/v1/presence/room%2F7/ada?session=phone&ttl_ms=60000";
    let (status, tracked) = put(0, ada, "{\"device\": \"phone\"}").await;
    assert_eq!(status, StatusCode::OK, "{tracked}");
    assert_eq!(
        (&tracked["entry"]["node"], &tracked["expires_in_ms"]),
        (&json!("n1"), &json!(60_000))
    );
    let joined = watch.next().await.unwrap();
    assert_eq!((&joined.data["key"], &joined.data["why"]), (&json!("ada"), &json!("registered")));
    assert_eq!(joined.data["now"]["metadata"], json!({"device": "phone"}));
    // Another tab, and somebody who does not renew.
    put(1, "/v1/presence/room%2F7/ada?session=tab&ttl_ms=60000", "").await;
    put(1, "/v1/presence/room%2F7/bob/x?ttl_ms=100", "").await;
    assert_eq!(watch.next().await.unwrap().data["key"], "ada");
    assert_eq!(watch.next().await.unwrap().data["key"], "bob/x");
    let expired = watch.next().await.unwrap();
    assert_eq!((&expired.data["key"], &expired.data["why"]), (&json!("bob/x"), &json!("expired")));
    let url = |path: &str| format!("{}{path}", world.url(1));
    let list = world.get(&url("/v1/presence/room%2F7")).await;
    assert_eq!((&list["count"], list["entries"].as_array().unwrap().len()), (&json!(2), 2));
    let one = world.get(&url("/v1/presence/room%2F7/ada")).await;
    assert_eq!(one["entries"].as_array().unwrap().len(), 2);
    let topics = world.get(&url("/v1/presence?prefix=room")).await;
    assert_eq!(topics["topics"], json!([{"topic": "room/7", "count": 2}]));
    // A page at a time.
    let page = world.get(&url("/v1/presence/room%2F7?limit=1")).await;
    let next = page["next"].as_str().unwrap();
    let page = world.get(&url(&format!("/v1/presence/room%2F7?limit=1&after={next}"))).await;
    assert_eq!((page["entries"].as_array().unwrap().len(), &page["next"]), (1, &json!(null)));
    // Only the node that keeps it ends it.
    let end = "/v1/presence/room%2F7/ada?session=phone";
    for (at, removed) in [(1, false), (0, true), (0, false)] {
        let gone = world.http.delete(format!("{}{end}", world.url(at))).send().await.unwrap();
        assert_eq!(gone.json::<Value>().await.unwrap(), json!({"removed": removed}), "{at}");
    }
    assert_eq!(watch.next().await.unwrap().data["why"], "unregistered");
    // What cannot be is refused.
    for (path, body, field) in [
        ("/v1/presence/room/ada?ttl_ms=99", "", "ttl_ms"),
        ("/v1/presence/room/ada", "[1]", "body"),
        ("/v1/presence/room/ada", "{\"a\": 1}", "body"),
    ] {
        let (status, problem) = put(0, path, body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path}: {problem}");
        assert_eq!(problem["field"], field);
    }
    let long = format!("/v1/presence/room/{}", "k".repeat(1_025));
    assert_eq!(put(0, &long, "").await.0, StatusCode::UNPROCESSABLE_ENTITY);
    // One key cannot use up the place of all.
    let presence = world.node(0).presence();
    let flood: Vec<_> = (0..1_000)
        .map(|_| presence.track_while_held("flood", "mal", Metadata::default()).unwrap())
        .collect();
    let (status, problem) = put(0, "/v1/presence/flood/mal?session=x", "").await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE, "{problem}");
    assert_eq!(
        (&problem["code"], &problem["outcome"]),
        (&json!("too_many_presences_of_key"), &json!("not_done"))
    );
    assert_eq!(put(0, "/v1/presence/flood/good", "").await.0, StatusCode::OK);
    drop(flood);
    let (status, problem) = self::problem(&world, "/v1/presence-watch").await;
    assert_eq!((status, &problem["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("topic")));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_every_node_are_searched_and_a_silent_one_is_named() {
    let world = World::start(2).await;
    world.all_alive().await;
    let (first, second) = (cart(&world, 0).await, cart(&world, 1).await);
    cart(&world, 1).await;
    let url = format!("{}/v1/processes", world.url(0));
    let here = world.get(&format!("{url}?search=cart")).await;
    assert_eq!(here["processes"][0]["pid"], first.pid().to_string());
    assert_eq!((&here["nodes"], &here["truncated"]), (&json!([]), &json!(false)));
    // Who is busy may be silent for once.
    let everywhere = async |query: String| {
        eventually("both answer", async || {
            let all = world.get(&format!("{url}?everywhere=true&{query}")).await;
            let nodes = all["nodes"].as_array().unwrap().clone();
            nodes.iter().all(|node| node["problem"].is_null()).then_some(all)
        })
        .await
    };
    let all = everywhere("search=CART&limit=1".to_owned()).await;
    let nodes = all["nodes"].as_array().unwrap();
    assert_eq!((&nodes[0]["node"], &nodes[1]["node"]), (&json!("n1"), &json!("n2")));
    assert_eq!(nodes[1]["processes"][0]["pid"], second.pid().to_string());
    assert_eq!((&nodes[0]["truncated"], &nodes[1]["truncated"]), (&json!(false), &json!(true)));
    assert!(nodes[1]["running"].as_u64().unwrap() >= 2);
    let one = second.pid().to_string();
    let one = everywhere(format!("search={}", one.replace('#', "%23"))).await;
    let found = one["nodes"].as_array().unwrap().iter();
    let found: usize = found.map(|node| node["processes"].as_array().unwrap().len()).sum();
    assert_eq!(found, 1, "{one}");
    for (query, field) in [("limit=0", "limit"), ("everywhere=maybe", "everywhere"), ("a=b", "a")] {
        let (status, refused) = problem(&world, &format!("/v1/processes?{query}")).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{query}");
        assert!(refused["detail"].as_str().unwrap().contains(field), "{refused}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_who_comes_late_may_begin_with_recent_changes() {
    let world = World::start(1).await;
    let process = cart(&world, 0).await;
    let registry = world.node(0).registry().scope("late").unwrap();
    for n in 0..3 {
        registry.register(&format!("cart/{n}"), &process, Metadata::default()).unwrap();
    }
    let url = world.url(0);
    let scopes = world.get(&format!("{url}/v1/registry-scopes?prefix=la")).await;
    assert_eq!(scopes, json!({"scopes": ["late"], "next": null}));
    let mut watch = world.open(0, "/v1/registry-watch?scope=late&recent=10000").await;
    assert_eq!(watch.next().await.unwrap().name, "ready");
    for name in ["cart/0", "cart/1", "cart/2"] {
        let change = watch.next().await.unwrap();
        assert_eq!((change.name.as_str(), &change.data["name"]), ("change", &json!(name)));
    }
    let (status, refused) = problem(&world, "/v1/registry-watch?recent=10001").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused["detail"].as_str().unwrap().contains("10000"), "{refused}");
    drop(watch);
    world.stop().await;
}

/// Carts as children of a supervisor.
struct Carts;

impl Kind for Carts {
    const NAME: &'static str = "cart";
    type Server = Cart;
    type Args = u32;
    type State = ();

    fn args(&self, _size: u32, _birth: Birth<()>) -> Result<(), KindError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_are_listed_planned_for_and_followed_on_every_node() {
    let world = World::start(2).await;
    world.all_alive().await;
    for at in 0..2 {
        world.node(at).supervisor("carts").unwrap().register_kind(Carts).unwrap();
    }
    let carts = world.node(0).supervisor("carts").unwrap();
    for n in 0..3 {
        let options = ChildOptions::default();
        carts.start_child::<Carts>(&format!("cart-{n}"), &n, options).await.unwrap();
    }
    let url = format!("{}/v1/supervisors", world.url(1));
    let children = eventually("n2 knows all children", async || {
        let (status, page) = world.try_get(&format!("{url}/carts/children?limit=2")).await;
        let is_placed = page["children"][0]["fence"].as_u64().is_some_and(|fence| fence > 0);
        (status == StatusCode::OK && page["count"] == 3 && is_placed).then_some(page)
    })
    .await;
    let first = &children["children"][0];
    assert_eq!((&first["id"], &first["kind"]), (&json!("cart-0"), &json!("cart")));
    assert!(first["fence"].as_u64().unwrap() > 0 && first["restarts"] == 0, "{first}");
    assert_eq!(children["next"], "cart-1");
    let rest = world.get(&format!("{url}/carts/children?after=cart-1&prefix=cart-")).await;
    assert_eq!((&rest["children"][0]["id"], &rest["next"]), (&json!("cart-2"), &json!(null)));
    let all = eventually("n2 knows where they are", async || {
        let all = world.get(&url).await;
        let nodes = all["supervisors"][0]["nodes"].as_array()?.clone();
        let counted = nodes.iter().filter_map(|node| node["children"].as_u64());
        (counted.sum::<u64>() == 3).then_some(all)
    })
    .await;
    let known = all["supervisors"].as_array().unwrap();
    let report = known.iter().find(|report| report["name"] == "carts").unwrap();
    assert_eq!(report["children"], 3);
    assert_eq!((&report["gate"], &report["paused"]), (&json!("open"), &json!(false)));
    // What has happened, and what happens now.
    let mut story = world.open(1, "/v1/supervisors/carts/events?recent=10000").await;
    assert_eq!(story.next().await.unwrap().name, "ready");
    let mut started = std::collections::BTreeSet::new();
    while started.len() < 3 {
        let event = story.next().await.unwrap();
        if event.data["what"] == "started" {
            started.insert(event.data["id"].as_str().unwrap().to_owned());
        }
    }
    // Plans are for all to see, moves for those with the token.
    let plan = world.get(&format!("{url}/carts/plan")).await;
    assert!(plan["moves"].is_array() && plan["truncated"] == false, "{plan}");
    for act in ["rebalance", "pause", "resume"] {
        let refused = world.http.post(format!("{url}/carts/{act}")).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{act}");
    }
    for (act, paused) in [("pause", true), ("resume", false)] {
        let request = world.http.post(format!("{url}/carts/{act}")).bearer_auth(TOKEN);
        let report: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(report["paused"], paused, "{report}");
    }
    let request = world.http.post(format!("{url}/carts/rebalance")).bearer_auth(TOKEN);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let moves: Value = response.json().await.unwrap();
    assert!(moves["moves"].is_u64() && moves["paused"] == false, "{moves}");
    for path in ["children", "plan", "events"] {
        let (status, _) = problem(&world, &format!("/v1/supervisors/nobody/{path}")).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
    let all = world.get(&url).await;
    let mut names = all["supervisors"].as_array().unwrap().iter().map(|it| &it["name"]);
    assert!(names.all(|name| name != "nobody"), "to look makes none: {all}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_keeps_a_copy_of_a_topic_by_one_stream_and_comes_back_to_it() {
    let world = World::start(2).await;
    world.all_alive().await;
    let presence = world.node(0).presence();
    let track = |key: &str, mood: &str| {
        let metadata = Metadata::from_iter([("mood", mood), ("device", "phone")]);
        presence.track_while_held("room", key, metadata).unwrap()
    };
    // More than a page.
    let held: Vec<_> = (0..250).map(|n| track(&format!("{n:03}"), "calm")).collect();
    eventually("n2 has them", async || {
        (world.node(1).presence().count("room") == 250).then_some(())
    })
    .await;
    let path = "/v1/presence-sync?topic=room&calm_ms=0";
    let mut sync = world.open(1, path).await;
    let first = sync.next().await.unwrap();
    assert_eq!((first.name.as_str(), first.id), ("page", None), "the copy is not complete");
    assert_eq!((&first.data["first"], &first.data["last"]), (&json!(true), &json!(false)));
    assert_eq!(
        (&first.data["count"], &first.data["entries"][0]["key"]),
        (&json!(250), &json!("000"))
    );
    let mut last = sync.next().await.unwrap();
    // What was on its way when the list was made is told between the pages, too.
    while last.name == "diff" {
        last = sync.next().await.unwrap();
    }
    assert_eq!((&last.data["first"], &last.data["last"]), (&json!(false), &json!(true)));
    assert!(last.id.is_some());
    held[7].update(Metadata::from_iter([("mood", "glad"), ("device", "phone")])).unwrap();
    let mut diff = sync.next().await.unwrap();
    while diff.data["updates"] == json!([]) {
        diff = sync.next().await.unwrap();
    }
    let update = &diff.data["updates"][0];
    assert_eq!((diff.name.as_str(), &update["entry"]["key"]), ("diff", &json!("007")));
    assert_eq!(update["fields"], json!([{"name": "mood", "before": "calm", "now": "glad"}]));
    assert_eq!(update["was"], update["entry"]["id"]);
    // Away, and back: only what happened meanwhile.
    drop(sync);
    drop(held);
    let _ada = track("ada", "calm");
    eventually("n2 sees ada alone", async || {
        (world.node(1).presence().count("room") == 1).then_some(())
    })
    .await;
    let mut sync = world.open_after(1, path, diff.id.as_deref()).await;
    let (mut joins, mut leaves) = (Vec::new(), 0);
    while joins.is_empty() || leaves < 250 {
        let diff = sync.next().await.unwrap();
        assert_eq!(diff.name, "diff", "nothing is sent again");
        joins.extend(diff.data["joins"].as_array().unwrap().iter().map(|it| it["key"].clone()));
        leaves += diff.data["leaves"].as_array().unwrap().len();
    }
    assert_eq!((joins, leaves), (vec![json!("ada")], 250));
    // A place on another node is none here.
    let mut sync = world.open_after(0, path, diff.id.as_deref()).await;
    assert_eq!(sync.next().await.unwrap().data["first"], json!(true));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_wants_numbers_is_sent_numbers_and_no_rows() {
    let world = World::start(2).await;
    world.all_alive().await;
    let track = |at: usize, topic: &str, key: &str| {
        world.node(at).presence().track_while_held(topic, key, Metadata::default()).unwrap()
    };
    let (ada, bob) = (track(0, "room/1", "ada"), track(1, "room/1", "bob"));
    let _eve = track(0, "street", "eve");
    eventually("n2 sees both", async || {
        (world.node(1).presence().count("room/1") == 2).then_some(())
    })
    .await;
    let mut counts = world.open(1, "/v1/presence-counts?prefix=room%2F&every_ms=10").await;
    let first = counts.next().await.unwrap();
    assert_eq!(
        first.data,
        json!({"first": true, "last": true, "topics": [
            {"topic": "room/1", "count": 2, "nodes": {"n1": 1, "n2": 1}},
        ]})
    );
    drop((ada, bob));
    let mut last = first;
    while last.data["topics"][0]["count"] != json!(0) {
        last = counts.next().await.unwrap();
        assert_eq!((last.name.as_str(), &last.data["first"]), ("counts", &json!(false)));
    }
    let (status, problem) = problem(&world, "/v1/presence-counts?every_ms=1").await;
    assert_eq!((status, &problem["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("every_ms")));
    world.stop().await;
}
