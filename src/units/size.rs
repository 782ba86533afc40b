//! Sizes such as `64KiB`, for `#[serde(with = "crate::units::size")]`.

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};

/// The units in bytes, largest first. Powers of two only: `MB` would be ambiguous.
const UNITS: [(&str, usize); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads a number of bytes, or a size with its unit.
///
/// # Errors
///
/// When the text is not a size, or the size does not fit into a `usize`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    struct Size;
    impl Visitor<'_> for Size {
        type Value = usize;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a size such as 1MiB, 64KiB or a number of bytes")
        }

        fn visit_u64<E: Error>(self, bytes: u64) -> Result<usize, E> {
            usize::try_from(bytes)
                .map_err(|_| E::custom(format_args!("{bytes} bytes is more than this system can address")))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<usize, E> {
            parse(text).ok_or_else(|| {
                E::custom(format_args!(
                    "{} is not a size; write a number of bytes, or one with the unit KiB, MiB or GiB, such as 64KiB",
                    super::quoted(text)
                ))
            })
        }
    }
    deserializer.deserialize_any(Size)
}

fn parse(text: &str) -> Option<usize> {
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim_end(), *factor)))
        .unwrap_or((text, 1));
    // `parse` alone would also accept a sign.
    number.bytes().all(|b| b.is_ascii_digit()).then(|| number.parse::<usize>().ok()?.checked_mul(factor)).flatten()
}

/// Writes a size in the largest unit that needs no fraction.
///
/// # Errors
///
/// Those of the serializer.
pub fn serialize<S: Serializer>(bytes: &usize, serializer: S) -> Result<S::Ok, S::Error> {
    match UNITS.iter().find(|(_, factor)| *factor > 1 && *bytes > 0 && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => serializer.collect_str(&format_args!("{}{unit}", bytes / factor)),
        None => serializer.serialize_u64(*bytes as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_plain_bytes_and_binary_units() {
        assert_eq!(parse("1024"), Some(1024));
        assert_eq!(parse("64KiB"), Some(65536));
        assert_eq!(parse("1 MiB"), Some(1 << 20));
        assert_eq!(parse("7B"), Some(7));
    }

    #[test]
    fn refuses_ambiguous_and_invalid_sizes() {
        for text in ["", "MiB", "1MB", "1M", "-1", "+1", "1.5MiB", "1 0", "99999999999GiB", "18446744073709551616"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
