//! OpenMetrics.

use super::*;

const OPENMETRICS: BodyFormat = BodyFormat::OpenMetrics;

#[test]
fn what_exporters_write_is_good() {
    for body in [
        "# EOF\n",
        "a 1\n# EOF\n",
        // The last line feed may be missing.
        "# EOF",
        "a 1\n# EOF",
        "# HELP scrape_duration_seconds A\n# TYPE scrape_duration_seconds histogram\n# UNIT scrape_duration_seconds seconds\nscrape_duration_seconds_count 1\n# EOF\n",
        "# HELP a A \"b\" \\n\n# TYPE a counter\na_total 1\na_created 1.5e9\na_total{b=\"c\"} 1 1520879607.789\n# EOF\n",
        "# HELP a \n# TYPE a unknown\n# UNIT a \na{} -Inf\n# EOF\n",
        "# TYPE a_seconds gauge\n# UNIT a_seconds seconds\n# HELP a_seconds A\na_seconds 1 -1e3\n# EOF\n",
        "# TYPE h histogram\nh_bucket{le=\"1\"} 1 # {trace=\"a } # {b\"} 0.5\nh_bucket{le=\"+Inf\"} 1 1 # {} 0.5 1.5\nh_count 1\nh_sum 1\nh_created 1\n# EOF\n",
        "# TYPE g gaugehistogram\ng_bucket{le=\"+Inf\"} 1\ng_gcount 1\ng_gsum 1\n# EOF\n",
        "# TYPE i info\ni_info{a=\"b\"} 1\n# TYPE s stateset\ns{s=\"x\"} 1\n# TYPE q summary\nq{quantile=\"1\"} 1\nq_sum 1\n# EOF\n",
        "# TYPE \"a.b\" counter\n{\"a.b_total\",\"c.d\"=\"e\"} 1 # {\"t.r\"=\"x\"} 1\n# EOF\n",
    ] {
        assert_good(OPENMETRICS, body.as_bytes());
    }
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    assert_refused(
        OPENMETRICS,
        &[
            ("", "line 1: the body ends without `# EOF`"),
            ("a 1\n", "line 2: the body ends without `# EOF`"),
            ("a 1\n# EO", "line 2: the line is cut off"),
            ("a 1\n# EOF\n# EOF", "line 3: the line is cut off"),
            ("a{b\n", "line 1: the line ends where an equals sign and a quoted value belong"),
            ("# HELP up A\n", "line 1: `up` is a name that Prometheus itself writes"),
            ("# TYPE up info\n", "line 1: `up` is a name that Prometheus itself writes"),
            ("# TYPE up counter\nup_total 1\n", "line 1: `up` is a name that Prometheus itself writes"),
            (
                "# UNIT scrape_timeout_seconds seconds\n",
                "line 1: `scrape_timeout_seconds` is a name that Prometheus itself writes",
            ),
            (
                "# TYPE scrape_duration_seconds gaugehistogram\n",
                "line 1: `scrape_duration_seconds` is a name that Prometheus itself writes",
            ),
            ("# EOF\n\n", "line 2: something stands behind `# EOF`"),
            ("# EOF\n# EOF\n", "line 2: something stands behind `# EOF`"),
            ("# EOF\na", "line 2: the line is cut off"),
            ("\n# EOF\n", "line 1: an empty line, which OpenMetrics does not have"),
            (
                "# comment\n# EOF\n",
                "line 1: a comment that is not HELP, TYPE, UNIT or EOF, which OpenMetrics does not have",
            ),
            ("# EOF \n", "line 1: a comment that is not HELP, TYPE, UNIT or EOF, which OpenMetrics does not have"),
            (" a 1\n# EOF\n", "line 1: ` a 1` is no name of a metric"),
            ("a  1\n", "line 1: ` 1` is no value"),
            ("a\t1\n", "line 1: `a` is no name of a metric"),
            ("a {} 1\n", "line 1: `{}` is no value"),
            ("a{}1\n", "line 1: `1` is no value"),
            ("a{ b=\"c\"} 1\n", "line 1: ` b=\"c\"} 1` is no name of a label"),
            ("a{b=\"c\",} 1\n", "line 1: a comma with no label behind it, which OpenMetrics does not have"),
            (
                "a{b=\"c\",x=\"\"} 1\na{b=\"c\",} 1\n",
                "line 2: a comma with no label behind it, which OpenMetrics does not have",
            ),
            ("a 1 \n", "line 1: `` is no timestamp"),
            ("a 1 NaN\n", "line 1: `NaN` is no timestamp"),
            ("a 1 +Inf\n", "line 1: `+Inf` is no timestamp"),
            ("a 1 2 3\n", "line 1: `3` stands behind the sample"),
            ("a 1 # {b=\"c\"}\n", "line 1: `` is no value"),
            ("a 1 # {b=\"c\"} x\n", "line 1: `x` is no value"),
            ("a 1 # {b=\"c\",b=\"d\"} 1\n", "line 1: the label `b` comes twice"),
            ("a{b=\"\0\"} 1 # {b=\"\0\"} 1\n", "line 1: a NUL in a place where Prometheus stops reading at it"),
            ("a{b=\"c\"} 1 # {\"b\"} 1\n", "line 1: a sample with two names"),
            ("a 1 # {b=\"c\"} 1 2 3\n", "line 1: `3` stands behind the sample"),
            ("a 1 # b\n", "line 1: `#` stands behind the sample"),
            ("a 1 #\n", "line 1: `#` stands behind the sample"),
            ("# TYPE a untyped\n", "line 1: `untyped` is no type that this format has"),
            ("# TYPE a counter \n", "line 1: `counter ` is no type that this format has"),
            ("# TYPE a\n", "line 1: a blank and a text are missing behind the name"),
            ("# HELP a\n", "line 1: a blank and a text are missing behind the name"),
            ("# UNIT a seconds\n", "line 1: the unit `seconds` is not the end of the family's name"),
            ("# UNIT aseconds seconds\n", "line 1: the unit `seconds` is not the end of the family's name"),
            ("# UNIT a_s s\n# UNIT a_s s\n", "line 2: duplicate family `a_s`"),
            ("a 1\n# HELP a A\n", "line 2: duplicate family `a`"),
            ("# TYPE a counter\na_total 1\nb 1\na_total 1\n", "line 4: duplicate family `a`"),
            ("# TYPE a counter\na_total 1\nb 1\na_created 1\n", "line 4: duplicate family `a`"),
            ("up 1\n# EOF\n", "line 1: `up` is a name that Prometheus itself writes"),
        ],
    );
}

#[test]
fn an_exemplar_is_forgotten_with_its_line() {
    // Its labels are none of the sample's: the next line may have one of their names.
    let body = "a_total{b=\"c\"} 1 # {d=\"e\"} 1\na_total{b=\"c\",d=\"e\"} 1 # {b=\"c\"} 1\na_total{b=\"c\",d=\"e\"} 2\n# EOF\n";
    assert_good(OPENMETRICS, body.as_bytes());
}
