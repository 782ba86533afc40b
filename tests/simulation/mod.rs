//! The store on a simulated disk: random operations, faults, power cuts and restarts from a seed, checked against a
//! model of the values that may be read at each point.
//!
//! `SIMULATION_SECONDS=SECONDS` runs new seeds for that long, `SIMULATION_SEED=N` replays the seed of a failure, and
//! `SIMULATION_TELL=1` prints its events; see CONTRIBUTING.md.

mod disk;
mod hang;
mod model;
mod story;
mod traces;

use std::time::{Duration, Instant};

use self::story::{Story, Tally};

/// How many seeds run with the other tests.
const SEEDS: u64 = 150;

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// Runs one seed, and prints it on failure.
fn run(seed: u64, tally: &mut Tally) -> u64 {
    struct Said(u64);
    impl Drop for Said {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("to repeat this failure: SIMULATION_SEED={}", self.0);
            }
        }
    }
    let _said = Said(seed);
    let mut story = Story::new(seed);
    story.run();
    story.report(tally)
}

#[test]
fn no_fault_loses_acknowledged_writes() {
    let mut tally = Tally::default();
    if let Some(seed) = environment("SIMULATION_SEED") {
        run(seed, &mut tally);
        return;
    }
    for seed in 0..SEEDS {
        run(seed, &mut tally);
    }
    assert!(tally.all_happened(), "a kind of fault never happened: {tally:?}");
    // New seeds: for a minute in CI, for hours by hand.
    let until = Instant::now() + Duration::from_secs(environment("SIMULATION_SECONDS").unwrap_or(0));
    while Instant::now() < until {
        run(rand::random(), &mut tally);
    }
    eprintln!("{tally:?}");
}

/// A failure is useful only if its seed reproduces it.
#[test]
fn a_seed_tells_the_same_story_twice() {
    for seed in 0..5 {
        assert_eq!(run(seed, &mut Tally::default()), run(seed, &mut Tally::default()), "seed {seed}");
    }
}
