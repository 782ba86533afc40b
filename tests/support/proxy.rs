//! A TCP proxy with a variable target that can hold back requests and answers.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// How long a connection may take to show an effect after its bytes were let go.
const SHOWN: Duration = Duration::from_secs(10);

/// Runs until the test ends.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    connections: Mutex<Vec<Arc<Gate>>>,
}

/// Controls what passes in each direction of a connection.
#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_shut: bool,
    /// Whether answers are held back.
    keeps_answers: bool,
    /// How often the server sent something.
    answers: u64,
    /// Whether the server has closed the connection.
    is_over: bool,
}

impl Proxy {
    pub(crate) fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let target = Mutex::new((Ipv4Addr::LOCALHOST, port).into());
        let shared = Arc::new(Shared { target, connections: Mutex::default() });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let target = *accepting.target.lock().unwrap();
                // Without a server behind it, a proxy closes what it accepted.
                if let (Ok(client), Ok(server)) = (client, TcpStream::connect(target)) {
                    let mut connections = accepting.connections.lock().unwrap();
                    // The threads of a finished connection have dropped their handles.
                    connections.retain(|gate| Arc::strong_count(gate) > 1);
                    connections.push(pass(client, server));
                }
            }
        });
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// New connections lead to this port from now on.
    pub(crate) fn lead_to(&self, port: u16) {
        *self.shared.target.lock().unwrap() = (Ipv4Addr::LOCALHOST, port).into();
    }

    /// Holds back what the present clients send from now on, even after they are gone.
    pub(crate) fn hold(&self) {
        self.each(|state| state.is_shut = true);
    }

    /// Holds back what the servers answer on the present connections from now on.
    pub(crate) fn hold_answers(&self) {
        self.each(|state| state.keeps_answers = true);
    }

    /// Lets everything pass again.
    pub(crate) fn open(&self) {
        self.each(|state| (state.is_shut, state.keeps_answers) = (false, false));
    }

    fn each(&self, change: impl Fn(&mut State)) {
        for gate in &*self.shared.connections.lock().unwrap() {
            change(&mut gate.state.lock().unwrap());
            gate.changed.notify_all();
        }
    }

    /// Lets requests pass again, and waits until each server has answered or closed its connection.
    pub(crate) fn let_go(&self) {
        for gate in &*self.shared.connections.lock().unwrap() {
            let mut state = gate.state.lock().unwrap();
            if std::mem::take(&mut state.is_shut) {
                let before = state.answers;
                gate.changed.notify_all();
                let says_nothing = |state: &mut State| state.answers == before && !state.is_over;
                drop(gate.changed.wait_timeout_while(state, SHOWN, says_nothing).unwrap());
            }
        }
    }
}

fn pass(client: TcpStream, server: TcpStream) -> Arc<Gate> {
    let gate = Arc::new(Gate::default());
    let (up, down) = (Arc::clone(&gate), Arc::clone(&gate));
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut bytes = [0; 64 * 1024];
        loop {
            let read = from_client.read(&mut bytes).unwrap_or(0);
            drop(up.changed.wait_while(up.state.lock().unwrap(), |state| state.is_shut).unwrap());
            if read == 0 || to_server.write_all(&bytes[..read]).is_err() {
                let _gone = to_server.shutdown(Shutdown::Write);
                return;
            }
        }
    });
    let (mut from_server, mut to_client) = (server, client);
    std::thread::spawn(move || {
        let mut bytes = [0; 64 * 1024];
        loop {
            let read = from_server.read(&mut bytes).unwrap_or(0);
            let mut state = down.state.lock().unwrap();
            (state.answers, state.is_over) = (state.answers + 1, read == 0);
            drop(state);
            down.changed.notify_all();
            drop(down.changed.wait_while(down.state.lock().unwrap(), |state| state.keeps_answers).unwrap());
            if read == 0 || to_client.write_all(&bytes[..read]).is_err() {
                let _gone = to_client.shutdown(Shutdown::Both);
                return;
            }
        }
    });
    gate
}
