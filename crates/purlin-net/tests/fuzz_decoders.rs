//! Hostile bytes against every decoder that reads from the network: no panic, bounded memory.
//!
//! Runs for `PURLIN_FUZZ_SECONDS` seconds (3 unless set) from a seed that it prints;
//! `PURLIN_FUZZ_SEED` repeats one. Inputs are random, or good messages that were damaged, cut,
//! repeated and glued together, because random bytes alone rarely get past a header.
#![expect(clippy::unwrap_used, reason = "a test that unwraps fails, as it should")]

mod world;

use std::time::Duration;

use purlin_core::{Clock as _, ClusterName, Rng, SystemClock};
use purlin_net::{
    CertificateSummary, RefusalCode, ServiceId,
    datagram::{
        replay::ReplayGuard,
        seal::{GossipKey, Opener, Sealer},
    },
    frame::{self, ErrorReport, FLAG_FIRST, FLAG_LAST, Frame, Kind},
    handshake::{Answer, Confirm, Hello, Prologue, Refusal},
    reassembly::Reassembly,
    rpc::wire::Message,
};
use world::{hello, node};

const FRAME_MAX: u32 = 4096;
const PAYLOAD_MAX: usize = 64 << 10;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn byte(rng: &mut Rng) -> u8 {
    u8::try_from(rng.below(256)).unwrap()
}

fn bytes(rng: &mut Rng, max: usize) -> Vec<u8> {
    let length = rng.below(max + 1);
    (0..length).map(|_| byte(rng)).collect()
}

/// Changes a good message the way networks and attackers do.
fn damage(rng: &mut Rng, mut message: Vec<u8>) -> Vec<u8> {
    for _ in 0..rng.below(4) {
        if message.is_empty() {
            return message;
        }
        let at = rng.below(message.len());
        match rng.below(6) {
            0 => message[at] = byte(rng),
            1 => message[at] ^= 1 << rng.below(8),
            2 => message.truncate(at),
            3 => message.insert(at, byte(rng)),
            4 => {
                // Interesting lengths: nothing, everything, one too many.
                let number = [0, u32::MAX, FRAME_MAX, FRAME_MAX + 1, 1 << 31][rng.below(5)];
                let end = message.len().min(at + 4);
                message[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
            _ => message.extend_from_within(at..),
        }
        message.truncate(16 << 10);
    }
    message
}

struct Decoders {
    reassembly: Reassembly,
    opener: Opener,
    sealer: Sealer,
    guard: ReplayGuard,
    accepted: u64,
}

impl Decoders {
    fn new() -> Self {
        let (key, cluster) = (GossipKey::new([7; 32]), ClusterName::parse("shop").unwrap());
        Self {
            reassembly: Reassembly::new(PAYLOAD_MAX),
            opener: Opener::new(vec![key.clone()], cluster.clone(), node("n2", 1)),
            sealer: Sealer::new(&key, &cluster, node("n1", 1), [1; 8]),
            guard: ReplayGuard::new(),
            accepted: 0,
        }
    }

    fn good(&self, rng: &mut Rng) -> Vec<u8> {
        let mut message = Vec::new();
        match rng.below(8) {
            0 => message = hello(node("n1", 1)).encode(),
            1 => {
                let refusal = Refusal { code: RefusalCode::Cluster, detail: "x".repeat(40) };
                message = Answer::Refused(refusal).encode((1, 1));
            }
            2 => message = Confirm::Go.encode((1, 1)),
            3 => message = self.sealer.seal(&node("n2", 1), rng.next_u64(), &bytes(rng, 100)),
            4 => {
                let flags = [0, FLAG_FIRST, FLAG_LAST, FLAG_FIRST | FLAG_LAST][rng.below(4)];
                let mut payload = 200_u32.to_le_bytes().to_vec();
                payload.extend(bytes(rng, 200));
                frame::append(&mut message, Kind::Fragment, ServiceId(1), flags, &payload);
            }
            5 => frame::append(&mut message, Kind::Credit, ServiceId(0), 0, &[0; 8]),
            _ => {
                // Requests and replies of calls, in frames.
                let mut call = vec![1 + u8::try_from(rng.below(6)).unwrap(), byte(rng) & 1];
                call.extend(bytes(rng, 60));
                frame::append(&mut message, Kind::Data, ServiceId(1), 0, &call);
            }
        }
        message
    }

    fn feed(&mut self, input: &[u8]) {
        let mut at = 0;
        while let Ok(Some((frame, used))) = Frame::decode(&input[at..], FRAME_MAX) {
            at += used;
            assert!(frame.payload.len() <= FRAME_MAX as usize);
            self.accepted += 1;
            drop(Message::decode(frame.payload));
            drop(ErrorReport::decode(frame.payload));
            drop(frame.number());
            if frame.header.kind == Kind::Fragment {
                drop(self.reassembly.push(frame.header, frame.payload));
                let held = self.reassembly.held_bytes();
                assert!(held <= 2 * PAYLOAD_MAX, "{held} bytes held");
            }
        }
        drop(Message::decode(input));
        if let Ok(Some(prologue)) = Prologue::decode(input) {
            self.accepted += 1;
            drop(prologue.agree((1, 2)));
            let body = input.get(12..).unwrap_or_default();
            drop(Hello::decode(prologue, body));
            drop(Answer::decode(body));
            drop(Confirm::decode(body));
        }
        let mut packet = input.to_vec();
        if let Ok(opened) = self.opener.open(&mut packet) {
            self.accepted += 1;
            let _seen = self.guard.check(&opened.sender, opened.salt, opened.number);
        }
        drop(CertificateSummary::of_der(&rustls::pki_types::CertificateDer::from(input)));
    }
}

#[test]
fn decoders_survive_hostile_bytes() {
    let lasts = Duration::from_secs(env("PURLIN_FUZZ_SECONDS").unwrap_or(3));
    let seed = env("PURLIN_FUZZ_SEED").unwrap_or_else(|| Rng::from_os().next_u64());
    println!("fuzzing decoders for {lasts:?}: PURLIN_FUZZ_SEED={seed}");
    let mut rng = Rng::from_seed(seed);
    let clock = SystemClock::new();
    let begin = clock.now();
    let mut decoders = Decoders::new();
    let mut inputs = 0_u64;
    while clock.now() - begin < lasts {
        for _ in 0..100 {
            let mut input = Vec::new();
            for _ in 0..=rng.below(3) {
                let piece = if rng.chance(0.2) {
                    bytes(&mut rng, 200)
                } else {
                    let good = decoders.good(&mut rng);
                    damage(&mut rng, good)
                };
                input.extend(piece);
            }
            decoders.feed(&input);
            inputs += 1;
        }
    }
    println!("{inputs} inputs, {} messages accepted, no panic", decoders.accepted);
    assert!(decoders.accepted > inputs / 10, "most inputs must get past a header");
}
