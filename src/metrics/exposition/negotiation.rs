//! The format for a client's `Accept`.

use super::Format;
use crate::metrics::accept::{Choice, parameter, split};

/// The format for a client with this `Accept`, chosen as client_golang does: of the formats that we support,
/// the first with the highest q, or the text format if there is none. `q=0` excludes a format.
pub fn negotiate(accept: &str) -> Format {
    let mut choices: Vec<_> = split(accept, ',').map(Choice::parse).filter(|choice| choice.quality > 0).collect();
    // A stable sort: among equals, the client's order decides.
    choices.sort_by_key(|choice| std::cmp::Reverse(choice.quality));
    choices.iter().find_map(format).unwrap_or(Format::Text)
}

/// Whether a client names JSON and does not prefer plain text.
pub fn prefers_json(accept: &str) -> bool {
    let best = |names: [&str; 2]| {
        let choices = split(accept, ',').map(Choice::parse).filter(|c| names.iter().any(|name| c.is(name)));
        choices.map(|choice| choice.quality).max().unwrap_or(0)
    };
    let json = best(["application/json", "application/*"]);
    json > 0 && json >= best(["text/plain", "text/*"])
}

fn format(choice: &Choice<'_>) -> Option<Format> {
    if choice.is("application/vnd.google.protobuf") {
        let is = |name, value: &str| parameter(choice.parameters, name).is_some_and(|given| given == value);
        let delimited = is("proto", "io.prometheus.client.MetricFamily") && is("encoding", "delimited");
        return delimited.then_some(Format::Protobuf);
    }
    let version = parameter(choice.parameters, "version");
    if choice.is("text/plain") {
        return matches!(version, None | Some("" | "0.0.4")).then_some(Format::Text);
    }
    if choice.is("application/openmetrics-text") {
        return match version {
            Some("1.0.0") => Some(Format::OpenMetrics),
            None | Some("" | "0.0.1") => Some(Format::OpenMetricsDraft),
            Some(_) => None,
        };
    }
    None
}
