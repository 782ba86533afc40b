//! What the control API reports about a gateway's peers.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::StatusCode;
use libp2p::PeerId;
use percent_encoding::percent_decode_str;

use super::{ApiError, ApiResponse, Peer, page_response};
use crate::control::{GatewayPeer, Scrape};
use crate::gateway::{LastScrape, Member, ScrapeFailure, Scraper, Standing};
use crate::metrics::labels::{Label as _, ScrapeOutcome};
use crate::network::ScrapeRequest;

/// How long the command line waits for a peer's page.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A query for a peer's page.
pub(super) struct PageQuery {
    peer: PeerId,
    exposed: Option<String>,
}

impl PageQuery {
    /// Parses a query string; `None` if it names no peer.
    pub(super) fn from_query(query: Option<&str>) -> Result<Option<Self>, ApiError> {
        let mut pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let pairs: BTreeMap<&str, &str> = pairs.by_ref().collect();
        let Some(peer) = pairs.get("peer") else { return Ok(None) };
        let peer = peer.parse().map_err(|_| ApiError::bad_request(format!("`{peer}` is not a PeerId")))?;
        Ok(Some(Self {
            peer,
            exposed: pairs.get("exposed").map(|name| percent_decode_str(name).decode_utf8_lossy().into_owned()),
        }))
    }
}

/// Fetches a peer's page.
pub(super) async fn metrics(
    gateway: Option<&Scraper>,
    query: PageQuery,
    accept: &str,
) -> Result<ApiResponse, ApiError> {
    let Some(gateway) = gateway else {
        let error = "this agent is not a gateway and cannot fetch a peer's metrics; set gateway.enabled to true";
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "no_gateway", error));
    };
    let PageQuery { peer, exposed } = query;
    let request = ScrapeRequest { exposed, accept: accept.to_owned(), gzip: false, timeout: TIMEOUT };
    let page = gateway.scrape(peer, request).await.map_err(|ScrapeFailure { outcome, text }| {
        let status = match outcome {
            ScrapeOutcome::NotFound => StatusCode::UNPROCESSABLE_ENTITY,
            ScrapeOutcome::Refused => StatusCode::FORBIDDEN,
            ScrapeOutcome::Busy => StatusCode::TOO_MANY_REQUESTS,
            ScrapeOutcome::Timeout => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        ApiError::new(status, "scrape", text)
    })?;
    let content_type = page.content_type_header();
    let body = page.body.collect().await;
    let body = body.map_err(|broken| ApiError::new(StatusCode::BAD_GATEWAY, "scrape", broken.to_string()))?;
    Ok(page_response(body, content_type))
}

/// The connected peers with what the gateway knows about them, followed by the other peers that it knows.
pub(super) fn with_members(mut peers: Vec<Peer>, gateway: Option<&Scraper>) -> Vec<Peer> {
    let Some(gateway) = gateway else { return peers };
    let members = gateway.fleet().members().into_iter();
    let mut members: BTreeMap<String, (PeerId, Member)> =
        members.map(|(peer, member)| (peer.to_string(), (peer, member))).collect();
    for peer in &mut peers {
        let known = members.remove(&peer.peer_id);
        let id = known.as_ref().map(|(id, _)| *id).or_else(|| peer.peer_id.parse().ok());
        let problem = id.and_then(|id| gateway.fleet().problem(&id));
        if let Some((_, member)) = known.as_ref().filter(|_| peer.connections == 0) {
            (peer.address, peer.agent) = (member.address.clone(), member.agent.clone());
            peer.direction = member.direction;
        }
        peer.gateway = Some(report(known.as_ref().map(|(_, member)| member), problem));
    }
    peers.extend(members.into_iter().map(|(peer_id, (id, member))| Peer {
        peer_id,
        gateway: Some(report(Some(&member), gateway.fleet().problem(&id))),
        address: member.address,
        direction: member.direction,
        connections: 0,
        connected_seconds: 0,
        agent: member.agent,
        link: false,
        contact: None,
    }));
    peers
}

fn report(member: Option<&Member>, problem: Option<String>) -> GatewayPeer {
    let departed = match member.map(|member| &member.standing) {
        Some(Standing::Departed { since, cause }) => Some((since.elapsed().as_secs(), cause.clone())),
        _ => None,
    };
    let state = member.and_then(Member::state).map_or("no target", |state| state.as_str());
    GatewayPeer {
        name: member.and_then(|member| member.name.clone()),
        state: state.into(),
        problem,
        exposed: member.map(|member| member.exposed.clone()).unwrap_or_default(),
        departed_seconds: departed.as_ref().map(|(seconds, _)| *seconds),
        departed_because: departed.map(|(_, cause)| cause),
        last_scrape: member.and_then(|member| member.last.as_ref()).map(scrape),
    }
}

fn scrape(last: &LastScrape) -> Scrape {
    Scrape {
        seconds_ago: last.at.elapsed().as_secs_f64(),
        duration_seconds: last.duration.as_secs_f64(),
        body_bytes: last.bytes,
        outcome: last.outcome.to_string(),
        problem: last.problem.clone(),
    }
}
