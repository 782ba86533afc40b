//! A message in memory: decode a request, let the node's handler execute it, encode the answer. Without socket,
//! cryptography or task switch, this is the least that a message can cost, so recording has its largest possible share.

use std::sync::Arc;
use std::time::Instant;

use libp2p::PeerId;
use peerscope::config::{AccessRule, Config, PeerSelector, Permission};
use peerscope::metrics::Exposer;
use peerscope::network::protocol::{FrameReader, Request, RequestBody, RequestFrame, ResponseFrame, encode};
use peerscope::network::{Handling, RequestHandler as _};
use peerscope::node::{Handler, Policy, ScrapeSources};

use super::{PAYLOAD, Result, collector, key, one_thread, per_operation, storage};

const WARM_UP: usize = 1000;

pub(super) fn run(get: bool, count: usize) -> Result<f64> {
    one_thread()?.block_on(async {
        let metrics = collector();
        let (storage, _dir) = storage::open(metrics.clone()).await?;
        let peer = PeerId::random();
        let rule = AccessRule { peer: PeerSelector::Peer(peer), allow: vec![Permission::Get] };
        let config = Config { access: vec![rule], ..Config::default() };
        let sources = ScrapeSources::new(Exposer::new(Arc::default(), metrics.clone(), 1), None);
        let handler = Handler::new(Policy::new(&config), storage.clone(), metrics, sources);
        let mut exchange = Exchange { handler, peer, reader: FrameReader::new(1 << 20), output: Vec::new() };
        let requests = wire(get);
        for request in requests.iter().cycle().take(WARM_UP) {
            exchange.once(request).await?;
        }
        let begin = Instant::now();
        for request in requests.iter().cycle().take(count) {
            exchange.once(request).await?;
        }
        let nanos = per_operation(begin, count);
        storage.close().await;
        Ok(nanos)
    })
}

/// Encoded requests, as received from a socket.
fn wire(get: bool) -> Vec<Vec<u8>> {
    let frame = |number: usize| {
        let request = match get {
            true => Request::Get { key: key(number) },
            false => Request::Ping { payload: vec![0; PAYLOAD].into() },
        };
        let mut bytes = Vec::new();
        encode(&RequestFrame { id: number as u64 + 1, body: Some(request.into()) }, &mut bytes);
        bytes
    };
    (0..100).map(frame).collect()
}

struct Exchange {
    handler: Handler,
    peer: PeerId,
    reader: FrameReader,
    output: Vec<u8>,
}

impl Exchange {
    async fn once(&mut self, wire: &[u8]) -> Result<()> {
        let room = self.reader.room().get_mut(..wire.len()).ok_or("no room for a request")?;
        room.copy_from_slice(wire);
        self.reader.filled(wire.len());
        let frame = self.reader.next_frame::<RequestFrame>()?.ok_or("incomplete frame")?;
        let request = match frame.body {
            Some(RequestBody::Get(key)) => Request::Get { key },
            Some(RequestBody::Ping(payload)) => Request::Ping { payload },
            _ => return Err("unexpected request".into()),
        };
        let answer = match self.handler.handle(self.peer, request) {
            Handling::Done(answer) => answer,
            Handling::Pending(work) => work.await,
        };
        let outcome = answer.result.as_ref().map(drop).map_err(|error| error.code);
        self.output.clear();
        encode(&ResponseFrame { id: frame.id, body: Some(answer.result.into()) }, &mut self.output);
        answer.receipt.complete(outcome);
        if outcome.is_err() || self.output.len() < PAYLOAD {
            return Err("the handler did not answer the request".into());
        }
        Ok(())
    }
}
