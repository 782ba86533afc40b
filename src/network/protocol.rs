//! The frames of the link: the wire format and its limits, without any IO.
//!
//! A frame is a Protocol Buffers message preceded by its length as a varint (the "delimited" form). The side that
//! opened the substream sends [`RequestFrame`]s. The other side answers, in any order, with [`ResponseFrame`]s that
//! carry the id of the request. The first frame in each direction is a `Hello` with the limits of its sender.

pub mod scrape;

use bytes::Bytes;
use libp2p::StreamProtocol;

use crate::metrics::labels::MessageType;

/// The name under which the link is negotiated. A change that older agents cannot read needs a new name.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/peerscope/link/1");

/// How many bytes a frame may need in addition to its key and value: for tags, lengths, the id, the text of an error.
pub const FRAME_OVERHEAD: usize = 1024;

/// The longest varint of a 64-bit number (protobuf.dev, "Base 128 Varints").
const MAX_VARINT: usize = 10;

/// The longest text of an error, in bytes: part of [`FRAME_OVERHEAD`].
const MAX_ERROR_TEXT: usize = 512;

/// How much of the name in an [`Introduction`] is kept, in bytes: as much as the name of an agent can have.
const MAX_INTRODUCED_NAME: usize = 255;
/// How many exporters in an [`Introduction`] are kept: more than an agent can have.
const MAX_INTRODUCED: usize = 64;
/// The longest name of an exporter that is kept, in bytes: more than an agent can have.
const MAX_INTRODUCED_EXPORTER: usize = 64;

/// A request from one peer to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Read the value under a key.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Write a value under a key.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// Remove a key.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Send the payload back.
    Ping {
        /// Any bytes.
        payload: Bytes,
    },
}

impl Request {
    /// The label value under which the metrics count it.
    pub fn message_type(&self) -> MessageType {
        match self {
            Self::Get { .. } => MessageType::Get,
            Self::Put { .. } => MessageType::Put,
            Self::Delete { .. } => MessageType::Delete,
            Self::Ping { .. } => MessageType::Ping,
        }
    }

    /// How many bytes its key and value, or its payload, have: what counts against the peer's frame limit.
    pub fn payload_len(&self) -> usize {
        match self {
            Self::Get { key } | Self::Delete { key } => key.len(),
            Self::Put { key, value } => key.len() + value.len(),
            Self::Ping { payload } => payload.len(),
        }
    }
}

/// A peer's answer to a request that it carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// To `get`: the value, or `None` if the key has none.
    Value(Option<Bytes>),
    /// To `put`: the value is stored.
    Stored,
    /// To `delete`: whether the key had a value.
    Deleted(bool),
    /// To `ping`: the same payload.
    Pong(Bytes),
}

impl Response {
    /// Whether it answers a request of this type. A peer can send any response.
    pub(crate) fn answers(&self, kind: MessageType) -> bool {
        match self {
            Self::Value(_) => kind == MessageType::Get,
            Self::Stored => kind == MessageType::Put,
            Self::Deleted(_) => kind == MessageType::Delete,
            Self::Pong(_) => kind == MessageType::Ping,
        }
    }
}

/// Why a peer did not carry out a request. The numbers are part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum ErrorCode {
    /// A code that this version does not know.
    Unspecified = 0,
    /// The peer's access rules do not allow it.
    Refused = 1,
    /// The peer could not decode the request.
    Malformed = 2,
    /// The request is of a type that the peer does not know.
    Unsupported = 3,
    /// The key, the value or the answer is over a limit.
    TooLarge = 4,
    /// Too many requests are in flight.
    Busy = 5,
    /// The peer did not finish in time.
    Timeout = 6,
    /// The peer's storage failed.
    Storage = 7,
    /// The peer is shutting down.
    ShuttingDown = 8,
    /// The peer could not make or fetch the page that was asked for.
    Failed = 9,
}

/// A typed refusal or failure that a peer sent as its answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    /// The kind of failure.
    pub code: ErrorCode,
    /// One sentence for people, at most 512 bytes.
    pub message: String,
}

impl RemoteError {
    /// An error with its message, which is cut at 512 bytes.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        // A peer's message ends up in logs and on terminals: it must not break a line or control the terminal.
        let mut message: String = message.into().replace(char::is_control, " ");
        let mut end = MAX_ERROR_TEXT.min(message.len());
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        Self { code, message }
    }
}

/// The limits of a peer, sent in its first frame.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Hello {
    /// The longest frame that it reads, in bytes, without the length in front.
    #[prost(uint64, tag = "1")]
    pub max_frame: u64,
    /// How many requests it handles at once for one peer; 0 in the requester's own hello.
    #[prost(uint32, tag = "2")]
    pub max_in_flight: u32,
}

/// A frame from the side that opened the substream.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestFrame {
    /// Chosen by the requester; 0 for frames about the link itself.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The request; `None` if it is of a type that this version does not know.
    #[prost(oneof = "RequestBody", tags = "2, 3, 4, 5, 6, 7")]
    pub body: Option<RequestBody>,
}

/// The body of a [`RequestFrame`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum RequestBody {
    /// The first frame.
    #[prost(message, tag = "2")]
    Hello(Hello),
    /// Asks for a heartbeat in return. This version watches the socket instead, and only answers it.
    #[prost(message, tag = "3")]
    Heartbeat(Empty),
    /// The key to read.
    #[prost(bytes = "bytes", tag = "4")]
    Get(Bytes),
    /// The pair to write.
    #[prost(message, tag = "5")]
    Put(Pair),
    /// The key to remove.
    #[prost(bytes = "bytes", tag = "6")]
    Delete(Bytes),
    /// The payload to echo.
    #[prost(bytes = "bytes", tag = "7")]
    Ping(Bytes),
}

/// Nothing.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// A key with its value.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Pair {
    /// The key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The value.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// A frame from the side that accepted the substream.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResponseFrame {
    /// The id of the request that this answers; 0 for the link itself.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The answer; `None` if it is of a type that this version does not know.
    #[prost(oneof = "ResponseBody", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub body: Option<ResponseBody>,
}

/// The body of a [`ResponseFrame`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ResponseBody {
    /// The first frame.
    #[prost(message, tag = "2")]
    Hello(Hello),
    /// Answers a heartbeat.
    #[prost(message, tag = "3")]
    Heartbeat(Empty),
    /// The value that was asked for.
    #[prost(bytes = "bytes", tag = "4")]
    Value(Bytes),
    /// The key has no value.
    #[prost(message, tag = "5")]
    NoValue(Empty),
    /// The value is stored.
    #[prost(message, tag = "6")]
    Stored(Empty),
    /// Whether there was a value to remove.
    #[prost(bool, tag = "7")]
    Deleted(bool),
    /// The payload of a ping.
    #[prost(bytes = "bytes", tag = "8")]
    Pong(Bytes),
    /// The request was not carried out. With id 0, the sender gives up on the link and closes it.
    #[prost(message, tag = "9")]
    Error(ErrorBody),
    /// How the sender introduces itself to a peer that may scrape it. It follows the hello, and is sent again when
    /// something in it changes. It answers no request.
    #[prost(message, tag = "10")]
    Introduction(Introduction),
}

/// How an agent introduces itself to a peer that may scrape it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Introduction {
    /// The name that its operator gave it.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The names of the exposed exporters that can be scraped through it.
    #[prost(string, repeated, tag = "2")]
    pub exposed: Vec<String>,
    /// The sender no longer lets the peer scrape it. Agents that do not know this field ignore all introductions but
    /// the first, and learn the same from their next scrape.
    #[prost(bool, tag = "3")]
    pub withdrawn: bool,
}

impl Introduction {
    /// Cuts it to what is kept while the peer is connected. A stranger may fill a whole frame with it, and half a
    /// million empty names take ten times as much memory as on the wire.
    pub(crate) fn cut(self) -> Self {
        let Self { mut name, exposed, withdrawn } = self;
        name.truncate(name.floor_char_boundary(MAX_INTRODUCED_NAME));
        name.shrink_to_fit();
        let sensible = |name: &String| (1..=MAX_INTRODUCED_EXPORTER).contains(&name.len());
        // Cloned, because collecting from a vector's own iterator may keep its whole allocation.
        Self {
            name,
            exposed: exposed.iter().filter(|name| sensible(name)).take(MAX_INTRODUCED).cloned().collect(),
            withdrawn,
        }
    }
}

/// An error on the wire.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ErrorBody {
    /// An [`ErrorCode`].
    #[prost(enumeration = "ErrorCode", tag = "1")]
    pub code: i32,
    /// One sentence for people.
    #[prost(string, tag = "2")]
    pub message: String,
}

impl From<Request> for RequestBody {
    fn from(request: Request) -> Self {
        match request {
            Request::Get { key } => Self::Get(key),
            Request::Put { key, value } => Self::Put(Pair { key, value }),
            Request::Delete { key } => Self::Delete(key),
            Request::Ping { payload } => Self::Ping(payload),
        }
    }
}

impl RequestBody {
    /// The request; `None` for what belongs to the link itself.
    pub(crate) fn request(self) -> Option<Request> {
        match self {
            Self::Hello(_) | Self::Heartbeat(_) => None,
            Self::Get(key) => Some(Request::Get { key }),
            Self::Put(Pair { key, value }) => Some(Request::Put { key, value }),
            Self::Delete(key) => Some(Request::Delete { key }),
            Self::Ping(payload) => Some(Request::Ping { payload }),
        }
    }
}

impl ResponseBody {
    /// The answer to a request; `None` for what belongs to the link itself.
    pub(crate) fn answer(self) -> Option<Result<Response, RemoteError>> {
        match self {
            Self::Hello(_) | Self::Heartbeat(_) | Self::Introduction(_) => None,
            Self::Value(value) => Some(Ok(Response::Value(Some(value)))),
            Self::NoValue(_) => Some(Ok(Response::Value(None))),
            Self::Stored(_) => Some(Ok(Response::Stored)),
            Self::Deleted(existed) => Some(Ok(Response::Deleted(existed))),
            Self::Pong(payload) => Some(Ok(Response::Pong(payload))),
            Self::Error(body) => Some(Err(body.into())),
        }
    }
}

impl From<Result<Response, RemoteError>> for ResponseBody {
    fn from(answer: Result<Response, RemoteError>) -> Self {
        match answer {
            Ok(Response::Value(Some(value))) => Self::Value(value),
            Ok(Response::Value(None)) => Self::NoValue(Empty {}),
            Ok(Response::Stored) => Self::Stored(Empty {}),
            Ok(Response::Deleted(existed)) => Self::Deleted(existed),
            Ok(Response::Pong(payload)) => Self::Pong(payload),
            Err(error) => Self::Error(error.into()),
        }
    }
}

impl From<RemoteError> for ErrorBody {
    fn from(error: RemoteError) -> Self {
        Self { code: error.code.into(), message: error.message }
    }
}

impl From<ErrorBody> for RemoteError {
    fn from(body: ErrorBody) -> Self {
        let code = body.code();
        Self::new(code, body.message)
    }
}

/// Appends `frame` with its length to `out`.
pub fn encode(frame: &impl prost::Message, out: &mut Vec<u8>) {
    #[allow(clippy::expect_used, reason = "a Vec grows as needed: encoding into it has no capacity to run out of")]
    frame.encode_length_delimited(out).expect("a Vec has room");
}

/// Why bytes from a peer are not a valid frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length in front of the frame is over the limit.
    #[error("a frame has {len} bytes; at most {max} are allowed")]
    TooLarge {
        /// The announced length in bytes.
        len: u64,
        /// The limit in bytes.
        max: usize,
    },
    /// The length or the message cannot be decoded.
    #[error("malformed frame: {0}")]
    Malformed(String),
}

/// Splits a stream of bytes into frames. It holds at most one frame and one read at a time.
#[derive(Debug)]
pub struct FrameReader {
    /// Bytes `start..end` have been received and not consumed yet; the rest is room.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    max_frame: usize,
}

impl FrameReader {
    /// Room for one read while no large frame is being received, and for what follows a large frame, in bytes. Small,
    /// because there are two readers per peer.
    const IDLE_ROOM: usize = 4 * 1024;

    /// A reader of frames of at most `max_frame` bytes.
    pub fn new(max_frame: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, max_frame }
    }

    /// Room to read into, never empty. Follow with [`FrameReader::filled`].
    pub fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.end == self.buffer.len() {
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            if self.end == self.buffer.len() {
                // Allocate the whole frame at once: growing in steps would leave the allocator with pieces of each
                // size.
                #[allow(clippy::cast_possible_truncation, reason = "not over max_frame, which is a usize")]
                let whole = |(len, prefix)| prefix + u64::min(len, self.max_frame as u64) as usize;
                let whole = length(&self.buffer).ok().flatten().map_or(self.end, whole);
                let mut larger = vec![0; whole.max(self.end) + Self::IDLE_ROOM];
                if let Some(front) = larger.get_mut(..self.end) {
                    front.copy_from_slice(&self.buffer);
                }
                self.buffer = larger;
            }
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Records that `len` bytes of the room have been filled.
    pub fn filled(&mut self, len: usize) {
        self.end = (self.end + len).min(self.buffer.len());
    }

    /// How many bytes it holds for an incomplete frame.
    pub(crate) fn held(&self) -> usize {
        self.buffer.len().saturating_sub(Self::IDLE_ROOM).max(self.end - self.start)
    }

    /// Frees memory if nothing is waiting; to be called when there is nothing to read.
    pub fn release(&mut self) {
        if self.start == self.end {
            self.buffer = Vec::new();
            (self.start, self.end) = (0, 0);
        }
    }

    /// The next complete frame, decoded; `None` if more bytes are needed.
    ///
    /// # Errors
    ///
    /// When the peer sent an invalid frame. The reader must not be used after that.
    pub fn next_frame<F: prost::Message + Default>(&mut self) -> Result<Option<F>, FrameError> {
        let received = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Some((len, prefix)) = length(received)? else { return Ok(None) };
        if len > self.max_frame as u64 {
            return Err(FrameError::TooLarge { len, max: self.max_frame });
        }
        #[allow(clippy::cast_possible_truncation, reason = "not over max_frame, which is a usize")]
        let whole = prefix + len as usize;
        let Some(bytes) = received.get(prefix..whole) else { return Ok(None) };
        let frame = F::decode(bytes).map_err(|error| FrameError::Malformed(error.to_string()))?;
        self.start += whole;
        Ok(Some(frame))
    }
}

/// The varint at the front of `bytes` and how many bytes it takes; `None` if it is incomplete.
fn length(bytes: &[u8]) -> Result<Option<(u64, usize)>, FrameError> {
    let complete = bytes.iter().take(MAX_VARINT).any(|byte| byte & 0x80 == 0);
    if !complete {
        return if bytes.len() < MAX_VARINT {
            Ok(None)
        } else {
            Err(FrameError::Malformed("its length prefix is too long".into()))
        };
    }
    let mut rest = bytes;
    let len = prost::decode_length_delimiter(&mut rest).map_err(|error| FrameError::Malformed(error.to_string()))?;
    Ok(Some((len as u64, bytes.len() - rest.len())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_large_introduction_is_cut_and_a_sensible_one_is_not() {
        let sensible =
            Introduction { name: "edge-17".into(), exposed: vec!["node".into(), "x".repeat(64)], withdrawn: false };
        assert_eq!(sensible.clone().cut(), sensible);
        let mut exposed = vec![String::new(); 100_000];
        exposed.push("x".repeat(65));
        exposed.extend((0..100).map(|n| format!("node-{n}")));
        let cut = Introduction { name: "ä".repeat(5000), exposed, withdrawn: false }.cut();
        assert_eq!((cut.name.len(), cut.name.capacity(), cut.exposed.len()), (254, 254, MAX_INTRODUCED));
        assert_eq!(cut.exposed.first().map(String::as_str), Some("node-0"));
        assert!(cut.exposed.capacity() <= 2 * MAX_INTRODUCED);
    }

    /// A tag that is missing from the `tags` of its frame compiles, and is ignored by the receiver.
    #[test]
    fn every_body_survives_the_wire() {
        let (bytes, pair) = (Bytes::from_static(b"k"), Pair { key: "k".into(), value: "v".into() });
        let hello = Hello { max_frame: 1, max_in_flight: 1 };
        let requests = [
            RequestBody::Hello(hello),
            RequestBody::Heartbeat(Empty {}),
            RequestBody::Get(bytes.clone()),
            RequestBody::Put(pair),
            RequestBody::Delete(bytes.clone()),
            RequestBody::Ping(bytes.clone()),
        ];
        let next = |body: &RequestBody| match body {
            RequestBody::Hello(_) => 1,
            RequestBody::Heartbeat(_) => 2,
            RequestBody::Get(_) => 3,
            RequestBody::Put(_) => 4,
            RequestBody::Delete(_) => 5,
            // The last one; a new one comes behind it.
            RequestBody::Ping(_) => 6,
        };
        for (index, body) in requests.iter().enumerate() {
            assert_eq!(next(body), index + 1);
            let frame = RequestFrame { id: 1, body: Some(body.clone()) };
            assert_eq!(RequestFrame::decode(frame.encode_to_vec().as_slice()).unwrap(), frame);
        }
        let responses = [
            ResponseBody::Hello(hello),
            ResponseBody::Heartbeat(Empty {}),
            ResponseBody::Value(bytes.clone()),
            ResponseBody::NoValue(Empty {}),
            ResponseBody::Stored(Empty {}),
            ResponseBody::Deleted(true),
            ResponseBody::Pong(bytes),
            ResponseBody::Error(RemoteError::new(ErrorCode::Busy, "busy").into()),
            ResponseBody::Introduction(Introduction { name: "n".into(), exposed: vec!["e".into()], withdrawn: true }),
        ];
        let next = |body: &ResponseBody| match body {
            ResponseBody::Hello(_) => 1,
            ResponseBody::Heartbeat(_) => 2,
            ResponseBody::Value(_) => 3,
            ResponseBody::NoValue(_) => 4,
            ResponseBody::Stored(_) => 5,
            ResponseBody::Deleted(_) => 6,
            ResponseBody::Pong(_) => 7,
            ResponseBody::Error(_) => 8,
            ResponseBody::Introduction(_) => 9,
        };
        for (index, body) in responses.iter().enumerate() {
            assert_eq!(next(body), index + 1);
            let frame = ResponseFrame { id: 1, body: Some(body.clone()) };
            assert_eq!(ResponseFrame::decode(frame.encode_to_vec().as_slice()).unwrap(), frame);
        }
    }

    fn read_all<F: prost::Message + Default>(
        reader: &mut FrameReader,
        mut bytes: &[u8],
        step: usize,
    ) -> Result<Vec<F>, FrameError> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let room = reader.room();
            let n = step.min(bytes.len()).min(room.len());
            room[..n].copy_from_slice(&bytes[..n]);
            reader.filled(n);
            bytes = &bytes[n..];
            while let Some(frame) = reader.next_frame()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    fn request() -> impl Strategy<Value = Request> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..600).prop_map(Bytes::from);
        prop_oneof![
            bytes().prop_map(|key| Request::Get { key }),
            (bytes(), bytes()).prop_map(|(key, value)| Request::Put { key, value }),
            bytes().prop_map(|key| Request::Delete { key }),
            bytes().prop_map(|payload| Request::Ping { payload }),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(requests in proptest::collection::vec(request(), 1..20), step in 1usize..5000) {
            let frames: Vec<_> = requests.into_iter().enumerate()
                .map(|(id, request)| RequestFrame { id: id as u64, body: Some(request.into()) }).collect();
            let mut wire = Vec::new();
            for frame in &frames { encode(frame, &mut wire); }
            let mut reader = FrameReader::new(2048);
            prop_assert_eq!(read_all::<RequestFrame>(&mut reader, &wire, step).unwrap(), frames);
        }

        #[test]
        fn garbage_neither_panics_nor_grows_the_buffer(bytes in proptest::collection::vec(any::<u8>(), 0..5000), step in 1usize..5000) {
            let mut reader = FrameReader::new(100);
            let _either = read_all::<RequestFrame>(&mut reader, &bytes, step);
            prop_assert!(reader.buffer.len() <= 100 + MAX_VARINT + FrameReader::IDLE_ROOM);
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_by_its_length_alone() {
        let mut wire = Vec::new();
        encode(&RequestFrame { id: 1, body: Some(RequestBody::Ping(Bytes::from(vec![0; 200]))) }, &mut wire);
        let mut reader = FrameReader::new(100);
        let error = read_all::<RequestFrame>(&mut reader, &wire[..2], 2).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { max: 100, len } if len > 200), "{error}");
    }

    #[test]
    fn a_request_of_an_unknown_type_decodes_to_no_body() {
        // Field 15, length-delimited, empty: what a newer agent might send.
        let mut reader = FrameReader::new(100);
        let frames = read_all::<RequestFrame>(&mut reader, &[4, 0x08, 7, 0x7a, 0], 100).unwrap();
        assert_eq!(frames, vec![RequestFrame { id: 7, body: None }]);
    }

    #[test]
    fn an_error_text_cannot_break_a_line_or_control_a_terminal() {
        let body = ErrorBody { code: 1, message: "no\nINFO PeerId\u{1b}[2J\u{85}\r".into() };
        assert_eq!(RemoteError::from(body).message, "no INFO PeerId [2J  ");
    }

    #[test]
    fn an_error_text_is_cut_at_a_character_boundary() {
        let error = RemoteError::new(ErrorCode::Storage, "\u{e4}".repeat(600));
        assert_eq!(error.message.len(), 512);
        let error = RemoteError::new(ErrorCode::Storage, format!("x{}", "\u{e4}".repeat(600)));
        assert_eq!(error.message.len(), 511);
    }
}
