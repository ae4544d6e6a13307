//! The dependency rule: a crate knows only crates of lower floors.
//!
//! Each workspace member states its place in `[package.metadata.purlin]`: `floor = N` for a crate
//! of the house, `beside = "tests"` for a crate that only tests may use, `beside = "tools"` for one
//! that nothing may use. Cargo itself refuses cycles but not an edge sideways or one upward that
//! happens to close no cycle, and those are how a house becomes a heap.

use std::collections::BTreeMap;

use cargo_metadata::{DependencyKind, Metadata, Package};

use crate::checkout::{Checkout, Failure};

/// Prints the house floor by floor, or fails naming every edge that breaks the rule.
pub(crate) fn run(checkout: &Checkout) -> Result<(), Failure> {
    let broken = violations(&checkout.metadata);
    if !broken.is_empty() {
        return Err(Failure::list("a crate depends only on crates of lower floors:", &broken));
    }
    let mut floors: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for package in checkout.metadata.workspace_packages() {
        if let Ok(Place::Floor(floor)) = place(package) {
            floors.entry(floor).or_default().push(&package.name);
        }
    }
    for (floor, names) in floors.iter().rev() {
        println!("floor {floor}: {}", names.join(", "));
    }
    Ok(())
}

/// Where a workspace member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the house, on this floor.
    Floor(u64),
    /// Beside the house, for tests: anybody's dev-dependency.
    Tests,
    /// Beside the house, a tool: nobody's dependency.
    Tools,
}

/// The place a crate states, or a sentence saying what its statement lacks.
pub(crate) fn place(package: &Package) -> Result<Place, String> {
    let name = &package.name;
    let stated = &package.metadata["purlin"];
    match (stated["floor"].as_u64(), stated["beside"].as_str()) {
        (Some(floor), None) => Ok(Place::Floor(floor)),
        (None, Some("tests")) => Ok(Place::Tests),
        (None, Some("tools")) => Ok(Place::Tools),
        (None, None) => Err(format!(
            "{name} states no place: its Cargo.toml needs [package.metadata.purlin] with \
             `floor = N`, or `beside = \"tests\"` or \"tools\""
        )),
        _ => Err(format!(
            "{name} states a place that is neither one `floor = N` nor one `beside = \"tests\"` \
             or \"tools\""
        )),
    }
}

/// Every edge between workspace members that goes up or sideways, each with both names.
pub(crate) fn violations(metadata: &Metadata) -> Vec<String> {
    let mut broken = Vec::new();
    let mut places = BTreeMap::new();
    for package in metadata.workspace_packages() {
        match place(package) {
            Ok(place) => {
                places.insert(package.name.as_str(), place);
            }
            Err(sentence) => broken.push(sentence),
        }
    }
    for package in metadata.workspace_packages() {
        let Some(from) = places.get(package.name.as_str()) else {
            continue;
        };
        for dependency in &package.dependencies {
            if let Some(to) = places.get(dependency.name.as_str())
                && let Some(reason) = objection(*from, *to, dependency.kind)
            {
                broken.push(format!(
                    "{} ({}) -> {} ({}): {reason}",
                    package.name,
                    describe(*from),
                    dependency.name,
                    describe(*to),
                ));
            }
        }
    }
    broken.sort();
    broken
}

/// Why an edge of this kind is not allowed, if it is not.
fn objection(from: Place, to: Place, kind: DependencyKind) -> Option<&'static str> {
    match (from, to) {
        (_, Place::Tools) => Some("tools are nobody's dependency"),
        (Place::Tools, Place::Floor(_) | Place::Tests) | (Place::Tests, Place::Floor(_)) => None,
        (Place::Tests, Place::Tests) => None,
        (Place::Floor(_), Place::Tests) if kind == DependencyKind::Development => None,
        (Place::Floor(_), Place::Tests) => Some("test crates are dev-dependencies only"),
        (Place::Floor(upper), Place::Floor(lower)) if upper > lower => None,
        (Place::Floor(upper), Place::Floor(lower)) if upper == lower => Some("goes sideways"),
        (Place::Floor(_), Place::Floor(_)) => Some("goes upward"),
    }
}

fn describe(place: Place) -> String {
    match place {
        Place::Floor(floor) => format!("floor {floor}"),
        Place::Tests => "beside, tests".to_owned(),
        Place::Tools => "beside, tools".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A member's name, what it states about its place, and its dependencies with their kinds.
    type Member<'a> = (&'a str, Value, &'a [(&'a str, Option<&'a str>)]);

    /// A workspace of the given members, as `cargo metadata` would describe it.
    fn workspace(members: &[Member<'_>]) -> Metadata {
        let id = |name: &str| format!("path+file:///w/{name}#0.1.0");
        let packages: Vec<Value> = members
            .iter()
            .map(|(name, purlin, edges)| {
                let dependencies: Vec<Value> = edges
                    .iter()
                    .map(|(to, kind)| {
                        json!({
                            "name": to, "req": "*", "kind": kind, "optional": false,
                            "uses_default_features": true, "features": [],
                        })
                    })
                    .collect();
                json!({
                    "name": name, "version": "0.1.0", "id": id(name),
                    "dependencies": dependencies, "targets": [], "features": {},
                    "manifest_path": format!("/w/{name}/Cargo.toml"),
                    "metadata": { "purlin": purlin },
                })
            })
            .collect();
        let ids: Vec<String> = members.iter().map(|(name, ..)| id(name)).collect();
        serde_json::from_value(json!({
            "packages": packages, "workspace_members": ids, "workspace_default_members": ids,
            "resolve": null, "workspace_root": "/w", "target_directory": "/w/target", "version": 1,
        }))
        .expect("the shape of cargo metadata")
    }

    #[test]
    fn this_house_has_no_edge_upward_or_sideways() {
        let checkout = Checkout::find().unwrap();
        assert_eq!(violations(&checkout.metadata), Vec::<String>::new());
    }

    #[test]
    fn an_edge_downward_is_allowed() {
        let house = workspace(&[
            ("low", json!({"floor": 0}), &[]),
            ("high", json!({"floor": 3}), &[("low", None)]),
        ]);
        assert_eq!(violations(&house), Vec::<String>::new());
    }

    #[test]
    fn a_forged_edge_upward_fails_with_both_names_and_floors() {
        let house = workspace(&[
            ("core", json!({"floor": 0}), &[("cluster", None)]),
            ("cluster", json!({"floor": 3}), &[]),
        ]);
        assert_eq!(violations(&house), ["core (floor 0) -> cluster (floor 3): goes upward"]);
    }

    #[test]
    fn a_forged_edge_sideways_fails_with_both_names_and_floors() {
        let house = workspace(&[
            ("net", json!({"floor": 2}), &[]),
            ("process", json!({"floor": 2}), &[("net", None)]),
        ]);
        assert_eq!(violations(&house), ["process (floor 2) -> net (floor 2): goes sideways"]);
    }

    #[test]
    fn a_dev_dependency_upward_is_no_exception_between_floors() {
        let house = workspace(&[
            ("core", json!({"floor": 0}), &[("facade", Some("dev"))]),
            ("facade", json!({"floor": 7}), &[]),
        ]);
        assert_eq!(violations(&house), ["core (floor 0) -> facade (floor 7): goes upward"]);
    }

    #[test]
    fn a_test_crate_may_be_a_dev_dependency_and_nothing_else() {
        let house = workspace(&[
            ("sim", json!({"beside": "tests"}), &[("core", None)]),
            ("core", json!({"floor": 0}), &[("sim", Some("dev"))]),
            ("net", json!({"floor": 2}), &[("sim", None)]),
        ]);
        assert_eq!(
            violations(&house),
            ["net (floor 2) -> sim (beside, tests): test crates are dev-dependencies only"]
        );
    }

    #[test]
    fn a_tool_is_nobodys_dependency() {
        let house = workspace(&[
            ("xtask", json!({"beside": "tools"}), &[("core", None)]),
            ("core", json!({"floor": 0}), &[("xtask", Some("dev"))]),
        ]);
        assert_eq!(
            violations(&house),
            ["core (floor 0) -> xtask (beside, tools): tools are nobody's dependency"]
        );
    }

    #[test]
    fn a_crate_without_a_stated_place_is_named() {
        let house = workspace(&[("stray", json!({}), &[])]);
        let broken = violations(&house);
        assert_eq!(broken.len(), 1);
        assert!(broken[0].starts_with("stray states no place"), "{broken:?}");
    }
}
