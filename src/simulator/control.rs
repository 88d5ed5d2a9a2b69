//! What a test holds: it reads what the simulator has seen and changes what it will say.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    Fault, RecordedRequest, Scripted, Shared, answer::refusal_body, listing::Listing,
    paging::TaskQuery, quota::Quota, world::Count,
};

/// A handle on a running simulator; clones are handles on the same one.
///
/// Spaces and tasks that do not exist are ignored.
#[derive(Clone)]
pub struct Control(pub(super) Arc<Shared>);

impl Control {
    /// Returns how many tasks requests have arrived, POSTs apart.
    pub fn requests(&self) -> u64 {
        self.0.ledger.lock().requests
    }

    pub fn requests_to(&self, space: &str) -> u64 {
        self.0
            .ledger
            .lock()
            .by_space
            .get(space)
            .copied()
            .unwrap_or_default()
    }

    /// Returns how many POSTs, each of which would have created a task, have arrived at the tasks routes.
    pub fn posts(&self) -> u64 {
        self.0.ledger.lock().posts
    }

    /// Returns how many tasks requests await their answer, those that wait for a slot included.
    pub fn in_flight(&self) -> usize {
        self.0.ledger.lock().in_flight
    }

    pub fn max_in_flight(&self) -> usize {
        self.0.ledger.lock().max_in_flight
    }

    /// Returns how often each fault has struck, by the fault's name.
    pub fn struck(&self) -> BTreeMap<&'static str, u64> {
        self.0.ledger.lock().by_fault.clone()
    }

    /// Returns the newest requests to any path but `/__stats`, as many as [`super::Options::recorded`] says, oldest first.
    pub fn recorded(&self) -> Vec<RecordedRequest> {
        self.0.ledger.lock().recorded.iter().cloned().collect()
    }

    /// Waits until at least `count` tasks requests have arrived since the start.
    pub async fn wait_for_requests(&self, count: u64) {
        let mut arrivals = self.0.arrivals.subscribe();
        // The sender lives in `self.0`: it cannot be gone.
        let _ = arrivals.wait_for(|arrived| *arrived >= count).await;
    }

    /// Keeps every tasks request waiting, once it has been counted, until the guard is dropped.
    pub fn hold(&self) -> Hold {
        self.0.holds.send_modify(|holds| *holds += 1);
        Hold(Arc::clone(&self.0))
    }

    pub fn set_faults(&self, faults: Vec<Fault>) {
        self.0.settings.lock().faults = faults;
    }

    pub fn set_latency(&self, latency: Duration) {
        self.0.settings.lock().latency = latency;
    }

    /// Sets how many seconds the upstream's clock is ahead of this machine's, as its `Date` tells; negative: behind.
    pub fn set_clock_skew(&self, seconds: i64) {
        self.0.settings.lock().clock_skew = seconds;
    }

    /// Sets the calls a minute for each token and forgets those already made.
    pub fn set_quota(&self, per_minute: Option<u32>) {
        *self.0.quota.lock() = Quota::new(per_minute);
    }

    /// Has the next tasks requests for `space` answered by `answers` in turn; the last repeats, none ends it.
    ///
    /// Scripted answers go before faults, tokens and roles; a quota and a hold still apply.
    pub fn script(&self, space: &str, answers: Vec<Scripted>) {
        self.0.scripts.lock().set(space, answers);
    }

    /// Returns the body, byte for byte, that the space's own organization would be answered now.
    pub fn expect_page(&self, space: &str, page: u64, size: u64) -> Vec<u8> {
        self.expect_list(space, "tasks", page, size)
    }

    /// The same of any list, by its path below the space, such as `runs/R1/tasks`.
    ///
    /// # Panics
    ///
    /// Panics where no list is served there.
    pub fn expect_list(&self, space: &str, path: &str, page: u64, size: u64) -> Vec<u8> {
        let listing = Listing::at(path).expect("a list is served at the path");
        let query = TaskQuery::page(page, size);
        let answer = self.0.world.lock().own_page(space, listing, &query);
        answer.unwrap_or_else(|refusal| refusal_body(refusal, listing).into_bytes())
    }

    /// Returns the ids of the space's tasks, newest first.
    pub fn task_ids(&self, space: &str) -> Vec<String> {
        self.0.world.lock().task_ids(space)
    }

    /// Adds a pending task, which moves every later page by one.
    pub fn add_task(&self, space: &str) {
        self.0.world.lock().add_task(space);
    }

    /// The same by another writer: the task lands below the head, behind `above` others.
    pub fn add_task_below(&self, space: &str, above: usize) {
        self.0.world.lock().add_task_below(space, above);
    }

    /// Puts `count` new tasks in the place of the space's own.
    pub fn set_task_count(&self, space: &str, count: u64) {
        self.0.world.lock().set_task_count(space, count);
    }

    /// Stores a task so badly that every page that holds it fails.
    pub fn poison_task(&self, space: &str, task_id: &str) {
        self.0.world.lock().set_poisoned(space, task_id);
    }

    /// Sets how the count of the space stands to the rows beside it.
    pub fn set_count(&self, space: &str, count: Count) {
        self.0.world.lock().set_count(space, count);
    }

    /// Sets the most rows that a page has, whatever is asked for.
    pub fn set_max_page_size(&self, most: Option<u32>) {
        self.0.world.lock().set_max_page_size(most);
    }

    pub fn set_status(&self, space: &str, task_id: &str, status: &str) {
        self.0.world.lock().set_status(space, task_id, status);
    }

    pub fn remove_task(&self, space: &str, task_id: &str) {
        self.0.world.lock().remove_task(space, task_id);
    }

    /// Takes everybody's role in the space away.
    pub fn revoke_space(&self, space: &str) {
        self.0.world.lock().revoke_space(space);
    }

    /// Undoes [`Self::revoke_space`].
    pub fn grant_space(&self, space: &str) {
        self.0.world.lock().grant_space(space);
    }

    pub fn revoke_token(&self, token: &str) {
        self.0.world.lock().revoke_token(token);
    }

    /// Makes a token valid: a revoked one as before, an expired or unknown one as a full token of acme.
    pub fn allow_token(&self, token: &str) {
        self.0.world.lock().allow_token(token);
    }
}

/// While it lives, tasks requests wait.
#[must_use = "requests wait only while the guard lives"]
pub struct Hold(Arc<Shared>);

impl Hold {
    /// Lets the requests go on, unless another guard still holds them.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.send_modify(|holds| *holds -= 1);
    }
}
