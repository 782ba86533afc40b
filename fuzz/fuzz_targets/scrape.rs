//! Whatever a client of the endpoint sends as `Accept`, `Accept-Encoding` or query, there is an answer, and the same
//! one for the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peerscope::metrics::exposition::{Wanted, accepts_gzip, negotiate, prefers_json};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let answer = || (negotiate(text), accepts_gzip(text), prefers_json(text), Wanted::from_query(Some(text)));
    assert_eq!(answer(), answer());
    // A coding that is refused outright is never chosen.
    assert!(!accepts_gzip(&format!("{},gzip;q=0,x-gzip;q=0", text.replace(['"', ';', ','], ""))));
});
