//! The names under which the endpoint is reached, and which requests are meant for it.
//!
//! A web page can make its visitor's browser send requests to the visitor's own loopback address, under the page's own
//! name (DNS rebinding). And whoever enters this endpoint as a proxy would get its own page for every target.

use std::net::{IpAddr, SocketAddr};

use hyper::Uri;
use hyper::header::{HOST, HeaderMap};
use hyper::http::uri::Authority;

use crate::metrics::ExternalUrl;

/// The names of an endpoint.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// Where others reach it, if that is configured.
    pub(super) external: Option<ExternalUrl>,
    /// Further names.
    pub(super) others: Vec<String>,
}

/// Why a request is not answered here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misdirected {
    /// It is meant for another server, as if this were a proxy.
    #[error(
        "this endpoint is no proxy for {0}; remove proxy_url, and take the job from `peerscope gateway prometheus-config`"
    )]
    Proxy(String),
    /// It uses another server's name.
    #[error("{0} is not a name of this endpoint; if it should be, add it to metrics.host_names")]
    Host(String),
}

impl Names {
    /// The path without the prefix under which a proxy shows this endpoint; `None` if it does not begin with that.
    pub(super) fn without_prefix<'a>(&self, path: &'a str) -> Option<&'a str> {
        let prefix = &self.external.as_ref()?.prefix;
        path.strip_prefix(prefix.as_str()).filter(|rest| rest.starts_with('/'))
    }

    /// Whether a request that arrived at `local` is meant for this endpoint; `on_loopback` if this listener cannot be
    /// reached from other machines.
    pub(super) fn check(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        local: SocketAddr,
        on_loopback: bool,
    ) -> Result<(), Misdirected> {
        if let Some(authority) = uri.authority() {
            // A proxy gets such a request for every server; we only for ourselves.
            let port = authority.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
            let is_external = self
                .external
                .as_ref()
                .is_some_and(|url| url.port == port && url.host.eq_ignore_ascii_case(authority.host()));
            let is_local = port == local.port()
                && (self.is_named(authority.host())
                    || ip(authority.host()) == Some(local.ip().to_canonical())
                    || (local.ip().to_canonical().is_loopback() && is_localhost(authority.host())));
            return if is_external || is_local { Ok(()) } else { Err(Misdirected::Proxy(shown(authority.as_str()))) };
        }
        let Some(host) = headers.get(HOST) else { return Ok(()) };
        let named = self.external.is_some() || !self.others.is_empty();
        if !on_loopback && !named {
            return Ok(());
        }
        let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
        let is_ours = authority.as_ref().is_some_and(|authority| {
            let host = authority.host();
            self.is_named(host)
                || match ip(host) {
                    Some(ip) => !on_loopback || ip.is_loopback(),
                    None => on_loopback && is_localhost(host),
                }
        });
        if is_ours { Ok(()) } else { Err(Misdirected::Host(shown(&String::from_utf8_lossy(host.as_bytes())))) }
    }

    fn is_named(&self, host: &str) -> bool {
        let external = self.external.iter().map(|url| &url.host);
        external.chain(&self.others).any(|name| name.eq_ignore_ascii_case(host))
    }
}

fn is_localhost(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
}

fn ip(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

/// What a client sent, short enough for a sentence.
fn shown(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn check(names: &Names, target: &str, host: Option<&str>, local: &str, on_loopback: bool) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(HOST, HeaderValue::from_str(host).unwrap());
        }
        names.check(&target.parse().unwrap(), &headers, local.parse().unwrap(), on_loopback).is_ok()
    }

    fn named() -> Names {
        let external = Some("https://gw.example/agents/".parse().unwrap());
        Names { external, others: vec!["inside.example".into()] }
    }

    #[test]
    fn on_loopback_only_names_of_this_machine_and_configured_ones_are_answered() {
        let host = |names: &Names, host| check(names, "/metrics", Some(host), "127.0.0.1:8080", true);
        for good in
            ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:9", "127.9.9.9", "[::1]:8080", "[::ffff:127.0.0.1]"]
        {
            assert!(host(&Names::default(), good), "{good}");
        }
        for bad in [
            "rebound.example",
            "rebound.example:8080",
            "10.0.0.1",
            "localhost.rebound.example",
            "",
            "a b",
            "[::1",
            "0.0.0.0",
            "gw.example",
        ] {
            assert!(!host(&Names::default(), bad), "{bad}");
        }
        assert!(check(&Names::default(), "/metrics", None, "127.0.0.1:8080", true), "HTTP/1.0");
        assert!(host(&named(), "GW.example") && host(&named(), "inside.example:8080") && host(&named(), "localhost"));
        assert!(!host(&named(), "rebound.example"));
    }

    #[test]
    fn beyond_loopback_names_count_once_one_is_configured() {
        let host = |names: &Names, host| check(names, "/metrics", Some(host), "10.0.0.1:8080", false);
        assert!(host(&Names::default(), "whatever.example"));
        assert!(host(&named(), "gw.example:8080") && host(&named(), "10.0.0.1") && host(&named(), "192.0.2.7"));
        assert!(!host(&named(), "whatever.example") && !host(&named(), "localhost"));
    }

    #[test]
    fn a_request_as_to_a_proxy_is_answered_only_if_it_is_meant_for_us() {
        let proxied = |names: &Names, target, local| check(names, target, Some("127.0.0.1:8080"), local, true);
        let none = Names::default();
        for target in ["http://127.0.0.1:8080/metrics", "http://localhost:8080/"] {
            assert!(proxied(&none, target, "127.0.0.1:8080"), "{target}");
        }
        // Another port of the same machine, another machine, a peer.
        for target in [
            "http://127.0.0.1:9100/metrics",
            "http://localhost/metrics",
            "http://edge-1:9100/metrics",
            "http://10.0.0.1:8080/metrics",
        ] {
            assert!(!proxied(&none, target, "127.0.0.1:8080"), "{target}");
        }
        assert!(proxied(&named(), "https://gw.example/agents/metrics", "127.0.0.1:8080"));
        assert!(proxied(&named(), "http://inside.example:8080/metrics", "127.0.0.1:8080"));
        assert!(!proxied(&named(), "http://gw.example:9100/metrics", "127.0.0.1:8080"));
    }

    #[test]
    fn the_prefix_is_that_of_whole_segments() {
        for (path, rest) in [
            ("/agents/metrics", Some("/metrics")),
            ("/agents/", Some("/")),
            ("/agents", None),
            ("/agentsmetrics", None),
            ("/metrics", None),
        ] {
            assert_eq!(named().without_prefix(path), rest, "{path}");
        }
        assert_eq!(Names::default().without_prefix("/metrics"), None);
    }

    proptest::proptest! {
        /// Whatever a client sends as its `Host`, an endpoint on loopback answers only to addresses and names that a web
        /// page cannot have.
        #[test]
        fn no_other_name_is_answered(host in "[a-z0-9.:\\[\\]@-]{0,30}") {
            let bare = host.split(':').next().unwrap();
            let answered = check(&Names::default(), "/metrics", Some(&host), "127.0.0.1:8080", true);
            let is_local = bare == "localhost" || bare.starts_with("127.") || host.starts_with('[');
            proptest::prop_assert!(!answered || is_local, "{host}");
        }
    }
}
