//! An endpoint on its own port, and a client that speaks plain HTTP/1.1 over a real socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerscope::metrics::{
    EndpointOptions, GatewayMetrics, Health, Limits, MetricsCollector, MetricsConfig, MetricsServer, MissingLines,
    Registry, register_scrape_time,
};

use crate::support::agent_info;
use crate::support::http::Reply;

/// The registry of prometheus-client that is added to ours.
type Others = prometheus_client::registry::Registry;

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A served registry.
pub(crate) struct Endpoint {
    pub(crate) server: MetricsServer,
    pub(crate) collector: MetricsCollector,
    pub(crate) health: Health,
    pub(crate) registry: Arc<Registry>,
}

impl Endpoint {
    pub(crate) fn start() -> Self {
        Self::with(Limits::default(), |_| ())
    }

    /// With these limits, and with the foreign metrics that `register` adds.
    pub(crate) fn with(limits: Limits, register: impl FnOnce(&mut Others)) -> Self {
        Self::configured(&MetricsConfig { port: 0, ..MetricsConfig::default() }, limits, register)
    }

    pub(crate) fn configured(config: &MetricsConfig, limits: Limits, register: impl FnOnce(&mut Others)) -> Self {
        let registry = Registry::default();
        let health = Health::default();
        let collector = MetricsCollector::new(&registry, &agent_info());
        register_scrape_time(&registry, &health, &MissingLines::default());
        GatewayMetrics::new(&registry);
        let mut others = Others::default();
        register(&mut others);
        registry.add_foreign("others", others);
        let registry = Arc::new(registry);
        let server = MetricsServer::start_with_limits(
            config,
            &agent_info(),
            Arc::clone(&registry),
            collector.clone(),
            health.clone(),
            EndpointOptions::default(),
            limits,
        );
        Self { server, collector, health, registry }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.local_addr().expect("port 0 is always free")
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.addr())
    }

    /// Sends a GET over a new connection.
    pub(crate) fn get(&self, path: &str) -> Reply {
        self.connect().get(path, &[])
    }

    /// The metrics page in the classic text format.
    pub(crate) fn scrape(&self) -> String {
        let reply = self.get("/metrics");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.text()
    }
}

/// One connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Waits until the next response has begun to arrive, without reading it.
    pub(crate) fn begun(&mut self) {
        assert_ne!(self.stream.fill_buf().unwrap(), b"");
    }

    /// Tells the server that nothing more will be sent.
    pub(crate) fn finish(&self) {
        // The server may have closed the connection already.
        let _ = self.stream.get_ref().shutdown(Shutdown::Write);
    }

    pub(crate) fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.request("GET", path, headers)
    }

    pub(crate) fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        self.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes()).unwrap();
        self.reply(method == "HEAD").unwrap()
    }

    /// Reads one response; `None` if the server closed the connection instead.
    pub(crate) fn reply(&mut self, without_body: bool) -> Option<Reply> {
        let status = self.line()?.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        while let Some((name, value)) = self.line()?.split_once(": ") {
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut reply = Reply { status, reason: String::new(), headers, body: Vec::new() };
        if !without_body {
            let length = reply.header("content-length").expect("every response has a length").parse().unwrap();
            reply.body.resize(length, 0);
            self.stream.read_exact(&mut reply.body).ok()?;
        }
        Some(reply)
    }

    /// Waits until the server closes the connection, and returns what it sent until then.
    pub(crate) fn closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            // The server closed the connection without reading all that was sent.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            ended => {
                ended.expect("the server closes the connection");
            }
        }
        rest
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no response: {error}"),
        }
    }
}

/// Repeats `check` until it is true.
#[track_caller]
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
