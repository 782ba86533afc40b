//! Durations such as `2s`, for `#[serde(with = "crate::units::duration")]`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

/// Reads a duration with its unit.
///
/// # Errors
///
/// When the text is not a duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|_| {
        serde::de::Error::custom(format_args!(
            "{} is not a duration; write a number and its unit, such as 2s or 500ms",
            super::quoted(&text)
        ))
    })
}

/// Writes a duration with its unit.
///
/// # Errors
///
/// Those of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}
