//! A cheap scraper, so that the server dominates the measurement: it blocks, keeps its connection, and reuses its
//! buffer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::tls;
use crate::library::Format;
use crate::{Error, Result};

/// The timeout of a response.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The requested format and coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scrape {
    pub(crate) format: Format,
    pub(crate) gzip: bool,
}

impl Scrape {
    fn request(self) -> String {
        let accept = match self.format {
            Format::Text => "text/plain;version=0.0.4",
            Format::OpenMetrics => "application/openmetrics-text;version=1.0.0",
            Format::Protobuf => {
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
            }
        };
        let coding = if self.gzip { "gzip" } else { "identity" };
        format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nAccept-Encoding: {coding}\r\n\r\n")
    }

    /// The beginning of the `Content-Type` of this format.
    fn content_type(self) -> &'static str {
        match self.format {
            Format::Text => "text/plain",
            Format::OpenMetrics => "application/openmetrics-text",
            Format::Protobuf => "application/vnd.google.protobuf",
        }
    }
}

/// How a client gets to its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Access {
    pub(crate) tls: bool,
    /// As [`USER`], whose password is `secret`.
    pub(crate) user: bool,
}

pub(crate) const USER: &str = "prometheus";
/// `prometheus:secret` in base64.
const AUTHORIZATION: &str = "Authorization: Basic cHJvbWV0aGV1czpzZWNyZXQ=\r\n";

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

pub(crate) struct Client {
    stream: BufReader<Box<dyn Stream + Send>>,
    scrape: Scrape,
    request: String,
    line: String,
    body: Vec<u8>,
}

/// How the end of the body is determined.
enum Length {
    Bytes(usize),
    Chunked,
}

impl Client {
    pub(crate) fn connect(address: &str, access: Access, scrape: Scrape) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let stream: Box<dyn Stream + Send> = if access.tls { Box::new(tls::client(stream)?) } else { Box::new(stream) };
        let stream = BufReader::with_capacity(128 * 1024, stream);
        let mut request = scrape.request();
        if access.user {
            request.insert_str(request.len() - 2, AUTHORIZATION);
        }
        Ok(Self { stream, scrape, request, line: String::new(), body: Vec::new() })
    }

    /// Scrapes once and returns the body as received.
    pub(crate) fn scrape(&mut self) -> Result<&[u8]> {
        self.stream.get_mut().write_all(self.request.as_bytes())?;
        let length = self.head()?;
        self.body.clear();
        match length {
            Length::Bytes(length) => self.take(length)?,
            Length::Chunked => loop {
                self.line()?;
                let length = usize::from_str_radix(self.line.trim(), 16)?;
                self.take(length)?;
                self.line()?;
                if length == 0 {
                    break;
                }
            },
        }
        Ok(&self.body)
    }

    /// Reads the head. Fails if the response does not match the request.
    fn head(&mut self) -> Result<Length> {
        self.line()?;
        if !self.line.starts_with("HTTP/1.1 200") {
            return Err(format!("the response is not a page: {}", self.line.trim()).into());
        }
        let (mut length, mut of_type, mut gzip) = (None, false, false);
        loop {
            self.line()?;
            let line = self.line.trim_end();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").ok_or("a response header has no colon")?;
            match name.to_ascii_lowercase().as_str() {
                "content-type" => of_type = value.starts_with(self.scrape.content_type()),
                "content-encoding" => gzip = value == "gzip",
                "content-length" => length = Some(Length::Bytes(value.parse()?)),
                "transfer-encoding" => length = Some(Length::Chunked),
                _ => {}
            }
        }
        if !of_type || gzip != self.scrape.gzip {
            return Err(format!("the response to {:?} has the wrong type or coding", self.scrape).into());
        }
        length.ok_or_else(|| Error::from("the response has no length"))
    }

    fn line(&mut self) -> Result<()> {
        self.line.clear();
        if self.stream.read_line(&mut self.line)? == 0 {
            Err("the server closed the connection".into())
        } else {
            Ok(())
        }
    }

    fn take(&mut self, length: usize) -> Result<()> {
        let taken = self.stream.by_ref().take(length as u64).read_to_end(&mut self.body)?;
        if taken == length { Ok(()) } else { Err("the response was truncated".into()) }
    }
}
