//! The kinds of lists that the gateway serves: a table, one row each.

use std::{
    fmt,
    hash::{Hash, Hasher},
    ops::Deref,
};

use super::RunId;

/// A kind of list: one row of the table. A small copy, equal where the row is the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Collection(u8);

/// Where a kind of list is served and read, and what its rows hold.
#[derive(Debug)]
pub struct CollectionRow {
    /// What metrics, logs and operators call it.
    pub name: &'static str,
    /// Its place below a space, here and upstream; [`RUN_ID`] in it stands for a run's id.
    pub path: &'static str,
    /// Its route in the gateway's spelling.
    pub route: &'static str,
    /// Its route in the vendor's spelling, which is the upstream's too.
    pub vendor_route: &'static str,
    /// What its rows are.
    pub rows: RowKind,
    /// The member that names a row: no two of a list have the same.
    pub id_member: &'static str,
    /// The member that tells a row's state.
    pub state_member: &'static str,
    /// The upstream's `message` beside its rows.
    pub success: &'static str,
}

/// What rows are: which members of a view apply to them, and whether a state of theirs can be final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    Task,
    Run,
}

/// What stands for a run's id in a path.
pub const RUN_ID: &str = "{run_id}";

macro_rules! collection {
    ($name:literal at $path:literal: $rows:ident named by $id:literal, $success:literal) => {
        CollectionRow {
            name: $name,
            path: $path,
            route: concat!("/spaces/{space_token}/", $path),
            vendor_route: concat!("/api/v2/platform/spaces/{space_token}/", $path, "/"),
            rows: RowKind::$rows,
            id_member: $id,
            state_member: "status",
            success: $success,
        }
    };
}

static COLLECTIONS: [CollectionRow; 3] = [
    collection!("tasks" at "tasks": Task named by "task_id", "Tasks Fetched Successfully"),
    collection!("runs" at "runs": Run named by "run_id", "Runs Fetched Successfully"),
    collection!("run_tasks" at "runs/{run_id}/tasks": Task named by "task_id", "Tasks Fetched Successfully"),
];

impl Collection {
    /// The tasks of a space.
    pub const TASKS: Self = Self(0);

    /// How many kinds there are.
    pub const COUNT: usize = COLLECTIONS.len();

    /// Every kind of list, in the table's order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0_u8..).zip(&COLLECTIONS).map(|(place, _)| Self(place))
    }

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|collection| collection.name == name)
    }

    /// Its place in that order, from 0.
    #[must_use]
    pub fn place(self) -> usize {
        usize::from(self.0)
    }

    /// Whether its lists belong to a run of a space, and not to the space alone.
    #[must_use]
    pub fn is_of_a_run(self) -> bool {
        self.path.contains(RUN_ID)
    }
}

impl Deref for Collection {
    type Target = CollectionRow;

    fn deref(&self) -> &CollectionRow {
        &COLLECTIONS[self.place()]
    }
}

impl fmt::Debug for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// One list of a space.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListId {
    collection: Collection,
    run: Option<RunId>,
}

impl ListId {
    /// The list of a space's tasks.
    pub const TASKS: Self = Self {
        collection: Collection::TASKS,
        run: None,
    };

    /// `None` where there is a run and the collection has none, or the other way round.
    #[must_use]
    pub fn new(collection: Collection, run: Option<RunId>) -> Option<Self> {
        let fits = collection.is_of_a_run() == run.is_some();
        fits.then_some(Self { collection, run })
    }

    /// The list of this path below a space, as it is displayed.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        Collection::all().find_map(|collection| match collection.path.split_once(RUN_ID) {
            None => (path == collection.path).then(|| Self::new(collection, None))?,
            Some((before, behind)) => {
                let run = path.strip_prefix(before)?.strip_suffix(behind)?;
                Self::new(collection, Some(RunId::new(run).ok()?))
            }
        })
    }

    #[must_use]
    pub fn collection(&self) -> Collection {
        self.collection
    }

    #[must_use]
    pub fn run(&self) -> Option<&RunId> {
        self.run.as_ref()
    }
}

/// Each hit hashes it: one byte, where there is no run.
impl Hash for ListId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u8(self.collection.0);
        if let Some(run) = &self.run {
            run.hash(state);
        }
    }
}

/// Its path below a space: what stands in URLs, and what no two lists of a space share.
impl fmt::Display for ListId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.collection.path;
        match (path.split_once(RUN_ID), &self.run) {
            (Some((before, behind)), Some(run)) => write!(f, "{before}{run}{behind}"),
            _ => f.write_str(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_collection_is_found_by_its_name_and_has_a_path_of_its_own() {
        let mut paths = HashSet::new();
        for collection in Collection::all() {
            assert_eq!(Collection::named(collection.name), Some(collection));
            assert!(paths.insert(collection.path), "{collection:?}");
            assert!(collection.route.ends_with(collection.path));
            let vendor = collection.vendor_route.trim_end_matches('/');
            assert!(vendor.ends_with(collection.path));
        }
        assert_eq!(Collection::TASKS.name, "tasks");
        assert_eq!(Collection::named("call-logs"), None);
    }

    #[test]
    fn a_list_has_a_run_where_its_path_has_one() {
        for collection in Collection::all() {
            let run = || RunId::new("R1").unwrap();
            let of_run = ListId::new(collection, Some(run()));
            let of_space = ListId::new(collection, None);
            assert_ne!(of_run.is_some(), of_space.is_some(), "{collection:?}");
            let list = of_run.or(of_space).unwrap();
            assert_eq!(list.to_string(), collection.path.replace(RUN_ID, "R1"));
            assert_eq!(ListId::of_path(&list.to_string()), Some(list));
        }
    }
}
