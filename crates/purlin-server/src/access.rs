//! Who may do what: bearer token, loopback, Host and Origin.
//!
//! A console on loopback is reachable by more than its owner: any web page the owner visits can
//! make the browser send requests to `127.0.0.1`, and a name that resolves to loopback (DNS
//! rebinding) even lets that page read the answers. So "the peer is on this machine" is not enough;
//! a request without the token must also have *addressed this node as itself* and not come from a
//! page of somebody else.
//!
//! | class | token | loopback without token | from elsewhere without token |
//! |---|---|---|---|
//! | [`Access::Open`] | served | served | served |
//! | [`Access::Read`] | served | served if Host is a loopback name or one of this node's | refused |
//! | [`Access::Write`] | served | served if Host *and* Origin (if any) are this node's own | refused |
//! | [`Access::Admin`] | served | refused | refused |
//!
//! A request that a proxy marked as forwarded is never treated as loopback: its true sender is not.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, StatusCode, header};
use purlin_core::{Advice, Outcome};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};

use crate::problem::Problem;

/// The fewest characters a token may have. 128 bits in base64 need 22; below that guessing pays.
pub const TOKEN_CHARS_MIN: usize = 22;

/// The most characters a token may have, so that a header never grows past the head's bound.
pub const TOKEN_CHARS_MAX: usize = 1024;

/// The secret that administrators present as `Authorization: Bearer ...`.
///
/// Kept only as a keyed digest: neither `Debug` nor a core dump of this value shows the text.
#[derive(Clone)]
pub struct Token {
    key: hmac::Key,
    tag: hmac::Tag,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why a text cannot be a token. The text itself is never repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Shorter than [`TOKEN_CHARS_MIN`] or longer than [`TOKEN_CHARS_MAX`].
    #[error(
        "a token of {chars} characters is outside the bounds {TOKEN_CHARS_MIN} to {TOKEN_CHARS_MAX}"
    )]
    Length {
        /// How many characters it has.
        chars: usize,
    },
    /// Holds a space, a control character or anything outside ASCII, which no header carries.
    #[error("a token may hold only printable ASCII without spaces")]
    Character,
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes for the token's digest key")]
    NoRandomness,
}

impl Token {
    /// Takes `text` (surrounding white space is cut) as the token.
    ///
    /// # Errors
    /// [`TokenError`] when the text is too short to be a secret or cannot travel in a header.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if !(TOKEN_CHARS_MIN..=TOKEN_CHARS_MAX).contains(&text.len()) {
            return Err(TokenError::Length { chars: text.chars().count() });
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Character);
        }
        let mut secret = [0_u8; 32];
        SystemRandom::new().fill(&mut secret).map_err(|_unspecified| TokenError::NoRandomness)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let tag = hmac::sign(&key, text.as_bytes());
        Ok(Self { key, tag })
    }

    /// Whether `presented` is the token, in time that depends on neither text's content.
    #[must_use]
    pub fn is(&self, presented: &[u8]) -> bool {
        // Comparing two tags under a key nobody else knows hides where the texts differ.
        hmac::verify(&self.key, presented, self.tag.as_ref()).is_ok()
    }
}

/// How much trust a route asks for. One of these stands beside every route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Says nothing about the cluster: health, the console's static files.
    Open,
    /// Shows state and changes none.
    Read,
    /// Changes what applications see: publishing, replicated state, flags.
    Write,
    /// Changes the cluster itself: drain.
    Admin,
}

/// The facts about one request that decide.
#[derive(Debug)]
pub(crate) struct Caller<'a> {
    pub(crate) peer: SocketAddr,
    pub(crate) headers: &'a HeaderMap,
}

/// What a node knows about itself when it decides.
#[derive(Debug)]
pub(crate) struct Gate {
    token: Option<Token>,
    port: u16,
    /// Lower-case host parts (no port) that mean this node, loopback names excepted.
    own_hosts: Vec<String>,
}

/// Marks of a proxy: whoever set one speaks for somebody who may be anywhere.
const FORWARDED: [&str; 5] =
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"];

impl Gate {
    /// A gate for a node bound to `bound` that is also known as `advertised` (`host:port` or a host).
    pub(crate) fn new(token: Option<Token>, bound: SocketAddr, advertised: &[String]) -> Self {
        let mut own_hosts: Vec<String> =
            advertised.iter().map(|name| split_port(name).0.to_ascii_lowercase()).collect();
        if !bound.ip().is_unspecified() {
            own_hosts.push(host_text(bound.ip()));
        }
        Self { token, port: bound.port(), own_hosts }
    }

    /// Lets the request pass, or says in a problem document why not and what to send instead.
    pub(crate) fn check(&self, access: Access, caller: &Caller<'_>) -> Result<(), Problem> {
        if access == Access::Open {
            return Ok(());
        }
        // Without a token of its own a node has nothing to hold a presented one against; a client
        // that sends one anyway is judged as if it had not.
        match (&self.token, bearer(caller.headers)) {
            (Some(token), Some(presented)) if token.is(presented) => Ok(()),
            (Some(_), Some(_)) => Err(refused(
                StatusCode::UNAUTHORIZED,
                "token_wrong",
                "the bearer token is not this node's; `purlin up` keeps it in DIR/admin.token",
            )),
            (Some(_), None) | (None, _) => self.check_without_token(access, caller),
        }
    }

    /// Whether the request brings this node's token; if not, what to say of what it may not see.
    pub(crate) fn check_token(&self, headers: &HeaderMap) -> Result<(), String> {
        match (&self.token, bearer(headers)) {
            (Some(token), Some(presented)) if token.is(presented) => Ok(()),
            (Some(_), _) => Err("send `Authorization: Bearer TOKEN`".to_owned()),
            (None, _) => Err("this node has no token: set `http.token_file`".to_owned()),
        }
    }

    fn check_without_token(&self, access: Access, caller: &Caller<'_>) -> Result<(), Problem> {
        if access == Access::Admin {
            return Err(self.token_required("an administrative act always needs the bearer token"));
        }
        if !caller.peer.ip().to_canonical().is_loopback() {
            return Err(
                self.token_required("requests from beyond this machine need the bearer token")
            );
        }
        if FORWARDED.iter().any(|mark| caller.headers.contains_key(*mark)) {
            return Err(self.token_required("a forwarded request needs the bearer token"));
        }
        let host = header_text(caller.headers, &header::HOST).unwrap_or_default();
        match access {
            Access::Read if self.is_own_host(host) => Ok(()),
            Access::Read => {
                Err(foreign("host", host, "this node's own address or a loopback name"))
            }
            Access::Write | Access::Admin | Access::Open => self.check_write(host, caller.headers),
        }
    }

    fn check_write(&self, host: &str, headers: &HeaderMap) -> Result<(), Problem> {
        if !self.is_own_authority(host) {
            return Err(foreign("host", host, "this node's own host and port"));
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or("(not text)");
            // TLS in front of the node is a proxy's, and proxied requests bring the token.
            let own = origin.strip_prefix("http://").is_some_and(|it| self.is_own_authority(it));
            if !own {
                return Err(foreign("origin", origin, "this node's own origin, or none"));
            }
        }
        match header_text(headers, &"sec-fetch-site".parse().expect("a valid header name")) {
            None | Some("same-origin" | "none") => Ok(()),
            // Two spellings of this node (localhost, 127.0.0.1) count as cross-site to a browser;
            // only the Origin check above can tell, and without an Origin there is no telling.
            Some(_) if headers.contains_key(header::ORIGIN) => Ok(()),
            Some(site) => Err(foreign("sec-fetch-site", site, "same-origin or none")),
        }
    }

    fn is_own_host(&self, host: &str) -> bool {
        let name = split_port(host).0.to_ascii_lowercase();
        is_loopback_name(&name) || self.own_hosts.contains(&name)
    }

    fn is_own_authority(&self, authority: &str) -> bool {
        let port = split_port(authority).1.unwrap_or("80");
        self.is_own_host(authority) && port.parse() == Ok(self.port)
    }

    fn token_required(&self, why: &str) -> Problem {
        let detail = match self.token {
            Some(_) => format!("{why}: send `Authorization: Bearer TOKEN`"),
            None => format!("{why}, and this node has none configured: set `http.token_file`"),
        };
        refused(StatusCode::UNAUTHORIZED, "token_required", &detail)
    }
}

fn refused(status: StatusCode, code: &str, detail: &str) -> Problem {
    metrics::counter!("purlin_server_requests_refused_total", "code" => code.to_owned())
        .increment(1);
    Problem::new(status, code, "This request is not allowed as it stands", detail)
        .ended(Outcome::NotDone, &Advice::GiveUp)
}

fn foreign(field: &str, value: &str, bound: &str) -> Problem {
    refused(
        StatusCode::FORBIDDEN,
        "foreign_request",
        &format!("without a token, {field} must be {bound}: this looks like a page or name of somebody else"),
    )
    .about(field, value, bound)
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, rest) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
}

fn header_text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Splits `host:port`; an IPv6 host keeps its brackets, and a missing port is `None`.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    let after_host = authority.rfind(']').map_or(0, |at| at + 1);
    match authority[after_host..].rfind(':') {
        Some(colon) => {
            let colon = after_host + colon;
            (&authority[..colon], Some(&authority[colon + 1..]))
        }
        None => (authority, None),
    }
}

fn is_loopback_name(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn host_text(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "correct-horse-battery-staple";
    const LOCAL: &str = "127.0.0.1:55555";
    const AWAY: &str = "192.0.2.7:55555";

    fn gate() -> Gate {
        let token = Token::new(SECRET).unwrap();
        Gate::new(Some(token), "127.0.0.1:4900".parse().unwrap(), &["node.example:4900".to_owned()])
    }

    fn verdict(access: Access, peer: &str, headers: &[(&str, &str)]) -> Result<(), String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(
                header::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        let caller = Caller { peer: peer.parse().unwrap(), headers: &map };
        gate().check(access, &caller).map_err(|problem| problem.document().code.clone())
    }

    fn refusal(code: &str) -> Result<(), String> {
        Err(code.to_owned())
    }

    #[test]
    fn the_token_opens_everything_from_everywhere_whatever_the_host() {
        let bearer = format!("bEaReR {SECRET}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("host", "evil.example"),
            ("origin", "http://evil.example"),
        ];
        for access in [Access::Open, Access::Read, Access::Write, Access::Admin] {
            for peer in [LOCAL, AWAY] {
                assert_eq!(verdict(access, peer, &headers), Ok(()), "{access:?} from {peer}");
            }
        }
    }

    #[test]
    fn a_wrong_token_is_refused_even_where_none_is_needed() {
        for wrong in ["Bearer nope", "Bearer ", "Bearer correct-horse-battery-stapl"] {
            let headers = [("authorization", wrong), ("host", "localhost:4900")];
            assert_eq!(verdict(Access::Read, LOCAL, &headers), refusal("token_wrong"), "{wrong}");
        }
    }

    #[test]
    fn beyond_loopback_only_open_routes_answer_without_a_token() {
        let headers = [("host", "127.0.0.1:4900")];
        assert_eq!(verdict(Access::Open, AWAY, &headers), Ok(()));
        for access in [Access::Read, Access::Write, Access::Admin] {
            assert_eq!(verdict(access, AWAY, &headers), refusal("token_required"), "{access:?}");
        }
    }

    #[test]
    fn an_ipv4_peer_on_a_dual_stack_socket_is_still_loopback() {
        let headers = [("host", "localhost:4900")];
        assert_eq!(verdict(Access::Read, "[::ffff:127.0.0.1]:9", &headers), Ok(()));
        assert_eq!(
            verdict(Access::Read, "[::ffff:192.0.2.7]:9", &headers),
            refusal("token_required")
        );
    }

    #[test]
    fn a_rebound_name_can_neither_read_nor_write() {
        for host in
            ["evil.example:4900", "localhost.evil.example:4900", "127.0.0.1.evil.example", ""]
        {
            for access in [Access::Read, Access::Write] {
                let verdict = verdict(access, LOCAL, &[("host", host)]);
                assert_eq!(verdict, refusal("foreign_request"), "{access:?} {host:?}");
            }
        }
    }

    #[test]
    fn a_write_needs_this_nodes_own_host_and_port() {
        for host in ["localhost:4900", "127.0.0.1:4900", "[::1]:4900", "NODE.example:4900"] {
            assert_eq!(verdict(Access::Write, LOCAL, &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["localhost:3000", "localhost", "127.0.0.1:49000"] {
            let verdict = verdict(Access::Write, LOCAL, &[("host", host)]);
            assert_eq!(verdict, refusal("foreign_request"), "{host}");
        }
    }

    #[test]
    fn a_cross_site_post_is_refused() {
        for origin in [
            "http://evil.example",
            "null",
            "https://localhost:4900",
            "http://localhost:3000",
            "http://localhost:4900.evil.example",
            "http://localhost:4900@evil.example",
        ] {
            let headers = [("host", "localhost:4900"), ("origin", origin)];
            assert_eq!(
                verdict(Access::Write, LOCAL, &headers),
                refusal("foreign_request"),
                "{origin}"
            );
        }
        let own = [("host", "localhost:4900"), ("origin", "http://127.0.0.1:4900")];
        assert_eq!(verdict(Access::Write, LOCAL, &own), Ok(()));
        let no_origin = [("host", "localhost:4900"), ("sec-fetch-site", "cross-site")];
        assert_eq!(verdict(Access::Write, LOCAL, &no_origin), refusal("foreign_request"));
    }

    #[test]
    fn an_administrative_act_needs_the_token_even_on_loopback() {
        let headers = [("host", "localhost:4900"), ("origin", "http://localhost:4900")];
        assert_eq!(verdict(Access::Admin, LOCAL, &headers), refusal("token_required"));
    }

    #[test]
    fn a_proxied_request_is_not_taken_for_loopback() {
        for mark in FORWARDED {
            let headers = [("host", "127.0.0.1:4900"), (mark, "203.0.113.9")];
            assert_eq!(verdict(Access::Read, LOCAL, &headers), refusal("token_required"), "{mark}");
        }
    }

    #[test]
    fn a_token_is_long_enough_and_never_printed() {
        assert_eq!(Token::new("short").unwrap_err(), TokenError::Length { chars: 5 });
        assert_eq!(Token::new("with a space in the middle").unwrap_err(), TokenError::Character);
        let token = Token::new(&format!("{SECRET}\n")).unwrap();
        assert!(token.is(SECRET.as_bytes()));
        assert!(!format!("{token:?}").contains(SECRET));
    }
}
