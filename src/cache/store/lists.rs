//! The stored pages of a space as one list: shown to operators, and cut to other page sizes.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{LARGEST_SHARE, PageStore};
use crate::{
    cache::{
        StoredPage,
        assemble::{Cuts, Part},
        content::Content,
        freshness::StaleIf,
        list::List,
        row_table::RowTable,
    },
    domain::{CredentialId, ListKey, ListPage, PageKey, PageQuery, RowKind, SpaceKey},
};

impl PageStore {
    /// What the page under `key` can be cut from: stored pages of other sizes, where they hold all of it.
    #[must_use]
    pub fn cuts(&self, key: &PageKey, now: Instant) -> Option<Cuts> {
        let within = self.rules().lifetimes.ttl;
        self.cuts_of(key, within, |page| page.can_be_cut(now))
            .or_else(|| self.cuts_past_the_end(key, now))
    }

    /// A page past the end of a list whose calls bring fewer rows than it has: the call for it would bring rows from before the end.
    fn cuts_past_the_end(&self, key: &PageKey, now: Instant) -> Option<Cuts> {
        let limit = self.row_limit(&key.list, now)?;
        if key.query.page_size <= limit {
            return None;
        }
        let first = key.query.span().start / u64::from(limit) + 1;
        let first = PageQuery::new(u32::try_from(first).ok()?, limit)?;
        let part = self
            .get(&key.at(first))
            .filter(|part| part.can_be_cut(now))?;
        Cuts::past_the_end(key.query, &part)
    }

    /// The same of pages that may be stale: what each may be used for is for the caller to judge.
    #[must_use]
    pub fn cuts_to_revalidate(&self, key: &PageKey, now: Instant) -> Option<Cuts> {
        let within = self.rules().lifetimes.ttl;
        self.cuts_of(key, within, |page| {
            page.can_be_cut_stale(StaleIf::Error, now)
        })
    }

    /// The same for a stale fallback: of pages that may be served for `reason`, filled however far apart. An older cut is better than an error.
    #[must_use]
    pub fn stale_cuts(&self, key: &PageKey, reason: StaleIf, now: Instant) -> Option<Cuts> {
        self.cuts_of(key, Duration::MAX, |page| {
            page.can_be_cut_stale(reason, now)
        })
    }

    fn cuts_of(
        &self,
        key: &PageKey,
        within: Duration,
        usable: impl Fn(&StoredPage) -> bool,
    ) -> Option<Cuts> {
        if !self.rules().assembles {
            return None;
        }
        let list = self.known_list(&key.list)?;
        let parts = self.parts(key, &list);
        Cuts::new(key.query, &parts, within, usable)
    }

    /// The page that `cuts` make.
    ///
    /// Cut from one entry, it is kept inside that, and so are its encodings, where the entry has room for it; from several, it is cut for
    /// each request.
    #[must_use]
    pub fn assemble(&self, cuts: &Cuts, now: Instant) -> Option<StoredPage> {
        let (query, parts) = (cuts.query(), cuts.parts());
        let has_room = |entry: &&Arc<StoredPage>| {
            let is_cut = entry.content.is_cut(query);
            is_cut || entry.weight() + cuts.length() <= self.max_bytes / LARGEST_SHARE
        };
        let content = if let Some(entry) = cuts.single().filter(has_room) {
            let (content, is_new) = entry.content.cut(query, now, || cuts.join());
            if is_new {
                self.reweigh(entry);
            }
            content?
        } else {
            let (page, table) = cuts.join()?;
            Arc::new(Content::new(page, table, now, Duration::ZERO, &self.memory))
        };
        StoredPage::cut(query, content, &parts, now)
    }

    /// A page of rows of `parts`, made for one request. `None` of no parts.
    #[must_use]
    pub fn derived(
        &self,
        query: PageQuery,
        page: ListPage,
        parts: &[Arc<StoredPage>],
        now: Instant,
    ) -> Option<StoredPage> {
        let table = RowTable::default();
        let content = Content::new(page, table, now, Duration::ZERO, &self.memory);
        StoredPage::cut(query, content.into(), parts, now)
    }

    /// What `page` shows of `source`, made for one request, and no page of a list.
    #[must_use]
    pub fn alone(
        &self,
        page: ListPage,
        source: &Arc<StoredPage>,
        now: Instant,
    ) -> Option<StoredPage> {
        let query = source.key.query;
        let page = self.derived(query, page, std::slice::from_ref(source), now)?;
        Some(page.alone(source.upstream_age))
    }

    /// Of the stored pages of a space that hold the row called `id`, the one that was read last, whatever its age.
    #[must_use]
    pub fn read_last(&self, space: &SpaceKey, rows: RowKind, id: &str) -> Option<Arc<StoredPage>> {
        let pages = self.pages_of(space).into_iter().map(|part| part.page);
        let holds = |page: &Arc<StoredPage>| {
            page.key.list.id.collection().rows == rows && page.content.table().find(id).is_some()
        };
        pages.filter(holds).max_by_key(|page| page.content.born)
    }

    /// How many pages of a space are stored.
    #[must_use]
    pub fn page_count(&self, space: &SpaceKey) -> usize {
        self.known(space).map_or(0, |space| space.page_count())
    }

    /// The stored pages of `key`'s list that touch its range.
    fn parts(&self, key: &PageKey, list: &List) -> Vec<Part> {
        let touching = list.pages_touching(&key.query.span());
        self.stored_of(&key.list, touching)
    }

    /// Every stored page of a space.
    #[must_use]
    pub fn pages_of(&self, key: &SpaceKey) -> Vec<Part> {
        let lists = self.known(key).map_or_else(Vec::new, |space| space.lists());
        let stored = |list: Arc<List>| {
            let key = ListKey {
                space: key.clone(),
                id: list.id().clone(),
            };
            self.stored_of(&key, list.pages())
        };
        lists.into_iter().flat_map(stored).collect()
    }

    /// Whether a stored page of `credential` is as wanted. Looks at pages until one is.
    #[must_use]
    pub fn any_page(
        &self,
        credential: CredentialId,
        wanted: impl Fn(&Arc<StoredPage>) -> bool,
    ) -> bool {
        self.pages
            .iter()
            .any(|(key, page)| key.list.space.credential == credential && wanted(&page))
    }

    /// The `most` spaces of which most pages are stored, those first of which there are most.
    ///
    /// Looks at every space once.
    #[must_use]
    pub fn largest_spaces(&self, most: usize) -> Vec<SpaceKey> {
        let spaces = self.spaces.lock();
        let counted = spaces.known.iter();
        let mut counted: Vec<_> = counted
            .map(|(key, space)| (Reverse(space.page_count()), key))
            .filter(|(Reverse(pages), _)| *pages > 0)
            .collect();
        // By token where they are equal, so that a list that is asked for again keeps its order.
        let order = |(pages, key): &(Reverse<usize>, &SpaceKey)| {
            (*pages, key.space.clone(), key.credential)
        };
        if counted.len() > most {
            counted.select_nth_unstable_by_key(most, order);
            counted.truncate(most);
        }
        counted.sort_unstable_by_key(order);
        counted.into_iter().map(|(_, key)| key.clone()).collect()
    }

    pub(super) fn stored_of(&self, list: &ListKey, pages: Vec<PageQuery>) -> Vec<Part> {
        let stored = |query| {
            let key = PageKey {
                list: list.clone(),
                query,
            };
            let page = self.get(&key)?;
            Some(Part { query, page })
        };
        pages.into_iter().filter_map(stored).collect()
    }
}
