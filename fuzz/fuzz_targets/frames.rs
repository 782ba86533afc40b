//! See `peerscope::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerscope::fuzzing::frames(data));
