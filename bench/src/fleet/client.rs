//! The scraper: keep-alive connections, 64 concurrent requests, every page read completely and compared. It runs on one
//! thread, so that it disturbs the measurement little.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use futures::future::try_join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::measure::nanos;
use crate::{Error, Result};

/// Concurrent scrapes.
pub(super) const AT_ONCE: usize = 64;

/// A keep-alive connection.
pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

/// The response to a request.
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) body: &'a [u8],
}

impl Connection {
    pub(super) async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 64 * 1024], filled: 0 })
    }

    /// Sends a request and reads the whole response.
    pub(super) async fn get(&mut self, request: &str) -> Result<Answer<'_>> {
        self.stream.write_all(request.as_bytes()).await?;
        self.filled = 0;
        let head = loop {
            let begin = self.filled.saturating_sub(3);
            self.read().await?;
            let came = self.buffer.get(begin..self.filled).unwrap_or_default();
            if let Some(end) = came.windows(4).position(|four| four == b"\r\n\r\n") {
                break begin + end + 4;
            }
        };
        let (status, length) = parse(self.buffer.get(..head).unwrap_or_default())?;
        self.buffer.resize(self.buffer.len().max(head + length), 0);
        while self.filled < head + length {
            self.read().await?;
        }
        Ok(Answer { status, body: self.buffer.get(head..head + length).unwrap_or_default() })
    }

    async fn read(&mut self) -> Result<()> {
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        match self.stream.read(room).await? {
            0 => Err("the server closed the connection".into()),
            n => {
                self.filled += n;
                Ok(())
            }
        }
    }
}

/// The status and the length of the body.
fn parse(head: &[u8]) -> Result<(u16, usize)> {
    let head = std::str::from_utf8(head)?;
    let status = head.split(' ').nth(1).ok_or("the response has no status")?.parse()?;
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    Ok((status, length.ok_or("the response has no length")?.1.parse()?))
}

/// A GET with Prometheus's headers for uncompressed text.
pub(super) fn request(path: &str, host: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Prometheus/3.5.3\r\nAccept: text/plain;version=0.0.4\r\n\
         X-Prometheus-Scrape-Timeout-Seconds: 10\r\n\r\n"
    )
}

/// The scraped targets and the connections to them.
pub(super) struct Targets {
    /// The address and request of each target.
    targets: Vec<(String, String)>,
    connections: Vec<Mutex<Option<Connection>>>,
    /// Whether each target has its own connection; otherwise each of the [`AT_ONCE`] callers has one.
    of_their_own: bool,
    page: Vec<u8>,
}

impl Targets {
    /// Targets behind one address, each at one of `paths`.
    pub(super) fn behind(address: &str, paths: impl Iterator<Item = String>, page: &str) -> Self {
        let targets = paths.map(|path| (address.to_owned(), request(&path, address))).collect();
        Self::new(targets, false, page)
    }

    /// Targets with an address each.
    pub(super) fn at(addresses: impl Iterator<Item = String>, page: &str) -> Self {
        let target = |address: String| {
            let request = request("/metrics", &address);
            (address, request)
        };
        Self::new(addresses.map(target).collect(), true, page)
    }

    fn new(targets: Vec<(String, String)>, of_their_own: bool, page: &str) -> Self {
        let connections = if of_their_own { targets.len() } else { AT_ONCE };
        let connections = (0..connections).map(|_| Mutex::new(None)).collect();
        Self { targets, connections, of_their_own, page: page.into() }
    }

    /// Scrapes every target once and returns the nanoseconds that each took.
    pub(super) async fn sweep(&self) -> Result<Vec<u32>> {
        let next = AtomicUsize::new(0);
        let caller = async |caller: usize| {
            let mut taken = Vec::with_capacity(self.targets.len() / AT_ONCE * 2);
            while let Some(target) = self.targets.get(next.load(Ordering::Relaxed)) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let slot = if self.of_their_own { number } else { caller };
                taken.push(self.scrape(target, slot).await?);
            }
            Ok::<_, Error>(taken)
        };
        Ok(try_join_all((0..AT_ONCE).map(caller)).await?.concat())
    }

    async fn scrape(&self, (address, request): &(String, String), slot: usize) -> Result<u32> {
        let slot = self.connections.get(slot).ok_or("no such connection")?;
        let kept = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        let begin = Instant::now();
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(address).await?,
        };
        let answer = connection.get(request).await?;
        let taken = nanos(begin.elapsed());
        if answer.status != 200 || answer.body != self.page {
            let text = String::from_utf8_lossy(answer.body.get(..300).unwrap_or(answer.body)).into_owned();
            return Err(format!("unexpected page with status {}: {text}", answer.status).into());
        }
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_length_are_read_from_a_head() {
        assert_eq!(parse(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 12\r\n\r\n").unwrap(), (502, 12));
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
