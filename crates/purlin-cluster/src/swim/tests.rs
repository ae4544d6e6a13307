//! Does this transition do exactly this? One core, packets made by hand, one file per entry point.

mod leave;
mod met;
mod meta;
mod packet;
mod refused;
mod woke;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use purlin_core::{Incarnation, Instant, NodeId, NodeName, Rng};

use super::{
    Config, Event, Input, Meta, Output, Path, Swim,
    member::{Refutation, Standing, State, Why},
    wire::{self, CONTROL_BYTES_MAX, Header, Message, Packet, Rumour, WIRE_VERSION, Writer},
};

fn name(text: &str) -> NodeName {
    NodeName::parse(text).unwrap()
}

fn id(text: &str) -> NodeId {
    NodeId::new(name(text), Incarnation(5))
}

fn addr(of: &str) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], of.bytes().map(u16::from).sum()))
}

fn meta(of: &str) -> Meta {
    Meta::new(addr(of))
}

fn standing(state: State, refutation: u32) -> Standing {
    Standing { incarnation: Incarnation(5), refutation: Refutation(refutation), state }
}

/// That `of` is `state`, says `by`.
fn rumour(of: &str, state: State, refutation: u32, by: &[&str]) -> Rumour {
    Rumour::Standing {
        name: name(of),
        standing: standing(state, refutation),
        why: (state == State::Down).then_some(Why::Silent),
        by: by.iter().map(|by| name(by)).collect(),
    }
}

fn whole(of: &str, incarnation: u64, meta_version: u32, meta: Meta) -> Rumour {
    let standing = Standing { incarnation: Incarnation(incarnation), ..standing(State::Alive, 0) };
    Rumour::Whole { name: name(of), standing, why: None, meta_version, meta: Arc::new(meta) }
}

/// The core of the node `me`, and what it did with what it was told.
struct Desk {
    swim: Swim,
    now: Instant,
    out: Vec<Output>,
}

impl Desk {
    /// `me` knows `others`, all alive, met, and silent so far.
    fn knowing(others: &[&str]) -> Self {
        let now = Instant::from_start(Duration::from_secs(100));
        let config = Config::lan().build().unwrap();
        let swim = Swim::new(config, id("me"), meta("me"), now, Rng::from_seed(1)).unwrap();
        let mut desk = Self { swim, now, out: Vec::new() };
        for other in others {
            let hello = [whole(other, 5, 1, meta(other))];
            desk.hear_from(id(other), Path::Control, Message::Gossip, &hello);
            desk.tell(Input::Met { node: id(other) });
        }
        // Past the news of their joining, and past "it spoke to us just now".
        desk.run_answered(Duration::from_secs(5), others);
        desk.out.clear();
        desk
    }

    fn tell(&mut self, input: Input<'_>) -> Vec<Output> {
        let mut out = Vec::new();
        self.swim.step(self.now, input, &mut out);
        self.swim.wake_at();
        self.out.extend(out.iter().cloned());
        out
    }

    fn hear_from(
        &mut self,
        from: NodeId,
        path: Path,
        message: Message,
        news: &[Rumour],
    ) -> Vec<Output> {
        let header = Header { version: WIRE_VERSION, refutation: Refutation(0), meta_version: 1 };
        let mut writer = Writer::new(CONTROL_BYTES_MAX, header, &message);
        for rumour in news {
            assert!(writer.push(rumour));
        }
        let bytes = writer.finish();
        let addr = (path == Path::Datagram).then(|| addr(from.name.as_str()));
        self.tell(Input::Packet { from, addr, path, bytes: &bytes })
    }

    fn hear(&mut self, from: &str, message: Message, news: &[Rumour]) -> Vec<Output> {
        self.hear_from(id(from), Path::Datagram, message, news)
    }

    /// Lets time pass; `answering` answer every ping at once.
    fn run_answered(&mut self, time: Duration, answering: &[&str]) {
        let end = self.now + time;
        loop {
            let wake = self.swim.wake_at();
            if wake > end {
                break;
            }
            self.now = self.now.max(wake);
            let mut outputs = self.tell(Input::Woke);
            while let Some(output) = outputs.pop() {
                if let Some((to, Message::Ping { seq })) =
                    sent(&output).map(|(to, p)| (to, p.message))
                    && answering.contains(&to.as_str())
                {
                    outputs.extend(self.hear(to.as_str(), Message::Ack { seq }, &[]));
                }
            }
        }
        self.now = end;
    }

    fn state(&self, of: &str) -> Option<State> {
        self.swim.state_of(&name(of)).map(|(_, state)| state)
    }

    /// Everything that happened since the last call, in order.
    fn events(&mut self) -> Vec<Event> {
        let out = std::mem::take(&mut self.out);
        out.into_iter()
            .filter_map(|output| match output {
                Output::Event(event) => Some(event),
                _ => None,
            })
            .collect()
    }
}

/// What `output` sends, if anything, and to whom.
fn sent(output: &Output) -> Option<(NodeName, Packet)> {
    match output {
        Output::Send { to, bytes, .. } => Some((to.name.clone(), wire::read(bytes).unwrap())),
        _ => None,
    }
}

fn all_sent(out: &[Output]) -> Vec<(NodeName, Packet)> {
    out.iter().filter_map(sent).collect()
}

/// The only packet to `to` in `out`.
fn packet_to(out: &[Output], to: &str) -> Packet {
    let mut packets: Vec<_> =
        all_sent(out).into_iter().filter(|(node, _)| *node == name(to)).collect();
    assert_eq!(packets.len(), 1, "to {to}: {packets:?}");
    packets.remove(0).1
}

/// What `packet` says about `of`, if it does.
fn said_about(packet: &Packet, of: &str) -> Option<Standing> {
    packet.news.iter().find_map(|rumour| match rumour {
        Rumour::Standing { name: about, standing, .. }
        | Rumour::Whole { name: about, standing, .. } => (*about == name(of)).then_some(*standing),
    })
}
