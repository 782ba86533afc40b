//! What no single value shows: limits, and keys that cannot go together.
use super::Config;
use super::error::Problem;
use super::tree::Node;
pub(super) fn check(_config: &Config, _tree: &Node, _metrics_built_in: bool) -> Vec<Problem> {
    Vec::new()
}
