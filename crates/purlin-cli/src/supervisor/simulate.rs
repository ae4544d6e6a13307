//! `purlin supervisor simulate-split`: what would happen to children in a cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use purlin::{
    core::NodeName,
    dist::supervisor::split::{
        Cut, Fact, Opinion, Policy, Side, SplitConfig, VOTERS_MAX, simulate,
    },
};
use serde::Serialize;

use crate::{
    args::{Global, SimulateSplitArgs},
    client::Client,
    exit::{Done, Failure},
    members::Members,
    output::{Output, Tone, table},
};

/// A cluster to cut, and who of it is down already.
struct Cluster {
    facts: BTreeMap<NodeName, Fact>,
    down: BTreeSet<NodeName>,
}

#[derive(Debug, Serialize)]
struct Report {
    /// The members, the oldest first.
    members: Vec<String>,
    policies: Vec<PolicyReport>,
}

#[derive(Debug, Serialize)]
struct PolicyReport {
    policy: String,
    /// How many sides go on: two or more is a split brain.
    sides_that_go_on: usize,
    sides: Vec<SideReport>,
}

#[derive(Debug, Serialize)]
struct SideReport {
    goes_on: bool,
    nodes: Vec<NodeReport>,
}

#[derive(Debug, Serialize)]
struct NodeReport {
    name: String,
    goes_on: bool,
    why: String,
}

pub(super) async fn simulate_split(
    global: &Global,
    args: &SimulateSplitArgs,
    output: &mut Output,
) -> Done {
    let cluster = match &args.members {
        Some(members) => imagined(&list("--members", members)?)?,
        None => live(&Client::new(global)?).await?,
    };
    let cut = cut(args, &cluster)?;
    let configs = configs(args, &cluster)?;
    for node in &cluster.down {
        output.note(&format!("{node} is down already"));
    }
    let outcomes: Vec<_> = configs
        .into_iter()
        .map(|config| (config.policy, simulate(&config, &cluster.facts, &cut)))
        .collect();
    if output.is_json() { json(&cluster, &outcomes, output) } else { text(&outcomes, output) }
}

/// The members of the node asked.
async fn live(client: &Client) -> Result<Cluster, Failure> {
    let members = Members::of(client).await?;
    let (mut facts, mut down) = (BTreeMap::new(), BTreeSet::new());
    for member in members.members.iter().filter(|member| member.state != "left") {
        let name = NodeName::parse(&member.name).map_err(Failure::not_done)?;
        let fact =
            Fact { since: member.incarnation, roles: member.roles.iter().cloned().collect() };
        if member.state == "down" {
            down.insert(name.clone());
        }
        facts.insert(name, fact);
    }
    Ok(Cluster { facts, down })
}

/// A cluster of these, the oldest first.
fn imagined(names: &[NodeName]) -> Result<Cluster, Failure> {
    let facts: BTreeMap<_, _> = (0..)
        .zip(names)
        .map(|(since, name)| (name.clone(), Fact { since, roles: BTreeSet::new() }))
        .collect();
    if facts.len() == names.len() {
        return Ok(Cluster { facts, down: BTreeSet::new() });
    }
    let twice = (1..names.len()).find(|&at| names[..at].contains(&names[at]));
    Err(Failure::Usage(format!("--members has {} twice", names[twice.unwrap_or(0)])))
}

fn configs(args: &SimulateSplitArgs, cluster: &Cluster) -> Result<Vec<SplitConfig>, Failure> {
    let voters: BTreeSet<NodeName> = args
        .voters
        .as_deref()
        .map_or(Ok(vec![]), |text| list("--voters", text))?
        .into_iter()
        .collect();
    let counts = |fact: &&Fact| args.role.as_ref().is_none_or(|role| fact.roles.contains(role));
    let count = match voters.len() {
        0 => cluster.facts.values().filter(counts).count(),
        count => count,
    };
    if count == 0 {
        let role = args.role.as_deref().unwrap_or_default();
        return Err(Failure::Usage(format!("no member has the role {role:?}: nobody would count")));
    }
    let majority = u32::try_from(count / 2 + 1).ok().and_then(NonZeroU32::new);
    let mut policies: Vec<Policy> = Vec::new();
    for text in &args.policy {
        if text == "all" {
            policies.extend(Policy::all(majority.unwrap_or(NonZeroU32::MIN)));
        } else {
            policies
                .push(text.parse().map_err(|error| Failure::Usage(format!("{error}, or all")))?);
        }
    }
    let config = |policy| {
        let mut config = SplitConfig::new(policy);
        config.voters.clone_from(&voters);
        config.role.clone_from(&args.role);
        config.check().map_err(|error| Failure::Usage(error.to_string())).map(|()| config)
    };
    policies.into_iter().map(config).collect()
}

fn cut(args: &SimulateSplitArgs, cluster: &Cluster) -> Result<Cut, Failure> {
    if args.cut.is_none()
        && args.broken.is_none()
        && args.crash.is_none()
        && cluster.down.is_empty()
    {
        return Err(Failure::Usage(
            "nothing breaks: give --cut n1,n2/n3, --broken n1~n2 or --crash n1".to_owned(),
        ));
    }
    let mut cut = Cut { crashed: cluster.down.clone(), ..Cut::default() };
    if let Some(text) = &args.crash {
        cut.crashed.extend(list("--crash", text)?);
    }
    if let Some(text) = &args.cut {
        cut.sides = sides(text, cluster)?;
    }
    for pair in args.broken.iter().flat_map(|text| text.split(',')) {
        let (a, b) = pair
            .split_once('~')
            .ok_or_else(|| Failure::Usage(format!("--broken {pair:?} is no pair such as n1~n2")))?;
        let (a, b) = (name("--broken", a)?, name("--broken", b)?);
        if a == b {
            return Err(Failure::Usage(format!("--broken {pair:?}: a member reaches itself")));
        }
        cut.broken.insert((a, b));
    }
    for node in cut.crashed.iter().chain(cut.broken.iter().flat_map(|(a, b)| [a, b])) {
        is_member(node, cluster)?;
    }
    Ok(cut)
}

fn is_member(node: &NodeName, cluster: &Cluster) -> Result<(), Failure> {
    if cluster.facts.contains_key(node) {
        return Ok(());
    }
    Err(Failure::Usage(format!("{node} is no member; there are {}", known(cluster))))
}

fn sides(text: &str, cluster: &Cluster) -> Result<Vec<BTreeSet<NodeName>>, Failure> {
    let mut sides: Vec<BTreeSet<NodeName>> = Vec::new();
    let mut rest = None;
    for (at, side) in text.split('/').enumerate() {
        let mut nodes = BTreeSet::new();
        let (stars, names): (Vec<_>, Vec<_>) = side.split(',').partition(|part| *part == "*");
        if !stars.is_empty() && (stars.len() > 1 || rest.replace(at).is_some()) {
            return Err(Failure::Usage(format!("--cut {text:?} has * twice")));
        }
        let names = match names.join(",") {
            names if names.is_empty() && !stars.is_empty() => Vec::new(),
            names => list("--cut", &names)?,
        };
        for node in names {
            is_member(&node, cluster)?;
            if nodes.contains(&node) || sides.iter().any(|side| side.contains(&node)) {
                return Err(Failure::Usage(format!("--cut {text:?} has {node} twice")));
            }
            nodes.insert(node);
        }
        sides.push(nodes);
    }
    if sides.len() < 2 {
        return Err(Failure::Usage(format!("--cut {text:?} has one side; separate sides with /")));
    }
    let nowhere: BTreeSet<_> = cluster
        .facts
        .keys()
        .filter(|node| !sides.iter().any(|side| side.contains(*node)))
        .cloned()
        .collect();
    match (rest, nowhere.first()) {
        (Some(at), _) => sides[at].extend(nowhere),
        (None, Some(node)) => {
            return Err(Failure::Usage(format!(
                "--cut {text:?} does not say where {node} is; * stands for all others"
            )));
        }
        (None, None) => {}
    }
    Ok(sides)
}

fn known(cluster: &Cluster) -> String {
    let some: Vec<_> = cluster.facts.keys().take(10).map(NodeName::as_str).collect();
    let more = if cluster.facts.len() > some.len() { ", ..." } else { "" };
    format!("{}{more}", some.join(", "))
}

fn name(flag: &str, text: &str) -> Result<NodeName, Failure> {
    NodeName::parse(text).map_err(|error| Failure::Usage(format!("{flag}: {error}")))
}

/// Names separated by commas, of which `n1..n5` stands for five.
fn list(flag: &str, text: &str) -> Result<Vec<NodeName>, Failure> {
    let mut names = Vec::new();
    for part in text.split(',') {
        match part.split_once("..") {
            None => names.push(name(flag, part)?),
            Some((first, last)) => names.extend(range(flag, part, first, last)?),
        }
        if names.len() > VOTERS_MAX {
            return Err(Failure::Usage(format!("{flag} has more than {VOTERS_MAX} members")));
        }
    }
    Ok(names)
}

fn range(flag: &str, part: &str, first: &str, last: &str) -> Result<Vec<NodeName>, Failure> {
    let digits = first.chars().rev().take_while(char::is_ascii_digit).count();
    let (stem, from) = first.split_at(first.len() - digits);
    let to = last.strip_prefix(stem).unwrap_or(last);
    let (Ok(from), Ok(to)) = (from.parse::<usize>(), to.parse::<usize>()) else {
        return Err(Failure::Usage(format!("{flag}: {part:?} is no range such as n1..n5")));
    };
    if from > to || to - from >= VOTERS_MAX {
        return Err(Failure::Usage(format!(
            "{flag}: {part:?} does not go up, or by more than {VOTERS_MAX} members"
        )));
    }
    (from..=to).map(|n| name(flag, &format!("{stem}{n}"))).collect()
}

fn json(cluster: &Cluster, outcomes: &[(Policy, Vec<Side>)], output: &mut Output) -> Done {
    let mut members: Vec<_> = cluster.facts.iter().collect();
    members.sort_by_key(|(name, fact)| (fact.since, *name));
    let node = |(name, opinion): (&NodeName, &Opinion)| NodeReport {
        name: name.to_string(),
        goes_on: opinion.keeps,
        why: opinion.why.to_string(),
    };
    let side = |side: &Side| SideReport {
        goes_on: side.keeps(),
        nodes: side.nodes.iter().map(node).collect(),
    };
    let policy = |(policy, sides): &(Policy, Vec<Side>)| PolicyReport {
        policy: policy.to_string(),
        sides_that_go_on: sides.iter().filter(|side| side.keeps()).count(),
        sides: sides.iter().map(side).collect(),
    };
    output.json(&Report {
        members: members.into_iter().map(|(name, _)| name.to_string()).collect(),
        policies: outcomes.iter().map(policy).collect(),
    })
}

fn text(outcomes: &[(Policy, Vec<Side>)], output: &mut Output) -> Done {
    let Some((_, sides)) = outcomes.first() else { return Ok(()) };
    let heads: Vec<_> =
        sides.iter().map(|side| format!("ON {}", brief(side.nodes.keys()))).collect();
    let head: Vec<&str> = [&["POLICY", "OUTCOME"][..]]
        .concat()
        .into_iter()
        .chain(heads.iter().map(String::as_str))
        .collect();
    let rows: Vec<_> = outcomes
        .iter()
        .map(|(policy, sides)| {
            let cells = sides
                .iter()
                .map(|side| (if side.keeps() { Tone::Good } else { Tone::Quiet }, cell(side)));
            [(Tone::Strong, policy.to_string()), outcome(sides)].into_iter().chain(cells).collect()
        })
        .collect();
    table(&head, &rows, output)
}

fn outcome(sides: &[Side]) -> (Tone, String) {
    match sides.iter().filter(|side| side.keeps()).count() {
        0 => (Tone::Doubtful, "all stop".to_owned()),
        1 => (Tone::Good, "one goes on".to_owned()),
        more => (Tone::Bad, format!("{more} RUN APART")),
    }
}

/// What the nodes of a side do: one sentence when all do the same.
fn cell(side: &Side) -> String {
    let mut groups: Vec<(&Opinion, Vec<&NodeName>)> = Vec::new();
    for (node, opinion) in &side.nodes {
        match groups.iter_mut().find(|(other, _)| *other == opinion) {
            Some((_, nodes)) => nodes.push(node),
            None => groups.push((opinion, vec![node])),
        }
    }
    let verb = |opinion: &Opinion, nodes: usize| match (opinion.keeps, nodes) {
        (true, 1) => "goes on",
        (true, _) => "go on",
        (false, 1) => "stops",
        (false, _) => "stop",
    };
    match &groups[..] {
        [(opinion, _)] => format!("{}: {}", verb(opinion, 1), opinion.why),
        _ => groups
            .iter()
            .map(|(o, nodes)| {
                format!("{} {}: {}", brief(nodes.iter().copied()), verb(o, nodes.len()), o.why)
            })
            .collect::<Vec<_>>()
            .join("; "),
    }
}

/// The first few names.
fn brief<'a>(names: impl Iterator<Item = &'a NodeName>) -> String {
    const SHOWN: usize = 5;
    let names: Vec<_> = names.map(NodeName::as_str).collect();
    match names.len() {
        0..=SHOWN => names.join(","),
        len => format!("{},+{}", names[..SHOWN - 1].join(","), len - SHOWN + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(cut: &str) -> SimulateSplitArgs {
        SimulateSplitArgs {
            cut: Some(cut.to_owned()),
            broken: None,
            crash: None,
            members: None,
            voters: None,
            role: None,
            policy: vec!["all".to_owned()],
        }
    }

    fn five() -> Cluster {
        imagined(&list("--members", "n1..n5").unwrap()).unwrap()
    }

    fn refusal<T>(result: Result<T, Failure>) -> String {
        match result {
            Err(Failure::Usage(text)) => text,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("it was accepted"),
        }
    }

    #[test]
    fn a_range_stands_for_its_members() {
        let names = |text| {
            list("--members", text).unwrap().iter().map(NodeName::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names("n1..n3,db"), ["n1", "n2", "n3", "db"]);
        assert_eq!(names("web-9..11"), ["web-9", "web-10", "web-11"]);
        for (text, what) in [
            ("n1..x", "is no range"),
            ("n..n3", "is no range"),
            ("n5..n1", "does not go up"),
            ("n1..n99999", "does not go up"),
            ("n1,,n2", "is empty"),
            ("n1,a b", "has ' ' at byte 1"),
        ] {
            let said = refusal(list("--members", text));
            assert!(said.contains(what), "{text}: {said}");
        }
        assert_eq!(
            refusal(imagined(&list("--members", "n1,n2,n1").unwrap())),
            "--members has n1 twice"
        );
    }

    #[test]
    fn every_member_is_on_one_side() {
        let on = |text| {
            cut(&args(text), &five())
                .map(|cut| cut.sides.iter().map(BTreeSet::len).collect::<Vec<_>>())
        };
        assert_eq!(on("n1,n2/n3..n5").unwrap(), [2, 3]);
        assert_eq!(on("n1/*").unwrap(), [1, 4]);
        assert_eq!(on("n1,*/n4").unwrap(), [4, 1]);
        for (text, what) in [
            ("n1,n2/n3", "does not say where n4 is; * stands for all others"),
            ("n1..n5", "has one side"),
            ("n1/n1,*", "has n1 twice"),
            ("*/n1/*", "has * twice"),
            ("n1/n9,*", "n9 is no member; there are n1, n2, n3, n4, n5"),
            ("n1//*", "is empty"),
            ("", "is empty"),
        ] {
            let said = refusal(on(text));
            assert!(said.contains(what), "{text}: {said}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        let with = |change: fn(&mut SimulateSplitArgs)| {
            let mut args = args("n1/*");
            change(&mut args);
            refusal(cut(&args, &five()).and_then(|_| configs(&args, &five())))
        };
        assert!(with(|args| args.cut = None).starts_with("nothing breaks: give --cut"));
        assert!(
            with(|args| args.broken = Some("n1-n2".into())).contains("is no pair such as n1~n2")
        );
        assert!(
            with(|args| args.broken = Some("n1~n1".into())).contains("a member reaches itself")
        );
        assert!(with(|args| args.crash = Some("n7".into())).contains("n7 is no member"));
        assert!(
            with(|args| args.role = Some("db".into())).contains("no member has the role \"db\"")
        );
        assert!(
            with(|args| args.policy = vec!["majority".into()]).contains("is none of none, keep")
        );
        assert!(
            with(|args| {
                args.policy = vec!["static-quorum=2".into()];
                args.voters = Some("n1..n5".into());
            })
            .contains("a quorum of 2 does not suit 5 voters")
        );
    }

    #[test]
    fn a_side_whose_nodes_differ_says_who_does_what() {
        let mut args = args("n1..n4/n5");
        args.broken = Some("n1~n2".to_owned());
        let (cluster, config) =
            (five(), SplitConfig::new(Policy::KeepOldest { down_if_alone: true }));
        let sides = simulate(&config, &cluster.facts, &cut(&args, &cluster).unwrap());
        assert_eq!(
            cell(&sides[0]),
            "n1 stops: does not reach n2, which others do; n2 stops: does not reach n1, which others do; \
             n3,n4 stop: n1 is the oldest"
        );
        assert_eq!(outcome(&sides).1, "all stop");
    }
}
