//! Why an attempt on Redis failed, and whether another attempt can help.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::super::StorageError;
use super::node::TIMED_OUT;

/// What one failed attempt means for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is no connection, or it broke. A new one may work.
    Lost,
    /// No answer within the timeout.
    Timeout,
    /// Redis answered that it cannot do this now, for example while it loads its data or fails over.
    Later,
    /// Redis gave a definite answer, and would give it again.
    Refused,
}

/// One failed attempt. The message is for people and contains neither a password nor the configured address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RedisFailure {
    pub(super) kind: Kind,
    pub(super) message: String,
}

impl RedisFailure {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(super) fn timeout(timeout: Duration) -> Self {
        Self::new(Kind::Timeout, format!("no answer within {timeout:?}"))
    }

    /// Whether the same attempt may succeed later.
    pub(super) fn is_retryable(&self) -> bool {
        self.kind != Kind::Refused
    }

    /// Whether Redis answered with this error code.
    pub(super) fn is(&self, code: &str) -> bool {
        matches!(self.kind, Kind::Later | Kind::Refused) && self.message.split(' ').next() == Some(code)
    }

    /// The error that the caller gets after the last attempt.
    pub(super) fn into_error(self, timeout: Duration) -> StorageError {
        match self.kind {
            Kind::Timeout => StorageError::Timeout(timeout),
            Kind::Lost | Kind::Later => StorageError::Unavailable(self.message),
            Kind::Refused => StorageError::Backend(self.message),
        }
    }
}

/// Interprets redis-rs's errors, depending on the configuration.
#[derive(Debug, Clone)]
pub(super) struct Classifier {
    /// The longest that one attempt may take.
    pub(super) timeout: Duration,
    /// Whether redirections are expected.
    pub(super) cluster: bool,
    /// Removed from every message: Redis repeats the arguments of an unknown command, and AUTH can be renamed.
    pub(super) secrets: Vec<String>,
}

impl Classifier {
    pub(super) fn failure(&self, error: &RedisError) -> RedisFailure {
        let (kind, message) = self.read(error);
        RedisFailure { kind, message: self.scrub(message) }
    }

    fn read(&self, error: &RedisError) -> (Kind, String) {
        match error.kind() {
            ErrorKind::Io if error.is_timeout() => (Kind::Timeout, format!("no answer within {:?}", self.timeout)),
            ErrorKind::Client if error.detail() == Some(TIMED_OUT) => {
                (Kind::Timeout, format!("no answer within {:?}", self.timeout))
            }
            // The cluster client wraps the error of its last seed in an error of kind `Io`.
            ErrorKind::Io if error.detail().is_some_and(|detail| detail.contains(AUTH_FAILED)) => {
                (Kind::Refused, BAD_CREDENTIALS.into())
            }
            ErrorKind::AuthenticationFailed => (Kind::Refused, BAD_CREDENTIALS.into()),
            ErrorKind::Server(server) => self.read_answer(server, error),
            // Redis's error codes that redis-rs has no name for, such as WRONGTYPE, OOM and MISCONF.
            ErrorKind::Extension => match error.code() {
                // A script or function blocks the server.
                Some("BUSY") => (Kind::Later, answer(error)),
                _ => (Kind::Refused, answer(error)),
            },
            ErrorKind::UnexpectedReturnType | ErrorKind::RESP3NotSupported => (Kind::Refused, error.to_string()),
            // I/O, TLS, name resolution, an answer that is not RESP, no live node of the cluster.
            _ => (Kind::Lost, error.to_string()),
        }
    }

    fn read_answer(&self, server: ServerErrorKind, error: &RedisError) -> (Kind, String) {
        use ServerErrorKind as S;
        match server {
            S::Moved | S::Ask if !self.cluster => (
                Kind::Refused,
                format!("{}: this server is part of a cluster; set storage.redis.cluster to true", answer(error)),
            ),
            S::BusyLoading | S::TryAgain | S::ClusterDown | S::MasterDown | S::ReadOnly | S::Moved | S::Ask => {
                (Kind::Later, answer(error))
            }
            _ => (Kind::Refused, answer(error)),
        }
    }

    fn scrub(&self, mut message: String) -> String {
        for secret in &self.secrets {
            if message.contains(secret.as_str()) {
                message = message.replace(secret.as_str(), "***");
            }
        }
        message
    }
}

/// The name of the kind in redis-rs's error text.
const AUTH_FAILED: &str = "AuthenticationFailed";
/// redis-rs does not pass on Redis's own message here.
const BAD_CREDENTIALS: &str = "Redis refused the configured user name or password";

/// Redis's own message, as sent.
fn answer(error: &RedisError) -> String {
    let code = error.code().unwrap_or("ERR");
    error.detail().map_or_else(|| code.to_owned(), |detail| format!("{code} {detail}"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn classifier(cluster: bool) -> Classifier {
        Classifier { timeout: Duration::from_secs(2), cluster, secrets: vec!["hunter2".into()] }
    }

    /// The error that redis-rs makes from an error line of the server.
    fn answered(line: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        value.extract_error().unwrap_err()
    }

    #[test]
    fn only_temporary_errors_are_retried() {
        for (line, single, cluster) in [
            ("LOADING Redis is loading the dataset in memory", Kind::Later, Kind::Later),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Kind::Later, Kind::Later),
            ("CLUSTERDOWN Hash slot not served", Kind::Later, Kind::Later),
            ("MASTERDOWN Link with MASTER is down", Kind::Later, Kind::Later),
            ("READONLY You can't write against a read only replica.", Kind::Later, Kind::Later),
            ("BUSY Redis is busy running a script.", Kind::Later, Kind::Later),
            ("MOVED 866 10.0.0.2:6379", Kind::Refused, Kind::Later),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Kind::Refused, Kind::Refused),
            ("NOAUTH Authentication required.", Kind::Refused, Kind::Refused),
            ("WRONGPASS invalid username-password pair or user is disabled.", Kind::Refused, Kind::Refused),
            ("NOPERM this user has no permissions", Kind::Refused, Kind::Refused),
            ("OOM command not allowed when used memory > 'maxmemory'.", Kind::Refused, Kind::Refused),
            ("MISCONF Redis is configured to save RDB snapshots", Kind::Refused, Kind::Refused),
            ("ERR something else", Kind::Refused, Kind::Refused),
        ] {
            let error = answered(line);
            assert_eq!(classifier(false).failure(&error).kind, single, "{line}");
            let failure = classifier(true).failure(&error);
            assert_eq!(failure.kind, cluster, "{line}");
            assert_eq!(failure.message, line, "Redis's own message");
        }
    }

    #[test]
    fn connection_failures_are_lost_or_timed_out() {
        let of = |kind: io::ErrorKind| classifier(false).failure(&RedisError::from(io::Error::from(kind))).kind;
        assert_eq!(of(io::ErrorKind::TimedOut), Kind::Timeout);
        for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionRefused, io::ErrorKind::UnexpectedEof] {
            assert_eq!(of(kind), Kind::Lost, "{kind}");
        }
        let no_node = RedisError::from((ErrorKind::ClusterConnectionNotFound, "No connections found"));
        assert_eq!(classifier(true).failure(&no_node).kind, Kind::Lost);
    }

    #[test]
    fn wrong_credentials_are_refused_by_a_single_server_and_by_a_seed_of_a_cluster() {
        let direct = RedisError::from((ErrorKind::AuthenticationFailed, "Password authentication failed"));
        let folded = RedisError::from((ErrorKind::Io, "Failed to create initial connections", direct.to_string()));
        for error in [direct, folded] {
            let failure = classifier(true).failure(&error);
            assert_eq!(failure.kind, Kind::Refused, "{error}");
            assert_eq!(failure.message, "Redis refused the configured user name or password");
        }
    }

    #[test]
    fn a_password_in_redis_own_message_is_masked() {
        let error = answered("ERR unknown command 'AUTH', with args beginning with: 'me' 'hunter2' ");
        let message = classifier(false).failure(&error).message;
        assert!(!message.contains("hunter2") && message.contains("'me' '***'"), "{message}");
    }

    #[test]
    fn the_caller_gets_the_matching_error() {
        let timeout = Duration::from_secs(2);
        let error = |kind| RedisFailure::new(kind, "why").into_error(timeout);
        assert!(matches!(error(Kind::Timeout), StorageError::Timeout(t) if t == timeout));
        assert!(matches!(error(Kind::Lost), StorageError::Unavailable(m) if m == "why"));
        assert!(matches!(error(Kind::Later), StorageError::Unavailable(m) if m == "why"));
        assert!(matches!(error(Kind::Refused), StorageError::Backend(m) if m == "why"));
    }
}
