use proptest::prelude::*;

use super::*;
use crate::{frame::Frame, reassembly::Reassembly};

const SERVICE: ServiceId = ServiceId(9);

fn bounds() -> Bounds {
    Bounds {
        backlog_bytes_max: 200_000,
        payload_bytes_max: 100_000,
        frame_bytes_max: 1_000,
        credit_bytes: 1_000_000,
    }
}

fn window(credit_bytes: u32) -> Window {
    Window { frame_bytes_max: 1_000, payload_bytes_max: 100_000, credit_bytes }
}

fn attached() -> Outbox {
    let mut outbox = Outbox::new(bounds());
    assert_eq!(outbox.attach(window(1_000_000)), Step::Done);
    outbox
}

fn send(outbox: &mut Outbox, bytes: usize, urgency: Urgency) -> Result<Step, Refused> {
    outbox.append(SERVICE, urgency, |payload| payload.put(&vec![7; bytes]))
}

/// Plays the writer until nothing is left; returns what went out.
fn drain(outbox: &mut Outbox) -> Vec<u8> {
    let (mut all, mut batch) = (Vec::new(), Vec::new());
    while outbox.take(&mut batch) {
        all.append(&mut batch);
    }
    all
}

#[test]
fn an_awaited_message_on_an_idle_connection_is_written_by_its_sender() {
    let mut outbox = attached();
    assert_eq!(send(&mut outbox, 10, Urgency::Now), Ok(Step::Write));
    assert_eq!(send(&mut outbox, 10, Urgency::Now), Ok(Step::Done), "the writer will see it");
    assert_eq!(drain(&mut outbox).len(), 2 * (HEADER_BYTES + 10));
    assert_eq!(send(&mut outbox, 10, Urgency::Now), Ok(Step::Write), "idle again");
}

#[test]
fn messages_nobody_awaits_wake_the_flusher_once() {
    let mut outbox = attached();
    assert_eq!(send(&mut outbox, 10, Urgency::Batch), Ok(Step::Wake));
    assert_eq!(send(&mut outbox, 10, Urgency::Batch), Ok(Step::Done));
    assert!(outbox.begin_turn());
    assert_eq!(drain(&mut outbox).len(), 2 * (HEADER_BYTES + 10));
    assert!(!outbox.begin_turn(), "a late wake-up finds nothing to do");
}

#[test]
fn a_buffer_worth_a_system_call_is_written_by_whoever_filled_it() {
    let mut outbox = attached();
    assert_eq!(send(&mut outbox, 10, Urgency::Batch), Ok(Step::Wake));
    assert_eq!(send(&mut outbox, WRITE_NOW_BYTES, Urgency::Batch), Ok(Step::Write));
    drain(&mut outbox);
    assert!(!outbox.begin_turn());
}

#[test]
fn a_corked_connection_writes_once_at_the_end_of_the_batch() {
    let mut outbox = attached();
    outbox.cork();
    assert_eq!(send(&mut outbox, 10, Urgency::Now), Ok(Step::Done));
    assert_eq!(send(&mut outbox, 10, Urgency::Batch), Ok(Step::Done));
    assert_eq!(outbox.uncork(2), Step::Write);
    assert_eq!(drain(&mut outbox).len(), 2 * (HEADER_BYTES + 10));
    outbox.cork();
    assert_eq!(outbox.uncork(2), Step::Done);
}

#[test]
fn after_a_batch_of_several_an_awaited_message_gathers_with_others() {
    let mut outbox = attached();
    outbox.cork();
    outbox.uncork(2);
    assert_eq!(send(&mut outbox, 10, Urgency::Now), Ok(Step::Wake));
    assert_eq!(send(&mut outbox, 10, Urgency::Now), Ok(Step::Done));
    assert!(outbox.begin_turn());
    drain(&mut outbox);
    outbox.cork();
    outbox.uncork(1);
    assert_eq!(send(&mut outbox, 10, Urgency::Now), Ok(Step::Write), "alone again");
}

#[test]
fn a_full_backlog_is_an_explicit_refusal_and_adds_nothing() {
    let mut outbox = Outbox::new(bounds());
    assert_eq!(send(&mut outbox, 99_000, Urgency::Now), Ok(Step::Done), "not attached yet");
    assert_eq!(send(&mut outbox, 99_000, Urgency::Now), Ok(Step::Done));
    let before = outbox.backlog_bytes();
    assert!(matches!(
        send(&mut outbox, 99_000, Urgency::Now),
        Err(Refused::Full { bound: Bound::Backlog, max: 200_000, .. })
    ));
    assert_eq!(outbox.backlog_bytes(), before);
}

#[test]
fn used_up_credit_refuses_until_it_comes_back() {
    let mut outbox = Outbox::new(bounds());
    outbox.attach(window(100));
    assert!(send(&mut outbox, 99, Urgency::Now).is_ok());
    assert!(send(&mut outbox, 50, Urgency::Now).is_ok(), "one message may overshoot");
    assert_eq!(
        send(&mut outbox, 1, Urgency::Now),
        Err(Refused::Full { bound: Bound::Credit, bytes: 149, max: 100 })
    );
    assert!(outbox.give_back(50));
    assert!(send(&mut outbox, 1, Urgency::Now).is_ok());
    assert!(!outbox.give_back(1_000), "more than was ever sent");
}

#[test]
fn frames_fit_a_peer_that_accepts_less_than_we_do() {
    let mut outbox = Outbox::new(Bounds { frame_bytes_max: 90_000, ..bounds() });
    send(&mut outbox, 80_000, Urgency::Batch).unwrap();
    outbox.attach(window(1_000_000));
    send(&mut outbox, 80_000, Urgency::Batch).unwrap();
    let wire = drain(&mut outbox);
    let (mut at, mut frames) = (0, 0);
    while let Some((_, used)) = Frame::decode(&wire[at..], FRAME_BYTES_LEAST).unwrap() {
        at += used;
        frames += 1;
    }
    assert_eq!((at, frames), (wire.len(), 5 + 81));
}

#[test]
fn a_payload_above_the_limit_is_refused_with_value_and_bound() {
    let mut outbox = attached();
    assert_eq!(
        send(&mut outbox, 100_001, Urgency::Now),
        Err(Refused::TooLarge { bytes: 100_001, max: 100_000 })
    );
    assert_eq!(outbox.backlog_bytes(), 0);
}

#[test]
fn a_sender_that_panics_leaves_no_half_message() {
    let mut outbox = attached();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        outbox.append(SERVICE, Urgency::Now, |payload| {
            payload.put(b"half");
            panic!("sender bug");
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(outbox.backlog_bytes(), 0);
    assert_eq!(send(&mut outbox, 10, Urgency::Now), Ok(Step::Write));
    assert_eq!(drain(&mut outbox).len(), HEADER_BYTES + 10);
}

#[test]
fn a_closed_outbox_says_why_and_counts_what_is_lost_once() {
    let mut outbox = attached();
    send(&mut outbox, 10, Urgency::Batch).unwrap();
    assert_eq!(outbox.close(Cause::Silent), (HEADER_BYTES + 10, true));
    assert_eq!(outbox.close(Cause::Reset), (0, false));
    assert_eq!(send(&mut outbox, 10, Urgency::Now), Err(Refused::Closed(Cause::Silent)));
}

proptest! {
    #[test]
    fn every_accepted_message_goes_out_once_and_in_order(
        sizes in prop::collection::vec(0_usize..5_000, 1..40)
    ) {
        let mut outbox = attached();
        let mut expected = Vec::new();
        for (at, size) in sizes.iter().enumerate() {
            let message = vec![u8::try_from(at).unwrap(); *size];
            if outbox.append(SERVICE, Urgency::Batch, |payload| payload.put(&message)).is_ok() {
                expected.push(message);
            }
        }
        outbox.begin_turn();
        let wire = if outbox.has_pending() { drain(&mut outbox) } else { Vec::new() };
        let (mut at, mut seen) = (0, Vec::new());
        let mut reassembly = Reassembly::new(100_000);
        while let Some((frame, used)) = Frame::decode(&wire[at..], 1_000).unwrap() {
            at += used;
            match frame.header.kind {
                Kind::Data => seen.push(frame.payload.to_vec()),
                Kind::Fragment => seen.extend(
                    reassembly.push(frame.header, frame.payload).unwrap().map(|whole| whole.to_vec())
                ),
                other => prop_assert!(false, "{other:?}"),
            }
        }
        prop_assert_eq!(at, wire.len());
        prop_assert_eq!(seen, expected);
    }
}
