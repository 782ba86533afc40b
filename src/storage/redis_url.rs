//! A Redis URL that is parsed once and never reveals its password by accident.

use std::fmt;
use std::str::FromStr;

use redis::{ConnectionInfo, IntoConnectionInfo};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const EXAMPLE: &str = "redis://user:password@127.0.0.1:6379/0, rediss://host (TLS) or unix:///run/redis.sock";

/// Shown in place of a password.
const MASK: &str = "***";

/// A parsed `redis://`, `rediss://` or `unix://` URL. `Display`, `Debug` and `Serialize` mask the password.
#[derive(Clone)]
pub struct RedisUrl {
    text: String,
    masked: String,
    info: ConnectionInfo,
}

impl RedisUrl {
    /// The parameters of the connection, including the password.
    pub fn connection_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    /// No error repeats the text, because it may contain a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let Some(url) = redis::parse_redis_url(text) else {
            return Err(format!(
                "this is not a Redis URL (not shown, because it may contain a password); write it like {EXAMPLE}"
            ));
        };
        // The client ignores unknown parameters, which could be a misspelt password.
        let unix = url.scheme().contains("unix");
        let known: &[&str] = if unix { &["db", "user", "pass", "protocol"] } else { &["protocol"] };
        if url.query_pairs().any(|(name, _)| !known.contains(&&*name)) {
            return Err(format!(
                "this Redis URL has an unknown parameter after `?`; supported here: {}",
                known.join(", ")
            ));
        }
        if url.fragment().is_some() {
            return Err("this Redis URL has a fragment (`#...`); `#insecure` (unverified TLS) is not supported".into());
        }
        let given = |wanted: &str| url.query_pairs().any(|(name, value)| name == wanted && !value.is_empty());
        let has_user = !url.username().is_empty() || given("user");
        let has_password = url.password().is_some_and(|password| !password.is_empty()) || given("pass");
        if has_user && !has_password {
            // redis-cli takes a single word before the `@` as the password.
            return Err("this Redis URL has a user but no password (not shown, because the user may be a password); \
                        write redis://:PASSWORD@HOST for a password alone, or redis://USER:PASSWORD@HOST for both, \
                        with any password if the user needs none"
                .into());
        }
        let mut masked = url.clone();
        if url.password().is_some() && masked.set_password(Some(MASK)).is_err() {
            return Err("this Redis URL has a password but no host".into());
        }
        if url.query_pairs().any(|(name, _)| name == "pass") {
            let shown =
                url.query_pairs().map(|(name, value)| if name == "pass" { (name, MASK.into()) } else { (name, value) });
            masked.query_pairs_mut().clear().extend_pairs(shown);
        }
        let info = url.into_connection_info().map_err(|error| {
            // The detail is left out, because it may repeat a part of the text.
            format!(
                "this Redis URL cannot be used ({}); write it like {EXAMPLE}",
                error.to_string().split(" - ").next().unwrap_or_default()
            )
        })?;
        if info.redis_settings().db() < 0 {
            return Err("the database number of this Redis URL is negative".into());
        }
        Ok(Self { text: text.to_owned(), masked: masked.into(), info })
    }
}

impl Default for RedisUrl {
    fn default() -> Self {
        let text = "redis://127.0.0.1:6379";
        #[allow(clippy::expect_used, reason = "a constant that a test parses")]
        let info = text.into_connection_info().expect("the default Redis URL is valid");
        Self { text: text.into(), masked: text.into(), info }
    }
}

impl PartialEq for RedisUrl {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for RedisUrl {}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({})", self.masked)
    }
}

impl<'de> Deserialize<'de> for RedisUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for RedisUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use redis::ConnectionAddr;

    use super::*;

    fn url(text: &str) -> RedisUrl {
        text.parse().unwrap()
    }

    #[test]
    fn the_default_equals_its_parsed_text() {
        let (default, parsed) = (RedisUrl::default(), url("redis://127.0.0.1:6379"));
        assert_eq!(default, parsed);
        assert_eq!(default.to_string(), parsed.to_string());
        assert_eq!(default.connection_info().addr(), parsed.connection_info().addr());
    }

    #[test]
    fn keeps_all_parameters_of_the_connection() {
        let info = url("rediss://user:p%40ss@host:7000/5?protocol=3").connection_info();
        assert!(
            matches!(info.addr(), ConnectionAddr::TcpTls { host, port: 7000, insecure: false, .. } if host == "host")
        );
        let settings = info.redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("user"), Some("p@ss"), 5));

        let info = url("unix:///run/redis.sock?db=2&user=u&pass=p").connection_info();
        assert!(matches!(info.addr(), ConnectionAddr::Unix(path) if path.to_str() == Some("/run/redis.sock")));
        assert_eq!((info.redis_settings().password(), info.redis_settings().db()), (Some("p"), 2));
    }

    #[test]
    fn shows_everything_but_the_password() {
        for (text, shown) in [
            ("redis://host", "redis://host"),
            ("redis://:hunter2@host:1/2", "redis://:***@host:1/2"),
            ("rediss://user:hunter2@[::1]:6379/0", "rediss://user:***@[::1]:6379/0"),
            ("unix:///s?pass=hunter2&db=1", "unix:///s?pass=***&db=1"),
            ("redis+unix:///s?pass=a&pass=hunter2", "redis+unix:///s?pass=***&pass=***"),
        ] {
            let url = url(text);
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("RedisUrl({shown})"));
            assert_eq!(serde_json::to_value(&url).unwrap(), shown);
            // The masked form is itself a valid URL.
            assert_eq!(shown.parse::<RedisUrl>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn refuses_unusable_urls_without_repeating_them() {
        for (text, reason) in [
            ("", "not a Redis URL"),
            ("hunter2", "not a Redis URL"),
            ("http://u:hunter2@h", "not a Redis URL"),
            ("redis://u:hunter2@h:99999", "not a Redis URL"),
            ("redis://", "Missing hostname"),
            ("redis://0.0.0.0", "wildcard"),
            ("redis://h/hunter2", "Invalid database number"),
            ("redis://h/-1", "negative"),
            ("redis://h?protocol=hunter2", "Invalid protocol version"),
            ("redis://h?pass=hunter2", "unknown parameter"),
            ("unix:///s?pss=hunter2", "unknown parameter"),
            ("rediss://u:hunter2@h#insecure", "not supported"),
            ("redis://u:hunter2%ff@h", "UTF-8"),
            ("unix://host/s?pass=hunter2", "Missing path"),
            ("redis://hunter2@h", "write redis://:PASSWORD@HOST"),
            ("rediss://hunter2:@h:1/2", "write redis://:PASSWORD@HOST"),
            ("unix:///s?user=hunter2", "write redis://:PASSWORD@HOST"),
        ] {
            let error = text.parse::<RedisUrl>().unwrap_err();
            assert!(error.contains(reason) && !error.contains("hunter2"), "{text}: {error}");
        }
    }
}
