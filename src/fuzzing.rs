//! What must hold for every parser of untrusted bytes, whatever the bytes: the fuzz targets of `fuzz/`, and a test that
//! replays their seeds.
//!
//! Compiled only for tests and for cargo-fuzz (`--cfg fuzzing`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a check fails by panicking"
)]

use crate::config::Config;
use crate::network::protocol::scrape::{Ask, Head};
use crate::network::protocol::{FrameError, FrameReader, RequestFrame, ResponseFrame, encode};

pub use crate::expose::fuzz_exporter as exporter;
pub use crate::network::fuzz_muxer as muxer;
pub use crate::storage::{fuzz_log as log, fuzz_redis as redis};

/// Panics if the property that it checks does not hold for the bytes.
pub type Check = fn(&[u8]);

/// All checks, by name.
pub const CHECKS: &[(&str, Check)] = &[
    ("config", config),
    ("exporter", exporter),
    ("frames", frames),
    ("log", log),
    ("muxer", muxer),
    ("redis", redis),
    #[cfg(feature = "metrics-prometheus")]
    ("scrape", scrape),
];

/// Any text is a valid configuration or yields at least one problem, each on one line. Printing a valid configuration
/// and loading the result yields the same configuration.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::from_yaml("fuzz.yaml", text) {
        Ok(config) => {
            let printed = config.to_yaml_masked();
            // Masking changes only passwords, so the second time nothing changes.
            let again = Config::from_yaml("printed.yaml", &printed).expect("the printed configuration loads");
            assert_eq!(again.to_yaml_masked(), printed);
        }
        Err(error) => {
            assert!(!error.problems().is_empty());
            assert_eq!(error.to_string().lines().count(), error.problems().len());
        }
    }
}

/// Bytes from a peer yield the same frames or error wherever they are split. The reader never holds more than one frame
/// and one read. A decoded frame, encoded, decodes to itself.
pub fn frames(data: &[u8]) {
    let Some((&step, bytes)) = data.split_first() else { return };
    both_ways::<RequestFrame>(bytes, usize::from(step).max(1));
    both_ways::<ResponseFrame>(bytes, usize::from(step).max(1));
    both_ways::<Ask>(bytes, usize::from(step).max(1));
    both_ways::<Head>(bytes, usize::from(step).max(1));
}

const MAX_FRAME: usize = 4096;

fn read<F: prost::Message + Default>(mut bytes: &[u8], step: usize, max_frame: usize) -> (Vec<F>, Option<FrameError>) {
    let mut reader = FrameReader::new(max_frame);
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let room = reader.room();
        assert!(!room.is_empty());
        assert!(room.len() <= max_frame + 10 + 64 * 1024);
        let n = step.min(bytes.len()).min(room.len());
        room[..n].copy_from_slice(&bytes[..n]);
        reader.filled(n);
        bytes = &bytes[n..];
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        reader.release();
    }
    (frames, None)
}

fn both_ways<F: prost::Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8], step: usize) {
    let (frames, error) = read::<F>(bytes, step, MAX_FRAME);
    let whole = read::<F>(bytes, usize::MAX, MAX_FRAME);
    assert_eq!((&frames, &error), (&whole.0, &whole.1));
    for frame in frames {
        let mut wire = Vec::new();
        encode(&frame, &mut wire);
        let (again, error) = read::<F>(&wire, step, 2 * MAX_FRAME);
        // At most a little longer: a negative error code may arrive in five bytes and is written in ten.
        assert_eq!((again, error), (vec![frame], None));
    }
}

/// Whatever a client of the endpoint sends as `Accept`, `Accept-Encoding` or query, it is interpreted without a panic,
/// and the same bytes always in the same way.
#[cfg(feature = "metrics-prometheus")]
pub fn scrape(data: &[u8]) {
    use crate::metrics::accept::accepts_gzip;
    use crate::metrics::exposition::{FamilyFilter, negotiate, prefers_json};
    let Ok(text) = std::str::from_utf8(data) else { return };
    let answer = || (negotiate(text), accepts_gzip(text), prefers_json(text), FamilyFilter::from_query(Some(text)));
    assert_eq!(answer(), answer());
    // An encoding that the client refuses is never chosen.
    assert!(!accepts_gzip(&format!("{},gzip;q=0,x-gzip;q=0", text.replace(['"', ';', ','], ""))));
}

/// The checks still hold for every input that the fuzzer kept.
#[cfg(test)]
#[test]
fn the_seeds_hold() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for &(name, check) in CHECKS {
        let files: Vec<_> = std::fs::read_dir(folder.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(!files.is_empty(), "no seeds for {name}");
        for file in files {
            let input = std::fs::read(&file).unwrap();
            let held = std::panic::catch_unwind(|| check(&input));
            assert!(held.is_ok(), "{} does not hold", file.display());
        }
    }
}
