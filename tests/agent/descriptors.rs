//! Fewer descriptors than peers and strangers would use.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::agent::{TestAgent, eventually};
use crate::support::metrics::value;

/// How long a scraper or an operator waits at most.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Strangers take every place that they can get, and stay silent. Scrapers, operators and the store have descriptors of
/// their own.
#[test]
fn strangers_leave_descriptors_for_scrapes_commands_and_the_store() {
    let agent = TestAgent::prepare().after("ulimit -n 100").started();
    let mut strangers: Vec<TcpStream> = Vec::new();
    let began = Instant::now();
    let mut looks = 0;
    while began.elapsed() < Duration::from_secs(8) {
        // Closed connections are replaced.
        strangers.retain(|stranger| stranger.set_nonblocking(true).is_ok() && !is_closed(stranger));
        while strangers.len() < 150 {
            strangers.push(TcpStream::connect(agent.peer_socket()).unwrap());
        }
        let asked = Instant::now();
        let page = agent.scrape();
        assert!(value(&page, "process_open_fds", &[]) < 90.0, "{}", value(&page, "process_open_fds", &[]));
        assert_eq!(agent.http("/live").status, 200);
        assert_eq!(agent.control("GET", "/v1/status", b"").unwrap().status, 200);
        assert_eq!(agent.control("PUT", "/v1/keys/key", b"value").unwrap().status, 204);
        assert!(asked.elapsed() < AT_ONCE, "answered after {:?}", asked.elapsed());
        looks += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(looks > 20, "{looks}");
    let said = |what: &str| agent.log().iter().filter(|line| line.contains(what)).count();
    assert!(said("cannot accept a connection from a peer") <= 1 && agent.log().len() < 20, "{:#?}", agent.log());

    // Peers find a place once the strangers are gone.
    drop(strangers);
    let peer = TestAgent::prepare().bootstrap(&agent).started();
    eventually("they are connected", || value(&peer.scrape(), "agent_peers_connected", &[]) == 1.0);
}

fn is_closed(stream: &TcpStream) -> bool {
    // The agent's first bytes, or nothing yet, or the end.
    matches!(stream.peek(&mut [0]), Ok(0))
        || stream.peek(&mut [0]).is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
}
