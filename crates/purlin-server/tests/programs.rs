//! Programs over real HTTP, on nodes that do not run any: what runs has tests of the binary.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

#[allow(dead_code, reason = "shared by several test programs, each of which uses a part of it")]
mod world;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use world::{TOKEN, World};

async fn ask(
    world: &World,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: &str,
) -> (StatusCode, Value) {
    let request = world.http.request(method, format!("{}{path}", world.url(0)));
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    let response = request.body(body.to_owned()).send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_runs_stops_or_reads_a_program_without_the_token() {
    let world = World::start(1).await;
    let run = r#"{"command": ["true"]}"#;
    for token in [None, Some("wrong")] {
        for (method, path, body) in [
            (Method::PUT, "/v1/supervised/job", run),
            (Method::DELETE, "/v1/supervised/job", ""),
            (Method::GET, "/v1/supervised/job/logs", ""),
        ] {
            let (status, problem) = ask(&world, method.clone(), path, token, body).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}: {problem}");
        }
    }
    assert_eq!(world.get(&format!("{}/v1/supervised", world.url(0))).await["programs"], json!([]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_in_which_no_node_may_run_programs_says_how_to_allow_it() {
    let world = World::start(1).await;
    let (status, problem) =
        ask(&world, Method::PUT, "/v1/supervised/job", Some(TOKEN), r#"{"command": ["true"]}"#)
            .await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("exec_disabled")));
    assert_eq!(problem["outcome"], "not_done");
    assert!(problem["detail"].as_str().unwrap().contains("exec.enabled"), "{problem}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_name_what_is_wrong_with_them() {
    let world = World::start(1).await;
    let put = |path: &'static str, body: String| (Method::PUT, path, body, 422);
    let run = |rest: &str| format!(r#"{{"command": ["true"]{rest}}}"#);
    let cases = [
        put("/v1/supervised/a%2Fb", run("")),
        put("/v1/supervised/.hidden", run("")),
        put("/v1/supervised/job?force=true", run("")),
        put("/v1/supervised/job", "not JSON".to_owned()),
        put("/v1/supervised/job", r#"{"command": []}"#.to_owned()),
        put("/v1/supervised/job", r#"{"command": "true"}"#.to_owned()),
        put("/v1/supervised/job", run(r#", "comand": 1"#)),
        put("/v1/supervised/job", run(r#", "cwd": "relative""#)),
        put("/v1/supervised/job", run(r#", "cpus": 0"#)),
        put("/v1/supervised/job", run(r#", "env": {"PURLIN_FENCE": "9"}"#)),
        (Method::PUT, "/v1/supervised/job", "x".repeat(300 << 10), 413),
        (Method::GET, "/v1/supervised?limit=0", String::new(), 422),
        (Method::GET, "/v1/supervised/job", String::new(), 404),
        (Method::DELETE, "/v1/supervised/job", String::new(), 404),
        (Method::GET, "/v1/supervised/job/logs", String::new(), 404),
        (Method::GET, "/v1/supervised/job/logs?tail=-1", String::new(), 422),
        (Method::GET, "/v1/supervised/job/logs?node=..", String::new(), 422),
        (Method::GET, "/v1/supervised/job/logs?node=n9", String::new(), 503),
    ];
    for (method, path, body, expected) in cases {
        let (status, problem) = ask(&world, method.clone(), path, Some(TOKEN), &body).await;
        assert_eq!(status.as_u16(), expected, "{method} {path} {body:.60}: {problem}");
        assert_eq!(problem["outcome"], "not_done", "{method} {path}: {problem}");
    }
    let id = world.http.get(format!("{}/v1/supervised/job/logs", world.url(0)));
    let response = id.bearer_auth(TOKEN).header("last-event-id", "7.12").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
    world.stop().await;
}
