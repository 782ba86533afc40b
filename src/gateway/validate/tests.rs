//! Pages that are good, pages that are not and what is said of them, and every page cut in every way.

mod content_type;
mod openmetrics;
#[cfg(feature = "metrics-prometheus")]
mod own;
mod properties;
mod protobuf;
mod text;

use super::*;

const FORMATS: [BodyFormat; 3] = [BodyFormat::Text, BodyFormat::OpenMetrics, BodyFormat::Protobuf];

/// The verdict on a page that comes in these pieces.
fn verdict<'a>(format: BodyFormat, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(), Invalid> {
    let mut validator = Validator::new(format);
    for piece in pieces {
        if let Err(invalid) = validator.feed(piece) {
            // It stays refused, whatever comes.
            assert_eq!(validator.feed(b"\n"), Err(invalid.clone()));
            assert_eq!(validator.finish(), Err(invalid.clone()));
            return Err(invalid);
        }
    }
    validator.finish()
}

/// The verdict as it is shown, which is the same in one piece and byte by byte.
fn shown(format: BodyFormat, body: &[u8]) -> String {
    let whole = verdict(format, [body]);
    assert_eq!(whole, verdict(format, body.chunks(1)), "{}", String::from_utf8_lossy(body));
    whole.err().map_or_else(|| "good".to_owned(), |invalid| invalid.to_string())
}

#[track_caller]
fn assert_good(format: BodyFormat, body: &[u8]) {
    assert_eq!(shown(format, body), "good", "{}", String::from_utf8_lossy(body));
}

/// Each body with what is said of it.
#[track_caller]
fn assert_refused(format: BodyFormat, table: &[(&str, &str)]) {
    let said = table.iter().map(|(body, _)| (*body, shown(format, body.as_bytes())));
    let wrong: Vec<_> = said.zip(table).filter(|((_, said), (_, message))| said != message).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
