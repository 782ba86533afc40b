//! Which peers may connect at all: the allow-list and the pre-shared key.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use libp2p::identity::Keypair;
use peerscope::network::{Config, NetworkError, PeerIdText};

use super::fixture::{Agent, MAX_PAYLOAD, config, eventually, joining, pong};

#[tokio::test]
async fn only_peers_on_the_allow_list_may_connect() {
    let key = Keypair::generate_ed25519();
    let allowed = vec![PeerIdText(key.public().to_peer_id())];
    let agent = Agent::start(Config { allow_peers: Some(allowed), ..config() }).await;
    let stranger = Agent::start(joining(&agent)).await;
    let friend = Agent::try_start(joining(&agent), MAX_PAYLOAD, key).await.unwrap();
    agent.connected(1).await;
    assert_eq!(friend.ping(agent.peer).await.unwrap(), pong(b"x"));
    let tries = || stranger.sum("libp2p_swarm_connections_established_total{");
    eventually("the stranger has tried twice", || async { tries() >= 2.0 }).await;
    assert_eq!(agent.network.peers().await.iter().map(|peer| peer.peer).collect::<Vec<_>>(), vec![friend.peer]);
    assert!(stranger.ping(agent.peer).await.is_err());
    assert_eq!(agent.value("messages_received_total", &[("type", "ping")]), 1.0);
}

const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn psk_file(folder: &tempfile::TempDir, name: &str, text: &str, mode: u32) -> Option<PathBuf> {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    Some(path)
}

fn psk(key: &str) -> String {
    format!("/key/swarm/psk/1.0.0/\n/base16/\n{key}\n")
}

#[tokio::test]
async fn a_private_network_refuses_peers_with_another_key_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let same = psk_file(&folder, "same", &psk(KEY), 0o600);
    let other = psk_file(&folder, "other", &psk(&KEY.replace('0', "f")), 0o600);
    let agent = Agent::start(Config { psk_file: same.clone(), ..config() }).await;
    let stranger = Agent::start(Config { psk_file: other, ..joining(&agent) }).await;
    let open = Agent::start(joining(&agent)).await;
    let friend = Agent::start(Config { psk_file: same, ..joining(&agent) }).await;
    agent.connected(1).await;
    assert_eq!(friend.ping(agent.peer).await.unwrap(), pong(b"x"));
    assert_eq!(agent.ping(friend.peer).await.unwrap(), pong(b"x"));
    let refused = || agent.sum("libp2p_swarm_connections_incoming_error_total{");
    eventually("both were turned away", || async { refused() >= 2.0 }).await;
    for outsider in [&stranger, &open] {
        assert_eq!(outsider.peers_connected(), 0.0);
    }
    assert_eq!(agent.peers_connected(), 1.0);
}

#[tokio::test]
async fn an_invalid_key_file_is_refused_without_showing_the_key() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text, mode, says) in [
        ("exposed", psk(KEY), 0o644, "other users can read or write it"),
        ("short", psk(&KEY[..62]), 0o600, "64 hexadecimal digits"),
        ("no-header", KEY.to_owned(), 0o600, "three lines"),
        ("not-hex", psk(&KEY.replace('0', "z")), 0o600, "64 hexadecimal digits"),
        ("long", psk(&KEY.repeat(100)), 0o600, "more than 4096 bytes"),
        ("empty", String::new(), 0o600, "three lines"),
    ] {
        let config = Config { psk_file: psk_file(&folder, name, &text, mode), ..config() };
        let error = Agent::try_start(config, MAX_PAYLOAD, Keypair::generate_ed25519()).await.err().unwrap();
        assert!(matches!(&error, NetworkError::PreSharedKey { path, .. } if path.ends_with(name)), "{error}");
        let message = format!("{error} {error:?}");
        assert!(message.contains(says), "{name}: {message}");
        assert!(message.contains("network.psk_file"), "{name}: {message}");
        for part in ["89abcdef", "9abcdef0", "z123"] {
            assert!(!message.contains(part), "{name} shows the key: {message}");
        }
    }
    let missing = Config { psk_file: Some(folder.path().join("missing")), ..config() };
    let error = Agent::try_start(missing, MAX_PAYLOAD, Keypair::generate_ed25519()).await.err().unwrap();
    assert!(error.to_string().contains("No such file"), "{error}");
}
