//! Values and timestamps, as Prometheus's parsers read them: by Go's `strconv`, without what Go 1.13 added to it
//! (hexadecimal floats and underscores), and refused when they are too large.

/// The length of the float that stands first, up to a blank or the line's end.
pub(super) fn float(rest: &[u8]) -> Option<usize> {
    let mut at = usize::from(matches!(rest.first(), Some(b'+' | b'-')));
    let integer = digits(rest, at);
    at += integer;
    let mut fraction = 0;
    if rest.get(at) == Some(&b'.') {
        fraction = digits(rest, at + 1);
        at += 1 + fraction;
    }
    if integer + fraction == 0 {
        return word(rest);
    }
    let mut exponent = 0;
    if matches!(rest.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(rest.get(at), Some(b'+' | b'-')));
        exponent = digits(rest, at);
        if exponent == 0 {
            return None;
        }
        at += exponent;
    }
    if !ends(rest, at) {
        return None;
    }
    // With so few digits it is below 1e300: no need to work it out.
    (integer <= 200 && exponent <= 2 || parsed(rest, at)?.is_finite()).then_some(at)
}

/// The length of the float that stands first, when it is no infinity and no NaN.
pub(super) fn finite(rest: &[u8]) -> Option<usize> {
    let length = float(rest)?;
    let digit = rest.iter().take(length).any(u8::is_ascii_digit);
    digit.then_some(length)
}

/// The length of the integer that stands first, up to a blank or the line's end. The format has signed integers of 64
/// bits; Prometheus reads no sign.
pub(super) fn integer(rest: &[u8]) -> Option<usize> {
    let end = digits(rest, 0);
    if end == 0 || !ends(rest, end) {
        return None;
    }
    let fits = end <= 18 || std::str::from_utf8(rest.get(..end)?).ok()?.parse::<i64>().is_ok();
    fits.then_some(end)
}

/// How many digits stand from `at` on.
fn digits(rest: &[u8], at: usize) -> usize {
    rest.get(at..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn ends(rest: &[u8], at: usize) -> bool {
    matches!(rest.get(at), None | Some(b' ' | b'\t' | b'\n'))
}

fn parsed(rest: &[u8], end: usize) -> Option<f64> {
    std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()
}

/// Infinities, with a sign or not, and what is no number, without.
fn word(rest: &[u8]) -> Option<usize> {
    let sign = usize::from(matches!(rest.first(), Some(b'+' | b'-')));
    let is = |word: &[u8]| {
        let end = sign + word.len();
        rest.get(sign..end).is_some_and(|given| given.eq_ignore_ascii_case(word)) && ends(rest, end)
    };
    if is(b"inf") || sign == 0 && is(b"nan") {
        return Some(sign + 3);
    }
    is(b"infinity").then_some(sign + 8)
}
