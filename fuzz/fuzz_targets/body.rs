//! Whatever a peer sends as its metrics page, in any format, there is a verdict, the same however the page is cut; and
//! its text is short and of one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peerscope::gateway::validate::{BodyFormat, Invalid, Validator};

fn verdict(format: BodyFormat, bytes: &[u8], step: usize) -> Result<(), Invalid> {
    let mut validator = Validator::new(format);
    for piece in bytes.chunks(step) {
        validator.feed(piece)?;
    }
    validator.finish()
}

fuzz_target!(|data: &[u8]| {
    let Some((&step, bytes)) = data.split_first() else { return };
    let step = usize::from(step).max(1);
    for format in [BodyFormat::Text, BodyFormat::OpenMetrics, BodyFormat::Protobuf] {
        let whole = verdict(format, bytes, usize::MAX);
        assert_eq!(whole, verdict(format, bytes, step));
        if let Err(invalid) = whole {
            let text = invalid.to_string();
            assert!(text.len() < 1024 && !text.contains('\n'), "{text}");
        }
    }
});
