use proptest::prelude::*;

use super::*;

// As if this were the second release.
const OURS: (u16, u16) = (1, 2);

fn node(name: &str, incarnation: u64) -> NodeId {
    NodeId::new(NodeName::parse(name).unwrap(), Incarnation(incarnation))
}

fn hello() -> Hello {
    Hello {
        versions: OURS,
        cluster: ClusterName::parse("shop").unwrap(),
        node: node("n1", 5),
        expects: Some(node("n2", 6)),
        advertise: "10.0.0.1:7400".parse().unwrap(),
        capabilities: Capabilities::OURS,
        purpose: Purpose::Channel {
            name: ChannelName::parse("rpc").unwrap(),
            index: 3,
            connection: 77,
            last: 76,
            window: window(),
        },
    }
}

fn window() -> Window {
    Window { frame_bytes_max: 65_536, payload_bytes_max: 1 << 22, credit_bytes: 1 << 20 }
}

fn check(hello: &Hello) -> Result<u16, Refusal> {
    check_as(hello, None, true)
}

fn check_as(hello: &Hello, latest: Option<u64>, certificate_fits: bool) -> Result<u16, Refusal> {
    Acceptor {
        versions: OURS,
        cluster: &ClusterName::parse("shop").unwrap(),
        node: &node("n2", 6),
        latest: latest.map(Incarnation),
        certificate_fits,
    }
    .check(hello)
}

fn body(message: &[u8]) -> (Prologue, &[u8]) {
    let prologue = Prologue::decode(message).unwrap().unwrap();
    let body = &message[PROLOGUE_BYTES..];
    assert_eq!(body.len(), prologue.body_bytes as usize);
    (prologue, body)
}

#[test]
fn a_hello_survives_the_wire() {
    for purpose in [hello().purpose, Purpose::Contact] {
        for expects in [None, Some(node("n2", 6))] {
            let hello = Hello { purpose: purpose.clone(), expects, ..hello() };
            let message = hello.encode();
            let (prologue, body) = body(&message);
            assert_eq!(Hello::decode(prologue, body), Ok(hello));
        }
    }
}

#[test]
fn answers_and_confirmations_survive_the_wire() {
    let welcome = Answer::Welcome(Welcome {
        version: 2,
        node: node("n2", 6),
        advertise: "[::1]:7400".parse().unwrap(),
        capabilities: Capabilities(3),
        window: window(),
    });
    assert_eq!(Answer::decode(body(&welcome.encode(OURS)).1), Ok(welcome));
    for code in RefusalCode::ALL {
        let refused = Answer::Refused(Refusal::new(code, "because"));
        assert_eq!(Answer::decode(body(&refused.encode(OURS)).1), Ok(refused));
        let refused = Confirm::Refused(Refusal::new(code, "because"));
        assert_eq!(Confirm::decode(body(&refused.encode(OURS)).1), Ok(refused));
    }
    assert_eq!(Confirm::decode(body(&Confirm::Go.encode(OURS)).1), Ok(Confirm::Go));
}

#[test]
fn fields_of_a_later_version_are_ignored() {
    let message = hello().encode();
    let (prologue, body) = body(&message);
    let longer = [body, b"a later field"].concat();
    assert_eq!(Hello::decode(prologue, &longer), Ok(hello()));
}

#[test]
fn a_good_hello_is_welcome() {
    assert_eq!(check(&hello()), Ok(2));
    assert_eq!(check(&Hello { expects: None, ..hello() }), Ok(2));
}

#[test]
fn neighbouring_versions_interoperate_and_distant_ones_say_so() {
    let versions = |min, max| check(&Hello { versions: (min, max), ..hello() });
    assert_eq!(versions(1, 1), Ok(1), "one release back");
    assert_eq!(versions(2, 3), Ok(2), "one release ahead");
    for (min, max) in [(3, 4), (0, 0), (2, 1)] {
        let refused = versions(min, max).unwrap_err();
        assert_eq!(refused.code, RefusalCode::Version);
        assert!(refused.detail.contains(&format!("versions {min} to {max}")), "{refused}");
    }
}

#[test]
fn another_cluster_is_refused_with_both_names() {
    let stranger = Hello { cluster: ClusterName::parse("bank").unwrap(), ..hello() };
    let refused = check(&stranger).unwrap_err();
    assert_eq!(refused.code, RefusalCode::Cluster);
    assert_eq!(refused.detail, "cluster is `bank` there and `shop` here");
}

#[test]
fn a_certificate_for_somebody_else_is_refused() {
    assert_eq!(check_as(&hello(), None, false).unwrap_err().code, RefusalCode::Certificate);
}

#[test]
fn an_earlier_incarnation_is_refused_and_an_equal_one_is_not() {
    assert_eq!(check_as(&hello(), Some(6), true).unwrap_err().code, RefusalCode::Superseded);
    assert_eq!(check_as(&hello(), Some(5), true), Ok(2));
    assert_eq!(check_as(&hello(), Some(4), true), Ok(2));
}

#[test]
fn expecting_another_life_or_node_is_refused() {
    for expected in [node("n2", 5), node("n3", 6)] {
        let hello = Hello { expects: Some(expected), ..hello() };
        assert_eq!(check(&hello).unwrap_err().code, RefusalCode::WrongNode);
    }
    let namesake = Hello { node: node("n2", 9), ..hello() };
    assert_eq!(check(&namesake).unwrap_err().code, RefusalCode::WrongNode);
}

#[test]
fn a_wrong_first_byte_is_refused_at_once() {
    assert!(matches!(Prologue::decode(b"G"), Err(HandshakeError::Magic(_))));
    assert!(matches!(Prologue::decode(b"GET / HTTP/1.1\r\n"), Err(HandshakeError::Magic(_))));
    assert_eq!(Prologue::decode(b"PRL"), Ok(None));
}

#[test]
fn a_body_that_claims_four_gibibytes_is_refused_from_its_prologue() {
    let mut message = hello().encode();
    message[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(
        Prologue::decode(&message),
        Err(HandshakeError::TooLong { bytes: u32::MAX, max: BODY_BYTES_MAX })
    );
}

#[test]
fn a_cut_hello_names_the_field_that_is_missing() {
    let message = hello().encode();
    let (prologue, body) = body(&message);
    for cut in 0..body.len() {
        assert!(matches!(Hello::decode(prologue, &body[..cut]), Err(HandshakeError::Field { .. })));
    }
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let prologue = Prologue { versions: OURS, body_bytes: 0 };
        drop(Prologue::decode(&bytes));
        drop(Hello::decode(prologue, &bytes));
        drop(Answer::decode(&bytes));
        drop(Confirm::decode(&bytes));
    }

    #[test]
    fn a_damaged_hello_never_panics(at in 0_usize..200, byte: u8) {
        let mut message = hello().encode();
        let at = at % message.len();
        message[at] = byte;
        if let Ok(Some(prologue)) = Prologue::decode(&message) {
            drop(Hello::decode(prologue, &message[PROLOGUE_BYTES..]));
        }
    }
}
