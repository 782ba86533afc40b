//! How many files the agent may have open. Each connection is one, and the soft limit that most systems start with
//! (1024, for programs that use `select`) is less than the default number of peers needs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::network;

/// Raises the soft limit of open files to the hard one, and warns when that may still be too low for the peers and, on a
/// gateway, the `clients` that may wait for pages of peers. The network then takes fewer of them.
pub(super) fn raise(network: &network::Config, clients: u32) {
    let found = getrlimit(Resource::Nofile);
    let mut limit = found;
    if let Some(raised) = raised(found) {
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => {
                limit = raised;
                tracing::debug!("Limit of open files raised from {} to {}", shown(found), shown(raised));
            }
            Err(error) => tracing::debug!(%error, "cannot raise the limit of open files from {}", shown(found)),
        }
    }
    let max_peers = network.max_peers;
    let need = need(network) + u64::from(clients);
    if limit.current.is_some_and(|limit| limit < need) {
        tracing::warn!(
            "the limit of open files is {}, and network.max_peers {max_peers} may need {need}: raise it by \
             LimitNOFILE={need} in the systemd unit or by `ulimit -n {need}`, or lower network.max_peers",
            shown(limit)
        );
    }
}

/// What the network may use, and what it leaves (network/behaviour.rs): twice the peers is how many connections there may
/// be in all.
fn need(network: &network::Config) -> u64 {
    u64::from(network.max_peers) * 2 + u64::from(network::HANDSHAKES) + u64::from(network.beside_peers)
}

/// The limit to set, when there is room for a higher one. `None` in a limit is no limit.
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
    fn the_need_follows_the_peers() {
        let need = |max_peers| super::need(&network::Config { max_peers, ..network::Config::default() });
        assert_eq!((need(1024), need(u32::MAX)), (2816, 8_589_935_358));
    }
}
