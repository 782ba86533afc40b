//! The peers of a gateway, as state shared by the network, the scraper and the control API.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::failure::ScrapeFailure;
use super::members::{LastScrape, Member, Members, Standing, Took};
use super::{Config, known};
use crate::metrics::GatewayMetrics;
use crate::metrics::labels::{Label as _, PeerState, ScrapeOutcome};
use crate::network::PeerInfo;

/// The shortest time between two writes of the known peers: peers that come and go must not keep the disk busy.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// How often newcomers are admitted and departed peers forgotten.
const TICK: Duration = Duration::from_secs(1);

/// Admits and forgets peers of a fleet as time passes, and saves what the next run needs, until it is dropped.
pub async fn keep(fleet: Arc<Fleet>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next_save = Instant::now();
    // One at a time, and in the background: a disk that hangs must not keep newcomers out.
    let mut saving = JoinSet::new();
    loop {
        ticks.tick().await;
        fleet.change(|members| members.tick(Instant::now()));
        while saving.try_join_next().is_some() {}
        if saving.is_empty() && Instant::now() >= next_save {
            next_save = Instant::now() + SAVE_EVERY;
            let fleet = Arc::clone(&fleet);
            saving.spawn_blocking(move || fleet.save());
        }
    }
}

/// The peers of one gateway.
#[derive(Debug)]
pub struct Fleet {
    // Held for one read or change, never across an await.
    members: Mutex<Members>,
    metrics: GatewayMetrics,
    local: PeerId,
    /// The file of known peers.
    file: PathBuf,
    /// Held while that file is written.
    saving: Mutex<()>,
}

impl Fleet {
    /// Starts with the peers that the configuration names and those that an earlier run on this data directory knew.
    /// `local` is the gateway's own PeerId.
    pub fn open(config: &Config, local: PeerId, metrics: GatewayMetrics, data_dir: &Path) -> Self {
        let file = known::file(data_dir);
        let fleet = Self {
            members: Mutex::new(Members::new(config, Instant::now())),
            metrics,
            local,
            file,
            saving: Mutex::default(),
        };
        fleet.change(|members| members.restore(known::load(&fleet.file), Instant::now()));
        fleet
    }

    /// Takes over another configuration. Peers that are connected have to be reported again.
    pub fn configure(&self, config: &Config) {
        self.change(|members| members.configure(config, Instant::now()));
    }

    /// Writes what the next run needs, if it has changed. Blocks on the disk.
    pub fn save(&self) {
        // The background save and the one at the end may meet.
        let _one_at_a_time = self.saving.lock();
        let Some(known) = self.members.lock().take_changed() else { return };
        if let Err(error) = known::save(&self.file, &known) {
            tracing::warn!("cannot write the known peers to {}: {error}; trying again", self.file.display());
            self.members.lock().set_changed();
        }
    }

    /// A link to a peer is up, or something new is known about it.
    pub fn up(&self, info: &PeerInfo) {
        self.change(|members| members.up(info, Instant::now()));
    }

    /// The last connection to a peer is gone.
    pub fn down(&self, peer: &PeerId, cause: &str) {
        self.change(|members| members.down(peer, cause, Instant::now()));
    }

    /// The peers that the configuration names.
    pub fn named(&self) -> Vec<PeerId> {
        self.members.lock().iter().filter(|(_, member)| member.named).map(|(peer, _)| *peer).collect()
    }

    /// All known peers, ordered by PeerId.
    pub fn members(&self) -> Vec<(PeerId, Member)> {
        self.members.lock().iter().map(|(peer, member)| (*peer, member.clone())).collect()
    }

    /// The peers that are targets, or how much longer the gateway waits for peers to connect.
    pub(super) fn targets(&self) -> Result<Vec<(PeerId, Member)>, Duration> {
        let members = self.members.lock();
        match members.settling(Instant::now()) {
            Some(left) => Err(left),
            // Copied, so that the lock is not held while the list is encoded.
            None => {
                let targets = members.iter().filter(|(_, member)| member.admitted);
                Ok(targets.map(|(peer, member)| (*peer, member.clone())).collect())
            }
        }
    }

    /// Why `peer` cannot be scraped now.
    pub fn problem(&self, peer: &PeerId) -> Option<String> {
        self.check(peer, None).err().map(|failure| failure.text)
    }

    /// Checks that `peer` can be asked for its page, or for the page of the exporter behind it; the error says why not.
    pub(super) fn check(&self, peer: &PeerId, exposed: Option<&str>) -> Result<(), ScrapeFailure> {
        let members = self.members.lock();
        let Some(member) = members.get(peer) else {
            let text = if members.takes_any() {
                "this gateway does not know this peer: it has never connected, or left too long ago; `peerscope peers` \
                 lists the known peers"
            } else {
                "gateway.peers does not name this peer"
            };
            return Err(ScrapeFailure::new(ScrapeOutcome::NotFound, text));
        };
        match &member.standing {
            Standing::Unseen => Err(ScrapeFailure::new(
                ScrapeOutcome::Disconnected,
                "the peer has not connected since the gateway started",
            )),
            Standing::Departed { since, cause } => {
                let text = format!("the peer is not connected; it left {} ago ({cause})", shown(since.elapsed()));
                Err(ScrapeFailure::new(ScrapeOutcome::Disconnected, text))
            }
            Standing::Refusing { .. } => {
                let text = format!(
                    "the peer does not allow this gateway to scrape it; its configuration needs \
                     access: [{{peer: {}, allow: [scrape]}}]",
                    self.local
                );
                Err(ScrapeFailure::new(ScrapeOutcome::Refused, text))
            }
            Standing::Connected { .. } if !member.admitted => {
                let text =
                    "the peer is not a target yet: new peers are admitted at a limited rate, up to gateway.max_peers";
                Err(ScrapeFailure::new(ScrapeOutcome::NotFound, text))
            }
            Standing::Connected { .. } => match exposed {
                Some(name) if !member.exposed.iter().any(|exposed| exposed == name) => Err(ScrapeFailure::new(
                    ScrapeOutcome::NotFound,
                    format!("the peer exposes no exporter named `{name}`"),
                )),
                _ => Ok(()),
            },
        }
    }

    /// Whether this page was slow when it was last asked for, or has never been asked for.
    pub(super) fn is_slow(&self, peer: &PeerId, exposed: Option<&str>) -> bool {
        self.members.lock().get(peer).is_none_or(|member| member.is_slow(exposed))
    }

    /// Records the result of a scrape of `peer`.
    pub(super) fn scraped(&self, peer: &PeerId, exposed: Option<&str>, took: Option<Took>, last: LastScrape) {
        self.members.lock().scraped(peer, exposed, took, last);
    }

    fn change(&self, change: impl FnOnce(&mut Members)) {
        let mut members = self.members.lock();
        change(&mut members);
        for &state in PeerState::ALL {
            self.metrics.set_peers(state, members.count(state));
        }
    }
}

/// A duration for people, to the second.
pub(super) fn shown(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}
