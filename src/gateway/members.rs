//! Which peers a gateway offers: a state machine without IO, driven by events and the current time.
//!
//! A peer that the configuration names is always a target. If `gateway.peers` is `any`, a peer becomes a target when
//! it allows the gateway to scrape it. Newcomers are admitted at a limited rate and up to a limit, so that a flood of
//! them neither becomes a flood of targets nor displaces existing ones. A peer that leaves stays a target for a grace
//! period, so that an alert on `up == 0` can fire.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use libp2p::PeerId;

use super::known::Known;
use super::{Config, PeerList};
use crate::metrics::labels::{Label, PeerState, ScrapeOutcome};
use crate::network::{Direction, PeerIdText, PeerInfo};

/// How many newcomers become targets per second, once the burst is used up.
const NEWCOMERS_PER_SECOND: f64 = 50.0;
/// How many newcomers may become targets at once.
const NEWCOMERS_AT_ONCE: f64 = 1000.0;
/// How long a page may take and still count as prompt the next time.
pub(super) const PROMPT: Duration = Duration::from_secs(1);
/// How much of a peer's name is shown, in characters.
const MAX_NAME: usize = 64;
/// How many exporters of one peer are offered: as many as an agent can be configured with.
const MAX_EXPOSED: usize = 16;
/// The longest name of an exporter, in bytes: the limit of an agent's configuration.
const MAX_EXPOSED_NAME: usize = 32;

/// How long the peer took to send its page, and how long it had.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    pub(super) took: Duration,
    pub(super) of: Duration,
}

/// What a gateway knows about a peer.
#[derive(Debug, Clone)]
pub struct Member {
    /// Whether the configuration names it.
    pub named: bool,
    /// Whether it is a target.
    pub admitted: bool,
    /// Its state.
    pub standing: Standing,
    /// The name that it gives itself: sanitized and truncated, but not verified.
    pub name: Option<String>,
    /// The names of the exporters behind it, sorted.
    pub exposed: Vec<String>,
    /// The address of its newest connection.
    pub address: Option<String>,
    /// Which side opened that connection.
    pub direction: Option<Direction>,
    /// The software that it claims to run.
    pub agent: Option<String>,
    /// How long it was connected in total, up to the last time it left.
    connected_for: Duration,
    /// The result of the last scrape of its own page.
    pub last: Option<LastScrape>,
    /// The pages that were prompt when last asked for: names of exporters, and `None` for the peer's own page.
    prompt: BTreeSet<Option<String>>,
}

/// The state of a peer, as seen by a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It has not connected since the gateway started.
    Unseen,
    /// It is connected and allows the gateway to scrape it.
    Connected {
        /// Since when.
        since: Instant,
    },
    /// It is connected and does not allow the gateway to scrape it.
    Refusing {
        /// Since when.
        since: Instant,
    },
    /// It left.
    Departed {
        /// Since when.
        since: Instant,
        /// Why, as far as this side can tell.
        cause: String,
    },
}

/// The result of a scrape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastScrape {
    /// When it ended.
    pub at: Instant,
    /// How long it took.
    pub duration: Duration,
    /// The size of the page as it crossed the network, in bytes; 0 if the scrape failed.
    pub bytes: usize,
    /// Its outcome.
    pub outcome: ScrapeOutcome,
    /// Why it failed.
    pub problem: Option<String>,
}

/// The peers of one gateway.
#[derive(Debug)]
pub(super) struct Members {
    peers: BTreeMap<PeerId, Member>,
    any: bool,
    max_peers: usize,
    grace: Duration,
    started: Instant,
    settle: Duration,
    index: Index,
    /// How many newcomers may become targets now.
    tokens: f64,
    tokens_at: Instant,
    /// Whether anything that is saved has changed since the last [`take_changed`](Self::take_changed).
    changed: bool,
}

impl Members {
    pub(super) fn new(config: &Config, now: Instant) -> Self {
        let named = config.peers.named().iter().map(|peer| (peer.0, Member::new(true)));
        let peers: BTreeMap<PeerId, Member> = named.collect();
        let mut index = Index::default();
        peers.iter().for_each(|(peer, member)| index.add(*peer, member));
        Self {
            peers,
            index,
            any: config.peers == PeerList::Any,
            max_peers: config.max_peers as usize,
            grace: config.grace,
            started: now,
            settle: config.settle,
            tokens: NEWCOMERS_AT_ONCE,
            tokens_at: now,
            changed: false,
        }
    }

    /// Takes over another configuration. Peers that are connected and were not known before have to be reported anew.
    pub(super) fn configure(&mut self, config: &Config, now: Instant) {
        let named: BTreeSet<PeerId> = config.peers.named().iter().map(|peer| peer.0).collect();
        self.any = config.peers == PeerList::Any;
        (self.max_peers, self.grace, self.settle) = (config.max_peers as usize, config.grace, config.settle);
        let known: Vec<PeerId> = self.peers.keys().copied().collect();
        for peer in known.into_iter().filter(|peer| !named.contains(peer)) {
            let kept = self.edit(peer, |member| {
                member.named = false;
                member.standing != Standing::Unseen
            });
            if !kept || !self.any {
                self.forget(&peer);
            }
        }
        for peer in named {
            self.edit(peer, |member| (member.named, member.admitted) = (true, true));
        }
        self.tick(now);
    }

    /// Restores what an earlier run knew. Peers that were connected then count as departed now.
    pub(super) fn restore(&mut self, known: Vec<Known>, now: Instant) {
        for known in known {
            let peer = known.peer.0;
            let is_new = !self.peers.contains_key(&peer);
            if is_new && (!self.any || self.index.admitted >= self.max_peers) {
                continue;
            }
            self.edit(peer, |member| {
                let since = now.checked_sub(known.departed_for()).unwrap_or(now);
                let cause = "before the gateway was restarted".to_owned();
                member.standing = Standing::Departed { since, cause };
                member.admitted = true;
                member.connected_for = Duration::from_secs(known.connected_seconds);
                member.name = known.name.as_deref().and_then(clean);
                member.exposed = exposed(&known.exposed);
            });
        }
        self.tick(now);
    }

    /// What the next run needs to know, if it has changed since this was last called.
    pub(super) fn take_changed(&mut self) -> Option<Vec<Known>> {
        std::mem::take(&mut self.changed).then(|| {
            let targets = self.peers.iter().filter(|(_, member)| member.admitted);
            targets.filter_map(|(peer, member)| member.known(*peer)).collect()
        })
    }

    /// Undoes [`take_changed`](Self::take_changed) after a failed save.
    pub(super) fn set_changed(&mut self) {
        self.changed = true;
    }

    /// All peers, ordered by PeerId.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&PeerId, &Member)> {
        self.peers.iter()
    }

    pub(super) fn get(&self, peer: &PeerId) -> Option<&Member> {
        self.peers.get(peer)
    }

    /// Whether peers that the configuration does not name may be targets.
    pub(super) fn takes_any(&self) -> bool {
        self.any
    }

    /// How much longer to wait for peers before the list may be served; `None` once it may.
    pub(super) fn settling(&self, now: Instant) -> Option<Duration> {
        let all_heard = !self.any && self.peers.values().all(|member| member.standing != Standing::Unseen);
        let left = (self.started + self.settle).saturating_duration_since(now);
        (!all_heard && !left.is_zero()).then_some(left)
    }

    pub(super) fn count(&self, state: PeerState) -> usize {
        self.index.counts.get(Label::index(state)).copied().unwrap_or(0)
    }

    /// A link to a peer is up, or something new is known about it.
    pub(super) fn up(&mut self, info: &PeerInfo, now: Instant) {
        if !self.any && !self.peers.contains_key(&info.peer) {
            return;
        }
        self.edit(info.peer, |member| member.up(info, now));
        self.admit(now);
    }

    /// The last connection to a peer is gone.
    pub(super) fn down(&mut self, peer: &PeerId, cause: &str, now: Instant) {
        if !self.peers.contains_key(peer) {
            return;
        }
        let admitted = self.edit(*peer, |member| {
            member.leave(now);
            member.standing = Standing::Departed { since: now, cause: cause.to_owned() };
            member.admitted
        });
        if !admitted {
            self.forget(peer);
        }
    }

    /// Records the result of a scrape of a peer's exporter, or of its own page. `took` is `None` if the peer was not
    /// asked.
    pub(super) fn scraped(&mut self, peer: &PeerId, exposed: Option<&str>, took: Option<Took>, last: LastScrape) {
        let Some(member) = self.peers.get_mut(peer) else { return };
        // Only the time counts: a peer that wants to hold places could answer successfully just before its time is up.
        // A wait for a place may have left it less than `PROMPT`, so half of what it had is a limit, too.
        match took {
            Some(Took { took, of }) if took <= PROMPT.min(of / 2) => {
                _ = member.prompt.insert(exposed.map(str::to_owned))
            }
            Some(_) => _ = member.prompt.remove(&exposed.map(str::to_owned)),
            None => {}
        }
        if exposed.is_none() {
            member.last = Some(last);
        }
    }

    /// Removes targets whose grace period is over, and admits waiting peers as far as the limits allow.
    pub(super) fn tick(&mut self, now: Instant) {
        let grace = self.grace;
        let expired = self.peers.iter().filter(|(_, member)| member.has_expired(grace, now));
        let expired: Vec<PeerId> = expired.map(|(peer, _)| *peer).collect();
        for peer in expired {
            let connected = self.edit(peer, |member| {
                member.admitted = false;
                matches!(member.standing, Standing::Refusing { .. })
            });
            if !connected {
                self.forget(&peer);
            }
        }
        self.admit(now);
    }

    fn admit(&mut self, now: Instant) {
        self.tokens += now.saturating_duration_since(self.tokens_at).as_secs_f64() * NEWCOMERS_PER_SECOND;
        self.tokens = self.tokens.min(NEWCOMERS_AT_ONCE);
        self.tokens_at = now;
        while let Some(&(_, peer)) = self.index.waiting.first() {
            if self.tokens < 1.0 || (self.index.admitted >= self.max_peers && !self.make_room()) {
                return;
            }
            self.tokens -= 1.0;
            self.edit(peer, |member| member.admitted = true);
        }
    }

    /// Forgets the departed peer that was connected for the shortest time: a peer that was only briefly connected must
    /// not keep a place for the whole grace period. Returns whether there was one.
    fn make_room(&mut self) -> bool {
        let shortest = self.index.departed.first().map(|&(_, peer)| peer);
        shortest.map(|peer| self.forget(&peer)).is_some()
    }

    /// Changes what is known about a peer, which may be new.
    fn edit<T>(&mut self, peer: PeerId, edit: impl FnOnce(&mut Member) -> T) -> T {
        let member = self.peers.entry(peer).or_insert_with(|| {
            let new = Member::new(false);
            self.index.add(peer, &new);
            new
        });
        // Only targets are saved, so that other peers may come and go without a write.
        let kept = |member: &Member| {
            member.admitted.then(|| (member.is_connected(), member.name.clone(), member.exposed.clone()))
        };
        let before = kept(member);
        self.index.remove(peer, member);
        let result = edit(member);
        self.index.add(peer, member);
        self.changed |= before != kept(member);
        result
    }

    fn forget(&mut self, peer: &PeerId) {
        if let Some(member) = self.peers.remove(peer) {
            self.index.remove(*peer, &member);
            self.changed |= member.admitted;
        }
    }
}

/// Avoids a search through all peers whenever one comes or goes.
#[derive(Debug, Default)]
struct Index {
    /// By [`PeerState`].
    counts: [usize; PeerState::ALL.len()],
    admitted: usize,
    /// The waiting peers, in order of arrival.
    waiting: BTreeSet<(Instant, PeerId)>,
    /// The departed targets that the configuration does not name, by how long they were connected.
    departed: BTreeSet<(Duration, PeerId)>,
}

impl Index {
    fn add(&mut self, peer: PeerId, member: &Member) {
        if let Some(state) = member.state()
            && let Some(count) = self.counts.get_mut(Label::index(state))
        {
            *count += 1;
        }
        self.admitted += usize::from(member.admitted);
        self.waiting.extend(member.waiting_since().map(|since| (since, peer)));
        self.departed.extend(member.gives_way().map(|connected_for| (connected_for, peer)));
    }

    fn remove(&mut self, peer: PeerId, member: &Member) {
        if let Some(state) = member.state()
            && let Some(count) = self.counts.get_mut(Label::index(state))
        {
            *count -= 1;
        }
        self.admitted -= usize::from(member.admitted);
        if let Some(since) = member.waiting_since() {
            self.waiting.remove(&(since, peer));
        }
        if let Some(connected_for) = member.gives_way() {
            self.departed.remove(&(connected_for, peer));
        }
    }
}

impl Member {
    fn new(named: bool) -> Self {
        Self {
            named,
            admitted: named,
            standing: Standing::Unseen,
            name: None,
            exposed: Vec::new(),
            address: None,
            direction: None,
            agent: None,
            connected_for: Duration::ZERO,
            last: None,
            prompt: BTreeSet::new(),
        }
    }

    /// The state under which it is counted; `None` if it is neither connected nor a target.
    pub fn state(&self) -> Option<PeerState> {
        match (&self.standing, self.admitted) {
            (Standing::Connected { .. }, true) => Some(PeerState::Connected),
            (Standing::Connected { .. }, false) => Some(PeerState::Waiting),
            (Standing::Refusing { .. }, _) => Some(PeerState::Refusing),
            (Standing::Departed { .. } | Standing::Unseen, true) => Some(PeerState::Departed),
            (Standing::Departed { .. } | Standing::Unseen, false) => None,
        }
    }

    fn up(&mut self, info: &PeerInfo, now: Instant) {
        self.address = Some(info.address.to_string());
        self.direction = Some(info.direction);
        self.agent.clone_from(&info.agent);
        match (&info.introduction, &self.standing) {
            (Some(_), Standing::Connected { .. }) | (None, Standing::Refusing { .. }) => {}
            (Some(_), _) => self.standing = Standing::Connected { since: now },
            (None, _) => {
                self.leave(now);
                self.standing = Standing::Refusing { since: now };
            }
        }
        if let Some(introduction) = &info.introduction {
            self.name = clean(&introduction.name);
            self.exposed = exposed(&introduction.exposed);
            let exposed = &self.exposed;
            self.prompt.retain(|what| what.as_ref().is_none_or(|name| exposed.contains(name)));
        }
    }

    /// Whether this page was slow when it was last asked for, or has not been asked for yet.
    pub(super) fn is_slow(&self, exposed: Option<&str>) -> bool {
        !self.prompt.iter().any(|what| what.as_deref() == exposed)
    }

    fn is_connected(&self) -> bool {
        matches!(self.standing, Standing::Connected { .. })
    }

    /// What the next run needs to know about it, if anything.
    fn known(&self, peer: PeerId) -> Option<Known> {
        let departed_at = match &self.standing {
            Standing::Unseen => return None,
            Standing::Connected { .. } => None,
            Standing::Departed { since, .. } | Standing::Refusing { since } => Some(Known::left(since.elapsed())),
        };
        let connected_now = self.connected_since().map_or(Duration::ZERO, |since| since.elapsed());
        Some(Known {
            peer: PeerIdText(peer),
            name: self.name.clone(),
            exposed: self.exposed.clone(),
            connected_seconds: self.connected_for.saturating_add(connected_now).as_secs(),
            departed_at,
        })
    }

    fn has_expired(&self, grace: Duration, now: Instant) -> bool {
        let (Standing::Departed { since, .. } | Standing::Refusing { since }) = self.standing else { return false };
        self.admitted && !self.named && now.saturating_duration_since(since) >= grace
    }

    fn waiting_since(&self) -> Option<Instant> {
        self.connected_since().filter(|_| !self.admitted)
    }

    /// How long it was connected, if its place may go to another peer.
    fn gives_way(&self) -> Option<Duration> {
        let departed = matches!(self.standing, Standing::Departed { .. });
        (departed && self.admitted && !self.named).then_some(self.connected_for)
    }

    fn connected_since(&self) -> Option<Instant> {
        match self.standing {
            Standing::Connected { since } => Some(since),
            _ => None,
        }
    }

    fn leave(&mut self, now: Instant) {
        if let Some(since) = self.connected_since() {
            self.connected_for = self.connected_for.saturating_add(now.saturating_duration_since(since));
        }
    }
}

/// A name that is safe in a label and on a terminal; `None` if nothing is left of it.
fn clean(name: &str) -> Option<String> {
    // Characters that reorder text (Unicode's Bidi_Control), and invisible ones.
    let hidden = |c: char| matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let visible: String = name.chars().filter(|&c| !c.is_control() && !hidden(c)).collect();
    let clean: String = visible.trim().chars().take(MAX_NAME).collect();
    let clean = clean.trim_end();
    (!clean.is_empty()).then(|| clean.to_owned())
}

/// The names that an agent can be configured with, sorted; others are left out.
fn exposed(names: &[String]) -> Vec<String> {
    let good = |name: &&String| {
        (1..=MAX_EXPOSED_NAME).contains(&name.len())
            && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
    };
    let mut names: Vec<String> = names.iter().filter(good).take(MAX_EXPOSED).cloned().collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests;
