//! Messages, written by hand: an encoder of ours or another one writes none that are wrong.

use super::*;

const PROTOBUF: BodyFormat = BodyFormat::Protobuf;

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn double(field: u64, value: f64) -> Vec<u8> {
    [varint(field << 3 | 1), value.to_le_bytes().to_vec()].concat()
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn message(field: u64, fields: &[Vec<u8>]) -> Vec<u8> {
    bytes(field, &fields.concat())
}

fn label(name: &str, value: &str) -> Vec<u8> {
    message(1, &[bytes(1, name.as_bytes()), bytes(2, value.as_bytes())])
}

fn labels(count: usize) -> Vec<u8> {
    (0..count).flat_map(|n| label(&format!("l{n}"), "")).collect()
}

fn framed(fields: &[Vec<u8>]) -> Vec<u8> {
    let fields = fields.concat();
    [varint(fields.len() as u64), fields].concat()
}

/// A family with one metric.
fn family(name: &str, kind: u64, metric: &[Vec<u8>]) -> Vec<u8> {
    framed(&[bytes(1, name.as_bytes()), number(3, kind), message(4, metric)])
}

fn counter(name: &str) -> Vec<u8> {
    family(name, 0, &[message(3, &[double(1, 1.0)])])
}

/// A histogram whose native buckets are these fields.
fn histogram(name: &str, native: &[Vec<u8>]) -> Vec<u8> {
    let bucket = message(3, &[number(1, 3), double(2, 0.5)]);
    family(name, 4, &[message(7, &[number(1, 3), double(2, 1.5), bucket, native.concat()])])
}

fn span(field: u64, length: u64) -> Vec<u8> {
    message(field, &[number(1, 4), number(2, length)])
}

#[test]
fn what_exporters_write_is_good() {
    let exemplar =
        |field| message(field, &[label("trace", "x"), double(2, 1.0), message(3, &[number(1, 5), number(2, 6)])]);
    let quantile = message(3, &[double(1, 0.5), double(2, 1.0)]);
    for body in [
        vec![],
        counter("a"),
        [counter("a"), counter("b")].concat(),
        // Without a type, which is then 0, and with a value that is 0 and so is not written.
        framed(&[bytes(1, b"a"), message(4, &[message(3, &[])])]),
        // Without metrics; and all that a family has, in another order.
        framed(&[bytes(1, b"a")]),
        framed(&[message(4, &[message(2, &[double(1, 1.0)])]), number(3, 1), bytes(2, b"Help"), bytes(1, b"a")]),
        framed(&[bytes(1, b"a_seconds_total"), bytes(5, b"seconds")]),
        framed(&[bytes(1, b"a_seconds"), bytes(5, b"seconds"), number(3, 1)]),
        family("a", 1, &[label("b", "c"), label("d", ""), number(6, 5), message(2, &[double(1, 1.0)])]),
        family("a", 0, &[message(3, &[double(1, 1.0), exemplar(2), message(3, &[number(1, 5)])])]),
        family("a", 2, &[message(4, &[number(1, 1), double(2, 1.0), quantile, message(4, &[])])]),
        family("a", 3, &[message(5, &[double(1, f64::NAN)])]),
        family("ä b", 3, &[label("c.d", "e"), message(5, &[])]),
        histogram("a", &[]),
        histogram("a", &[number(5, 6), double(6, 0.0), number(7, 1), span(12, 0)]),
        histogram("a", &[span(12, 1), span(12, 2), bytes(13, &[2, 4, 0x80, 1]), exemplar(16)]),
        histogram("a", &[span(9, 2), number(10, 2), number(10, 4), span(12, 1), number(13, 1)]),
        histogram("a", &[double(4, 3.0), span(12, 1), bytes(14, &1_f64.to_le_bytes()), message(15, &[])]),
        family("a", 5, &[message(7, &[double(4, 3.0), span(9, 1), double(11, 3.0)])]),
        // What nobody knows yet, of every kind.
        framed(&[bytes(1, b"a"), number(99, 1), double(98, 1.0), bytes(97, b"\xff"), vec![0xa5, 6, 1, 2, 3, 4]]),
        framed(&[bytes(1, b"a"), vec![0x9b, 6, 8, 1, 0x9b, 6, 0x9c, 6, 0x9c, 6]]),
        // What our own agents have: of a classic histogram no series has the family's name.
        histogram("scrape_duration_seconds", &[]),
        counter("up_count"),
        family("a", 0, &[labels(MAX_LABELS), message(3, &[])]),
    ] {
        assert_good(PROTOBUF, &body);
    }
}

#[test]
fn what_is_wrong_is_said_with_its_family() {
    let value = || message(3, &[double(1, 1.0)]);
    let reserved = "family 1: `up` is a name that Prometheus itself writes";
    let duration = "family 1: `scrape_duration_seconds` is a name that Prometheus itself writes";
    let spans = "family 1: a histogram whose spans speak of more or fewer buckets than it has";
    for (body, message) in [
        (vec![0], "family 1: it has no name"),
        (framed(&[number(3, 0)]), "family 1: it has no name"),
        (framed(&[bytes(1, b"")]), "family 1: it has no name"),
        (framed(&[bytes(1, b"\xff")]), "family 1: its name is not UTF-8"),
        (framed(&[bytes(1, b"a"), bytes(2, b"\xff")]), "family 1: its help text is not UTF-8"),
        (framed(&[bytes(1, b"a"), bytes(1, b"up")]), "family 1: its name comes twice"),
        (framed(&[bytes(1, b"a"), number(3, 0), number(3, 1)]), "family 1: its type comes twice"),
        (framed(&[bytes(1, b"a"), number(3, 6)]), "family 1: 6 is no type of a family"),
        (framed(&[bytes(1, b"a"), bytes(5, b"s")]), "family 1: the unit `s` is not the end of the family's name"),
        (framed(&[number(1, 1)]), "family 1: its message is no protobuf"),
        (framed(&[bytes(1, b"a"), vec![0x22, 9]]), "family 1: its message is no protobuf"),
        (framed(&[bytes(1, b"a"), vec![0x99, 6, 1]]), "family 1: its message is no protobuf"),
        (framed(&[bytes(1, b"a"), vec![0x9b, 6]]), "family 1: its message is no protobuf"),
        (framed(&[bytes(1, b"a"), vec![0x9b, 6, 0xa4, 6]]), "family 1: its message is no protobuf"),
        (framed(&[bytes(1, b"a"), vec![0x9e, 6]]), "family 1: its message is no protobuf"),
        (framed(&[bytes(1, b"a"), vec![0, 1]]), "family 1: its message is no protobuf"),
        (framed(&[bytes(1, b"a"), [0x9b, 6].repeat(100_000)]), "family 1: its message is no protobuf"),
        ([counter("a"), vec![5, 1]].concat(), "family 2: the message is cut off"),
        ([counter("a"), vec![0x80]].concat(), "family 2: the message is cut off"),
        (vec![0xff; 10], "family 1: its length is no protobuf"),
        (varint(MAX_MESSAGE as u64 + 1), "family 1: the message is longer than 4 MiB"),
        (varint(u64::MAX), "family 1: the message is longer than 4 MiB"),
        ([counter("a"), counter("b"), counter("a")].concat(), "family 3: duplicate family `a`"),
        (counter("up"), reserved),
        (histogram("up", &[]), reserved),
        (framed(&[bytes(1, b"up")]), reserved),
        (family("scrape_duration_seconds", 2, &[message(4, &[number(1, 1)])]), duration),
        (family("scrape_duration_seconds", 5, &[message(7, &[])]), duration),
        (histogram("scrape_duration_seconds", &[span(12, 0)]), duration),
        (framed(&[bytes(1, b"scrape_duration_seconds")]), duration),
        (family("a", 0, &[labels(MAX_LABELS + 1), message(3, &[])]), "family 1: a sample with more than 256 labels"),
        (family("up", 2, &[message(4, &[message(3, &[])])]), reserved),
        (histogram("up", &[span(12, 0)]), reserved),
        (histogram("up", &[double(6, 1e-9)]), reserved),
        (family("a", 0, &[]), "family 1: a metric without the counter that the family's type says"),
        (family("a", 1, &[value()]), "family 1: a metric without the gauge that the family's type says"),
        (family("a", 0, &[value(), value()]), "family 1: its value comes twice"),
        (family("a", 0, &[number(3, 1)]), "family 1: its metric is no protobuf"),
        (family("a", 0, &[message(3, &[number(1, 1)])]), "family 1: its value is no protobuf"),
        (family("a", 0, &[message(1, &[]), value()]), "family 1: a label without a name"),
        (family("a", 0, &[label("", "b"), value()]), "family 1: a label without a name"),
        (family("a", 0, &[label("b", ""), label("b", ""), value()]), "family 1: the label `b` comes twice"),
        (family("a", 0, &[message(1, &[bytes(1, b"b"), bytes(2, b"\xff")])]), "family 1: its label is not UTF-8"),
        (
            family("a", 0, &[message(1, &[bytes(1, b"b"), bytes(1, b"c")])]),
            "family 1: its label's name or value comes twice",
        ),
        (
            family("a", 0, &[label("__name__", "up"), value()]),
            "family 1: the label `__name__` is the metric's name, which stands elsewhere",
        ),
        (histogram("a", &[span(12, 1)]), spans),
        (histogram("a", &[span(9, 1), number(13, 1)]), spans),
        (histogram("a", &[span(12, 1), double(14, 1.0)]), spans),
        (histogram("a", &[double(8, 1.0), span(12, 1), number(13, 1)]), spans),
        (histogram("a", &[bytes(13, &[0x80])]), "family 1: its message is no protobuf"),
        (histogram("a", &[bytes(14, &[0; 7])]), "family 1: its histogram is no protobuf"),
    ] {
        assert_eq!(shown(PROTOBUF, &body), message);
    }
}

#[test]
fn a_message_may_be_long() {
    let long = framed(&[bytes(1, b"a"), bytes(2, &vec![b'x'; MAX_MESSAGE - 8])]);
    assert!(long.len() > MAX_MESSAGE - 100);
    let body = [counter("b"), long, counter("c")].concat();
    assert_eq!(verdict(PROTOBUF, [body.as_slice()]), Ok(()));
    assert_eq!(verdict(PROTOBUF, body.chunks(100_003)), Ok(()));
}

#[test]
fn no_more_is_held_than_a_message() {
    let long = |name: &[u8], length: usize| framed(&[bytes(1, name), bytes(2, &vec![b'x'; length])]);
    for step in [1000, MAX_MESSAGE / 2 + 7] {
        let mut validator = Validator::new(PROTOBUF);
        for message in [long(b"a", MAX_MESSAGE / 2 + 100), long(b"b", MAX_MESSAGE - 8)] {
            for piece in message.chunks(step) {
                validator.feed(piece).unwrap();
                assert!(validator.held() <= message.len(), "{}", validator.held());
            }
            assert_eq!(validator.held(), 0);
        }
        // What is only announced costs nothing.
        validator.feed(&varint(MAX_MESSAGE as u64)).unwrap();
        validator.feed(b"x").unwrap();
        assert!(validator.held() < 100, "{}", validator.held());
    }
}
