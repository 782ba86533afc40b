//! The pages other than the metrics. Pure functions.

use std::fmt::Write as _;

use crate::metrics::{AgentInfo, ComponentState};

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const HTML: &str = "text/html; charset=utf-8";

/// The page at `/`.
pub(super) fn index(path: &str, agent: &AgentInfo, links: &[(&str, &str)]) -> String {
    // Relative, so that they lead to the right place behind a proxy that adds a prefix.
    let relative = |path: &str| escaped(path.trim_start_matches('/'));
    let (path, name, peer_id) = (relative(path), escaped(&agent.name), escaped(&agent.peer_id));
    let version = env!("CARGO_PKG_VERSION");
    let links = links.iter().fold(String::new(), |mut out, (path, what)| {
        let _infallible = writeln!(out, "<li><a href=\"{}\">{}</a></li>", relative(path), escaped(what));
        out
    });
    format!(
        "<!DOCTYPE html>\n\
         <html lang=\"en\">\n\
         <head><meta charset=\"utf-8\"><title>{name} - Peerscope</title>\
         <style>body{{font-family:sans-serif;margin:2em;overflow-wrap:anywhere}}</style></head>\n\
         <body>\n\
         <h1>{name}</h1>\n\
         <p>Peerscope {version}, PeerId <code>{peer_id}</code></p>\n\
         <ul>\n\
         <li><a href=\"{path}\">Metrics</a></li>\n\
         <li><a href=\"ready\">Readiness</a>: whether every component is ready</li>\n\
         <li><a href=\"live\">Liveness</a>: whether the process answers</li>\n\
         {links}</ul>\n\
         </body>\n\
         </html>\n"
    )
}

pub(super) fn not_found(path: &str, links: &[(&str, &str)]) -> String {
    let links = links.iter().fold(String::new(), |out, (path, _)| out + ", " + path);
    format!("Page not found. The pages are {path}{links}, /ready, /live and /.\n")
}

/// One line for the agent, then one for each component.
pub(super) fn ready_text(ready: bool, states: &[ComponentState]) -> String {
    let mut out = String::from(if ready { "ready\n" } else { "not ready\n" });
    for ComponentState { component, problem } in states {
        let _infallible = match problem {
            None => writeln!(out, "{component}: ready"),
            // A reason has to be one line; a line break in it could pass for another component.
            Some(reason) => writeln!(out, "{component}: not ready: {}", reason.replace(char::is_control, " ")),
        };
    }
    if states.is_empty() {
        out.push_str("no component has reported yet\n");
    }
    out
}

/// `{"ready": bool, "components": [{"component": name, "ready": bool, "reason": text or null}]}`
pub(super) fn ready_json(ready: bool, states: &[ComponentState]) -> String {
    let components = states.iter().map(|ComponentState { component, problem }| {
        serde_json::json!({ "component": component.to_string(), "ready": problem.is_none(), "reason": problem })
    });
    let components: Vec<_> = components.collect();
    serde_json::json!({ "ready": ready, "components": components }).to_string() + "\n"
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::labels::Component;

    #[test]
    fn the_index_escapes_text_from_the_configuration() {
        let agent = AgentInfo { peer_id: "12D3".into(), name: "<script>alert('1')</script> & \"co\"".into() };
        let page = index("/metrics\"><b>", &agent, &[]);
        assert!(!page.contains("<script>") && !page.contains("<b>"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &quot;co&quot;"), "{page}");
        assert!(page.contains("href=\"metrics&quot;&gt;&lt;b&gt;\""), "{page}");
    }

    #[test]
    fn readiness_names_the_component_and_the_reason() {
        let states = [
            ComponentState { component: Component::Storage, problem: Some("no answer\nnetwork: ready".into()) },
            ComponentState { component: Component::Metrics, problem: None },
        ];
        assert_eq!(
            ready_text(false, &states),
            "not ready\nstorage: not ready: no answer network: ready\nmetrics: ready\n"
        );
        let json: serde_json::Value = serde_json::from_str(&ready_json(false, &states)).unwrap();
        assert_eq!(json["ready"], false);
        assert_eq!(json["components"][0]["component"], "storage");
        assert_eq!(json["components"][0]["reason"], "no answer\nnetwork: ready");
        assert_eq!(json["components"][1]["ready"], true);
        assert_eq!(ready_text(false, &[]), "not ready\nno component has reported yet\n");
    }
}
