//! How long to wait before trying again.

use std::time::Duration;

/// The most that an operation waits before its first, second and third retry. The wait itself is
/// anything from nothing to that ("full jitter"), so that callers that failed together do not come
/// back together.
pub(super) const RETRY_CAPS: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];

/// The most that the background task waits between two attempts to connect: what bounds how long
/// after Redis's return the agent notices.
const RECONNECT_CAP: Duration = Duration::from_secs(1);

/// How long the background task waits after Redis has refused it (a wrong password): only a person
/// can mend that, and each attempt is an entry in Redis's security log.
pub(super) const REFUSED_WAIT: Duration = Duration::from_secs(5);

/// A wait before the retry whose cap is `cap`.
pub(super) fn retry_wait(cap: Duration) -> Duration {
    cap.mul_f64(rand::random())
}

/// A wait before the `attempt`-th attempt to connect, counted from 0: none, then doubling from 100 ms
/// to [`RECONNECT_CAP`], of which at least half is always waited.
pub(super) fn reconnect_wait(attempt: u32) -> Duration {
    let Some(doublings) = attempt.checked_sub(1) else { return Duration::ZERO };
    let [first, ..] = RETRY_CAPS;
    let cap = first.saturating_mul(2_u32.saturating_pow(doublings)).min(RECONNECT_CAP);
    cap.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_within_their_caps_and_differ() {
        for cap in RETRY_CAPS {
            let waits: Vec<_> = (0..200).map(|_| retry_wait(cap)).collect();
            assert!(waits.iter().all(|&wait| wait <= cap));
            assert!(waits.iter().any(|&wait| wait < cap / 4) && waits.iter().any(|&wait| wait > cap / 4 * 3));
        }
        assert_eq!(reconnect_wait(0), Duration::ZERO);
        for (attempt, cap_ms) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (6, 1000), (u32::MAX, 1000)] {
            let cap = Duration::from_millis(cap_ms);
            let waits: Vec<_> = (0..200).map(|_| reconnect_wait(attempt)).collect();
            assert!(waits.iter().all(|&wait| wait >= cap / 2 && wait <= cap), "attempt {attempt}");
        }
    }
}
