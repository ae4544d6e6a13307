use bytes::Bytes;
use purlin_core::{Hlc, Incarnation, WallTime};

use super::*;
use crate::supervisor::record::ChildOptions;

fn node(name: &str) -> NodeId {
    NodeId::new(NodeName::parse(name).unwrap(), Incarnation(1))
}

/// A supervisor on n1 that knows a spec, and where n2 says that it runs it.
fn started() -> (Core, Arc<str>, HlcTimestamp, (HlcTimestamp, Place)) {
    let hlc = Hlc::new(&node("n1"));
    let stamp = |at| hlc.now(WallTime::from_millis(at)).unwrap();
    let (of, version) = (stamp(1), stamp(2));
    let mut core = Core::new(node("n1"), CoreConfig::default());
    let id: Arc<str> = "job".into();
    let spec = Spec {
        kind: "exec".into(),
        args: Bytes::new(),
        options: Arc::new(ChildOptions::default()),
    };
    core.spec_changed(Instant::ZERO, &id, Some((of, Arc::new(spec))), &mut Vec::new());
    let place = Place {
        spec: of,
        node: node("n2"),
        fence: Fence(1),
        restarts: 0,
        state: PlaceState::Running(ProcessId(7)),
        cause: Cause::Asked,
    };
    (core, id, of, (version, place))
}

#[test]
fn a_place_told_as_an_answer_is_not_forgotten_because_the_replica_is_behind() {
    let (mut core, id, _, place) = started();
    let (now, mut out) = (Instant::ZERO, Vec::new());
    core.place_answered(now, &id, place.clone(), &mut out);
    // The removal of an earlier place of the same id comes late.
    core.place_changed(now, &id, None, &mut out);
    assert_eq!(core.child("job").unwrap().1, Some(&place.1));
    // In time the replica is right again.
    core.place_changed(now + PROVISIONAL_FOR, &id, None, &mut out);
    assert_eq!(core.child("job").unwrap().1, None);
}

#[test]
fn what_is_removed_altogether_is_gone_whatever_was_answered() {
    let (mut core, id, _, place) = started();
    let (now, mut out) = (Instant::ZERO, Vec::new());
    core.place_answered(now, &id, place, &mut out);
    core.spec_changed(now, &id, None, &mut out);
    core.place_changed(now, &id, None, &mut out);
    assert!(core.child("job").is_none());
    assert_eq!(core.count(), 0);
}
