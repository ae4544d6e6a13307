//! Calls between two real transports: outcomes, deadlines, cancellation, bad peers.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails, as it should")]

mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::{Outcome, TraceContext};
use purlin_net::{
    CallError, CallOptions, Cause, Method, Peer, Rejection, Rpc, Transport,
    rpc::{RawHandler, RawRequest, Responder, RpcLimits},
};
use world::*;

const ADD: Method<(u64, u64), u64> = Method::new("calc.add");
const SLOW: Method<u64, ()> = Method::new("test.slow");
const LOUD: Method<String, String> = Method::new("test.loud");

const LONG: Duration = Duration::from_secs(60);

async fn calling() -> (Transport, Transport, Peer, Rpc, Rpc) {
    let (one, two, peer) = pair().await;
    let (rpc_one, rpc_two) = (Rpc::new(&one), Rpc::new(&two));
    rpc_two.serve(ADD, async |_, (a, b)| Ok(a + b)).unwrap();
    (one, two, peer, rpc_one, rpc_two)
}

/// Counts how many of its kind live.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve_slow(rpc: &Rpc) -> Arc<AtomicUsize> {
    let alive = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&alive);
    rpc.serve(SLOW, move |_, millis| {
        let alive = Alive::new(&count);
        async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            drop(alive);
            Ok(())
        }
    })
    .unwrap();
    alive
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_comes_back_with_its_reply() {
    let (_one, _two, peer, rpc, served) = calling().await;
    assert_eq!(rpc.call(&peer, ADD, &(1, 2), LONG).await, Ok(3));
    assert_eq!(served.stats().requests, 1);
    assert_eq!(rpc.stats().calls_pending, 0);
    assert_eq!(served.stats().handlers_running, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_concurrent_calls_get_their_own_replies() {
    let (_one, _two, peer, rpc, _served) = calling().await;
    let calls: Vec<_> = (0..1_000)
        .map(|number| {
            let (peer, rpc) = (peer.clone(), rpc.clone());
            tokio::spawn(async move {
                for round in 0..20 {
                    let sum = rpc.call(&peer, ADD, &(number, round), LONG).await;
                    assert_eq!(sum, Ok(number + round));
                }
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(rpc.stats().calls_pending, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_reply_is_dropped_and_counted() {
    let (_one, _two, peer, rpc, served) = calling().await;
    let responders: Arc<Mutex<Vec<Responder>>> = Arc::default();
    struct Keep(Arc<Mutex<Vec<Responder>>>);
    impl RawHandler for Keep {
        fn on_request(&self, mut request: RawRequest<'_, '_>) {
            self.0.lock().extend(request.responder.take());
        }
    }
    served.serve_raw(SLOW.name(), Arc::new(Keep(Arc::clone(&responders)))).unwrap();
    let ended = rpc.call(&peer, SLOW, &0, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!((ended.outcome(), &ended), (Outcome::Unknown, &CallError::Deadline));
    until("it is counted", || rpc.stats().expired == 1).await;
    until("the request arrived", || responders.lock().len() == 1).await;
    let responder = responders.lock().pop().unwrap();
    responder.reply(|_| {}).unwrap();
    until("the late reply is counted", || rpc.stats().replies_late == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_travels_and_stops_the_handler() {
    let (_one, _two, peer, rpc, served) = calling().await;
    let alive = serve_slow(&served);
    let ended = rpc.call(&peer, SLOW, &60_000, Duration::from_millis(80)).await.unwrap_err();
    assert_eq!(ended, CallError::Deadline);
    until("the handler stopped", || {
        alive.load(Ordering::SeqCst) == 0 && served.stats().handlers_running == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_call_stops_its_handler() {
    let (_one, _two, peer, rpc, served) = calling().await;
    let alive = serve_slow(&served);
    let call = tokio::spawn({
        let (rpc, peer) = (rpc.clone(), peer.clone());
        async move { rpc.call(&peer, SLOW, &60_000, LONG).await }
    });
    until("the handler runs", || alive.load(Ordering::SeqCst) == 1).await;
    call.abort();
    until("the handler stopped", || alive.load(Ordering::SeqCst) == 0).await;
    until("it is counted", || served.stats().cancelled == 1).await;
    assert_eq!(rpc.stats().calls_pending, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_and_trace_reach_the_handler() {
    let (one, _two, peer, rpc, served) = calling().await;
    let seen = Arc::new(Mutex::new(None));
    let note = Arc::clone(&seen);
    served
        .serve(LOUD, move |context, text: String| {
            *note.lock() = Some(context);
            async move { Ok(text.to_uppercase()) }
        })
        .unwrap();
    let trace = TraceContext { trace_id: [7; 16], parent_id: [8; 8], flags: 1 };
    let options = CallOptions { trace: Some(trace), ..LONG.into() };
    assert_eq!(rpc.call(&peer, LOUD, &"hey".to_owned(), options).await, Ok("HEY".to_owned()));
    let context = seen.lock().take().unwrap();
    assert_eq!(context.trace, Some(trace));
    assert_eq!(&context.from, one.node());
    assert!(context.deadline.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_has_its_type_and_is_counted() {
    let (_one, _two, peer, rpc, served) = calling().await;
    const MISSING: Method<(), ()> = Method::new("test.missing");
    let ended = rpc.call(&peer, MISSING, &(), LONG).await.unwrap_err();
    assert!(matches!(ended, CallError::NoMethod(_)), "{ended}");
    assert_eq!(served.stats().unknown_method, 1);

    const ADD_BADLY: Method<bool, u64> = Method::new("calc.add");
    let ended = rpc.call(&peer, ADD_BADLY, &true, LONG).await.unwrap_err();
    assert!(matches!(ended, CallError::Undecodable(_)), "{ended}");
    assert_eq!(served.stats().undecodable, 1);

    const ADD_AS_TEXT: Method<(u64, u64), String> = Method::new("calc.add");
    let ended = rpc.call(&peer, ADD_AS_TEXT, &(100, 100), LONG).await.unwrap_err();
    assert!(matches!(ended, CallError::BadReply(_)), "{ended}");
    assert_eq!(ended.outcome(), Outcome::Unknown);

    const PANICS: Method<bool, ()> = Method::new("test.panics");
    served
        .serve(PANICS, async |_, later| {
            if later {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            panic!("on purpose")
        })
        .unwrap();
    for later in [false, true] {
        let ended = rpc.call(&peer, PANICS, &later, LONG).await.unwrap_err();
        assert_eq!(ended, CallError::Panicked("on purpose".to_owned()));
        assert_eq!(ended.outcome(), Outcome::Unknown);
    }
    assert_eq!(served.stats().panics, 2);

    const REFUSES: Method<(), ()> = Method::new("test.refuses");
    served.serve(REFUSES, async |_, ()| Err(Rejection::here("draining"))).unwrap();
    let ended = rpc.call(&peer, REFUSES, &(), LONG).await.unwrap_err();
    assert_eq!(ended, CallError::Rejected { text: "draining".to_owned(), elsewhere: true });
    assert_eq!(ended.outcome(), Outcome::NotDone);

    // After all of that, calls still work.
    assert_eq!(rpc.call(&peer, ADD, &(1, 2), LONG).await, Ok(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_too_large_for_the_channel_ends_the_call_with_a_reason() {
    let (_one, _two, peer, rpc, served) = calling().await;
    const HUGE: Method<(), Vec<u8>> = Method::new("test.huge");
    served.serve(HUGE, async |_, ()| Ok(vec![0; 5 << 20])).unwrap();
    let ended = rpc.call(&peer, HUGE, &(), LONG).await.unwrap_err();
    assert!(matches!(ended, CallError::ReplyUnsendable(_)), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_too_large_never_leaves() {
    let (_one, _two, peer, rpc, _served) = calling().await;
    const BIG: Method<Vec<u8>, ()> = Method::new("test.big");
    let ended = rpc.call(&peer, BIG, &vec![0; 5 << 20], LONG).await.unwrap_err();
    assert!(matches!(ended, CallError::NotSent(_)), "{ended}");
    assert_eq!(ended.outcome(), Outcome::NotDone);
    assert_eq!(rpc.stats().calls_pending, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_serves_no_calls_says_so() {
    let (one, _two, peer) = pair().await;
    let rpc = Rpc::new(&one);
    let ended = rpc.call(&peer, ADD, &(1, 2), LONG).await.unwrap_err();
    assert!(matches!(ended, CallError::NoService(_)), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_handlers_and_too_many_calls_are_refused() {
    let (one, two, peer) = pair().await;
    let rpc = Rpc::with_limits(&one, RpcLimits { calls_max: 3, ..RpcLimits::default() });
    let served = Rpc::with_limits(&two, RpcLimits { handlers_max: 1, ..RpcLimits::default() });
    let alive = serve_slow(&served);
    let call = || {
        let (rpc, peer) = (rpc.clone(), peer.clone());
        tokio::spawn(async move { rpc.call(&peer, SLOW, &60_000, LONG).await })
    };
    let first = call();
    until("the first is handled", || alive.load(Ordering::SeqCst) == 1).await;
    let ended = call().await.unwrap().unwrap_err();
    assert!(matches!(ended, CallError::Overloaded(_)), "{ended}");
    assert_eq!(ended.outcome(), Outcome::NotDone);
    assert_eq!(served.stats().overloaded, 1);

    let method = SLOW.id();
    let held: Vec<_> =
        (0..2).map(|_| rpc.call_raw(&peer, method, LONG, |p| p.put_u8(1)).unwrap()).collect();
    let refused = rpc.call_raw(&peer, method, LONG, |p| p.put_u8(1)).unwrap_err();
    assert_eq!(refused, CallError::TooMany { calls: 3, max: 3 });
    drop(held);
    first.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_responder_dropped_without_an_answer_is_told() {
    let (_one, _two, peer, rpc, served) = calling().await;
    struct Forgetful;
    impl RawHandler for Forgetful {
        fn on_request(&self, _request: RawRequest<'_, '_>) {}
    }
    served.serve_raw(SLOW.name(), Arc::new(Forgetful)).unwrap();
    let ended = rpc.call(&peer, SLOW, &0, LONG).await.unwrap_err();
    assert!(matches!(ended, CallError::Abandoned(_)), "{ended}");
    assert_eq!(served.stats().abandoned, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_peer_ends_all_its_calls_at_once_as_unknown() {
    let (_one, two, peer, rpc, served) = calling().await;
    let alive = serve_slow(&served);
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let (rpc, peer) = (rpc.clone(), peer.clone());
            tokio::spawn(async move { rpc.call(&peer, SLOW, &60_000, 10 * LONG).await })
        })
        .collect();
    until("all are handled", || alive.load(Ordering::SeqCst) == 10).await;
    two.close();
    for call in calls {
        let ended = within("the end", call).await.unwrap().unwrap_err();
        assert!(matches!(ended, CallError::Lost { .. }), "{ended}");
        assert_eq!(ended.outcome(), Outcome::Unknown);
    }
    until("handlers without callers stopped", || alive.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_to_nobody_is_not_done() {
    let one = transport("n1").await;
    let rpc = Rpc::new(&one);
    let peer = one.add_peer(node("n2", 1), nobody()).unwrap();
    let ended = within("the end", rpc.call(&peer, ADD, &(1, 2), LONG)).await.unwrap_err();
    assert_eq!(ended.outcome(), Outcome::NotDone, "{ended}");
    let CallError::NotSent(purlin_net::SendError::NotConnected { cause, .. }) = ended else {
        panic!("{ended}");
    };
    assert_eq!(cause, Cause::Refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn casts_arrive_in_order_and_refused_ones_are_counted() {
    let (_one, _two, peer, rpc, served) = calling().await;
    const NOTE: Method<u64, ()> = Method::new("test.note");
    let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
    let notes = Arc::clone(&seen);
    served
        .serve(NOTE, move |_, number| {
            notes.lock().push(number);
            async { Ok(()) }
        })
        .unwrap();
    for number in 0..10_000 {
        rpc.cast_wait(&peer, NOTE, &number, CallOptions::from(LONG)).await.unwrap();
    }
    until("all arrive", || seen.lock().len() == 10_000).await;
    assert!(seen.lock().is_sorted());
    const MISSING: Method<(), ()> = Method::new("test.missing");
    rpc.cast(&peer, MISSING, &(), CallOptions::default()).unwrap();
    until("the refusal is counted", || rpc.stats().casts_refused == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_multi_call_has_an_outcome_per_member() {
    let one = transport("n1").await;
    let rpc = Rpc::new(&one);
    let mut peers = Vec::new();
    let mut others = Vec::new();
    for text in ["n2", "n3"] {
        let other = transport(text).await;
        let served = Rpc::new(&other);
        if text == "n2" {
            served.serve(ADD, async |_, (a, b)| Ok(a + b)).unwrap();
        }
        peers.push(one.add_peer(other.node().clone(), other.local_addr()).unwrap());
        others.push((other, served));
    }
    peers.push(one.add_peer(node("n4", 1), nobody()).unwrap());
    let outcomes = within("all outcomes", rpc.multi_call(&peers, ADD, &(1, 2), LONG)).await;
    let names: Vec<_> = outcomes.iter().map(|(node, _)| node.name.to_string()).collect();
    assert_eq!(names, ["n2", "n3", "n4"]);
    assert_eq!(outcomes[0].1, Ok(3));
    assert!(matches!(outcomes[1].1, Err(CallError::NoMethod(_))));
    assert!(matches!(outcomes[2].1, Err(CallError::NotSent(_))));
}
