//! The limit on open files. Each connection uses one, and the soft limit on most systems (1024, for programs that use
//! `select`) is too low for the default number of peers.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::network;

/// Raises the soft limit on open files to the hard one. Warns if that may still be too low for the peers and, on a
/// gateway, for the `clients` that may wait for pages of peers; the network then accepts fewer peers.
pub(super) fn raise(network: &network::Config, clients: u32) {
    let found = getrlimit(Resource::Nofile);
    let mut limit = found;
    if let Some(raised) = raised(found) {
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => {
                limit = raised;
                tracing::debug!("Limit on open files raised from {} to {}", shown(found), shown(raised));
            }
            Err(error) => tracing::debug!(%error, "cannot raise the limit on open files from {}", shown(found)),
        }
    }
    let max_peers = network.max_peers;
    let need = need(network) + u64::from(clients);
    if limit.current.is_some_and(|limit| limit < need) {
        tracing::warn!(
            "the limit on open files is {}, but network.max_peers {max_peers} may need {need}: raise it with \
             LimitNOFILE={need} in the systemd unit or with `ulimit -n {need}`, or lower network.max_peers",
            shown(limit)
        );
    }
}

/// The descriptors that the network may use, and those that it leaves free (network/behaviour.rs). There may be twice
/// as many connections as peers.
fn need(network: &network::Config) -> u64 {
    u64::from(network.max_peers) * 2 + u64::from(network::HANDSHAKES) + u64::from(network.beside_peers)
}

/// The limit to set, or `None` if it cannot be raised. `None` within a limit means unlimited.
fn raised(found: Rlimit) -> Option<Rlimit> {
    let room = match (found.current, found.maximum) {
        (Some(soft), Some(hard)) => soft < hard,
        (Some(_), None) => true,
        (None, _) => false,
    };
    room.then_some(Rlimit { current: found.maximum, ..found })
}

fn shown(limit: Rlimit) -> String {
    limit.current.map_or_else(|| "unlimited".into(), |limit| limit.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = |current, maximum| Rlimit { current, maximum };
        assert_eq!(raised(limit(Some(1024), Some(4096))), Some(limit(Some(4096), Some(4096))));
        assert_eq!(raised(limit(Some(1024), None)), Some(limit(None, None)));
        for enough in [limit(Some(4096), Some(4096)), limit(None, None)] {
            assert_eq!(raised(enough), None);
        }
    }

    #[test]
    fn the_need_grows_with_the_number_of_peers() {
        let need = |max_peers| super::need(&network::Config { max_peers, ..network::Config::default() });
        assert_eq!((need(1024), need(u32::MAX)), (2816, 8_589_935_358));
    }
}
