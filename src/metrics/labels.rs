//! The label values. Every label is an enum, so the number of series is fixed at compile time, and nothing
//! that a remote peer sends can become a label value.

use std::fmt::Write as _;

/// A label whose values are known at compile time.
pub trait Label: Copy + std::fmt::Debug + Send + Sync + 'static {
    /// The label's name on the page.
    const NAME: &'static str;
    /// All values, in the order of [`Label::index`].
    const ALL: &'static [Self];

    /// The position of this value in [`Label::ALL`].
    fn index(self) -> usize;
    /// The value as it appears on the page.
    fn as_str(self) -> &'static str;
    /// What it means: the value's doc comment.
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

/// `MessageType`, and `FailedMessage`, which adds `unknown`.
macro_rules! message_types {
    ($(#[doc = $meaning:literal] $variant:ident = $value:literal),+ $(,)?) => {
        label! {
            /// What a message between peers asks for.
            MessageType = "type" { $(#[doc = $meaning] $variant = $value),+ }
        }
        label! {
            /// The type of a message that could not be handled, as far as it is known.
            FailedMessage = "type" {
                $(#[doc = $meaning] $variant = $value),+,
                /// Malformed, or of a type that this version does not know.
                Unknown = "unknown",
            }
        }
        impl From<MessageType> for FailedMessage {
            fn from(kind: MessageType) -> Self {
                match kind { $(MessageType::$variant => Self::$variant),+ }
            }
        }
    };
}

message_types! {
    /// Read a value.
    Get = "get",
    /// Write a value.
    Put = "put",
    /// Remove a value.
    Delete = "delete",
    /// Echo a payload.
    Ping = "ping",
    /// Return a metrics page.
    Scrape = "scrape",
}

label! {
    /// Why a message could not be handled.
    FailureReason = "reason" {
        /// The access rules do not allow it.
        Refused = "refused",
        /// It could not be decoded, or it requests something unknown.
        Malformed = "malformed",
        /// Its key, value or frame is over a limit.
        TooLarge = "too_large",
        /// Too many requests from this peer are in flight.
        Busy = "busy",
        /// It was not completed in time.
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
    /// Why a request from this agent to a peer failed.
    SendFailure = "reason" {
        /// The peer is not connected and could not be reached, or does not support links.
        Unreachable = "unreachable",
        /// Too many requests to this peer are waiting.
        Busy = "busy",
        /// The peer did not answer in time.
        Timeout = "timeout",
        /// The link was lost before the response arrived.
        LinkLost = "link_lost",
        /// The request is larger than the peer accepts.
        TooLarge = "too_large",
        /// The peer answered with an error.
        Remote = "remote",
    }
}

label! {
    /// The type of a storage operation.
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
    /// The storage backend of an operation.
    Backend = "backend" {
        /// The embedded store.
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
        /// The data of the embedded store is damaged on disk.
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
    /// Which page of the HTTP endpoint was requested.
    HttpHandler = "handler" {
        /// The metrics page, whatever its configured path.
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
    /// The status code of an HTTP response.
    HttpCode = "code" {
        /// OK
        Ok = "200",
        /// Unauthorized: the password is wrong or missing
        Unauthorized = "401",
        /// Forbidden
        Forbidden = "403",
        /// Not found
        NotFound = "404",
        /// Method not allowed
        MethodNotAllowed = "405",
        /// Misdirected request: meant for another server
        Misdirected = "421",
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
    /// The outcome of a scrape through the gateway.
    ScrapeOutcome = "outcome" {
        /// The peer's page was passed on.
        Ok = "ok",
        /// The gateway does not know the peer, or the peer does not know the exporter (404).
        NotFound = "not_found",
        /// The peer does not allow this gateway to scrape it (403).
        Refused = "refused",
        /// The peer is not connected (502).
        Disconnected = "disconnected",
        /// The connection was lost before the page was complete (502).
        Lost = "lost",
        /// The answer is malformed, or compressed although the scraper does not accept gzip (502).
        Invalid = "invalid",
        /// The page is over a size limit (502).
        TooLarge = "too_large",
        /// The peer answered that it could not make or fetch the page (502).
        Failed = "failed",
        /// Too many scrapes were in progress at this gateway (503).
        Busy = "busy",
        /// The page was not complete within the scraper's timeout (504).
        Timeout = "timeout",
        /// The scraper disconnected before it was answered.
        Cancelled = "cancelled",
    }
}

label! {
    /// The state of a peer, as seen by a gateway.
    PeerState = "state" {
        /// Connected, and it allows the gateway to scrape it.
        Connected = "connected",
        /// Connected, but it does not allow the gateway to scrape it.
        Refusing = "refusing",
        /// Not connected, but still a target: it left less than the grace period ago, or the configuration names it.
        Departed = "departed",
        /// Connected and willing, but not a target yet: new peers are admitted at a limited rate, up to a limit.
        Waiting = "waiting",
    }
}

label! {
    /// Why a peer's connection is refused.
    ConnectionRefusal = "reason" {
        /// The limit of network.max_peers is reached.
        Full = "full",
        /// The peer is not in network.allow_peers.
        NotAllowed = "not_allowed",
        /// Too many connections, of all peers or of this one.
        TooManyConnections = "too_many_connections",
        /// The agent is stopping.
        Stopping = "stopping",
    }
}

label! {
    /// How it stands with a peer that the agent stays connected to.
    Contact = "state" {
        /// Connected.
        Connected = "connected",
        /// Being dialed, or waiting for the next attempt, without a failure so far.
        Dialing = "dialing",
        /// Its name was not found.
        NameNotFound = "name_not_found",
        /// This machine has no route to it.
        NoRoute = "no_route",
        /// Nothing listens at its address.
        Refused = "refused",
        /// Nothing answers at its address.
        TimedOut = "timed_out",
        /// Another peer answers at its address.
        WrongIdentity = "wrong_identity",
        /// What answers does not speak libp2p, or has another pre-shared key.
        NoCommonLanguage = "no_common_language",
        /// It closes the connection at once: it is full, or does not allow this agent.
        TurnedAway = "turned_away",
        /// It speaks another version of the protocol.
        OtherVersion = "other_version",
        /// It is not a Peerscope.
        NotPeerscope = "not_peerscope",
        /// It was connected, and has not come back yet.
        Lost = "lost",
        /// Anything else.
        Other = "other",
    }
}

/// The table of all label values in `docs/metrics.md`.
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
    rows::<Contact>("`agent_bootstrap_peers`", &mut out);
    rows::<ConnectionRefusal>("`agent_connections_refused_total`", &mut out);
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
        assert_eq!(names.len(), L::ALL.len(), "two values with the same name");
    }

    #[test]
    fn every_label_numbers_its_values_in_order() {
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
        consistent::<Contact>();
        consistent::<ConnectionRefusal>();
    }
}
