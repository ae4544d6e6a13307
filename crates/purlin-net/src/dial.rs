//! Making connections: dialling, being dialled, and keeping `control` up.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use purlin_core::NodeId;
use tokio::time::timeout;

use crate::{
    channel::{ChannelId, ChannelSpec},
    error::Cause,
    event::PeerEvent,
    handshake::{
        Acceptor, Answer, Capabilities, Confirm, HandshakeError, Hello, Purpose, Refusal,
        RefusalCode, Welcome, Window,
    },
    link::{ConnectionNumber, Order},
    network::Stream,
    peer::{LinkSlot, Peer, Verdict},
    shaking::{Broken, Shaking},
    transport::Inner,
};

/// A reset in the middle of a handshake right after losing a connection is a dying process whose
/// listener is about to close: these pauses bridge the microseconds until it refuses.
const QUICK_RETRIES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(8),
];

/// How a dial ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialled {
    /// Its connection is in use.
    Used,
    /// The peer's dial is preferred.
    Lost,
}

/// Who listens at an address, as learnt by [`Transport::contact`](crate::Transport::contact).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Contact {
    /// The node.
    pub node: NodeId,
    /// Where it says it can be reached.
    pub advertise: SocketAddr,
    /// The protocol version both speak.
    pub version: u16,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// Keeps the control channel to an added peer up until the peer is removed.
pub(crate) async fn maintain(peer: Peer) {
    let mut removal = peer.removal();
    tokio::select! {
        biased;
        _removed = removal.wait_for(|removed| *removed) => {}
        () = keep_up(&peer) => {}
    }
}

async fn keep_up(peer: &Peer) {
    let Some(slot) = peer.link(ChannelId::CONTROL, 0) else { return };
    let mut established = slot.established.subscribe();
    let mut quick = QUICK_RETRIES.iter();
    peer.worth_dialling().await;
    loop {
        if *established.borrow_and_update() {
            quick = QUICK_RETRIES.iter();
            if established.changed().await.is_err() {
                return;
            }
            continue;
        }
        if peer.is_released() {
            if let Some(transport) = peer.transport() {
                transport.forget(peer);
            }
            return;
        }
        let Some(now) = peer.transport().map(|transport| transport.now()) else { return };
        let put_off = slot.put_off_for(now);
        if !put_off.is_zero() {
            // An incoming connection ends the wait.
            drop(timeout(put_off, established.wait_for(|up| *up)).await);
            continue;
        }
        slot.set_dialling(true);
        let dialled = dial(peer, slot).await;
        slot.set_dialling(false);
        if slot.is_established() {
            continue;
        }
        let pause = match dialled {
            Ok(Dialled::Used) => continue,
            // The peer's confirmation is on its way.
            Ok(Dialled::Lost) => Duration::from_millis(500),
            Err(Cause::Reset) if let Some(pause) = quick.next() => *pause,
            Err(cause) => {
                let Some(transport) = peer.transport() else { return };
                slot.on_dial_failed(&transport, &cause);
                peer.on_control_failed(&cause);
                continue;
            }
        };
        drop(timeout(pause, established.wait_for(|up| *up)).await);
    }
}

/// Opens a lazy channel because somebody sends on it; tries until it is up or failed once.
pub(crate) async fn open_lazily(peer: Peer, channel: ChannelId, index: u8) {
    let Some(slot) = peer.link(channel, index) else { return };
    let mut established = slot.established.subscribe();
    for _attempt in 0..5 {
        match dial(&peer, slot).await {
            Ok(Dialled::Used) => break,
            Ok(Dialled::Lost) => {
                let wait = Duration::from_millis(200);
                if timeout(wait, established.wait_for(|up| *up)).await.is_ok() {
                    break;
                }
            }
            Err(_) if slot.is_established() => break,
            Err(cause) => {
                slot.set_dialling(false);
                if let Some(transport) = peer.transport() {
                    slot.on_dial_failed(&transport, &cause);
                    let peer = peer.node().clone();
                    transport.tell(PeerEvent::ChannelDown { peer, channel, cause });
                }
                return;
            }
        }
    }
    slot.set_dialling(false);
    if !slot.is_established()
        && let Some(transport) = peer.transport()
    {
        slot.on_dial_failed(&transport, &Cause::Unreachable);
    }
}

async fn dial(peer: &Peer, slot: &LinkSlot) -> Result<Dialled, Cause> {
    let Some(transport) = peer.transport() else { return Err(Cause::Closed) };
    transport.counters().dials(1);
    let number = transport.with_rng(|rng| rng.next_u64().max(1));
    let within = transport.config().reconnect.connect_within;
    let attempt = dial_as(peer, slot, &transport, number);
    let dialled = match timeout(within, attempt).await {
        Ok(dialled) => dialled,
        Err(_elapsed) => Err(Cause::Unreachable),
    };
    if !matches!(dialled, Ok(Dialled::Used)) {
        slot.on_gone(number);
    }
    if dialled.is_err() {
        transport.counters().dials_failed(1);
    }
    dialled
}

async fn dial_as(
    peer: &Peer,
    slot: &LinkSlot,
    transport: &Arc<Inner>,
    number: ConnectionNumber,
) -> Result<Dialled, Cause> {
    let addr = peer.address();
    if !transport.around().faults.lets_dial(peer.name(), slot.channel) {
        transport.counters().faults_lost(1);
        // Black-holed: the timeout of the caller ends it.
        return std::future::pending().await;
    }
    let spec = &transport.config().channels[slot.channel.index()];
    let ours = window(transport, spec);
    let purpose = Purpose::Channel {
        name: spec.name.clone(),
        index: slot.index,
        connection: number,
        last: slot.last(),
        window: ours,
    };
    let expects = Some(peer.node().clone());
    let mut shaking = connect(transport, addr, spec).await?;
    let welcome = match greet(transport, &mut shaking, addr, purpose, expects).await? {
        Ok(welcome) => welcome,
        Err(Refusal { code: RefusalCode::Duplicate, .. }) => return Ok(Dialled::Lost),
        Err(refusal) => return Err(Cause::Handshake(refusal)),
    };
    let theirs = Window {
        frame_bytes_max: ours.frame_bytes_max.min(welcome.window.frame_bytes_max),
        ..welcome.window
    };
    let (order, verdict) = peer.decide(slot, number, |link, out| link.on_welcome(number, out));
    let confirmed = match (order, verdict) {
        (Some(Order::Confirm(_)), _) => true,
        (Some(Order::Hold(_)), Some(verdict)) => {
            tokio::select! {
                // Our own decision first: the peer may hang up because of it.
                biased;
                told = verdict => told == Ok(Verdict::Confirm),
                // The peer decided for its own dial; its confirmation is on the way.
                () = gone(&mut shaking) => return Ok(Dialled::Lost),
            }
        }
        _ => false,
    };
    let versions = transport.config().versions;
    if !confirmed {
        let refusal = Refusal::new(RefusalCode::Duplicate, "another connection is kept");
        shaking.send_last(&Confirm::Refused(refusal).encode(versions)).await;
        return Ok(Dialled::Lost);
    }
    // No await between the decision and its effect: the confirmation leaves with the first write.
    shaking.session.push(&Confirm::Go.encode(versions));
    peer.establish(slot, number, shaking, theirs);
    Ok(Dialled::Used)
}

/// Waits until the other side is gone; it has nothing to say, and one that talks is gone too.
async fn gone(shaking: &mut Shaking) {
    while shaking.fill().await.is_ok() && shaking.plain.is_empty() {}
}

fn window(transport: &Inner, spec: &ChannelSpec) -> Window {
    Window {
        frame_bytes_max: transport.config().limits.frame_bytes_max,
        payload_bytes_max: u32::try_from(spec.payload_bytes_max).unwrap_or(u32::MAX),
        credit_bytes: spec.credit_bytes,
    }
}

async fn connect(
    transport: &Inner,
    addr: SocketAddr,
    spec: &ChannelSpec,
) -> Result<Shaking, Cause> {
    let network = &transport.config().network;
    let stream = network.connect(addr).await.map_err(|error| Cause::of_io(&error))?;
    prepare(&stream, spec);
    let session = transport.config().tls.dial().map_err(|error| Cause::Tls(error.to_string()))?;
    Ok(Shaking::new(stream, session))
}

fn prepare(stream: &Stream, spec: &ChannelSpec) {
    // These are the operating system's; another network has its own ways.
    let Stream::Tcp(stream) = stream else { return };
    let socket = socket2::SockRef::from(stream);
    // All of these are improvements a system may refuse; the connection works without them.
    drop(stream.set_nodelay(true));
    #[cfg(target_os = "linux")]
    {
        let (priority, tos) = spec.priority.marks();
        drop(socket.set_tos_v4(tos));
        drop(socket.set_priority(priority));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, spec);
}

/// TLS and hello; the outer error is a broken handshake, the inner one a refusal, by them or us.
async fn greet(
    transport: &Inner,
    shaking: &mut Shaking,
    addr: SocketAddr,
    purpose: Purpose,
    expects: Option<NodeId>,
) -> Result<Result<Welcome, Refusal>, Cause> {
    let config = transport.config();
    let hello = Hello {
        versions: config.versions,
        cluster: config.cluster.clone(),
        node: config.node.clone(),
        expects: expects.clone(),
        advertise: transport.advertise(),
        capabilities: Capabilities::OURS,
        purpose,
    };
    let report = |refusal: &Refusal, peer, by_us| {
        if refusal.code != RefusalCode::Duplicate {
            transport.on_refusal(addr, peer, by_us, refusal);
        }
    };
    let broken = |broken| match broken {
        Broken::Lost(cause) => cause,
        Broken::Tls(error) => {
            transport.counters().tls_failed(1);
            let refusal = Refusal::new(RefusalCode::Certificate, error.to_string());
            transport.on_refusal(addr, expects.clone(), true, &refusal);
            Cause::Tls(error.to_string())
        }
        Broken::Message(error) => {
            transport.on_refusal(addr, expects.clone(), true, &error.refusal());
            Cause::Handshake(error.refusal())
        }
    };
    shaking.secure().await.map_err(broken)?;
    shaking.send(&hello.encode()).await.map_err(broken)?;
    let (prologue, body) = shaking.receive().await.map_err(broken)?;
    let answer = Answer::decode(&body).map_err(Broken::Message).map_err(broken)?;
    let welcome = match answer {
        Answer::Welcome(welcome) => welcome,
        Answer::Refused(refusal) => {
            report(&refusal, expects.clone(), false);
            return Ok(Err(refusal));
        }
    };
    let refusal = if !shaking.is_for(&welcome.node.name) {
        let detail = format!("certificate is not for node `{}`", welcome.node.name);
        Refusal::new(RefusalCode::Certificate, detail)
    } else if expects.as_ref().is_some_and(|expected| *expected != welcome.node) {
        let detail = format!("expected {expects:?}, found {}", welcome.node);
        Refusal::new(RefusalCode::WrongNode, detail)
    } else if let Err(error) = prologue.agree(config.versions) {
        error.refusal()
    } else {
        return Ok(Ok(welcome));
    };
    report(&refusal, Some(welcome.node), true);
    shaking.send_last(&Confirm::Refused(refusal.clone()).encode(config.versions)).await;
    Ok(Err(refusal))
}

/// Learns who listens at `addr`.
pub(crate) async fn contact(transport: &Arc<Inner>, addr: SocketAddr) -> Result<Contact, Cause> {
    let spec = &transport.config().channels[ChannelId::CONTROL.index()];
    let mut shaking = connect(transport, addr, spec).await?;
    let welcome = greet(transport, &mut shaking, addr, Purpose::Contact, None)
        .await?
        .map_err(Cause::Handshake)?;
    shaking.send_last(&Confirm::Go.encode(transport.config().versions)).await;
    Ok(Contact {
        node: welcome.node,
        advertise: welcome.advertise,
        version: welcome.version,
        capabilities: welcome.capabilities,
    })
}

/// Handles one accepted socket from its first byte to a connection, or to a refusal.
pub(crate) async fn accept(transport: Arc<Inner>, stream: Stream, addr: SocketAddr) {
    let within = transport.config().reconnect.connect_within;
    let Ok(session) = transport.config().tls.accept() else { return };
    let mut shaking = Shaking::new(stream, session);
    let hello = match timeout(within, hear_hello(&mut shaking)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(broken)) => return on_broken_accept(&transport, shaking, addr, broken).await,
        Err(_elapsed) => return transport.counters().handshakes_slow(1),
    };
    let node = hello.node.clone();
    let answered = timeout(within, answer(&transport, shaking, addr, hello)).await;
    if answered.is_err() {
        tracing::debug!(%addr, %node, "handshake too slow");
        transport.counters().handshakes_slow(1);
    }
}

async fn hear_hello(shaking: &mut Shaking) -> Result<Hello, Broken> {
    shaking.secure().await?;
    let (prologue, body) = shaking.receive().await?;
    Hello::decode(prologue, &body).map_err(Broken::Message)
}

async fn on_broken_accept(
    transport: &Inner,
    mut shaking: Shaking,
    addr: SocketAddr,
    broken: Broken,
) {
    match broken {
        Broken::Lost(_) => transport.counters().handshakes_cut(1),
        Broken::Tls(error) => {
            transport.counters().tls_failed(1);
            let refusal = Refusal::new(RefusalCode::Certificate, error.to_string());
            transport.on_refusal(addr, None, true, &refusal);
        }
        Broken::Message(error) => {
            refuse(transport, &mut shaking, addr, None, &error).await;
        }
    }
}

async fn refuse(
    transport: &Inner,
    shaking: &mut Shaking,
    addr: SocketAddr,
    peer: Option<NodeId>,
    error: &HandshakeError,
) {
    let refusal = error.refusal();
    transport.on_refusal(addr, peer, true, &refusal);
    let message = Answer::Refused(refusal).encode(transport.config().versions);
    drop(timeout(Duration::from_secs(1), shaking.send_last(&message)).await);
}

async fn answer(transport: &Arc<Inner>, mut shaking: Shaking, addr: SocketAddr, hello: Hello) {
    let config = transport.config();
    let versions = config.versions;
    let checked = check(transport, &shaking, &hello);
    let (version, channel) = match checked {
        Ok(found) => found,
        Err(refusal) => {
            transport.on_refusal(addr, Some(hello.node), true, &refusal);
            return shaking.send_last(&Answer::Refused(refusal).encode(versions)).await;
        }
    };
    let welcome = |spec: &ChannelSpec| {
        Answer::Welcome(Welcome {
            version,
            node: config.node.clone(),
            advertise: transport.advertise(),
            capabilities: Capabilities::OURS,
            window: window(transport, spec),
        })
        .encode(versions)
    };
    let Purpose::Channel { index, connection: number, last, window: theirs, .. } = hello.purpose
    else {
        let message = welcome(&config.channels[ChannelId::CONTROL.index()]);
        return shaking.send_last(&message).await;
    };
    let spec = &config.channels[channel.index()];
    prepare(&shaking.stream, spec);
    if !transport.around().faults.lets_dial(&hello.node.name, channel) {
        transport.counters().faults_lost(1);
        return;
    }
    let peer = match transport.peer_that_dialled(&hello.node, hello.advertise) {
        Ok(peer) => peer,
        Err(refusal) => {
            transport.on_refusal(addr, Some(hello.node), true, &refusal);
            return shaking.send_last(&Answer::Refused(refusal).encode(versions)).await;
        }
    };
    let Some(slot) = peer.link(channel, index) else { return };
    let (order, verdict) = peer.decide(slot, number, |link, out| link.on_hello(number, last, out));
    let (Some(Order::Welcome(_)), Some(verdict)) = (order, verdict) else {
        let refusal = Refusal::new(RefusalCode::Duplicate, "another connection is kept");
        return shaking.send_last(&Answer::Refused(refusal).encode(versions)).await;
    };
    // Whatever ends this function before the confirmation lets a held dial of ours go on.
    let mut undecided = Undecided { slot, number, armed: true };
    if shaking.send(&welcome(spec)).await.is_err() {
        return transport.counters().handshakes_cut(1);
    }
    let confirm = tokio::select! {
        // What the peer has said already counts, even if its dial was dropped meanwhile: the
        // tie-break is asked again below.
        biased;
        confirm = shaking.receive() => confirm,
        _dropped = verdict => return,
    };
    match confirm.map(|(_, body)| Confirm::decode(&body)) {
        Ok(Ok(Confirm::Go)) => {}
        Ok(Ok(Confirm::Refused(refusal))) => {
            if refusal.code != RefusalCode::Duplicate {
                transport.on_refusal(addr, Some(hello.node), false, &refusal);
            }
            return;
        }
        Ok(Err(error)) | Err(Broken::Message(error)) => {
            return transport.on_refusal(addr, Some(hello.node), true, &error.refusal());
        }
        Err(Broken::Lost(_) | Broken::Tls(_)) => return transport.counters().handshakes_cut(1),
    }
    undecided.armed = false;
    let (order, _) = peer.decide(slot, number, |link, out| link.on_confirm(number, out));
    if matches!(order, Some(Order::Use(_))) {
        let theirs = Window {
            frame_bytes_max: theirs.frame_bytes_max.min(config.limits.frame_bytes_max),
            ..theirs
        };
        peer.establish(slot, number, shaking, theirs);
    }
}

struct Undecided<'a> {
    slot: &'a LinkSlot,
    number: ConnectionNumber,
    armed: bool,
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.slot.on_gone(self.number);
        }
    }
}

/// Everything that can be wrong with a hello, in the order an operator wants to hear it.
fn check(transport: &Inner, shaking: &Shaking, hello: &Hello) -> Result<(u16, ChannelId), Refusal> {
    let config = transport.config();
    let version = Acceptor {
        versions: config.versions,
        cluster: &config.cluster,
        node: &config.node,
        latest: transport.latest_incarnation(&hello.node.name),
        certificate_fits: shaking.is_for(&hello.node.name),
    }
    .check(hello)?;
    transport.admit(&hello.node)?;
    let Purpose::Channel { name, index, .. } = &hello.purpose else {
        return Ok((version, ChannelId::CONTROL));
    };
    let found = config.channels.iter().zip(0..).find(|(spec, _)| spec.name == *name);
    match found {
        Some((spec, at)) if *index < spec.parallelism => Ok((version, ChannelId(at))),
        Some((spec, _)) => {
            let detail = format!(
                "channel `{name}` has {} parallel connections here, asked for number {index}",
                spec.parallelism
            );
            Err(Refusal::new(RefusalCode::Channel, detail))
        }
        None => {
            let detail = format!("channel `{name}` is not configured here");
            Err(Refusal::new(RefusalCode::Channel, detail))
        }
    }
}
