//! What a `Content-Type` has to be.

use super::BodyFormat;

#[test]
fn the_format_is_what_prometheus_would_take_it_for() {
    let (text, openmetrics) = (Some(BodyFormat::Text), Some(BodyFormat::OpenMetrics));
    let protobuf = Some(BodyFormat::Protobuf);
    for (value, format) in [
        ("text/plain", text),
        ("text/plain;", text),
        ("text/plain; version=0.0.4", text),
        ("text/plain; version=0.0.4; charset=utf-8", text),
        ("text/plain; version=0.0.4; charset=utf-8; escaping=underscores", text),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", text),
        ("Text/Plain ;VERSION=\"0.0.4\";\tCharset=\"UTF-8\"", text),
        ("text/plain; x=\"a;b=\\\"c\\\"\"; version=0.0.4", text),
        ("text/plain; version=0.0.3", None),
        ("text/plain; version=2.0.0", None),
        ("text/plain; version=", None),
        ("text/plain; charset=latin-1", None),
        ("text/plain; version", None),
        ("text/plain; version=\"0.0.4", None),
        ("text/plain; version=\"0.0.4\\", None),
        ("text/plain; version=0.0.4 charset=utf-8", None),
        ("text/plain; version=0.0.4; version=0.0.4", None),
        ("text/plain; =1", None),
        ("text/plain; ve rsion=1", None),
        ("text/html", None),
        ("", None),
        (";", None),
        ("application/json", None),
        ("application/openmetrics-text", openmetrics),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", openmetrics),
        ("application/openmetrics-text; version=0.0.1; charset=utf-8; escaping=values", openmetrics),
        ("APPLICATION/OPENMETRICS-TEXT", openmetrics),
        ("application/openmetrics-text; version=2.0.0", None),
        ("application/openmetrics-text; version=0.0.4", None),
        ("application/openmetrics-text; charset=utf-16", None),
        ("application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited", protobuf),
        (
            "application/vnd.google.protobuf;encoding=\"delimited\";proto=\"io.prometheus.client.MetricFamily\"",
            protobuf,
        ),
        ("application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=text", None),
        ("application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily", None),
        ("application/vnd.google.protobuf; encoding=delimited", None),
        ("application/vnd.google.protobuf; proto=other; encoding=delimited", None),
    ] {
        assert_eq!(BodyFormat::from_content_type(value), format, "{value}");
    }
}
