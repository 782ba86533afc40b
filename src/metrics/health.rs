//! What is ready and what is not: the one truth behind `/ready`, `peerscope status` and
//! `agent_component_ready`.

use std::sync::Arc;

use super::labels::{Component, Label};
use parking_lot::RwLock;

/// The state of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentState {
    /// Which component.
    pub component: Component,
    /// `None` when it is ready, otherwise why it is not.
    pub problem: Option<String>,
}

/// A shared board on which each component writes its own state. Cloning shares it.
///
/// A component that never reported is not part of this agent (the metrics endpoint when it is
/// switched off) and is left out.
#[derive(Debug, Clone, Default)]
pub struct Health {
    // A std lock: held for a copy of a few strings, never across an await.
    board: Arc<RwLock<Board>>,
}

/// What each component said last, by [`Label::index`].
type Board = [Option<Result<(), String>>; Component::ALL.len()];

impl Health {
    /// Says that `component` is ready.
    pub fn ready(&self, component: Component) {
        self.write(component, Ok(()));
    }

    /// Says that `component` is not ready, and why. The reason is for people: one line, no secrets.
    pub fn not_ready(&self, component: Component, reason: impl Into<String>) {
        self.write(component, Err(reason.into()));
    }

    /// All components that have reported, in a fixed order.
    pub fn snapshot(&self) -> Vec<ComponentState> {
        let board = self.board.read();
        Component::ALL
            .iter()
            .zip(board.iter())
            .filter_map(|(&component, state)| {
                let state = state.as_ref()?;
                Some(ComponentState { component, problem: state.as_ref().err().cloned() })
            })
            .collect()
    }

    /// Whether every component that has reported is ready, and at least one has.
    pub fn is_ready(&self) -> bool {
        all_ready(&self.snapshot())
    }

    fn write(&self, component: Component, state: Result<(), String>) {
        let mut board = self.board.write();
        if let Some(slot) = board.get_mut(component.index()) {
            *slot = Some(state);
        }
    }
}

/// Whether these are ready, and there is at least one: [`Health::is_ready`] of a reading that is shown as well.
pub(crate) fn all_ready(states: &[ComponentState]) -> bool {
    !states.is_empty() && states.iter().all(|state| state.problem.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_everything_that_reported_is_ready() {
        let health = Health::default();
        assert!(!health.is_ready(), "nothing has reported yet");
        health.ready(Component::Storage);
        assert!(health.is_ready());
        health.not_ready(Component::Network, "no listener");
        assert!(!health.is_ready());
        assert_eq!(
            health.snapshot(),
            vec![
                ComponentState { component: Component::Storage, problem: None },
                ComponentState { component: Component::Network, problem: Some("no listener".into()) },
            ]
        );
        health.ready(Component::Network);
        assert!(health.is_ready());
    }
}
