//! Whole nodes in one program, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

use std::time::Duration;

use purlin::{
    DevAuthority, LocalNode, Node, StartError,
    cache::CacheConfig,
    cluster::{Phase, State},
};

const PATIENCE: Duration = Duration::from_secs(60);

async fn start(authority: &DevAuthority, name: &str, seeds: &[&Node]) -> Node {
    let seeds = seeds.iter().map(|node| node.cluster_addr());
    Node::builder().name(name).dev(authority).join(seeds).start().await.unwrap()
}

async fn state_of(node: &Node, name: &str, state: State) {
    let mut watch = node.cluster().watch();
    let name = name.parse().unwrap();
    let seen = async {
        let mut view = watch.view();
        while view.get(&name).is_none_or(|member| member.state != state) {
            view = watch.changed().await;
        }
    };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .unwrap_or_else(|_| panic!("{node:?} never saw {name} {state}"));
}

#[tokio::test]
async fn three_nodes_of_one_program_find_each_other() {
    let authority = DevAuthority::new().unwrap();
    let n1 = start(&authority, "n1", &[]).await;
    let n2 = start(&authority, "n2", &[&n1]).await;
    let n3 = start(&authority, "n3", &[&n2]).await;
    for node in [&n1, &n2, &n3] {
        node.cluster().wait_for_members(3, PATIENCE).await.unwrap();
    }
    for node in [n3, n2, n1] {
        node.shutdown().await;
        assert!(node.uptime() > Duration::ZERO);
    }
}

#[tokio::test]
async fn a_drained_node_has_left_for_the_others_and_has_stopped() {
    let authority = DevAuthority::new().unwrap();
    let n1 = start(&authority, "n1", &[]).await;
    let n2 = start(&authority, "n2", &[&n1]).await;
    n1.cluster().wait_for_members(2, PATIENCE).await.unwrap();
    let (one, other) = tokio::join!(n2.drain(None), n2.drain(Some(PATIENCE)));
    assert_eq!(one.phase, Phase::Left, "{one:?}");
    assert_eq!(other.phase, Phase::Left, "two askers, one drain");
    tokio::time::timeout(PATIENCE, n2.stopped()).await.unwrap();
    state_of(&n1, "n2", State::Left).await;
    n1.shutdown().await;
}

#[tokio::test]
async fn a_node_knows_what_it_was_told_and_so_do_the_others() {
    let authority = DevAuthority::new().unwrap();
    let n1 = start(&authority, "n1", &[]).await;
    let n2 = Node::builder()
        .name("n2")
        .dev(&authority)
        .join([n1.cluster_addr()])
        .zone("z1")
        .roles(["web", "a,b"])
        .labels([("rack".to_owned(), "7".to_owned())])
        .http_addr("127.0.0.1:4999".parse().unwrap())
        .start()
        .await
        .unwrap();
    n1.cluster().wait_for_members(2, PATIENCE).await.unwrap();
    let seen = n1.cluster().member(&"n2".parse().unwrap()).unwrap();
    assert_eq!(seen.meta.zone.as_deref(), Some("z1"));
    assert!(seen.meta.roles.contains("a,b"));
    assert_eq!(seen.meta.labels["rack"], "7");
    assert_eq!(seen.meta.http_addr, Some("127.0.0.1:4999".parse().unwrap()));
    n2.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test]
async fn what_cannot_start_says_why_in_one_sentence() {
    let authority = DevAuthority::new().unwrap();
    let refusal = |error: StartError| {
        let text = error.to_string();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    let error = Node::builder().dev(&authority).start().await.unwrap_err();
    assert!(refusal(error).contains("node.name is required"));
    let error = Node::builder().name("n 1").dev(&authority).start().await.unwrap_err();
    assert!(refusal(error).contains("node.name"));
    let error = Node::builder()
        .name("n1")
        .dev(&authority)
        .set("node.worker_thread", "2")
        .start()
        .await
        .unwrap_err();
    assert!(refusal(error).contains("did you mean node.worker_threads"));
    let error =
        Node::builder().name("n1").dev(&authority).join(["nowhere"]).start().await.unwrap_err();
    assert!(refusal(error).contains("\"nowhere\""));
    let n1 = start(&authority, "n1", &[]).await;
    let error = Node::builder()
        .name("n2")
        .dev(&authority)
        .bind(n1.cluster_addr())
        .start()
        .await
        .unwrap_err();
    assert!(refusal(error).contains("in use"));
    n1.shutdown().await;
}

#[tokio::test]
async fn one_data_dir_has_one_node_at_a_time_and_ever_higher_incarnations() {
    let dir = tempfile::tempdir().unwrap();
    let authority = DevAuthority::new().unwrap();
    let builder = || Node::builder().name("n1").dev(&authority).data_dir(dir.path());
    let first = builder().start().await.unwrap();
    let error = builder().start().await.unwrap_err();
    assert!(matches!(error, StartError::DataDir(_)), "{error}");
    let before = first.id().incarnation;
    first.shutdown().await;
    drop(first);
    let second = builder().start().await.unwrap();
    assert!(second.id().incarnation > before);
    second.shutdown().await;
}

#[tokio::test]
async fn level_0_needs_no_network() {
    let node: LocalNode = Node::builder().name("n1").local().start().await.unwrap();
    let mut heard = node.pubsub().subscribe("a/*").unwrap();
    node.pubsub().publish("a/b", "x").unwrap();
    assert_eq!(heard.recv().await.unwrap().payload(), "x");
    let visits = node.cache::<i64>("visits", CacheConfig::partitioned()).unwrap();
    assert_eq!(visits.incr("page", 2).await.unwrap(), 2);
    assert_eq!(visits.get("page").await.unwrap(), Some(2));
    node.shutdown(PATIENCE).await;
}
