//! What holds of any bytes.

use proptest::prelude::*;

use super::*;

/// Pieces of lines, in an order that nobody would write them in.
fn soup() -> impl Strategy<Value = Vec<u8>> {
    let part = proptest::sample::select(vec![
        "a",
        "b_total",
        "up",
        "{",
        "}",
        "=",
        "\"",
        ",",
        " ",
        "\t",
        "\n",
        "\n",
        "\\",
        "\\n",
        "#",
        "# ",
        "# HELP a ",
        "# TYPE a ",
        "histogram\n",
        "counter\n",
        "# UNIT ",
        "# EOF\n",
        "a_bucket",
        "a_sum",
        "1",
        "1e5",
        "+Inf",
        "NaN",
        "-",
        ".",
        "ü",
        "\0",
        "a{b=\"c\"} 1\n",
        "a{b=\"c\",d=\"e\"} 1\n",
        "a{b=\"c\",d=\"f\"} 2 # {x=\"y\"} 1\n",
        "\"a.b\"",
        "__name__=",
    ]);
    let good = "(a|b|a_sum)(\\{((b|c|d|\"e f\")=\"[xy]{0,9}\"(,(f|g)=\"[xy]{0,9}\"){0,2})?\\})? [0-9]{1,3}\n";
    let part = prop_oneof![3 => part.prop_map(str::to_owned), 1 => good];
    // Lines that have their start in common with the one before them, though they are of another kind: few, so that
    // they often come in a row.
    let alike =
        proptest::sample::select(vec!["a 1\n", "  \n", "  1\n", "  # x\n", "a {b=\"c\"} 1\n", "   x=\"y\"} 5\n"]);
    let alike = alike.prop_map(str::to_owned);
    let parts = prop_oneof![3 => proptest::collection::vec(part, 0..40), 1 => proptest::collection::vec(alike, 0..8)];
    parts.prop_map(|parts| parts.concat().into_bytes())
}

/// The pieces between these cuts.
fn pieces<'a>(bytes: &'a [u8], cuts: &[proptest::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// Same verdict, and a message that is short and of one line.
fn check(bytes: &[u8], cuts: &[proptest::sample::Index]) -> Result<(), TestCaseError> {
    for format in FORMATS {
        let whole = verdict(format, [bytes]);
        prop_assert_eq!(&whole, &verdict(format, pieces(bytes, cuts)));
        if let Err(invalid) = whole {
            let text = invalid.to_string();
            prop_assert!(text.len() < 1024 && !text.contains('\n'), "{}", text);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn garbage_has_one_verdict(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
    ) {
        check(&bytes, &cuts)?;
    }

    #[test]
    fn lines_have_one_verdict(
        bytes in soup(),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
    ) {
        check(&bytes, &cuts)?;
    }

    /// A line is read from where it differs from the one before. Read by itself, it has the same verdict.
    #[test]
    fn a_line_is_good_whatever_came_before(bytes in soup()) {
        for format in [BodyFormat::Text, BodyFormat::OpenMetrics] {
            let lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
            prop_assert_eq!(verdict(format, [bytes.as_slice()]), verdict(format, lines));
        }
    }
}
