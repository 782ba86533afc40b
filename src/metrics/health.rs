//! Which components are ready: the single source for `/ready`, `peerscope status` and
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

/// The state of every component, each reported by the component itself. Clones share it.
///
/// A component that has never reported is not part of this agent (for example, the metrics endpoint if it
/// is disabled) and is left out.
#[derive(Debug, Clone, Default)]
pub struct Health {
    // Held only while a few strings are copied, never across an await.
    board: Arc<RwLock<Board>>,
}

/// The last report of each component, by [`Label::index`].
type Board = [Option<Result<(), String>>; Component::ALL.len()];

impl Health {
    /// Reports that `component` is ready.
    pub fn ready(&self, component: Component) {
        self.write(component, Ok(()));
    }

    /// Reports that `component` is not ready, and why. `reason` is for people: one line, no secrets.
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

    /// Whether at least one component has reported, and all that have are ready.
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

/// [`Health::is_ready`] for a snapshot that is also shown.
pub(crate) fn all_ready(states: &[ComponentState]) -> bool {
    !states.is_empty() && states.iter().all(|state| state.problem.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_ready_when_every_component_that_has_reported_is_ready() {
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
