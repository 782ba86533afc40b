//! The tasks that live as long as the agent, and what happens if one ends early.
//!
//! A task that ends without being stopped has panicked. It is not restarted: its state is lost, so the agent stops and
//! its supervisor restarts it as a whole.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

/// The tasks that live as long as the agent. They end when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Parts {
    tasks: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Parts {
    pub(super) fn run(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Waits until one of them has ended, and returns its name.
    pub(super) async fn ended(&mut self) -> &'static str {
        let Some(ended) = self.tasks.join_next_with_id().await else { return std::future::pending().await };
        let id = ended.map_or_else(|panic| panic.id(), |(id, ())| id);
        self.names.remove(&id).unwrap_or("a part")
    }

    /// Waits until the task with this name has ended. Others may end in the meantime.
    pub(super) async fn end_of(&mut self, name: &'static str) {
        while self.names.values().any(|&running| running == name) {
            self.ended().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_is_named() {
        let mut parts = Parts::default();
        parts.run("the one that stays", std::future::pending());
        parts.run("the one that returns", std::future::ready(()));
        parts.run("the one that panics", async { panic!("on purpose") });
        let mut ended = [parts.ended().await, parts.ended().await];
        ended.sort_unstable();
        assert_eq!(ended, ["the one that panics", "the one that returns"]);
        parts.end_of("the one that panics").await;
        let stays = tokio::time::timeout(std::time::Duration::from_millis(50), parts.end_of("the one that stays"));
        assert!(stays.await.is_err());
    }
}
