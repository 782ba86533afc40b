//! Logs which peers' connections are refused, and why, without a line for each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::allow_block_list::NotAllowed;
use libp2p::swarm::ConnectionDenied;
use libp2p::{Multiaddr, PeerId};

use super::link::Denied;
use crate::metrics::labels::{ConnectionRefusal, Label as _};

/// How often a summary is logged.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// How many peers a summary names.
const MAX_NAMED: usize = 5;

/// The refusals since the last summary.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    counts: BTreeMap<&'static str, u64>,
    who: Vec<(PeerId, Multiaddr)>,
    logged: Option<Instant>,
}

impl Refusals {
    /// Notes one. Returns the summary if it is time for one: the first refusal at once, then once a minute.
    pub(super) fn note(
        &mut self,
        reason: ConnectionRefusal,
        peer: PeerId,
        address: Multiaddr,
        now: Instant,
    ) -> Option<String> {
        *self.counts.entry(reason.as_str()).or_default() += 1;
        if self.who.len() < MAX_NAMED && self.who.iter().all(|(known, _)| *known != peer) {
            self.who.push((peer, address));
        }
        if self.logged.is_some_and(|logged| now.saturating_duration_since(logged) < SUMMARY_EVERY) {
            return None;
        }
        self.logged = Some(now);
        let counts = std::mem::take(&mut self.counts);
        let counts: Vec<_> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let who: Vec<_> = std::mem::take(&mut self.who).iter().map(|(peer, at)| format!("{peer} ({at})")).collect();
        Some(format!("{}; among them {}", counts.join(", "), who.join(", ")))
    }
}

/// Why a connection was refused; `None` for reasons that concern no peer in particular.
pub(super) fn reason(denied: ConnectionDenied) -> Option<ConnectionRefusal> {
    let denied = match denied.downcast::<NotAllowed>() {
        Ok(_) => return Some(ConnectionRefusal::NotAllowed),
        Err(denied) => denied,
    };
    Some(match denied.downcast::<Denied>().ok()? {
        Denied::TooManyPeers(_) => ConnectionRefusal::Full,
        Denied::TooManyConnections(_) => ConnectionRefusal::TooManyConnections,
        Denied::ShuttingDown => ConnectionRefusal::Stopping,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refusal_is_told_at_once_and_then_a_summary_each_minute() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let address: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
        let mut refuse =
            |reason, peer, after| refusals.note(reason, peer, address.clone(), start + Duration::from_secs(after));
        let first = PeerId::random();
        let said = refuse(ConnectionRefusal::Full, first, 0).unwrap();
        assert_eq!(said, format!("1 full; among them {first} (/ip4/192.0.2.1/tcp/1)"));
        for second in 1..60 {
            assert_eq!(refuse(ConnectionRefusal::Full, PeerId::random(), second), None);
        }
        let said = refuse(ConnectionRefusal::NotAllowed, first, 60).unwrap();
        assert!(said.starts_with("59 full, 1 not_allowed; among them "), "{said}");
        assert_eq!(said.matches(" (/ip4/").count(), MAX_NAMED);
    }
}
