//! One HTTP/1.1 request per connection, written by hand, so that a test controls every byte.

use std::io::{self, BufRead, BufReader, Read, Write};

/// One answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// The reason phrase after the status.
    pub(crate) reason: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }
}

/// Sends a whole request and reads the answer.
pub(crate) fn exchange(stream: impl Read + Write, method: &str, target: &str, body: &[u8]) -> io::Result<Reply> {
    let mut stream = stream;
    let length = body.len();
    let head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    read_reply(stream)
}

/// Sends a GET with these headers, and reads the answer.
pub(crate) fn get(stream: impl Read + Write, target: &str, headers: &[(&str, &str)]) -> io::Result<Reply> {
    let mut stream = stream;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    stream.write_all(format!("GET {target} HTTP/1.1\r\n{headers}\r\n").as_bytes())?;
    read_reply(stream)
}

/// Reads one answer; a truncated one is an error.
pub(crate) fn read_reply(stream: impl Read) -> io::Result<Reply> {
    let mut stream = BufReader::new(stream);
    let status_line = line(&mut stream)?;
    let (_, status) = status_line.split_once(' ').ok_or_else(cut_off)?;
    let (status, reason) = status.split_once(' ').unwrap_or((status, ""));
    let (status, reason) = (status.parse().map_err(|_| cut_off())?, reason.to_owned());
    let mut headers = Vec::new();
    loop {
        let line = line(&mut stream)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").ok_or_else(cut_off)?;
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut reply = Reply { status, reason, headers, body: Vec::new() };
    if reply.header("transfer-encoding") == Some("chunked") {
        reply.body = read_chunks(&mut stream)?;
    } else {
        let length = reply.header("content-length").map_or(0, |length| length.parse().unwrap());
        reply.body.resize(length, 0);
        stream.read_exact(&mut reply.body)?;
    }
    Ok(reply)
}

/// Agents always send a length; the servers that scrape them send long answers in chunks.
fn read_chunks(stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let length = usize::from_str_radix(&line(stream)?, 16).map_err(|_| cut_off())?;
        let start = body.len();
        body.resize(start + length, 0);
        stream.read_exact(&mut body[start..])?;
        line(stream)?;
        if length == 0 {
            return Ok(body);
        }
    }
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    line.strip_suffix("\r\n").map(str::to_owned).ok_or_else(cut_off)
}

fn cut_off() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}
