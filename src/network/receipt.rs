//! The only place where a peer's message is counted and timed.

use super::protocol::ErrorCode;
use crate::metrics::labels::{FailedMessage, FailureReason, MessageType};
use crate::metrics::{MetricsCollector, Timer};

/// Measures one message from decoded request to encoded answer. If it is dropped before that, it counts the message as
/// cancelled, so that the metrics miss none.
#[derive(Debug)]
#[must_use]
pub struct Receipt {
    metrics: MetricsCollector,
    /// `None` for a request of a type that this version does not know.
    kind: Option<MessageType>,
    timer: Timer,
    completed: bool,
}

impl Receipt {
    /// Called when a request has been decoded.
    #[inline]
    pub fn begin(metrics: MetricsCollector, kind: MessageType) -> Self {
        Self { metrics, kind: Some(kind), timer: Timer::start(), completed: false }
    }

    /// Called when a request of a type that this version does not know has been decoded.
    pub(crate) fn begin_unknown(metrics: MetricsCollector) -> Self {
        Self { metrics, kind: None, timer: Timer::start(), completed: false }
    }

    /// Called when the answer has been encoded.
    #[inline]
    pub fn complete(mut self, outcome: Result<(), ErrorCode>) {
        self.completed = true;
        match (outcome, self.kind) {
            (Ok(()), Some(kind)) => self.metrics.message_handled(kind, self.timer),
            (Ok(()), None) => {} // an unknown request never succeeds
            (Err(code), _) => self.fail(failure_reason(code)),
        }
    }

    fn fail(&self, reason: FailureReason) {
        self.metrics.message_failed(self.kind.map_or(FailedMessage::Unknown, FailedMessage::from), reason);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.completed {
            self.fail(FailureReason::Cancelled);
        }
    }
}

fn failure_reason(code: ErrorCode) -> FailureReason {
    match code {
        ErrorCode::Refused => FailureReason::Refused,
        ErrorCode::Unspecified | ErrorCode::Malformed | ErrorCode::Unsupported => FailureReason::Malformed,
        ErrorCode::TooLarge => FailureReason::TooLarge,
        ErrorCode::Busy => FailureReason::Busy,
        ErrorCode::Timeout => FailureReason::Timeout,
        ErrorCode::Storage => FailureReason::Storage,
        ErrorCode::Failed => FailureReason::Failed,
        ErrorCode::ShuttingDown => FailureReason::Cancelled,
    }
}
