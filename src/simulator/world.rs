//! The simulated world: two organizations, their tokens, their spaces and tasks.
//!
//! Everything follows from the seed; nothing reads a clock. `serve` asks it questions, `control` changes it.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    listing::{Listing, Row},
    paging::{Number, TaskQuery},
    task::{Flavor, Place, Task},
};

pub const ACME: &str = "acme.test";
pub const GLOBEX: &str = "globex.test";

/// Acme's token, with every role in every space of acme.
pub const ACME_TOKEN: &str = "a11ce00000000000000000000000000000000001";
/// Acme's next token, as good as the first: for a rotation.
pub const ACME_NEXT_TOKEN: &str = "a11ce00000000000000000000000000000000002";
pub const GLOBEX_TOKEN: &str = "910be00000000000000000000000000000000001";
/// A member of acme who may look but not read tasks: refused in every space.
pub const VIEWER_TOKEN: &str = "71e3e00000000000000000000000000000000001";
/// A logged-out token.
pub const EXPIRED_TOKEN: &str = "dead000000000000000000000000000000000001";
/// A well-formed token that nobody has.
pub const UNKNOWN_TOKEN: &str = "0000000000000000000000000000000000000000";

/// Acme's everyday space: 57 tasks in every status.
pub const SUPPORT: &str = "SUPPORT0000000000000000A";
/// Acme: 40 tasks with transcripts of 2 to 200 KB.
pub const TRANSCRIPTS: &str = "TRANSCRIPTS000000000000B";
/// Acme: 45 tasks, all completed or failed.
pub const ARCHIVE: &str = "ARCHIVE0000000000000000C";
/// Acme: 28 tasks with emoji, right-to-left text, escapes, odd numbers and odd keys.
pub const UNICODE: &str = "UNICODE0000000000000000D";
/// Acme: no tasks.
pub const EMPTY: &str = "EMPTY000000000000000000E";
/// Acme: 45 tasks, the fourth newest so badly stored that its page fails.
pub const POISON: &str = "POISON00000000000000000F";
/// Acme: 23 tasks at first; grows if `new_task_every` is set.
pub const LIVE: &str = "LIVE0000000000000000000G";
/// Globex's only space: 30 tasks. Acme has no role in it.
pub const GLOBEX_SPACE: &str = "GLOBEX00000000000000000H";
/// A well-formed space token that names no space.
pub const UNKNOWN_SPACE: &str = "NOSUCHSPACE000000000000Z";

/// The numeric id of [`GLOBEX_SPACE`], which `?space_id=` would reach.
pub const GLOBEX_SPACE_ID: u32 = 8;

const SPACES: [(&str, u32, Organization, Flavor, u64); 8] = [
    (SUPPORT, 1, Organization::Acme, Flavor::Plain, 57),
    (TRANSCRIPTS, 2, Organization::Acme, Flavor::Long, 40),
    (ARCHIVE, 3, Organization::Acme, Flavor::Settled, 45),
    (UNICODE, 4, Organization::Acme, Flavor::Unicode, 28),
    (EMPTY, 5, Organization::Acme, Flavor::Plain, 0),
    (POISON, 6, Organization::Acme, Flavor::Plain, 45),
    (LIVE, 7, Organization::Acme, Flavor::Plain, 23),
    (
        GLOBEX_SPACE,
        GLOBEX_SPACE_ID,
        Organization::Globex,
        Flavor::Plain,
        30,
    ),
];

/// The position of the badly stored task of [`POISON`], counted from the oldest.
const POISONED: usize = 41;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Organization {
    Acme,
    Globex,
}

impl Organization {
    fn id(self) -> u32 {
        match self {
            Self::Acme => 1,
            Self::Globex => 2,
        }
    }
}

/// What an API token stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Holder {
    Member(Organization),
    Viewer,
    Expired,
}

/// Why an `Authorization` header is not accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unauthorized {
    Missing,
    NoCredentials,
    Spaces,
    Invalid,
    Expired,
}

/// A business error, all of which arrive as 206.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    UnknownSpace,
    NoRole,
    ViewerOnly,
    NegativeSkip,
    TooLarge,
    InnerFailure,
}

#[derive(Debug)]
pub(super) struct Space {
    place: Place,
    organization: Organization,
    revoked: bool,
    /// Oldest first; answers run from the end.
    tasks: Vec<Task>,
    next_number: u64,
    count: Count,
    /// Answers so far.
    answered: Cell<u64>,
}

/// How the count of a space stands to the rows beside it: they are read by two queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Count {
    #[default]
    OfTheRows,
    /// A task came between the two: rows of before, and so many more.
    Ahead(u64),
    /// Every other answer comes from a replica that has seen one task more.
    Flapping,
}

impl Space {
    fn new(
        token: &'static str,
        id: u32,
        organization: Organization,
        flavor: Flavor,
        seed: u64,
    ) -> Self {
        let organization_id = organization.id();
        let place = Place {
            space: token,
            space_id: id,
            organization_id,
            flavor,
            seed,
        };
        Self {
            place,
            organization,
            revoked: false,
            tasks: Vec::new(),
            next_number: 0,
            count: Count::OfTheRows,
            answered: Cell::new(0),
        }
    }

    fn fill(&mut self, count: u64) {
        self.tasks = (0..count)
            .map(|number| Task::new(&self.place, number))
            .collect();
        self.next_number = count;
    }

    /// How many tasks the next answer tells beyond its rows.
    fn ahead(&self) -> u64 {
        match self.count {
            Count::OfTheRows => 0,
            Count::Ahead(ahead) => ahead,
            Count::Flapping => {
                self.answered.set(self.answered.get() + 1);
                self.answered.get() % 2
            }
        }
    }

    fn rows(&self, listing: Listing<'_>, query: &TaskQuery) -> Vec<Row> {
        let status = query.status.as_deref();
        let search = query.search.as_deref();
        let matching: Vec<_> = self
            .tasks
            .iter()
            .rev()
            .filter(|task| status.is_none_or(|status| task.status == status))
            .filter(|task| search.is_none_or(|search| task.json.contains(search)))
            .collect();
        listing.rows(&self.place, &matching)
    }
}

#[derive(Debug)]
pub(super) struct World {
    spaces: Vec<Space>,
    holders: BTreeMap<String, Holder>,
    revoked_tokens: BTreeSet<String>,
    /// The most rows of a page; `None`: as many as are asked for.
    max_page_size: Option<u32>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let spaces = SPACES.map(|(token, id, organization, flavor, count)| {
            let mut space = Space::new(token, id, organization, flavor, seed);
            space.fill(count);
            if token == POISON {
                space.tasks[POISONED].poisoned = true;
            }
            space
        });
        let holders = [
            (ACME_TOKEN, Holder::Member(Organization::Acme)),
            (ACME_NEXT_TOKEN, Holder::Member(Organization::Acme)),
            (GLOBEX_TOKEN, Holder::Member(Organization::Globex)),
            (VIEWER_TOKEN, Holder::Viewer),
            (EXPIRED_TOKEN, Holder::Expired),
        ];
        Self {
            spaces: spaces.into(),
            holders: holders
                .map(|(token, holder)| (token.to_owned(), holder))
                .into(),
            revoked_tokens: BTreeSet::new(),
            max_page_size: None,
        }
    }

    /// Reads an `Authorization` header as Django REST framework does.
    pub(super) fn authenticate(&self, authorization: Option<&str>) -> Result<Holder, Unauthorized> {
        let mut parts = authorization.unwrap_or_default().split_whitespace();
        if !parts
            .next()
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("token"))
        {
            return Err(Unauthorized::Missing);
        }
        let token = parts.next().ok_or(Unauthorized::NoCredentials)?;
        if parts.next().is_some() {
            return Err(Unauthorized::Spaces);
        }
        if self.revoked_tokens.contains(token) {
            return Err(Unauthorized::Invalid);
        }
        match self.holders.get(token) {
            None => Err(Unauthorized::Invalid),
            Some(Holder::Expired) => Err(Unauthorized::Expired),
            Some(holder) => Ok(*holder),
        }
    }

    /// Returns the space if `holder` may read its tasks.
    pub(super) fn admit(&self, holder: Holder, token: &str) -> Result<&Space, Refusal> {
        let space = self.space(token).ok_or(Refusal::UnknownSpace)?;
        match holder {
            Holder::Viewer => Err(Refusal::ViewerOnly),
            Holder::Member(organization)
                if organization == space.organization && !space.revoked =>
            {
                Ok(space)
            }
            Holder::Member(_) | Holder::Expired => Err(Refusal::NoRole),
        }
    }

    /// Returns the body that answers `query` about a space whose access was checked, or was not: `space_id` wins.
    pub(super) fn page(
        &self,
        checked: &Space,
        listing: Listing<'_>,
        query: &TaskQuery,
    ) -> Result<Vec<u8>, Refusal> {
        let Some(id) = &query.space_id else {
            let rows = checked.rows(listing, query);
            return self.page_of(listing, &rows, query, checked.ahead());
        };
        let other = self
            .spaces
            .iter()
            .find(|space| space.place.space_id.to_string() == *id);
        let rows = other.map(|space| space.rows(listing, query));
        self.page_of(listing, &rows.unwrap_or_default(), query, 0)
    }

    fn page_of(
        &self,
        listing: Listing<'_>,
        rows: &[Row],
        query: &TaskQuery,
        ahead: u64,
    ) -> Result<Vec<u8>, Refusal> {
        let mut query = query.clone();
        if let (Some(most), Number::Fits(size)) = (self.max_page_size, query.size) {
            query.size = Number::Fits(size.min(most.into()));
        }
        page(listing, rows, &query, ahead)
    }

    /// Returns what the space's own organization would be answered.
    pub(super) fn own_page(
        &self,
        token: &str,
        listing: Listing<'_>,
        query: &TaskQuery,
    ) -> Result<Vec<u8>, Refusal> {
        let organization = self.space(token).ok_or(Refusal::UnknownSpace)?.organization;
        let space = self.admit(Holder::Member(organization), token)?;
        self.page(space, listing, query)
    }

    /// Returns the ids of the tasks of a space, newest first.
    pub(super) fn task_ids(&self, token: &str) -> Vec<String> {
        let tasks = self
            .space(token)
            .map(|space| space.tasks.as_slice())
            .unwrap_or_default();
        tasks.iter().rev().map(|task| task.id.clone()).collect()
    }

    pub(super) fn add_task(&mut self, token: &str) {
        if let Some(space) = self.space_mut(token) {
            let task = Task::with_status(&space.place, space.next_number, "pending".to_owned());
            space.next_number += 1;
            space.tasks.push(task);
        }
    }

    /// As [`Self::add_task`] by another writer: the task lands below the head, behind so many others.
    pub(super) fn add_task_below(&mut self, token: &str, above: usize) {
        self.add_task(token);
        if let Some(space) = self.space_mut(token)
            && let Some(task) = space.tasks.pop()
        {
            let place = space.tasks.len().saturating_sub(above);
            space.tasks.insert(place, task);
        }
    }

    /// Puts so many tasks in the place of those that there are.
    pub(super) fn set_task_count(&mut self, token: &str, count: u64) {
        if let Some(space) = self.space_mut(token) {
            space.fill(count);
        }
    }

    pub(super) fn set_poisoned(&mut self, token: &str, task_id: &str) {
        if let Some(space) = self.space_mut(token)
            && let Some(task) = space.tasks.iter_mut().find(|task| task.id == task_id)
        {
            task.poisoned = true;
        }
    }

    pub(super) fn set_count(&mut self, token: &str, count: Count) {
        if let Some(space) = self.space_mut(token) {
            space.count = count;
        }
    }

    pub(super) fn set_max_page_size(&mut self, most: Option<u32>) {
        self.max_page_size = most;
    }

    pub(super) fn set_status(&mut self, token: &str, task_id: &str, status: &str) {
        let Some(space) = self.space_mut(token) else {
            return;
        };
        if let Some(task) = space.tasks.iter_mut().find(|task| task.id == task_id) {
            task.set_status(&space.place, status);
        }
    }

    pub(super) fn remove_task(&mut self, token: &str, task_id: &str) {
        if let Some(space) = self.space_mut(token) {
            space.tasks.retain(|task| task.id != task_id);
        }
    }

    pub(super) fn revoke_space(&mut self, token: &str) {
        if let Some(space) = self.space_mut(token) {
            space.revoked = true;
        }
    }

    pub(super) fn grant_space(&mut self, token: &str) {
        if let Some(space) = self.space_mut(token) {
            space.revoked = false;
        }
    }

    pub(super) fn revoke_token(&mut self, token: &str) {
        self.revoked_tokens.insert(token.to_owned());
    }

    pub(super) fn allow_token(&mut self, token: &str) {
        self.revoked_tokens.remove(token);
        let acme = Holder::Member(Organization::Acme);
        let holder = self.holders.entry(token.to_owned()).or_insert(acme);
        if *holder == Holder::Expired {
            *holder = acme;
        }
    }

    fn space(&self, token: &str) -> Option<&Space> {
        self.spaces.iter().find(|space| space.place.space == token)
    }

    fn space_mut(&mut self, token: &str) -> Option<&mut Space> {
        self.spaces
            .iter_mut()
            .find(|space| space.place.space == token)
    }
}

fn page(
    listing: Listing<'_>,
    rows: &[Row],
    query: &TaskQuery,
    ahead: u64,
) -> Result<Vec<u8>, Refusal> {
    let window = window(query)?;
    let shown = rows.get(window.0..).unwrap_or_default();
    let shown = &shown[..window.1.min(shown.len())];
    if shown.iter().any(|row| row.poisoned) {
        return Err(Refusal::InnerFailure);
    }
    let data = shown
        .iter()
        .map(|row| row.json.as_str())
        .collect::<Vec<_>>()
        .join(",");
    let (count, success) = (rows.len() as u64 + ahead, listing.success());
    let body =
        format!(r#"{{"count":{count},"status_code":200,"message":"{success}","data":[{data}]}}"#);
    Ok(body.into_bytes())
}

/// Returns how many tasks to skip and how many to show.
fn window(query: &TaskQuery) -> Result<(usize, usize), Refusal> {
    let (Number::Fits(page), Number::Fits(size)) = (query.page, query.size) else {
        return Err(Refusal::TooLarge);
    };
    if page <= 0 {
        return Err(Refusal::NegativeSkip);
    }
    let limit = size.checked_abs().ok_or(Refusal::TooLarge)?;
    let skip = (page - 1).checked_mul(limit).ok_or(Refusal::TooLarge)?;
    let bounded = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
    // A limit of zero is the database's word for none.
    let limit = if limit == 0 {
        usize::MAX
    } else {
        bounded(limit)
    };
    Ok((bounded(skip), limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(query: &str) -> Result<String, Refusal> {
        let world = World::new(1);
        let page = world.own_page(SUPPORT, Listing::Tasks, &TaskQuery::parse(query))?;
        Ok(String::from_utf8(page).unwrap())
    }

    fn ids(query: &str) -> Vec<String> {
        let parsed: serde_json::Value = serde_json::from_str(&body(query).unwrap()).unwrap();
        let tasks = parsed["data"].as_array().unwrap();
        tasks
            .iter()
            .map(|task| task["task_id"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn tokens_have_the_documented_shape() {
        for (token, ..) in SPACES {
            assert_eq!(token.len(), 24);
            assert!(
                token
                    .bytes()
                    .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
            );
        }
        assert_eq!(UNKNOWN_SPACE.len(), 24);
        for token in [
            ACME_TOKEN,
            ACME_NEXT_TOKEN,
            GLOBEX_TOKEN,
            VIEWER_TOKEN,
            EXPIRED_TOKEN,
            UNKNOWN_TOKEN,
        ] {
            assert_eq!(token.len(), 40);
            assert!(token.bytes().all(|byte| byte.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn pages_are_newest_first_and_lenient() {
        let all = World::new(1).task_ids(SUPPORT);
        assert_eq!(ids("page=2&page_size=20"), all[20..40]);
        assert_eq!(ids("page_size=0"), all);
        assert_eq!(ids("page_size=-5"), all[..5]);
        assert_eq!(ids(""), all[..50]);
        assert_eq!(ids("page=4&page_size=20"), [""; 0]);
    }

    #[test]
    fn bad_paging_is_refused() {
        assert_eq!(body("page=0").unwrap_err(), Refusal::NegativeSkip);
        assert_eq!(body("page=-1").unwrap_err(), Refusal::NegativeSkip);
        assert_eq!(
            body("page=9223372036854775808").unwrap_err(),
            Refusal::TooLarge
        );
        assert_eq!(
            body("page=9223372036854775807").unwrap_err(),
            Refusal::TooLarge
        );
    }

    #[test]
    fn undocumented_parameters_are_trusted() {
        assert!(body("space_id=8").unwrap().starts_with(r#"{"count":30,"#));
        assert!(body("space_id=99").unwrap().starts_with(r#"{"count":0,"#));
        let failed = body("status=failed&page_size=0").unwrap();
        assert!(
            failed.contains(r#""status":"failed""#) && !failed.contains(r#""status":"completed""#)
        );
        assert!(
            body("search=lead56@")
                .unwrap()
                .starts_with(r#"{"count":1,"#)
        );
    }

    #[test]
    fn a_badly_stored_task_fails_its_page_only() {
        let world = World::new(1);
        let page = |number| world.own_page(POISON, Listing::Tasks, &TaskQuery::page(number, 20));
        assert_eq!(page(1).unwrap_err(), Refusal::InnerFailure);
        assert!(page(2).is_ok());
    }

    #[test]
    fn tasks_come_change_and_go() {
        let mut world = World::new(1);
        world.add_task(EMPTY);
        let id = world.task_ids(EMPTY).remove(0);
        world.set_status(EMPTY, &id, "hold");
        let body = world
            .own_page(EMPTY, Listing::Tasks, &TaskQuery::page(1, 20))
            .unwrap();
        assert!(
            String::from_utf8(body)
                .unwrap()
                .contains(r#""status":"hold""#)
        );
        world.remove_task(EMPTY, &id);
        assert!(world.task_ids(EMPTY).is_empty());
    }
}
