//! What members say of each other over time, and what may be demanded of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What one node said at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) host: usize,
    /// Name to (state, incarnation); the reason when the node did not answer.
    pub(crate) said: Result<BTreeMap<String, (String, u64)>, String>,
}

impl Sample {
    /// Asks the node that listens on this address of the calling thread's own network.
    pub(crate) fn take(host: usize, api: SocketAddr) -> Self {
        let at = Instant::now();
        let said = get(api, "/v1/members").and_then(|body| parse(&body));
        Self { at, host, said }
    }

    /// Whether exactly these members are known and every one is `alive`.
    pub(crate) fn all_alive(&self, members: usize) -> bool {
        self.said.as_ref().is_ok_and(|said| {
            said.len() == members && said.values().all(|(state, _)| state == "alive")
        })
    }

    /// Whether this node calls that one `down`.
    pub(crate) fn calls_down(&self, host: usize) -> bool {
        self.state_of(host) == Some("down")
    }

    fn state_of(&self, host: usize) -> Option<&str> {
        let (state, _) = self.said.as_ref().ok()?.get(&name(host))?;
        Some(state)
    }
}

/// Everything that was said while a fault was on.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) samples: Vec<Sample>,
}

impl History {
    /// Every sample in which a member is neither `alive` nor `suspect`, is missing, or in which the
    /// node itself did not answer: one sentence each.
    ///
    /// A suspicion is what a fault ought to cause; a verdict on the living is what it must not.
    pub(crate) fn false_verdicts(&self, members: usize) -> Vec<String> {
        let mut found = Vec::new();
        for sample in &self.samples {
            match &sample.said {
                Err(why) => found.push(format!("n{} did not answer: {why}", sample.host)),
                Ok(said) => {
                    for host in 1..=members {
                        match sample.state_of(host) {
                            Some("alive" | "suspect") => {}
                            Some(state) => {
                                found.push(format!("n{} called n{host} {state}", sample.host));
                            }
                            None => found.push(format!("n{} forgot n{host}", sample.host)),
                        }
                    }
                    if said.len() > members {
                        found.push(format!("n{} knows strangers: {said:?}", sample.host));
                    }
                }
            }
        }
        found
    }

    /// The longest time between two samples of one node, from the first sample of all: a history
    /// with holes proves little.
    pub(crate) fn longest_gap(&self) -> Duration {
        let mut last: BTreeMap<usize, Instant> = BTreeMap::new();
        let mut longest = Duration::ZERO;
        for sample in &self.samples {
            if let Some(before) = last.insert(sample.host, sample.at) {
                longest = longest.max(sample.at.saturating_duration_since(before));
            }
        }
        longest
    }

    /// The changes of opinion, one line each, for a failing test's output.
    pub(crate) fn told(&self, since: Instant) -> String {
        let mut text = String::new();
        let mut last: BTreeMap<usize, String> = BTreeMap::new();
        let mut samples: Vec<&Sample> = self.samples.iter().collect();
        samples.sort_by_key(|sample| sample.at);
        for sample in samples {
            let now = match &sample.said {
                Err(why) => why.clone(),
                Ok(said) => said
                    .iter()
                    .map(|(name, (state, incarnation))| format!("{name}@{incarnation} {state}"))
                    .collect::<Vec<_>>()
                    .join(", "),
            };
            if last.get(&sample.host) != Some(&now) {
                let after = sample.at.saturating_duration_since(since).as_secs_f64();
                writeln!(text, "  {after:6.2} s  n{}: {now}", sample.host).expect("a string grows");
                last.insert(sample.host, now);
            }
        }
        text
    }
}

/// The name of the node on a host.
pub(crate) fn name(host: usize) -> String {
    format!("n{host}")
}

/// The body of a member list as states and incarnations by name.
fn parse(body: &str) -> Result<BTreeMap<String, (String, u64)>, String> {
    let json: serde_json::Value =
        serde_json::from_str(body).map_err(|error| format!("no JSON: {error}: {body}"))?;
    let members = json["members"].as_array().ok_or("no `members`")?;
    let mut said = BTreeMap::new();
    for member in members {
        let name = member["name"].as_str().ok_or("a member without `name`")?;
        let state = member["state"].as_str().ok_or("a member without `state`")?;
        let incarnation = member["incarnation"].as_u64().ok_or("a member without `incarnation`")?;
        if said.insert(name.to_owned(), (state.to_owned(), incarnation)).is_some() {
            return Err(format!("{name} is listed twice: {body}"));
        }
    }
    Ok(said)
}

/// One HTTP request, by hand: the fewer parts of ours in the checker, the better.
fn get(api: SocketAddr, path: &str) -> Result<String, String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let fault = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&api, PATIENCE).map_err(fault)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(fault)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\r\n")
        .map_err(fault)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(fault)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(head.lines().next().unwrap_or_default().to_owned());
    }
    if head.to_lowercase().contains("transfer-encoding: chunked") {
        return Err("the member list came in chunks".to_owned());
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(host: usize, states: &[&str]) -> Sample {
        let said = states
            .iter()
            .enumerate()
            .map(|(index, state)| (name(index + 1), ((*state).to_owned(), 7)))
            .collect();
        Sample { at: Instant::now(), host, said: Ok(said) }
    }

    #[test]
    fn a_suspicion_is_no_verdict() {
        let history = History { samples: vec![sample(1, &["alive", "suspect", "alive"])] };
        assert_eq!(history.false_verdicts(3), Vec::<String>::new());
    }

    #[test]
    fn a_forged_history_with_a_verdict_a_gap_or_a_silence_is_caught() {
        let mut silent = sample(3, &[]);
        silent.said = Err("connection refused".to_owned());
        let history = History {
            samples: vec![
                sample(1, &["alive", "down", "alive"]),
                sample(2, &["alive", "alive"]),
                silent,
            ],
        };
        assert_eq!(
            history.false_verdicts(3),
            ["n1 called n2 down", "n2 forgot n3", "n3 did not answer: connection refused"]
        );
    }

    #[test]
    fn a_member_listed_twice_is_not_taken_for_one() {
        let body = r#"{"members":[{"name":"n1","state":"alive","incarnation":1},
                                  {"name":"n1","state":"down","incarnation":2}]}"#;
        assert!(parse(body).unwrap_err().contains("listed twice"));
    }
}
