//! Caches over real HTTP, against a real cluster on loopback.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

#[allow(dead_code, reason = "shared by several test programs, each of which uses a part of it")]
mod world;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use world::World;

async fn ask(
    world: &World,
    at: usize,
    method: Method,
    path: &str,
    body: impl Into<reqwest::Body>,
) -> (StatusCode, Value) {
    let request = world.http.request(method, format!("{}{path}", world.url(at))).body(body);
    let response = request.send().await.unwrap();
    let status = response.status();
    let bytes = response.bytes().await.unwrap();
    let raw = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    (status, serde_json::from_slice(&bytes).unwrap_or_else(|_| raw()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_caches_every_node_reads_removes_and_counts() {
    let world = World::start(3).await;
    world.all_alive().await;
    let path = "/v1/caches/cart/user/42?ttl_ms=60000";
    let (status, answer) = ask(&world, 0, Method::PUT, path, "three apples").await;
    assert_eq!((status, answer), (StatusCode::OK, json!({"written": true})));
    for at in 0..3 {
        let url = format!("{}/v1/caches/cart/user%2F42", world.url(at));
        let response = world.http.get(url).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "read from node {at}");
        let left = response.headers()["purlin-expires-in-ms"].to_str().unwrap();
        assert!(left.parse::<u64>().unwrap() <= 60_000);
        assert_eq!(response.text().await.unwrap(), "three apples");
    }
    let again = "/v1/caches/cart/user/42?if_absent=true";
    let (status, answer) = ask(&world, 1, Method::PUT, again, "pears").await;
    assert_eq!((status, answer), (StatusCode::OK, json!({"written": false})));
    let (status, stats) = ask(&world, 0, Method::GET, "/v1/caches/cart", "").await;
    assert_eq!((status, &stats["kind"]), (StatusCode::OK, &json!("partitioned")));
    assert_eq!(stats["hits"], 1, "{stats}");
    assert_eq!(stats["hottest"], json!([{"key": "user/42", "per_mille": 1000}]));
    let (_, all) = ask(&world, 0, Method::GET, "/v1/caches", "").await;
    assert_eq!(all["caches"][0]["name"], "cart");
    let (status, _) = ask(&world, 2, Method::DELETE, "/v1/caches/cart/user/42", "").await;
    assert_eq!(status, StatusCode::OK);
    for at in 0..3 {
        let (status, problem) = ask(&world, at, Method::GET, "/v1/caches/cart/user/42", "").await;
        assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("absent")));
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_are_counted_values_taken_and_caches_cleared_from_any_node() {
    let world = World::start(3).await;
    world.all_alive().await;
    let visits = "/v1/caches/hits/page?op=increment";
    for (at, by, sum) in [(0, 2, "2"), (1, 3, "5"), (2, -1, "4")] {
        let (status, answer) =
            ask(&world, at, Method::POST, &format!("{visits}&by={by}"), "").await;
        assert_eq!((status, answer), (StatusCode::OK, json!({"done": true, "value": sum})));
    }
    let touch = "/v1/caches/hits/page?op=touch&ttl_ms=60000";
    assert_eq!(ask(&world, 1, Method::POST, touch, "").await.1, json!({"done": true}));
    let present = "/v1/caches/hits/page?if_present=true";
    assert_eq!(ask(&world, 2, Method::PUT, present, "x").await.1, json!({"written": true}));
    let (status, problem) = ask(&world, 0, Method::POST, visits, "").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("not_addable")));
    assert_eq!(problem["outcome"], "not_done");
    let take = "/v1/caches/hits/page?op=take";
    let (_, taken) = ask(&world, 1, Method::POST, take, "").await;
    assert_eq!(taken, json!({"done": true, "value": "x"}));
    assert_eq!(ask(&world, 2, Method::POST, take, "").await.1, json!({"done": false}));
    assert_eq!(ask(&world, 0, Method::PUT, present, "y").await.1, json!({"written": false}));

    // Who is busy may be silent for once.
    let all = world::eventually("all answer", async || {
        let (_, all) = ask(&world, 0, Method::GET, "/v1/caches?everywhere=true", "").await;
        let nodes = all["nodes"].as_array()?.clone();
        nodes.iter().all(|node| node["problem"].is_null()).then_some(all)
    })
    .await;
    let names: Vec<_> = all["nodes"].as_array().unwrap().iter().map(|n| &n["node"]).collect();
    assert_eq!(names, ["n1", "n2", "n3"]);
    assert!(all["nodes"].as_array().unwrap().iter().all(|n| n["caches"][0]["name"] == "hits"));
    ask(&world, 0, Method::POST, visits, "").await;
    let (status, _) = ask(&world, 2, Method::DELETE, "/v1/caches/hits", "").await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = ask(&world, 1, Method::GET, "/v1/caches/hits/page", "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    for bad in ["op=double", "op=increment&by=1.5", "op=touch&ttl_ms=0", ""] {
        let path = format!("/v1/caches/hits/page?{bad}");
        let (status, problem) = ask(&world, 0, Method::POST, &path, "").await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{bad}: {problem}");
    }
    let both = "/v1/caches/hits/page?if_present=true&if_absent=true";
    let (status, _) = ask(&world, 0, Method::PUT, both, "x").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cache_cannot_take_is_refused_with_its_bound() {
    let world = World::start(1).await;
    let large = vec![7_u8; (1 << 20) + 1];
    let (status, problem) = ask(&world, 0, Method::PUT, "/v1/caches/c/k", large).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{problem}");
    assert_eq!(problem["outcome"], "not_done");
    for path in [
        "/v1/caches/a%20b/k",
        "/v1/caches/c/k?kind=odd",
        "/v1/caches/c/k?ttl_ms=0",
        &format!("/v1/caches/c/{}", "k".repeat(1_025)),
    ] {
        let (status, problem) = ask(&world, 0, Method::PUT, path, "x").await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path}: {problem}");
    }
    let (status, _) = ask(&world, 0, Method::PUT, "/v1/caches/c/k?kind=local", "x").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "it is open as partitioned");
    let (status, _) = ask(&world, 0, Method::GET, "/v1/caches/nobody", "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = ask(&world, 0, Method::GET, "/v1/caches/nobody/k", "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (_, all) = ask(&world, 0, Method::GET, "/v1/caches", "").await;
    assert_eq!(all["caches"].as_array().unwrap().len(), 1, "looking opens nothing: {all}");
    world.stop().await;
}
