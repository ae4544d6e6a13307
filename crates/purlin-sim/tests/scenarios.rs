//! The scenarios themselves: each holds, and can be played again.

use purlin_sim::scenarios::{self, Play};

#[test]
fn every_scenario_holds_and_plays_the_same_again() {
    // The largest are left to `cargo xtask sim`.
    for scenario in scenarios::ALL.iter().filter(|scenario| scenario.one_in == 1) {
        let play = Play { seed: 1, steps: scenario.steps };
        let first = scenario.play(play).unwrap_or_else(|failure| panic!("{failure}"));
        let again = scenario.play(play).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(first, again, "{} is not repeatable", scenario.name);
    }
}

#[test]
fn a_scenario_is_found_by_its_name_and_no_two_share_one() {
    for (at, scenario) in scenarios::ALL.iter().enumerate() {
        let found = scenarios::find(scenario.name);
        assert_eq!(found.map(|found| found.about), Some(scenario.about));
        assert!(scenarios::ALL[..at].iter().all(|other| other.name != scenario.name));
    }
    assert!(scenarios::find("no such scenario").is_none());
}
