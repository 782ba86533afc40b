//! The web configuration: TLS and users of the endpoint, in the file format of Prometheus's exporter-toolkit
//! (github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md). A key of that format that cannot be
//! honoured is an error.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use hyper::header::{HeaderName, HeaderValue};
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};

/// The most users of a web configuration.
pub const MAX_USERS: usize = 1_000;

/// The highest cost of a bcrypt hash: each step up doubles the time, and 14 takes about a second.
pub const MAX_BCRYPT_COST: u32 = 14;

/// Where the web configuration is, and how it is read.
#[derive(Debug, Clone)]
pub struct WebConfigSource {
    /// The file.
    pub path: PathBuf,
    /// Parses the file at this path. The error may have several lines, each of which names its place.
    pub read: fn(&Path) -> Result<WebConfig, String>,
}

/// Why a web configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot use the web configuration {} (metrics.web_config): {reason}", .path.display())]
pub struct WebConfigError {
    /// Its file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// A web configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::manual_non_exhaustive, reason = "the private field is a key that is rejected with a reason")]
pub struct WebConfig {
    /// If set, the endpoint speaks only TLS.
    #[serde(deserialize_with = "section")]
    pub tls_server_config: Option<TlsServerConfig>,
    /// How HTTP is spoken.
    pub http_server_config: HttpServerConfig,
    /// Every user who may read the endpoint, with a hash of the password. Without users, everybody may.
    #[serde(deserialize_with = "users")]
    pub basic_auth_users: BTreeMap<String, BcryptHash>,
    #[serde(deserialize_with = "no_rate_limit")]
    rate_limit: (),
}

/// The certificate, and what is asked of clients.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsServerConfig {
    /// The file with the certificate chain (PEM).
    pub cert_file: Option<PathBuf>,
    /// The certificate chain itself (PEM), instead of `cert_file`.
    pub cert: Option<String>,
    /// The file with the private key (PEM).
    pub key_file: Option<PathBuf>,
    /// The private key itself (PEM), instead of `key_file`.
    pub key: Option<String>,
    /// Whether clients need certificates.
    pub client_auth_type: ClientAuthType,
    /// The file with the certificates (PEM) that clients' certificates are checked against.
    pub client_ca_file: Option<PathBuf>,
    /// These certificates themselves (PEM), instead of `client_ca_file`.
    pub client_ca: Option<String>,
    /// If not empty, a client's certificate must have one of these names (DNS, IP address or URI).
    #[serde(deserialize_with = "sans")]
    pub client_allowed_sans: Vec<String>,
    /// The lowest version.
    pub min_version: Option<TlsVersion>,
    /// The highest version.
    pub max_version: Option<TlsVersion>,
    /// The suites of TLS 1.2, in the order of preference; if empty, all that are supported.
    pub cipher_suites: Vec<CipherSuiteName>,
    /// Whether the order of `cipher_suites` counts for more than the client's.
    pub prefer_server_cipher_suites: Option<bool>,
    /// The groups for the key exchange, in the order of preference; if empty, all that are supported.
    pub curve_preferences: Vec<Curve>,
}

// Without the private key.
impl fmt::Debug for TlsServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsServerConfig")
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .field("client_auth_type", &self.client_auth_type)
            .finish_non_exhaustive()
    }
}

/// Whether clients need certificates. The names are those of Go's `crypto/tls`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "documented by Go")]
pub enum ClientAuthType {
    #[default]
    #[serde(alias = "")]
    NoClientCert,
    RequestClientCert,
    #[serde(alias = "RequireClientCert")]
    RequireAnyClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

/// A version of TLS that rustls speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "their names say it")]
pub enum TlsVersion {
    Tls12,
    Tls13,
}

impl<'de> Deserialize<'de> for TlsVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "TLS12" => Ok(Self::Tls12),
            "TLS13" => Ok(Self::Tls13),
            "TLS10" | "TLS11" => Err(D::Error::custom("TLS 1.0 and 1.1 are not supported; use TLS12 or TLS13")),
            other => Err(D::Error::custom(format!("`{}` is not a version; use TLS12 or TLS13", other.escape_debug()))),
        }
    }
}

macro_rules! names {
    ($(#[$doc:meta])* $type:ident, $what:literal { $($name:literal),+ $(,)? } ignored { $($ignored:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $type(pub &'static str);

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                const NAMES: &[&str] = &[$($name),+];
                let text = String::deserialize(deserializer)?;
                let found = NAMES.iter().chain(&[$($ignored),*]).find(|name| **name == text);
                found.map(|name| Self(name)).ok_or_else(|| {
                    let text = text.escape_debug();
                    D::Error::custom(format!("`{text}` is not {} that is supported here; use {}", $what, NAMES.join(", ")))
                })
            }
        }
    };
}

names! {
    /// A cipher suite under its name in Go's `crypto/tls`. Those of TLS 1.3 cannot be chosen, and are ignored as in Go.
    CipherSuiteName, "a cipher suite" {
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    } ignored {
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    }
}

names! {
    /// A group for the key exchange under its name in Go's `crypto/tls`.
    Curve, "a curve" { "X25519", "CurveP256", "CurveP384" } ignored {}
}

/// How HTTP is spoken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::manual_non_exhaustive, reason = "see WebConfig")]
pub struct HttpServerConfig {
    #[serde(deserialize_with = "no_http2")]
    http2: (),
    /// Headers of every response that has no such header of its own.
    #[serde(deserialize_with = "headers")]
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// A bcrypt hash of a password, such as `htpasswd -nBC 10 USER` prints.
#[derive(Clone, PartialEq, Eq)]
pub struct BcryptHash(String);

impl BcryptHash {
    /// The hash as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its cost: the logarithm to base 2 of the number of rounds.
    pub fn cost(&self) -> u32 {
        self.0.get(4..6).and_then(|cost| cost.parse().ok()).unwrap_or(MAX_BCRYPT_COST)
    }

    /// 60 characters: `$2y$10$`, then salt and hash in bcrypt's own base64.
    fn is_valid(text: &str) -> bool {
        let rest = ["$2a$", "$2b$", "$2y$"].iter().find_map(|prefix| text.strip_prefix(prefix));
        rest.and_then(|rest| rest.split_once('$')).is_some_and(|(cost, salt_and_hash)| {
            let base64 = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'/';
            let cost_is_valid = cost.len() == 2 && cost.parse::<u32>().is_ok_and(|cost| (4..=31).contains(&cost));
            // 128 bits of salt in 22 characters and 184 bits of hash in 31: the last bits of both are zero.
            let ends = |at, ends: &[u8]| salt_and_hash.as_bytes().get(at).is_some_and(|byte| ends.contains(byte));
            let is_base64 = salt_and_hash.len() == 53 && salt_and_hash.bytes().all(base64);
            cost_is_valid && is_base64 && ends(21, b".Oeu") && ends(52, b".CGKOSWaeimquy26")
        })
    }
}

impl fmt::Debug for BcryptHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for BcryptHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // It is not repeated: it may be the password itself.
        let text = String::deserialize(deserializer)?;
        if !Self::is_valid(&text) {
            let message = "is not a bcrypt hash, such as `$2y$10$` and 53 more characters; \
                           `htpasswd -nBC 10 USER` makes one (quote it in YAML if your shell changed it)";
            return Err(D::Error::custom(message));
        }
        let hash = Self(text);
        if hash.cost() > MAX_BCRYPT_COST {
            let message = format!(
                "the hash has cost {}, with which one check takes many seconds; at most {MAX_BCRYPT_COST} is allowed",
                hash.cost()
            );
            return Err(D::Error::custom(message));
        }
        Ok(hash)
    }
}

impl WebConfig {
    /// The files that it names.
    pub fn files(&self) -> Vec<&Path> {
        let Some(tls) = &self.tls_server_config else { return Vec::new() };
        [&tls.cert_file, &tls.key_file, &tls.client_ca_file].into_iter().flatten().map(PathBuf::as_path).collect()
    }

    /// Makes relative paths relative to `folder`, that of the configuration file.
    pub fn relative_to(&mut self, folder: &Path) {
        if let Some(tls) = &mut self.tls_server_config {
            for path in [&mut tls.cert_file, &mut tls.key_file, &mut tls.client_ca_file].into_iter().flatten() {
                *path = folder.join(&*path);
            }
        }
    }
}

/// A section that is there. Without a value it is not taken for an absent one: a file that is only half written must not
/// open what was closed.
fn section<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn users<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, BcryptHash>, D::Error> {
    let users = BTreeMap::<String, BcryptHash>::deserialize(deserializer)?;
    if users.len() > MAX_USERS {
        return Err(D::Error::custom(format!("has {} users; at most {MAX_USERS} are allowed", users.len())));
    }
    if let Some(name) = users.keys().find(|name| name.contains(':') || name.chars().any(char::is_control)) {
        let name = name.escape_debug();
        return Err(D::Error::custom(format!(
            "the user `{name}` can never log in: a name has no colon or control character"
        )));
    }
    Ok(users)
}

fn sans<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    match names.iter().find(|name| name.contains('@') && !name.contains("://")) {
        Some(_) => Err(D::Error::custom("an email address is not supported; use a DNS name, an IP address or a URI")),
        None => Ok(names),
    }
}

fn headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(HeaderName, HeaderValue)>, D::Error> {
    /// The headers that exporter-toolkit allows.
    const ALLOWED: [&str; 5] = [
        "Strict-Transport-Security",
        "X-Content-Type-Options",
        "X-Frame-Options",
        "X-XSS-Protection",
        "Content-Security-Policy",
    ];
    let given = Option::<BTreeMap<String, String>>::deserialize(deserializer)?.unwrap_or_default();
    let parse = |(name, value): (String, String)| {
        let known = ALLOWED.iter().find(|allowed| allowed.eq_ignore_ascii_case(&name));
        let known = known.and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok()).ok_or_else(|| {
            let name = name.escape_debug();
            D::Error::custom(format!("the header `{name}` cannot be set; use {}", ALLOWED.join(", ")))
        })?;
        let value = HeaderValue::from_str(&value)
            .map_err(|_| D::Error::custom(format!("the value of {known} is not valid in a header")))?;
        Ok((known, value))
    };
    given.into_iter().map(parse).collect()
}

fn no_http2<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    match bool::deserialize(deserializer)? {
        true => Err(D::Error::custom("HTTP/2 is not supported; remove the key, or set it to false")),
        false => Ok(()),
    }
}

fn no_rate_limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    match Option::<IgnoredAny>::deserialize(deserializer)? {
        Some(_) => {
            Err(D::Error::custom("is not supported; remove the key (docs/limits.md lists the endpoint's limits)"))
        }
        None => Ok(()),
    }
}
