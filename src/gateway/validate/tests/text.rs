//! The classic text format.

use super::*;

const TEXT: BodyFormat = BodyFormat::Text;

#[test]
fn what_exporters_write_is_good() {
    for body in [
        "",
        "\n\n \t\n",
        "a 1\n",
        "a{} 1\n",
        "a{b=\"c\"} 1 1395066363000\n",
        "a{b=\"c\",} 1 5\n",
        "  a \t{ b = \"c\" , d=\"e\" ,\t}\t1   2  \n",
        "a{b=\"\"}1\n",
        "a:b_c{_d9=\"\\\\ \\\" \\n }, # ü\u{2028}\0\"} 1\n",
        "# a comment\n#another\n#\n# HELP\n# TYPE\n# HELPER a\n#TYPE a nonsense\n# TYPE\ta\tgauge\na 1\n",
        "# HELP a\n# TYPE a gauge\na 1\n",
        "# HELP a \\n some \"text\" \\x \0 \n# TYPE a untyped\na 1\n",
        // Metadata alone, and in another order.
        "# HELP a A\n# TYPE a counter\n",
        "# TYPE a counter\n# HELP a A\na 1\n",
        "# TYPE a counter\na 1\n# HELP a A\na{b=\"c\"} 1\n",
        "# TYPE a counter\n# TYPE b counter\na 1\nb 1\n",
        "  # TYPE a counter\n  a 1\n",
        // All that belongs to one family, in any order.
        "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\nh_bucket{x=\"y\",le=\"1\"} 1\nh_sum 1\n",
        "# TYPE s summary\ns{quantile=\"0.5\"} 1\ns_sum 1\ns_count 1\ns{quantile=\"0.5\",a=\"b\"} NaN\n",
        // As Python's client has it: when a series was created is a family of its own.
        "# TYPE h histogram\nh_count 1\n# TYPE h_created gauge\nh_created 1\n",
        // Nobody said what these belong to.
        "h_bucket{a=\"1\"} 1\nh_sum{a=\"1\"} 1\nh_bucket{a=\"2\"} 1\nh_sum{a=\"2\"} 1\n",
        // The same series twice, and the same name with other labels.
        "a 1\na 1\na{b=\"c\"} 1\na{b=\"cd\"} 1\na{b=\"cd\",e=\"f\"} 1\na{b=\"cd\",e=\"f\"} 1\n",
        // What our own agents have.
        "# TYPE scrape_duration_seconds histogram\nscrape_duration_seconds_bucket{le=\"+Inf\"} 1\nscrape_duration_seconds_sum 1\nscrape_duration_seconds_count 1\n",
        "# HELP scrape_duration_seconds A\n# TYPE scrape_duration_seconds histogram\nscrape_duration_seconds_bucket{le=\"+Inf\"} 1\n",
        "# TYPE up_count gauge\nup_count 1\n",
        // A blank before the brace, with or without one in the line before.
        "a 1\na {x=\"y\"} 2\na 1\na \t{x=\"y\"} 2\na{x=\"y\"} 2\n",
        "upper 1\nscrape_samples 1\nup_total 1\n",
        // Names in UTF-8.
        "# HELP \"my.metric\" A\n# TYPE \"my.metric\" counter\n{\"my.metric\"} 1\n{\"my.metric\",label=\"x\",\"a label\"=\"y\"} 1\n",
        "{a=\"b\",\"my metric\"} 1\na{\"b.c\"=\"d\",\"b\\\"c\"=\"d\"} 1\n",
    ] {
        assert_good(TEXT, body.as_bytes());
    }
}

#[test]
fn values_and_timestamps_are_what_go_reads() {
    for value in [
        "0",
        "-0",
        "+1",
        "1.",
        ".5",
        "-.5e1",
        "1e5",
        "1E+05",
        "1e-400",
        "1.7976931348623157e308",
        "NaN",
        "nan",
        "NAN",
        "Inf",
        "+Inf",
        "-inf",
        "infinity",
        "-INFINITY",
        "123456789012345678901234567890",
        "0.1e300",
    ] {
        assert_good(TEXT, format!("a {value}\n").as_bytes());
    }
    let long = "1".repeat(400);
    for value in [
        "1e309", "-1e999", &long, "+nan", "-NaN", "1e", "1e+", ".", "-", "+", "e5", "1_000", "0x1p-2", "0x10", "infin",
        "in", "1f", "1,5", "--1", "1.2.3", "١",
    ] {
        let message = shown(TEXT, format!("a {value}\n").as_bytes());
        assert!(message.ends_with("is no value"), "{value}: {message}");
    }
    for timestamp in ["0", "1395066363000", "9223372036854775807", "000000000000000000001"] {
        assert_good(TEXT, format!("a 1 {timestamp}\n").as_bytes());
    }
    for timestamp in ["9223372036854775808", "-1", "+1", "1.5", "1e3", "-", "x", "# {a=\"b\"} 1"] {
        let message = shown(TEXT, format!("a 1 {timestamp}\n").as_bytes());
        assert!(message.ends_with("is no timestamp"), "{timestamp}: {message}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    assert_refused(
        TEXT,
        &[
            ("a 1", "line 1: the line is cut off"),
            ("a 1\nb", "line 2: the line is cut off"),
            ("a 1\n# comment", "line 2: the line is cut off"),
            ("a\n", "line 1: `` is no value"),
            ("a \n", "line 1: `` is no value"),
            ("a{}\n", "line 1: `` is no value"),
            ("a 1\r\n", "line 1: `1\\r` is no value"),
            ("a 1\n\nb x y\n", "line 3: `x` is no value"),
            ("a 1 2 3\n", "line 1: `3` stands behind the sample"),
            ("1a 1\n", "line 1: `1a` is no name of a metric"),
            ("a-b 1\n", "line 1: `a-b` is no name of a metric"),
            ("a+1\n", "line 1: `a+1` is no name of a metric"),
            ("\"a\" 1\n", "line 1: `\"a\"` is no name of a metric"),
            ("ü 1\n", "line 1: `ü` is no name of a metric"),
            ("<html>\n", "line 1: `<html>` is no name of a metric"),
            ("a{b=\"c\" 1\n", "line 1: `1` stands where a comma or a brace belongs"),
            ("a{b=\"c\" d=\"e\"} 1\n", "line 1: `d=\"e\"}` stands where a comma or a brace belongs"),
            ("a{b=\"c\n", "line 1: a quoted text without its end"),
            ("a{b=\"c\n\"} 1\n", "line 1: a quoted text without its end"),
            ("a{b=\"c\\\n", "line 1: a quoted text without its end"),
            ("a{b=\"\\d\"} 1\n", "line 1: `\\d` is no escape: only \\\\, \\\" and \\n are"),
            ("a{b=\"\\ü\"} 1\n", "line 1: `\\ü` is no escape: only \\\\, \\\" and \\n are"),
            ("a{b=c} 1\n", "line 1: `c}` stands where an equals sign and a quoted value belong"),
            ("a{b} 1\n", "line 1: `}` stands where an equals sign and a quoted value belong"),
            ("a{b\n", "line 1: the line ends where an equals sign and a quoted value belong"),
            ("a{b=\n", "line 1: the line ends where an equals sign and a quoted value belong"),
            ("a{b=\"c\"\n", "line 1: the line ends where a comma or a brace belongs"),
            ("a{b=\"c\"} 1\na{b=\"c\"\n", "line 2: the line ends where a comma or a brace belongs"),
            // What stands before a line that is no sample is nothing to read on from.
            ("a 1\n  \n  5\n", "line 3: `5` is no name of a metric"),
            ("a 1\n  # x\n  5\n", "line 3: `5` is no name of a metric"),
            ("a{b=\"c\"} 1\n   \n   x=\"y\"} 5\n", "line 3: `x=\"y\"}` is no name of a metric"),
            ("a{\n", "line 1: `` is no name of a label"),
            ("a{,} 1\n", "line 1: `,}` is no name of a label"),
            ("a{b=\"c\",,} 1\n", "line 1: `,}` is no name of a label"),
            ("a{1b=\"c\"} 1\n", "line 1: `1b=\"c\"}` is no name of a label"),
            ("a{b:c=\"d\"} 1\n", "line 1: `b:c=\"d\"}` is no name of a label"),
            ("a{b-c=\"d\"} 1\n", "line 1: `b-c=\"d\"}` is no name of a label"),
            ("a{\"\"=\"c\"} 1\n", "line 1: `\"\"=\"c\"}` is no name of a metric"),
            ("a{b=\"c\",b=\"d\"} 1\n", "line 1: the label `b` comes twice"),
            ("a{b=\"c\",\"b\"=\"d\"} 1\n", "line 1: the label `b` comes twice"),
            ("a{b=\"c\",d=\"e\"} 1\na{b=\"c\",d=\"e\",b=\"c\"} 1\n", "line 2: the label `b` comes twice"),
            ("a{__name__=\"up\"} 1\n", "line 1: the label `__name__` is the metric's name, which stands elsewhere"),
            ("a{\"__name__\"=\"up\"} 1\n", "line 1: the label `__name__` is the metric's name, which stands elsewhere"),
            ("{__name__=\"up\"} 1\n", "line 1: the label `__name__` is the metric's name, which stands elsewhere"),
            ("{} 1\n", "line 1: a sample without a name"),
            ("{a=\"b\"} 1\n", "line 1: a sample without a name"),
            ("{\"\"} 1\n", "line 1: `\"\"}` is no name of a metric"),
            ("{\"a\0\"} 1\n", "line 1: `a\\0` is no name of a metric"),
            ("a{\"b\"} 1\n", "line 1: a sample with two names"),
            ("{\"a\",\"b\"} 1\n", "line 1: a sample with two names"),
            ("a{b=\"c\"} 1\na{b=\"c\",\"b\"} 1\n", "line 2: a sample with two names"),
            ("#\0\n", "line 1: a NUL in a place where Prometheus stops reading at it"),
            ("# TYPE a\n", "line 1: a blank and a text are missing behind the name"),
            ("# TYPE a b\n", "line 1: `b` is no type that this format has"),
            ("# TYPE a  gauge\n", "line 1: ` gauge` is no type that this format has"),
            ("# TYPE a gauge \n", "line 1: `gauge ` is no type that this format has"),
            ("# TYPE a info\n", "line 1: `info` is no type that this format has"),
            ("# TYPE a counter 1\n", "line 1: `counter 1` is no type that this format has"),
            ("# TYPE 1 counter\n", "line 1: `1` is no name of a metric"),
            ("# HELP a-b c\n", "line 1: `a-b` is no name of a metric"),
            ("# HELP \"\" c\n", "line 1: `\"\"` is no name of a metric"),
            ("# HELP \"a\"b c\n", "line 1: `#` is no name of a metric"),
            ("# HELP \"a\n", "line 1: a quoted text without its end"),
        ],
    );
}

#[test]
fn a_family_comes_once_and_in_one_piece() {
    assert_refused(
        TEXT,
        &[
            ("# HELP a A\n# HELP a A\n", "line 2: duplicate family `a`"),
            ("# TYPE a gauge\n# TYPE a gauge\n", "line 2: duplicate family `a`"),
            ("# TYPE a gauge\n# TYPE \"a\" gauge\n", "line 2: duplicate family `a`"),
            ("# HELP a A\na 1\n# TYPE a gauge\n", "line 3: duplicate family `a`"),
            ("a 1\nb 1\na 1\n", "line 3: duplicate family `a`"),
            ("a 1\nb 1\n{\"a\"} 1\n", "line 3: duplicate family `a`"),
            ("a 1\nb 1\n# HELP a A\n", "line 3: duplicate family `a`"),
            ("# TYPE a gauge\na 1\nb 1\n# TYPE a gauge\n", "line 4: duplicate family `a`"),
            ("# TYPE h histogram\nh_sum 1\nb 1\nh_count 1\n", "line 4: duplicate family `h`"),
            (
                "# TYPE h histogram\nh_sum 1\n# TYPE b gauge\nb 1\nh_bucket{le=\"1\"} 1\n",
                "line 5: duplicate family `h`",
            ),
            // A comment in between changes nothing.
            ("a 1\n# b\nb 1\n# a\na 1\n", "line 5: duplicate family `a`"),
        ],
    );
}

#[test]
fn nobody_speaks_for_prometheus() {
    for name in [
        "up",
        "scrape_duration_seconds",
        "scrape_samples_scraped",
        "scrape_samples_post_metric_relabeling",
        "scrape_series_added",
        "scrape_timeout_seconds",
        "scrape_sample_limit",
        "scrape_body_size_bytes",
    ] {
        let message = format!("line 2: `{name}` is a name that Prometheus itself writes");
        for sample in [
            format!("{name} 1"),
            format!(" {name}{{}} 1"),
            format!("{name}{{a=\"b\"}} 1"),
            format!("{{\"{name}\"}} 1"),
            format!("{{a=\"b\",\"{name}\"}} 1"),
        ] {
            assert_eq!(shown(TEXT, format!("a 1\n{sample}\n").as_bytes()), message, "{sample}");
        }
        // Nor as a family of that name: Prometheus can make one series of a classic histogram, with the family's name.
        let first = message.replace("line 2", "line 1");
        let ours = name == "scrape_duration_seconds";
        let histogram = format!("# TYPE {name} histogram\n{name} 1\n");
        assert_eq!(shown(TEXT, histogram.as_bytes()), if ours { &message } else { &first }.as_str());
        for kind in ["counter", "gauge", "summary", "untyped"] {
            assert_eq!(shown(TEXT, format!("# TYPE \"{name}\" {kind}\n").as_bytes()), first);
        }
        if !ours {
            assert_eq!(shown(TEXT, format!("# HELP {name} A\n").as_bytes()), first);
        }
        for suffix in ["_bucket", "_sum", "_count"] {
            assert_eq!(shown(TEXT, format!("a 1\n{name}{suffix} 1\n").as_bytes()), message);
            assert_eq!(shown(TEXT, format!("a 1\n{{\"{name}{suffix}\"}} 1\n").as_bytes()), message);
        }
    }
}

#[test]
fn bytes_that_are_no_utf8_come_behind_the_lines_before_them() {
    for (body, message) in [
        (b"a 1\nb{c=\"\xff\"} 1\n".as_slice(), "line 2: it is not UTF-8"),
        (b"a 1\n\xe2\x82\nb", "line 2: it is not UTF-8"),
        (b"a\n\xff\n", "line 1: `` is no value"),
        (b"# HELP a \xc0\x80\n", "line 1: it is not UTF-8"),
        (b"a 1\n\xff", "line 2: the line is cut off"),
    ] {
        assert_eq!(shown(TEXT, body), message);
    }
}

#[test]
fn everything_has_its_bound() {
    let line = |length: usize| format!("# {}\n", "x".repeat(length - 2));
    assert_eq!(verdict(TEXT, [line(MAX_LINE).as_bytes()]), Ok(()));
    let long = line(MAX_LINE + 1);
    let labels = format!("a{{{}", "b=\"\",".repeat(MAX_LINE / 4));
    for body in [long.as_str(), long.trim_end(), &labels, &format!("{labels}\n")] {
        for pieces in [usize::MAX, 65_536, 1_000_003] {
            let refused = verdict(TEXT, format!("a 1\n{body}").as_bytes().chunks(pieces)).unwrap_err();
            assert_eq!(refused.to_string(), "line 2: it is longer than 256 KiB");
        }
    }
    let families = |n: usize| (0..n).map(|n| format!("a{n} 1\n")).collect::<String>();
    assert_eq!(verdict(TEXT, [families(MAX_FAMILIES).as_bytes()]), Ok(()));
    let refused = verdict(TEXT, [families(MAX_FAMILIES + 1).as_bytes()]).unwrap_err();
    assert_eq!(refused.to_string(), "line 20001: more than 20000 families");
    // What is wrong is told in few words, whatever it is.
    let refused = shown(TEXT, format!("a {}\n", "\u{7f}\u{1b}ü".repeat(1000)).as_bytes());
    assert!(refused.len() < 700 && refused.ends_with("...` is no value"), "{refused}");
}

#[test]
fn many_labels_cost_no_square() {
    let labels = |n: usize| (0..n).map(|n| format!("l{n}=\"\",")).collect::<String>();
    let many = labels(MAX_LABELS);
    assert_good(TEXT, format!("a{{{many}}} 1\na{{{many}}} 1\n").as_bytes());
    let more = format!("a{{{many}}} 1\na{{{many}x=\"\"}} 1\n");
    assert_eq!(shown(TEXT, more.as_bytes()), "line 2: a sample with more than 256 labels");
    let exemplar = format!("a 1 # {{{many}x=\"\"}} 1\n# EOF\n");
    assert_eq!(shown(BodyFormat::OpenMetrics, exemplar.as_bytes()), "line 1: a sample with more than 256 labels");
    let again = format!("a{{{}l7=\"\",x=\"\",x=\"\"}} 1\n", labels(30));
    assert_eq!(shown(TEXT, again.as_bytes()), "line 1: the label `l7` comes twice");
}

#[test]
fn no_more_is_held_than_a_line_and_a_name() {
    let name = |letter: &str| letter.repeat(MAX_LINE - 2);
    // Each a little longer than the one before, so that doubling would go far beyond.
    for step in [1000, MAX_LINE / 2 + 7] {
        let mut validator = Validator::new(TEXT);
        for body in [format!("{} 1\n", "a".repeat(MAX_LINE - 9)), format!("{} 1\n", name("b"))] {
            for piece in body.as_bytes().chunks(step) {
                validator.feed(piece).unwrap();
                assert!(validator.held() <= 2 * MAX_LINE + 1, "{}", validator.held());
            }
        }
        validator.feed(b"c 1\nd 1\n").unwrap();
        assert!(validator.held() < 5_000, "{}", validator.held());
    }
}
