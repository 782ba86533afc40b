//! How long to wait before trying again.

use std::time::Duration;

/// The longest wait of an operation before its first, second and third retry. The actual wait is random, from zero up
/// to this ("full jitter"), so that callers that failed together do not retry together.
pub(super) const RETRY_CAPS: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];

/// The longest wait of the background task between two attempts to connect. It bounds how late the agent notices that
/// Redis is back.
const RECONNECT_CAP: Duration = Duration::from_secs(1);

/// How long the background task waits after Redis has refused the connection (a wrong password): only a person can fix
/// that, and each attempt adds an entry to Redis's security log.
pub(super) const REFUSED_WAIT: Duration = Duration::from_secs(5);

/// A random wait before a retry, at most `cap`.
pub(super) fn retry_wait(cap: Duration) -> Duration {
    cap.mul_f64(rand::random())
}

/// The wait before attempt number `attempt` to connect, counted from 0. The first has none. After that the cap doubles
/// from 100 ms up to [`RECONNECT_CAP`], and the wait is random between half the cap and the cap.
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
