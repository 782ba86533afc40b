//! How a network stops: requests in flight get some time to finish, and nothing new begins.

use std::time::Duration;

use peerscope::network::RequestError;
use peerscope::network::protocol::ErrorCode;
use tokio::time::{Instant, timeout};

use super::fixture::{PATIENCE, eventually, get, pair};
use crate::support::raw_peer::RawPeer;

#[tokio::test]
async fn requests_in_flight_are_finished_and_new_ones_are_refused() {
    let (server, client) = pair().await;
    let (network, to) = (client.network.clone(), server.peer);
    let held = tokio::spawn(async move { network.request(to, get("hold:1")).await });
    eventually("begun", || async { server.handler.begun() == 1 }).await;
    let network = server.network.clone();
    let stopping = tokio::spawn(async move { network.shutdown(Duration::from_secs(10)).await });
    eventually("new requests are refused", || async {
        match client.ping(server.peer).await {
            Ok(_) => false,
            Err(RequestError::Remote(error)) => {
                assert_eq!(error.code, ErrorCode::ShuttingDown);
                true
            }
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    assert_eq!(server.failed("ping", "cancelled"), 1.0);
    assert!(!stopping.is_finished(), "one request is in flight");
    assert!(!held.is_finished());
    server.handler.release(1);
    let released = Instant::now();
    held.await.unwrap().expect("the request in flight is answered");
    timeout(PATIENCE, stopping).await.unwrap().unwrap();
    client.connected(0).await;
    assert!(released.elapsed() < Duration::from_secs(3), "{:?}", released.elapsed());
    assert_eq!(server.value("messages_received_total", &[("type", "get")]), 1.0);
    assert_eq!(server.peers_connected(), 0.0);
    // It can send no more requests, and callers get the error at once.
    let error = timeout(Duration::from_secs(1), server.ping(client.peer)).await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::Unreachable { .. } | RequestError::LinkLost), "{error}");
}

#[tokio::test]
async fn a_handler_that_never_ends_is_cut_off_at_the_deadline() {
    let (server, client) = pair().await;
    let (network, to) = (client.network.clone(), server.peer);
    let never = tokio::spawn(async move { network.request(to, get("never")).await });
    eventually("begun", || async { server.handler.begun() == 1 }).await;
    let grace = Duration::from_millis(500);
    let asked = Instant::now();
    timeout(PATIENCE, server.network.shutdown(grace)).await.unwrap();
    let took = asked.elapsed();
    assert!(took >= grace && took < grace + Duration::from_secs(2), "{took:?}");
    assert!(matches!(never.await.unwrap().unwrap_err(), RequestError::LinkLost));
    client.connected(0).await;
}

#[tokio::test]
async fn with_nothing_in_flight_it_stops_at_once_and_accepts_nobody() {
    let (server, client) = pair().await;
    let raw = RawPeer::dial(&server).await;
    let mut link = raw.link_with_hello().await;
    let asked = Instant::now();
    timeout(PATIENCE, server.network.shutdown(Duration::from_secs(10))).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert_eq!(link.answer().await, None);
    client.connected(0).await;
    assert!(std::net::TcpStream::connect(("127.0.0.1", server.port())).is_err(), "it no longer listens");
}
