use std::sync::Arc;

use super::{RowKind, View};

/// What a client sees of each kind of row.
#[derive(Clone, Debug)]
pub struct ViewSet {
    tasks: Arc<View>,
    /// `None`: nothing is said of runs, and none is shown.
    runs: Option<Arc<View>>,
}

impl ViewSet {
    #[must_use]
    pub fn new(tasks: View, runs: Option<View>) -> Self {
        Self {
            tasks: Arc::new(tasks),
            runs: runs.map(Arc::new),
        }
    }

    /// What is seen of rows of this kind; `None`: they are not shown at all.
    #[must_use]
    pub fn of(&self, rows: RowKind) -> Option<&Arc<View>> {
        match rows {
            RowKind::Task => Some(&self.tasks),
            RowKind::Run => self.runs.as_ref(),
        }
    }

    /// What both show.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let runs = self.runs.as_ref().zip(other.runs.as_ref());
        Self {
            tasks: Arc::new(self.tasks.intersection(&other.tasks)),
            runs: runs.map(|(ours, theirs)| Arc::new(ours.intersection(theirs))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::FieldPath;

    fn view(fields: &[&str]) -> View {
        let fields: Vec<_> = fields
            .iter()
            .map(|field| FieldPath::dotted(field).unwrap())
            .collect();
        View::new(&fields)
    }

    #[test]
    fn runs_are_seen_where_both_say_what_of_them() {
        let tasks = || view(&["task_id"]);
        let both = ViewSet::new(tasks(), Some(view(&["run_id", "status"])));
        let narrow = ViewSet::new(tasks(), Some(view(&["run_id"])));
        let tasks_alone = ViewSet::new(tasks(), None);
        let runs = |set: &ViewSet| set.of(RowKind::Run).map(|view| view.id());

        assert_eq!(runs(&both.intersection(&narrow)), runs(&narrow));
        assert_eq!(runs(&both.intersection(&tasks_alone)), None);
        assert_eq!(runs(&tasks_alone.intersection(&both)), None);
        let seen = tasks_alone.intersection(&both);
        assert_eq!(seen.of(RowKind::Task).unwrap().id(), tasks().id());
    }
}
