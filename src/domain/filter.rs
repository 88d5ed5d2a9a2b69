use super::View;

/// A member of a task that a filter goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterMember {
    Status,
    Assignee,
    RunId,
}

impl FilterMember {
    pub const ALL: [Self; 3] = [Self::Status, Self::Assignee, Self::RunId];

    /// What it is called, as a member and as a parameter.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Assignee => "assignee",
            Self::RunId => "run_id",
        }
    }
}

/// Which tasks are asked for: those of which each member named here is one of its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Vec<(FilterMember, Vec<Box<str>>)>);

impl Filter {
    /// `None` where nothing is filtered by.
    #[must_use]
    pub fn new(wanted: Vec<(FilterMember, Vec<Box<str>>)>) -> Option<Self> {
        (!wanted.is_empty()).then_some(Self(wanted))
    }

    /// Whether a task matches, of which `member` tells the members that are strings.
    pub fn matches<'a>(&self, member: impl Fn(FilterMember) -> Option<&'a str>) -> bool {
        self.0.iter().all(|(name, values)| {
            let value = member(*name);
            value.is_some_and(|value| values.iter().any(|wanted| **wanted == *value))
        })
    }

    /// Whether `view` shows every member that is filtered by. What it hides is absent for its client, so nothing matches it: a count of
    /// matches would tell what the view hides.
    #[must_use]
    pub fn goes_by_what_is_shown(&self, view: &View) -> bool {
        self.0
            .iter()
            .all(|(name, _)| view.shows_text(name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::FieldPath;

    fn filter(wanted: &[(FilterMember, &[&str])]) -> Filter {
        let values = |values: &[&str]| values.iter().map(|value| Box::from(*value)).collect();
        let wanted = wanted.iter().map(|(name, all)| (*name, values(all)));
        Filter::new(wanted.collect()).unwrap()
    }

    #[test]
    fn values_of_one_member_are_or_ed_and_members_are_and_ed() {
        use FilterMember::{Assignee, RunId, Status};
        let task = |member| match member {
            Status => Some("failed"),
            Assignee => Some("a"),
            RunId => None,
        };
        for (wanted, matches) in [
            (&[(Status, &["failed"][..])][..], true),
            (&[(Status, &["pending", "failed"])], true),
            (&[(Status, &["pending"])], false),
            (&[(Status, &["faile", "failed "])], false),
            (&[(Status, &["failed"]), (Assignee, &["b", "a"])], true),
            (&[(Status, &["failed"]), (Assignee, &["b"])], false),
            // What is absent is no value.
            (&[(RunId, &["R"])], false),
        ] {
            assert_eq!(filter(wanted).matches(task), matches, "{wanted:?}");
        }
        assert_eq!(Filter::new(Vec::new()), None);
    }

    #[test]
    fn a_filter_sees_no_more_than_its_view() {
        let by = |name| filter(&[(FilterMember::Status, &["x"]), (name, &["x"])]);
        let view = |fields: &[&str]| {
            let fields = fields.iter().map(|field| FieldPath::dotted(field).unwrap());
            View::new(&fields.collect::<Vec<_>>())
        };
        for (fields, is_shown) in [
            (&["status", "assignee"][..], true),
            (&["assignee"], false),
            (&["status"], false),
            // A string is shown whole or not at all.
            (&["status", "assignee.name"], false),
        ] {
            let filter = by(FilterMember::Assignee);
            let shown = filter.goes_by_what_is_shown(&view(fields));
            assert_eq!(shown, is_shown, "{fields:?}");
        }
    }
}
