//! Ports of the loopback address that are known before anything listens on them.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A port that the system gives to no other program until this is dropped. A socket that is bound but does not listen
/// reserves it; programs that set `SO_REUSEADDR`, as libp2p and Redis do, can still listen on it.
pub(crate) struct ReservedPort {
    number: u16,
    _holder: Socket,
}

impl ReservedPort {
    pub(crate) fn new() -> Self {
        let holder = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        holder.set_reuse_address(true).unwrap();
        holder.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let number = holder.local_addr().unwrap().as_socket().unwrap().port();
        Self { number, _holder: holder }
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}
