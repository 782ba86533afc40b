//! The label values. Every label is an enum, so the number of series is fixed when the program is
//! compiled, and nothing that a remote peer says can become a label value.

use std::fmt::Write as _;

/// A label whose values are known at compile time.
pub trait Label: Copy + std::fmt::Debug + Send + Sync + 'static {
    /// The label's name in the exposition.
    const NAME: &'static str;
    /// All values, in the order of [`Label::index`].
    const ALL: &'static [Self];

    /// The position of this value in [`Label::ALL`].
    fn index(self) -> usize;
    /// The value as it stands in the exposition.
    fn as_str(self) -> &'static str;
    /// What it says: the value's doc comment.
    fn meaning(self) -> &'static str;
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident = $label:literal { $(#[doc = $meaning:literal] $variant:ident = $value:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $(#[doc = $meaning] $variant),+ }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn index(self) -> usize { self as usize }
            fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $value),+ }
            }
            fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning.trim_ascii()),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

label! {
    /// What a message between peers asks for.
    MessageType = "type" {
        /// Read a value.
        Get = "get",
        /// Write a value.
        Put = "put",
        /// Remove a value.
        Delete = "delete",
        /// Echo a payload.
        Ping = "ping",
        /// Make a metrics page.
        Scrape = "scrape",
    }
}

label! {
    /// The type of a message that could not be handled, as far as it can be told.
    FailedMessage = "type" {
        /// Read a value.
        Get = "get",
        /// Write a value.
        Put = "put",
        /// Remove a value.
        Delete = "delete",
        /// Echo a payload.
        Ping = "ping",
        /// Make a metrics page.
        Scrape = "scrape",
        /// Malformed, or of a type that this version does not know.
        Unknown = "unknown",
    }
}

impl From<MessageType> for FailedMessage {
    fn from(kind: MessageType) -> Self {
        match kind {
            MessageType::Get => Self::Get,
            MessageType::Put => Self::Put,
            MessageType::Delete => Self::Delete,
            MessageType::Ping => Self::Ping,
            MessageType::Scrape => Self::Scrape,
        }
    }
}

label! {
    /// Why a message could not be handled.
    FailureReason = "reason" {
        /// The access rules do not allow it.
        Refused = "refused",
        /// It could not be decoded, or asks for something unknown.
        Malformed = "malformed",
        /// Its key, value or frame is over a limit.
        TooLarge = "too_large",
        /// Too many requests of this peer are in flight.
        Busy = "busy",
        /// It was not done in time.
        Timeout = "timeout",
        /// The storage backend failed.
        Storage = "storage",
        /// A metrics page could not be made, or an exporter's could not be fetched.
        Failed = "failed",
        /// The link was lost, or the agent was stopping, before it could be answered.
        Cancelled = "cancelled",
    }
}

label! {
    /// Why a request of our own to a peer failed.
    SendFailure = "reason" {
        /// The peer is not connected and could not be reached, or speaks no link.
        Unreachable = "unreachable",
        /// Too many requests to this peer are waiting.
        Busy = "busy",
        /// The peer did not answer in time.
        Timeout = "timeout",
        /// The link was lost before the answer came.
        LinkLost = "link_lost",
        /// The request is larger than the peer takes.
        TooLarge = "too_large",
        /// The peer answered with an error.
        Remote = "remote",
    }
}

label! {
    /// What is done to the store.
    Operation = "operation" {
        /// Read a value.
        Get = "get",
        /// Write a value.
        Put = "put",
        /// Remove a value.
        Delete = "delete",
    }
}

label! {
    /// Which store it is done to.
    Backend = "backend" {
        /// The embedded redb file.
        Local = "local",
        /// A Redis server or cluster.
        Redis = "redis",
    }
}

label! {
    /// Why a storage operation failed.
    StorageErrorReason = "reason" {
        /// The key or the value is over its limit, or the key is empty.
        Invalid = "invalid",
        /// The queue to the backend is full.
        Busy = "busy",
        /// The disk is full.
        DiskFull = "disk_full",
        /// The backend cannot be reached.
        Unavailable = "unavailable",
        /// The backend did not answer in time.
        Timeout = "timeout",
        /// What the embedded store's disk holds is not what was put.
        Damaged = "damaged",
        /// The backend answered with an error.
        Backend = "backend",
        /// The caller went away before the operation was done.
        Cancelled = "cancelled",
    }
}

label! {
    /// A part of the agent that can be ready or not.
    Component = "component" {
        /// The storage backend.
        Storage = "storage",
        /// The listeners for peers.
        Network = "network",
        /// The metrics endpoint.
        Metrics = "metrics",
        /// The threads that everything else runs on.
        Runtime = "runtime",
    }
}

label! {
    /// Which page of the HTTP endpoint was asked for.
    HttpHandler = "handler" {
        /// The metrics page, wherever the configuration puts it.
        Metrics = "metrics",
        /// `/live`
        Live = "live",
        /// `/ready`
        Ready = "ready",
        /// `/`
        Index = "index",
        /// `/sd` and the pages of peers, on a gateway.
        Gateway = "gateway",
        /// Every other path.
        Other = "other",
    }
}

label! {
    /// The status code of an HTTP answer.
    HttpCode = "code" {
        /// OK
        Ok = "200",
        /// Forbidden
        Forbidden = "403",
        /// Not found
        NotFound = "404",
        /// Method not allowed
        MethodNotAllowed = "405",
        /// Internal server error
        InternalServerError = "500",
        /// Bad gateway
        BadGateway = "502",
        /// Service unavailable
        ServiceUnavailable = "503",
        /// Gateway timeout
        GatewayTimeout = "504",
    }
}

label! {
    /// What became of a scrape through the gateway.
    ScrapeOutcome = "outcome" {
        /// The peer's page was passed on.
        Ok = "ok",
        /// The gateway knows no such peer, or the peer no such exporter (404).
        NotFound = "not_found",
        /// The peer does not allow this gateway to scrape it (403).
        Refused = "refused",
        /// The peer is not connected (502).
        Disconnected = "disconnected",
        /// The connection was lost before the page was complete (502).
        Lost = "lost",
        /// The page is not what its content type says (502).
        Invalid = "invalid",
        /// The page is over a size limit (502).
        TooLarge = "too_large",
        /// The peer answered that it could not make or fetch the page (502).
        Failed = "failed",
        /// Too many scrapes were under way, here or at the peer (503).
        Busy = "busy",
        /// The page was not complete within the scraper's time (504).
        Timeout = "timeout",
        /// The scraper went away before it was answered.
        Cancelled = "cancelled",
    }
}

label! {
    /// How a gateway stands with a peer.
    PeerState = "state" {
        /// Connected, and it lets the gateway scrape it.
        Connected = "connected",
        /// Connected, but it does not let the gateway scrape it.
        Refusing = "refusing",
        /// Not connected, and still a target: it left less than the grace period ago, or the configuration names it.
        Departed = "departed",
        /// Connected and willing, but no target yet: newcomers are admitted so many a second, up to a limit.
        Waiting = "waiting",
    }
}

/// The table of all label values, as `docs/metrics.md` has it.
pub fn markdown() -> String {
    let mut out = String::from("| families | label | value | meaning |\n| --- | --- | --- | --- |\n");
    rows::<MessageType>("`messages_*`, `message_*`", &mut out);
    rows::<FailedMessage>("`messages_failed_total`", &mut out);
    rows::<FailureReason>("`messages_failed_total`", &mut out);
    rows::<SendFailure>("`messages_send_failures_total`", &mut out);
    rows::<Operation>("`storage_operation*`", &mut out);
    rows::<Backend>("`storage_operation*`", &mut out);
    rows::<StorageErrorReason>("`storage_operation_errors_total`", &mut out);
    rows::<Component>("`agent_component_ready`", &mut out);
    rows::<HttpHandler>("`http_*`", &mut out);
    rows::<HttpCode>("`http_requests_total`", &mut out);
    rows::<ScrapeOutcome>("`gateway_scrapes_total`", &mut out);
    rows::<PeerState>("`gateway_peers`", &mut out);
    out
}

fn rows<L: Label>(families: &str, out: &mut String) {
    for value in L::ALL {
        let _infallible = writeln!(
            out,
            "| {families} | `{}` | `{}` | {} |",
            L::NAME,
            value.as_str(),
            value.meaning().trim_end_matches('.')
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consistent<L: Label + std::fmt::Debug>() {
        for (position, value) in L::ALL.iter().enumerate() {
            assert_eq!(value.index(), position, "{value:?}");
            assert!(!value.as_str().is_empty());
        }
        let mut names: Vec<_> = L::ALL.iter().map(|v| v.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), L::ALL.len(), "two values of one name");
    }

    #[test]
    fn every_label_counts_its_values_in_order() {
        consistent::<MessageType>();
        consistent::<FailedMessage>();
        consistent::<FailureReason>();
        consistent::<SendFailure>();
        consistent::<Operation>();
        consistent::<Backend>();
        consistent::<StorageErrorReason>();
        consistent::<Component>();
        consistent::<HttpHandler>();
        consistent::<HttpCode>();
        consistent::<ScrapeOutcome>();
        consistent::<PeerState>();
    }
}
