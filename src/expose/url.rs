//! The URL of an exporter, parsed once and strictly, so that no other program reads a different host from it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;
use serde::{Deserialize, Serialize};

/// The longest URL, in bytes.
const MAX_URL: usize = 1024;

const EXAMPLE: &str = "http://127.0.0.1:9100/metrics";

/// The URL of an exporter's metrics: `http://`, a host, an optional port, a path and an optional query.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExposedUrl {
    text: String,
    /// Host and port as written, for the header `Host`.
    authority: HeaderValue,
    host: Host,
    port: u16,
    target: PathAndQuery,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    Ip(IpAddr),
    Localhost,
    Name(String),
}

impl ExposedUrl {
    /// Whether its host can only be this machine: a literal loopback address, or `localhost`.
    pub fn is_local(&self) -> bool {
        match &self.host {
            Host::Ip(ip) => ip.is_loopback(),
            Host::Localhost => true,
            Host::Name(_) => false,
        }
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn authority(&self) -> &HeaderValue {
        &self.authority
    }

    pub(super) fn target(&self) -> &PathAndQuery {
        &self.target
    }

    pub(super) fn without_query(&self) -> &str {
        self.text.split('?').next().unwrap_or_default()
    }
}

impl FromStr for ExposedUrl {
    type Err = String;

    /// No error repeats the text, because it may contain a password or a token.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > MAX_URL {
            return Err(format!("has {} bytes; at most {MAX_URL} are allowed", text.len()));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("contains a space or a character that is not visible ASCII; percent-encode it (%20)".into());
        }
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
                return Err("only http:// is supported; it is enough on the same machine, \
                            and the connection to the peer is encrypted"
                    .into());
            }
            _ => return Err(format!("does not begin with http://; write it like {EXAMPLE}")),
        };
        if rest.contains('#') {
            return Err("has a fragment (`#`), which is never sent; remove it".into());
        }
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("has a user or password before `@`, which is not supported; remove it".into());
        }
        if !target.starts_with('/') {
            return Err("has no path after the host; most exporters use /metrics".into());
        }
        let (host, port) = host_and_port(authority)?;
        let target = target.parse().map_err(|error| format!("has an invalid path ({error})"))?;
        let authority = HeaderValue::from_str(authority).map_err(|_| NO_HOST)?;
        Ok(Self { text: text.to_owned(), authority, host, port, target })
    }
}

const NO_HOST: &str = "has no valid host; use an IP address (IPv6 in brackets: [::1]) or a host name";

fn host_and_port(authority: &str) -> Result<(Host, u16), String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (ip, after) = rest.split_once(']').ok_or(NO_HOST)?;
            (Host::Ip(ip.parse::<Ipv6Addr>().map_err(|_| NO_HOST)?.into()), after)
        }
        None => {
            let (name, after) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            (named(name).ok_or(NO_HOST)?, after)
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => 80,
        // `parse` alone would also accept a sign.
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().unwrap_or(0),
        _ => 0,
    };
    if port == 0 {
        return Err("has no valid port after the host; use 1 to 65535".into());
    }
    Ok((host, port))
}

fn named(text: &str) -> Option<Host> {
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Some(Host::Ip(ip.into()));
    }
    if text.eq_ignore_ascii_case("localhost") {
        return Some(Host::Localhost);
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(allowed);
    let name = text.strip_suffix('.').unwrap_or(text);
    // Resolvers differ in how they read 127.1 and 0x7f.1. In URLs, a host that ends in a number is an IPv4 address.
    let last = name.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") || last.starts_with("0X");
    (name.len() <= 253 && name.split('.').all(label) && !number).then(|| Host::Name(text.to_owned()))
}

impl TryFrom<String> for ExposedUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ExposedUrl> for String {
    fn from(url: ExposedUrl) -> Self {
        url.text
    }
}

impl fmt::Display for ExposedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
