//! Why a peer is not connected.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use libp2p::swarm::DialError;
use libp2p::{Multiaddr, PeerId, noise};

use super::names::NamesError;
use crate::metrics::labels::Contact;

/// How it stands with a peer that the agent stays connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerContact {
    /// The peer.
    pub peer: PeerId,
    /// The addresses that are dialed.
    pub addresses: Vec<Multiaddr>,
    /// Whether it was found on the local network, not configured.
    pub found: bool,
    /// How it stands.
    pub state: Contact,
    /// What happened, if it is not connected.
    pub problem: Option<Problem>,
    /// How long until it is dialed again; `None` while it is connected or being dialed.
    pub next_dial: Option<Duration>,
}

/// Why a peer could not be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The kind of problem.
    pub reason: Contact,
    /// What happened, with the address.
    pub text: String,
    /// Since when it is this problem.
    pub since: Instant,
}

impl Contact {
    /// What the operator can do about it; empty if there is nothing to do.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Connected | Self::Dialing => "",
            Self::NameNotFound => "check the name, and whether this machine has a name server that answers",
            Self::NoRoute => "check this machine's network and routes",
            Self::Refused => "nothing listens there; check that the peer is running, and its port",
            Self::TimedOut => {
                "nothing answers; check that the peer is running and that no firewall drops the packets (if only large \
                 ones are dropped, net.ipv4.tcp_mtu_probing=1 helps)"
            }
            Self::WrongIdentity => {
                "another peer has this address; if that is meant, correct the PeerId in network.bootstrap (`peerscope \
                 id` prints it there)"
            }
            Self::NoCommonLanguage => {
                "it does not speak libp2p, or one side has no pre-shared key or another one (network.psk_file)"
            }
            Self::TurnedAway => {
                "it closes the connection at once: it is full (its network.max_peers), or does not allow this agent \
                 (its network.allow_peers)"
            }
            Self::OtherVersion => "it speaks another version of Peerscope's protocol; upgrade the older of the two",
            Self::NotPeerscope => "it speaks libp2p, but is not a Peerscope; check the address",
            Self::Lost => "it left, or the path to it is interrupted",
            Self::Other => "see what happened",
        }
    }
}

/// Why a dial failed: its kind, and what happened in one line.
pub(super) fn dial_problem(error: &DialError) -> (Contact, String) {
    match error {
        DialError::Transport(attempts) => {
            let reasons = attempts.iter().map(|(_, error)| reason_of(error));
            let texts = attempts.iter().map(|(address, error)| format!("{address}: {}", innermost(error)));
            (most_telling(reasons), texts.collect::<Vec<_>>().join("; "))
        }
        DialError::WrongPeerId { obtained, address } => {
            (Contact::WrongIdentity, format!("{address}: the peer there is {obtained}"))
        }
        DialError::Denied { cause } => (Contact::Other, innermost(cause)),
        error => (Contact::Other, innermost(error)),
    }
}

/// Of several attempts, the one that got furthest says most.
fn most_telling(reasons: impl Iterator<Item = Contact>) -> Contact {
    let rank = |reason: &Contact| match reason {
        Contact::WrongIdentity => 6,
        Contact::NoCommonLanguage => 5,
        Contact::Refused => 4,
        Contact::TimedOut => 3,
        Contact::NoRoute => 2,
        Contact::NameNotFound => 1,
        _ => 0,
    };
    reasons.max_by_key(rank).unwrap_or(Contact::Other)
}

/// How long TCP may take to be established with one address.
pub(super) const TCP_CONNECT: Duration = Duration::from_secs(7);

/// How the error begins if it takes longer.
const NO_ANSWER: &str = "no answer within";

/// The error of a TCP connection that was not established in time.
pub(super) fn no_answer() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("{NO_ANSWER} {TCP_CONNECT:?}"))
}

/// The kind of a transport's error, which libp2p wraps many times.
pub(super) fn reason_of(error: &(dyn Error + 'static)) -> Contact {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(names) = error.downcast_ref::<NamesError<io::Error>>() {
            match names {
                NamesError::NotFound { .. } => return Contact::NameNotFound,
                NamesError::All(failures) => return most_telling(failures.iter().map(|failure| failure.reason)),
                NamesError::Below(below) => {
                    next = Some(below);
                    continue;
                }
                NamesError::Unsupported(_) | NamesError::Dnsaddr(_) => return Contact::Other,
            }
        }
        if error.is::<noise::Error>() {
            return Contact::NoCommonLanguage;
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if let Some(reason) = of_kind(io.kind()) {
                return reason;
            }
            if let Some(inner) = io.get_ref() {
                next = Some(inner);
                continue;
            }
        }
        match error.source() {
            Some(source) => next = Some(source),
            // libp2p's own timeouts and negotiations have types that depend on the whole transport.
            None => return of_text(&error.to_string()),
        }
    }
    Contact::Other
}

fn of_kind(kind: ErrorKind) -> Option<Contact> {
    Some(match kind {
        ErrorKind::ConnectionRefused => Contact::Refused,
        ErrorKind::TimedOut => Contact::TimedOut,
        ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown
        | ErrorKind::AddrNotAvailable => Contact::NoRoute,
        // Only after TCP is established.
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof
        | ErrorKind::InvalidData => Contact::NoCommonLanguage,
        _ => return None,
    })
}

/// Some of libp2p's wrappers show the innermost error without giving access to it.
fn of_text(text: &str) -> Contact {
    let of_system = text.split_once("(os error ").and_then(|(_, rest)| rest.split_once(')')?.0.parse().ok());
    if let Some(reason) = of_system.and_then(|code| of_kind(io::Error::from_raw_os_error(code).kind())) {
        return reason;
    }
    let text = text.to_lowercase();
    if text.contains(NO_ANSWER) {
        Contact::TimedOut
    } else if ["timeout", "negotiat", "protocol", "handshake", "frame", "eof"].iter().any(|word| text.contains(word)) {
        // libp2p's own timeout is that of the handshakes: TCP has been established by then.
        Contact::NoCommonLanguage
    } else {
        Contact::Other
    }
}

/// The last cause in the chain: libp2p wraps errors many times, and only the innermost one is useful to people.
pub(super) fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_found_however_deep_it_is_wrapped() {
        let deep = |error: io::Error| io::Error::other(io::Error::other(error));
        for (error, reason) in [
            (io::Error::from_raw_os_error(111), Contact::Refused),
            (io::Error::from_raw_os_error(101), Contact::NoRoute),
            (io::Error::from_raw_os_error(113), Contact::NoRoute),
            (io::Error::from_raw_os_error(110), Contact::TimedOut),
            (io::Error::from_raw_os_error(104), Contact::NoCommonLanguage),
            (io::Error::other("Connection refused (os error 111)"), Contact::Refused),
            (no_answer(), Contact::TimedOut),
            (io::Error::other("Timeout has been reached"), Contact::NoCommonLanguage),
            (io::Error::other("something"), Contact::Other),
        ] {
            let text = error.to_string();
            assert_eq!(reason_of(&deep(error)), reason, "{text}");
        }
        let all = [Contact::TimedOut, Contact::NoCommonLanguage, Contact::NoRoute];
        assert_eq!(most_telling(all.into_iter()), Contact::NoCommonLanguage);
    }

    #[test]
    fn there_is_advice_for_every_problem() {
        use crate::metrics::labels::Label as _;
        for state in Contact::ALL {
            let is_fine = matches!(state, Contact::Connected | Contact::Dialing);
            assert_eq!(state.advice().is_empty(), is_fine, "{state}");
        }
    }
}
