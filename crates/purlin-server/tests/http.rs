//! The API over real HTTP, against real nodes of a real cluster on loopback.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

#[allow(dead_code, reason = "shared by two test programs, each of which uses a part of it")]
mod world;

use std::time::Duration;

use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use world::{SseReader, TOKEN, World, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_shows_every_member_with_all_that_is_known_of_it() {
    let world = World::start(2).await;
    for url in world.urls() {
        let members = eventually("both members are alive and measured", async || {
            let report = world.get(&format!("{url}/v1/members")).await;
            let members = report["members"].as_array().unwrap().clone();
            let alive = members.iter().filter(|m| m["state"] == "alive").count() == 2;
            let measured = members.iter().any(|m| m["rtt_us"].is_u64());
            (alive && measured).then_some(report)
        })
        .await;
        assert!(members["epoch"].as_u64().unwrap() > 0);
        for (at, member) in members["members"].as_array().unwrap().iter().enumerate() {
            let name = format!("n{}", at + 1);
            assert_eq!(member["name"], name, "sorted by name");
            assert_eq!(member["id"], format!("{name}@{}", member["incarnation"]));
            assert_eq!(member["zone"], format!("zone-{name}"));
            assert_eq!(member["suspected_by"], json!([]));
            assert_eq!(member["draining"], false);
            let http_addr = member["http_addr"].as_str().unwrap();
            assert!(world.urls().any(|url| url == format!("http://{http_addr}")), "{http_addr}");
            assert!(member["cluster_addr"].as_str().unwrap().starts_with("127.0.0.1:"));
        }
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_about_itself_its_links_and_a_ping() {
    let world = World::start(2).await;
    let url = world.url(0);
    world.all_alive().await;
    let node = world.get(&format!("{url}/v1/node")).await;
    assert_eq!(node["name"], "n1");
    assert_eq!(node["state"], "running");
    assert_eq!(node["cluster"], "test");
    assert_eq!(node["members"]["alive"], 2);
    assert!(node["process"]["rss_bytes"].as_u64().unwrap() > 1_000_000, "{node}");

    let pong = world.get(&format!("{url}/v1/ping/n2")).await;
    assert_eq!(pong["node"], "n2");
    assert!(pong["rtt_us"].as_u64().unwrap() > 0);
    let (status, problem) = world.try_get(&format!("{url}/v1/ping/n9")).await;
    assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("no_such_member")));

    let links = eventually("both ends see their link", async || {
        let links = world.get(&format!("{url}/v1/links")).await;
        let up = |a: usize, b: &str| {
            links["nodes"][a]["links"]
                .as_array()
                .is_some_and(|l| l.iter().any(|l| l["to"] == b && l["state"] == "up"))
        };
        (up(0, "n2") && up(1, "n1")).then_some(links)
    })
    .await;
    assert_eq!(links["silent"], json!([]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_and_health_and_metrics_answer() {
    let world = World::start(1).await;
    let url = world.url(0);
    assert_eq!(world.get(&format!("{url}/v1/health/live")).await, json!({"status": "live"}));
    assert_eq!(world.get(&format!("{url}/v1/health/ready")).await, json!({"status": "ready"}));
    let processes = world.get(&format!("{url}/v1/processes?summaries=true")).await;
    assert_eq!(processes["node"], "n1");
    assert!(processes["processes"].is_array() && processes["truncated"] == false);
    let registry = world.get(&format!("{url}/v1/registry?prefix=a%2F")).await;
    let nothing =
        json!({"node": "n1", "scope": "default", "entries": [], "truncated": false, "next": null});
    assert_eq!(registry, nothing);
    let openapi = world.get(&format!("{url}/openapi.json")).await;
    assert!(openapi["paths"]["/v1/topics/{pattern}/stream"]["get"].is_object());
    let metrics = world.http.get(format!("{url}/metrics")).send().await.unwrap();
    assert_eq!(metrics.headers()[header::CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    let text = metrics.text().await.unwrap();
    for name in [
        "purlin_server_requests_total{",
        "purlin_server_process_resident_bytes",
        "purlin_server_members{",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
    assert!(text.contains("route=\"/v1/health/live\""), "labelled by template");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_is_shown_and_secrets_are_not() {
    let world = World::start(1).await;
    let config = world.get(&format!("{}/v1/config", world.url(0))).await;
    let keys = config["keys"].as_array().unwrap();
    let name = keys.iter().find(|key| key["key"] == "node.name").unwrap();
    assert_eq!(name["value"], "\"n1\"");
    assert!(!config.to_string().contains(TOKEN), "the token is nowhere in it");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_is_a_problem_document() {
    let world = World::start(1).await;
    let url = world.url(0);
    let big = vec![b'x'; 1024 * 1024 + 1];
    type Case<'a> = (Method, &'a str, &'a str, Vec<u8>, u16, &'a str);
    let cases: Vec<Case<'_>> = vec![
        (Method::GET, "/nowhere", "", vec![], 404, "no_such_route"),
        (Method::GET, "/v1/topics/a/b", "", vec![], 404, "no_such_route"),
        (Method::DELETE, "/v1/node", "", vec![], 405, "method_not_allowed"),
        (Method::PUT, "/v1/topics/a", "", vec![], 405, "method_not_allowed"),
        (Method::POST, "/v1/topics/a", "", big.clone(), 413, "too_large"),
        (Method::POST, "/v1/topics/a", "text/x-lines", big, 413, "too_large"),
        (Method::POST, "/v1/topics/a//b", "", vec![], 422, "bad_input"),
        (Method::POST, "/v1/topics/a/*", "", vec![], 422, "bad_input"),
        (Method::POST, "/v1/topics/a?splitt=lines", "", vec![], 422, "bad_input"),
        (Method::POST, "/v1/topics/%ff", "", vec![], 422, "bad_input"),
        (Method::GET, "/v1/topics/a/**/b/stream", "", vec![], 422, "bad_input"),
        (Method::GET, "/v1/topics/a/stream?policy=hope", "", vec![], 422, "bad_input"),
        (Method::GET, "/v1/topics/a/stream?buffer=0", "", vec![], 422, "bad_input"),
        (Method::GET, "/v1/ping/not_a_name", "", vec![], 422, "bad_input"),
        (Method::GET, "/v1/events?follow=perhaps", "", vec![], 422, "bad_input"),
        (Method::POST, "/v1/drain", "text/html", b"<p>".to_vec(), 415, "unsupported_media"),
        (
            Method::POST,
            "/v1/drain",
            "application/json",
            b"{\"deadline_ms\":0}".to_vec(),
            422,
            "bad_input",
        ),
        (Method::POST, "/v1/drain", "application/json", b"{\"dead\":1}".to_vec(), 422, "bad_input"),
    ];
    for (method, path, media, body, status, code) in cases {
        let mut request = world
            .http
            .request(method.clone(), format!("{url}{path}"))
            .bearer_auth(TOKEN)
            .body(body);
        if !media.is_empty() {
            request = request.header(header::CONTENT_TYPE, media);
        }
        let response = request.send().await.unwrap();
        let at = format!("{method} {path}");
        assert_eq!(response.status().as_u16(), status, "{at}");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json", "{at}");
        assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff", "{at}");
        if status == 405 {
            assert!(response.headers().contains_key(header::ALLOW), "{at}");
        }
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["code"], code, "{at}: {problem}");
        assert_eq!(problem["status"], status, "{at}");
        assert_eq!(problem["outcome"], "not_done", "{at}");
        assert!(
            problem["advice"].is_string()
                && problem["title"].is_string()
                && problem["detail"].is_string(),
            "{at}"
        );
        if code == "bad_input" {
            assert!(
                problem["field"].is_string() && problem["bound"].is_string(),
                "{at}: {problem}"
            );
        }
    }
    let encoded = world
        .http
        .post(format!("{url}/v1/topics/a"))
        .header(header::CONTENT_ENCODING, "gzip")
        .body("x");
    assert_eq!(encoded.send().await.unwrap().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_do_what_holds_over_real_sockets() {
    let world = World::start(1).await;
    let url = world.url(0);
    let port = url.rsplit(':').next().unwrap();
    let own = format!("http://localhost:{port}");
    let evil = "http://evil.example".to_owned();
    type Headers<'a> = Vec<(&'a str, String)>;
    let host = |name: &str| ("host", format!("{name}:{port}"));
    let cases: Vec<(Method, &str, Headers<'_>, u16)> = vec![
        (Method::GET, "/v1/members", vec![], 200),
        (Method::GET, "/v1/members", vec![host("evil.example")], 403),
        (Method::GET, "/v1/health/live", vec![host("evil.example")], 200),
        (Method::GET, "/", vec![host("evil.example")], 200),
        (
            Method::GET,
            "/v1/members",
            vec![host("evil.example"), ("authorization", format!("Bearer {TOKEN}"))],
            200,
        ),
        (Method::GET, "/v1/members", vec![("authorization", "Bearer wrong".to_owned())], 401),
        (Method::GET, "/v1/members", vec![("x-forwarded-for", "203.0.113.9".to_owned())], 401),
        (Method::POST, "/v1/topics/a", vec![], 200),
        (Method::POST, "/v1/topics/a", vec![("origin", own)], 200),
        (Method::POST, "/v1/topics/a", vec![("origin", evil)], 403),
        (Method::POST, "/v1/topics/a", vec![("origin", "null".to_owned())], 403),
        (Method::POST, "/v1/topics/a", vec![host("rebound.example")], 403),
        (Method::POST, "/v1/topics/a", vec![("sec-fetch-site", "cross-site".to_owned())], 403),
        (Method::POST, "/v1/drain", vec![], 401),
        (Method::POST, "/v1/drain", vec![("authorization", "Bearer wrong".to_owned())], 401),
    ];
    for (method, path, headers, status) in cases {
        let mut request = world.http.request(method.clone(), format!("{url}{path}")).body("");
        for (name, value) in &headers {
            request = request.header(*name, value);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{method} {path} {headers:?}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_only_loopback_is_served() {
    let open = purlin_server::HttpConfig::new("0.0.0.0:0".parse().unwrap());
    let error = purlin_server::bind(open).await.unwrap_err().to_string();
    assert!(error.contains("0.0.0.0:0") && error.contains("http.token_file"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named_with_the_setting_to_change() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let error =
        purlin_server::bind(purlin_server::HttpConfig::new(addr)).await.unwrap_err().to_string();
    assert!(error.contains(&addr.to_string()) && error.contains("http.bind"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_payload_crosses_to_a_subscriber_on_another_node_unharmed() {
    let world = World::start(2).await;
    world.all_alive().await;
    let (mut stream, ready) = world.subscribe(1, "/v1/topics/any/**/stream").await;
    assert_eq!(ready.data["policy"], "push-back", "{}", ready.data);
    let payloads: [&[u8]; 5] =
        [b"plain", b"two\nlines\r\n", b"", b"\xff\x00\x01", "grün \u{2028} \"quoted\"".as_bytes()];
    for (at, payload) in payloads.iter().enumerate() {
        // Slashes as they are, and escaped.
        let path = if at % 2 == 0 { "any/thing" } else { "any%2Fthing" };
        let report = world.post(0, &format!("/v1/topics/{path}"), payload).await;
        assert_eq!(
            (&report["published"], &report["remote_nodes"]),
            (&json!(1), &json!(1)),
            "{report}"
        );
    }
    for payload in payloads {
        let message = stream.next().await.unwrap();
        assert_eq!(message.name, "message");
        assert_eq!(message.data["topic"], "any/thing");
        assert!(message.data["publisher"].as_str().unwrap().starts_with("n1@"));
        assert_eq!(message.payload(), payload);
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_lines_arrive_on_the_other_node_complete_and_in_order() {
    const LINES: usize = 100_000;
    let world = World::start(2).await;
    world.all_alive().await;
    let (mut stream, _) = world.subscribe(1, "/v1/topics/feed/stream").await;
    let body: String =
        (0..LINES).map(|at| format!("{{\"line\":{at}}}{}\n", "x".repeat(at % 60))).collect();
    let expected: Vec<String> = body.lines().map(str::to_owned).collect();
    let reading = tokio::spawn(async move {
        let mut lines = Vec::with_capacity(LINES);
        while lines.len() < LINES {
            let event = stream.next().await.expect("the stream goes on until all lines are here");
            assert_eq!(event.name, "message", "nothing may be missing: {}", event.data);
            lines.push(String::from_utf8(event.payload()).unwrap());
        }
        lines
    });
    let started = std::time::Instant::now();
    let response = world
        .http
        .post(format!("{}/v1/topics/feed", world.url(0)))
        .header(header::CONTENT_TYPE, "text/x-lines")
        .body(body)
        .send()
        .await
        .unwrap();
    let report: Value = response.json().await.unwrap();
    assert_eq!(
        (&report["published"], &report["undelivered"]),
        (&json!(LINES), &json!(0)),
        "{report}"
    );
    let lines =
        tokio::time::timeout(Duration::from_secs(120), reading).await.expect("in time").unwrap();
    println!("{LINES} lines in {:?}", started.elapsed());
    assert!(lines == expected, "the same lines in the same order");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_is_told_how_much_it_missed() {
    let world = World::start(1).await;
    let mut stream = world.open(0, "/v1/topics/flood/stream?policy=drop-oldest&buffer=4").await;
    assert_eq!(stream.next().await.unwrap().data["buffer"], 4);
    // Far more than the sockets' buffers hold, while nobody reads.
    let line = "y".repeat(8 * 1024);
    let body: String = (0..4096).map(|_| format!("{line}\n")).collect();
    let report = world.post(0, "/v1/topics/flood?split=lines", body.as_bytes()).await;
    assert_eq!(report["published"], 4096);
    let (mut received, mut missed) = (0, 0);
    while received + missed < 4096 {
        let event = stream.next().await.unwrap();
        match event.name.as_str() {
            "message" => received += 1,
            "lag" => missed += event.data["missed"].as_u64().unwrap(),
            other => panic!("unexpected {other}"),
        }
    }
    assert!(missed > 0, "4096 messages of 8 KiB cannot all wait in a buffer of 4");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_resume_after_the_last_id_and_end_with_a_reason() {
    let world = World::start(2).await;
    world.all_alive().await;
    let mut first = world.open(0, "/v1/events").await;
    let joined = eventually_event(&mut first, "joined", "n2").await;
    let id = joined.id.clone().unwrap();
    drop(first);
    world.stop_node(1).await;
    // The same events twice: once resumed, once from the start, and nothing in between is lost.
    let mut resumed = world.open_after(0, "/v1/events", Some(&id)).await;
    let left = eventually_event(&mut resumed, "left", "n2").await;
    let mut whole = world.open(0, "/v1/events?follow=false").await;
    let mut after = Vec::new();
    let end = loop {
        let event = whole.next().await.expect("a stream ends by saying so");
        if event.name == "end" {
            break event;
        }
        after.push(event.id.unwrap());
    };
    assert_eq!(end.data["reason"], "finished");
    let at = |id: &str| {
        after.iter().position(|other| other == id).unwrap_or_else(|| panic!("{id} in {after:?}"))
    };
    assert!(at(&id) < at(left.id.as_deref().unwrap()));
    assert_eq!(
        resumed.first_id.as_deref(),
        after.get(at(&id) + 1).map(String::as_str),
        "exactly what followed"
    );

    let mut other_life = world.open_after(0, "/v1/events", Some("1.5")).await;
    let gap = other_life.next().await.unwrap();
    assert_eq!((gap.name.as_str(), &gap.data["reason"]), ("gap", &json!("restarted")));
    let (status, _) = world.try_open(0, "/v1/events", Some("rubbish")).await.err().unwrap();
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);

    world.shutdown_http(0).await;
    let end = loop {
        let event = resumed.next().await.expect("a stopping node says so");
        if event.name == "end" {
            break event;
        }
    };
    assert_eq!(end.data["reason"], "shutdown");
}

async fn eventually_event(stream: &mut SseReader, kind: &str, node: &str) -> world::Event {
    loop {
        let event = stream.next().await.expect("the stream goes on");
        if event.name == kind && event.data["node"] == node {
            return event;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_gets_everything_from_one_stream() {
    let world = World::start(2).await;
    world.all_alive().await;
    world.post(0, "/v1/topics/seen", b"x").await;
    let mut stream = world.open(0, "/v1/live").await;
    let mut missing = vec!["node", "members", "links", "topics", "event"];
    while !missing.is_empty() {
        let event = stream.next().await.unwrap();
        missing.retain(|name| *name != event.name);
    }
    let page = world.http.get(world.url(0)).send().await.unwrap();
    let policy = page.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert!(page.text().await.unwrap().contains("/console/main.js"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_over_http_takes_the_node_out_of_rotation_and_out_of_the_cluster() {
    let world = World::start(2).await;
    world.all_alive().await;
    let drain =
        world.http.post(format!("{}/v1/drain?deadline_ms=20000", world.url(1))).bearer_auth(TOKEN);
    let response = drain.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let report: Value = response.json().await.unwrap();
    assert_eq!((&report["node"], &report["state"]), (&json!("n2"), &json!("draining")));
    let (status, problem) = world.try_get(&format!("{}/v1/health/ready", world.url(1))).await;
    assert_eq!((status, &problem["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("not_ready")));
    assert_eq!(world.get(&format!("{}/v1/health/live", world.url(1))).await["status"], "live");
    eventually("n1 sees that n2 has left", async || {
        let members = world.get(&format!("{}/v1/members", world.url(0))).await;
        members["members"]
            .as_array()
            .unwrap()
            .iter()
            .any(|m| m["name"] == "n2" && m["state"] == "left")
            .then_some(())
    })
    .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_pauses_slows_the_publisher_on_another_node_and_misses_nothing() {
    const LINES: usize = 8192;
    let world = World::start(2).await;
    world.all_alive().await;
    let (mut stream, _) = world.subscribe(1, "/v1/topics/slow/stream?buffer=16").await;
    // 64 MiB: far more than all sockets, queues and credit between the two ends hold.
    let body: String = (0..LINES).map(|at| format!("{at:08}{}\n", "z".repeat(8184))).collect();
    let request =
        world.http.post(format!("{}/v1/topics/slow?split=lines", world.url(0))).body(body);
    let publishing =
        tokio::spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() });
    let stuck_at = eventually("the publisher stands still", async || {
        let sent = async || {
            let topics = world.get(&format!("{}/v1/topics", world.url(0))).await;
            topics["topics"][0]["messages"].as_u64().unwrap_or(0)
        };
        let before = sent().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        (before > 0 && sent().await == before).then_some(before)
    })
    .await;
    assert!(stuck_at < LINES as u64 && !publishing.is_finished(), "{stuck_at} lines went out");
    for at in 0..LINES {
        let event = stream.next().await.unwrap();
        assert_eq!(event.name, "message", "{}", event.data);
        assert_eq!(&event.payload()[..8], format!("{at:08}").as_bytes());
    }
    let report = publishing.await.unwrap();
    assert_eq!(
        (&report["published"], &report["undelivered"]),
        (&json!(LINES), &json!(0)),
        "{report}"
    );
    world.stop().await;
}

/// Sends raw bytes and returns all that comes back until the node closes the connection.
async fn raw(world: &World, bytes: &[u8]) -> String {
    let addr = world.url(0).strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    // The node may close before it has read everything; what it answered counts.
    stream.write_all(bytes).await.ok();
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(120), reading)
        .await
        .expect("the node closes the connection")
        .ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_half_requests_end_their_connection_and_nothing_else() {
    let world = World::start(1).await;
    let long_head =
        format!("GET /v1/node HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "h".repeat(1 << 20));
    for (bytes, answer) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], "HTTP/1.1 400"),
        (b"GET /v1/node SPDY/9\r\n\r\n", "HTTP/1.1 400"),
        (
            b"POST /v1/topics/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: nine\r\n\r\n",
            "HTTP/1.1 400",
        ),
        (long_head.as_bytes(), "HTTP/1.1 431"),
    ] {
        let got = raw(&world, bytes).await;
        assert!(
            got.starts_with(answer),
            "{:?}: {got}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
        );
    }
    assert_eq!(world.get(&format!("{}/v1/node", world.url(0))).await["name"], "n1");
    world.stop().await;

    // Half a head, and then nothing: cut off when its time is up.
    let world =
        World::start_with(1, |config| config.head_within = Duration::from_millis(300)).await;
    for bytes in [&b"GET /v1/node HT"[..], b""] {
        assert_eq!(raw(&world, bytes).await, "");
    }
    eventually("the node still answers", async || {
        let node = world.http.get(format!("{}/v1/node", world.url(0))).send().await.ok()?;
        (node.json::<Value>().await.ok()?["name"] == "n1").then_some(())
    })
    .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_above_their_bound_are_refused_and_places_come_back() {
    let world = World::start_with(1, |config| config.streams_max = 2).await;
    let first = world.open(0, "/v1/events").await;
    let second = world.open(0, "/v1/topics/a/stream").await;
    let (status, problem) = world.try_open(0, "/v1/live", None).await.err().unwrap();
    assert_eq!(
        (status, &problem["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("too_many_streams"))
    );
    assert_eq!(problem["advice"], "retry_elsewhere");
    drop((first, second));
    eventually("a place is free again", async || world.try_open(0, "/v1/events", None).await.ok())
        .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_loopback_everything_but_health_and_the_page_needs_the_token() {
    // A route to anywhere tells this machine's address; nothing is sent.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let here = match probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()) {
        Ok(addr) if !addr.ip().is_loopback() && !addr.ip().is_unspecified() => addr.ip(),
        // A machine with nothing but loopback has no beyond; the rule itself has unit tests.
        Ok(_) | Err(_) => return,
    };
    let world = World::start_with(1, |config| config.bind = "0.0.0.0:0".parse().unwrap()).await;
    let port = world.url(0).rsplit(':').next().unwrap();
    for (method, path, with_token, status) in [
        (Method::GET, "/v1/health/ready", false, 200),
        (Method::GET, "/", false, 200),
        (Method::GET, "/v1/members", false, 401),
        (Method::GET, "/v1/members", true, 200),
        (Method::GET, "/metrics", false, 401),
        (Method::POST, "/v1/topics/a", false, 401),
        (Method::POST, "/v1/topics/a", true, 200),
    ] {
        let request =
            world.http.request(method.clone(), format!("http://{here}:{port}{path}")).body("");
        let request = if with_token { request.bearer_auth(TOKEN) } else { request };
        assert_eq!(
            request.send().await.unwrap().status().as_u16(),
            status,
            "{method} {path}, token: {with_token}"
        );
    }
    world.stop().await;
}
