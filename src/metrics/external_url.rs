//! `gateway.external_url`: where others reach the endpoint.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where others reach the endpoint: `scheme://host[:port][/prefix]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalUrl {
    /// Whether the scheme is `https`.
    pub https: bool,
    /// The host in lower case; an IPv6 address has brackets.
    pub host: String,
    /// The port, also if it is the scheme's own.
    pub port: u16,
    /// Empty, or a path that begins with `/` and does not end with it.
    pub prefix: String,
}

impl ExternalUrl {
    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl FromStr for ExternalUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("{what}; write it like https://gateway.example/prefix"));
        let Ok(uri) = text.parse::<Uri>() else { return wrong("is not a URL") };
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return wrong("does not begin with http:// or https://"),
        };
        let Some(authority) = uri.authority() else { return wrong("has no host") };
        if authority.as_str().contains('@') {
            return wrong("contains a user, which does not belong here");
        }
        if uri.query().is_some() || text.contains('#') {
            return wrong("has a query or a fragment, which does not belong here");
        }
        let prefix = uri.path().trim_end_matches('/');
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~".contains(&b);
        if !prefix.bytes().all(plain)
            || prefix.contains("//")
            || prefix.split('/').any(|part| matches!(part, "." | ".."))
        {
            return wrong("has a path with characters other than letters, digits and / - . _ ~");
        }
        if text.len() > 1024 {
            return wrong("is longer than 1024 bytes");
        }
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { https, host: authority.host().to_ascii_lowercase(), port, prefix: prefix.to_owned() })
    }
}

impl fmt::Display for ExternalUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = self.port == if self.https { 443 } else { 80 };
        let port = if usual { String::new() } else { format!(":{}", self.port) };
        write!(f, "{}://{}{port}{}", self.scheme(), self.host, self.prefix)
    }
}

impl<'de> Deserialize<'de> for ExternalUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for ExternalUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_external_url_is_a_scheme_a_host_and_perhaps_a_port_and_a_prefix() {
        for (text, shown, address) in [
            ("https://GW.example", "https://gw.example", "gw.example:443"),
            ("http://gw.example:80/", "http://gw.example", "gw.example:80"),
            ("http://gw.example:8080/a/b/", "http://gw.example:8080/a/b", "gw.example:8080"),
            ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443", "[2001:db8::1]:8443"),
        ] {
            let url: ExternalUrl = text.parse().unwrap();
            assert_eq!((url.to_string(), url.address()), (shown.to_owned(), address.to_owned()));
        }
        for bad in [
            "",
            "gw.example",
            "/a",
            "ftp://gw.example",
            "https://a@gw.example",
            "https://gw.example/?a",
            "https://gw.example/a b",
            "https://gw.example/a/../b",
        ] {
            assert!(bad.parse::<ExternalUrl>().is_err(), "{bad}");
        }
    }
}
