use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// The vendor's page of `query` of a list of `count` tasks, which are numbered from the newest.
fn body(query: PageQuery, count: u64) -> String {
    let span = query.span();
    let ids: Vec<_> = (span.start..span.end.min(count))
        .map(|place| format!(r#"{{"task_id":"T{place}"}}"#))
        .collect();
    let rows = ids.join(",");
    format!(
        r#"{{"count":{count},"status_code":200,"message":"Tasks Fetched Successfully","data":[{rows}]}}"#
    )
}

fn query(page: u32, page_size: u32) -> PageQuery {
    PageQuery { page, page_size }
}

/// A list of so many tasks behind [`FakeUpstream`].
struct List {
    bench: Bench,
    count: u64,
}

impl List {
    fn of(count: u64) -> Self {
        let bench = Bench::new();
        Self { bench, count }
    }

    fn request(&self, query: PageQuery) -> ClientRequest {
        ClientRequest {
            query,
            ..self.bench.request(PLAIN)
        }
    }

    fn answer(&self, query: PageQuery) -> Outcome {
        let page = read_page(&body(query, self.count).into()).unwrap();
        answer(Content::Page(page), &[])
    }

    /// Asks for a page while the upstream answers `fetched`.
    async fn get(&self, wanted: PageQuery, fetched: &[PageQuery]) -> Served {
        for query in fetched {
            self.bench.upstream.then_answer(self.answer(*query));
        }
        let asked = self.bench.upstream.calls();
        let served = self.bench.pages.page(&self.request(wanted)).await.unwrap();
        assert_eq!(self.fetched_since(asked), fetched, "for {wanted}");
        assert_eq!(text(&served), body(wanted, self.count), "{wanted}");
        served
    }

    fn fetched_since(&self, asked: usize) -> Vec<PageQuery> {
        let all = self.bench.upstream.asked();
        all[asked..].iter().map(|asked| asked.query).collect()
    }

    /// Has pages 1 and 2 of 20 read, so that the list is wide.
    async fn wide(count: u64) -> Self {
        let list = Self::of(count);
        list.get(query(1, 20), &[query(1, 20)]).await;
        list.get(query(2, 20), &[query(1, 100)]).await;
        list
    }
}

fn text(served: &Served) -> String {
    String::from_utf8(served.page.content.page().body.to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn once_a_second_page_is_wanted_one_call_brings_a_range() {
    let list = List::of(250);
    let first = list.get(query(1, 20), &[query(1, 20)]).await;
    assert_eq!(first.status, filled(FillReason::UriMiss, 200, true));
    let second = list.get(query(2, 20), &[query(1, 100)]).await;
    assert_eq!(second.status, filled(FillReason::UriMiss, 200, true));
    assert_eq!(second.calls, 1);
    for page in [1, 3, 4, 5] {
        let cut = list.get(query(page, 20), &[]).await;
        assert_eq!(cut.status, hit(30, Detail::Assembled));
    }
    list.get(query(12, 20), &[query(3, 100)]).await;
    // A page that two ranges hold, one that is larger, and one past the end.
    list.get(query(3, 40), &[query(3, 40)]).await;
    list.get(query(1, 150), &[query(1, 150)]).await;
    list.get(query(14, 20), &[query(14, 20)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_of_which_one_page_is_wanted_is_not_wide() {
    let list = List::of(250);
    for _ in 0..3 {
        list.get(query(1, 20), &[query(1, 20)]).await;
        pass(STANDS_IN_FOR).await;
    }
    // The other page is of no use by then.
    pass(STANDS_IN_FOR).await;
    list.get(query(2, 20), &[query(2, 20)]).await;
}

#[tokio::test(start_paused = true)]
async fn pages_wanted_at_once_take_two_calls() {
    let list = List::of(100);
    let first = list.bench.upstream.then_stall();
    let range = list.bench.upstream.then_stall();
    let mut waiting = Vec::new();
    for page in 1..=5 {
        let request = list.request(query(page, 20));
        waiting.push(list.bench.get_meanwhile(request).await);
    }
    assert_eq!(list.fetched_since(0), [query(1, 20), query(1, 100)]);
    assert!(first.send(list.answer(query(1, 20))).is_ok());
    assert!(range.send(list.answer(query(1, 100))).is_ok());
    let mut statuses = Vec::new();
    for (page, waiting) in (1..).zip(waiting) {
        let served = waiting.await.unwrap().unwrap();
        assert_eq!(text(&served), body(query(page, 20), 100));
        statuses.push(served.status);
    }
    let (miss, cut) = (
        filled(FillReason::UriMiss, 200, true),
        hit(30, Detail::Assembled),
    );
    assert_eq!(statuses, [miss, miss, cut, cut, cut]);
}

#[tokio::test(start_paused = true)]
async fn a_stale_range_is_cut_while_one_fill_refreshes_it() {
    let list = List::wide(100).await;
    pass(FRESH_FOR + SECOND).await;
    let asked = list.bench.upstream.calls();
    let refreshed = list.bench.upstream.then_stall();
    for page in 1..=5 {
        let cut = list.bench.get_page(page).await.unwrap();
        assert_eq!(cut.status, hit(-1, Detail::StaleWhileRevalidate));
        assert_eq!(text(&cut), body(query(page, 20), 100));
        settle().await;
    }
    assert_eq!(list.fetched_since(asked), [query(1, 100)]);
    assert!(refreshed.send(list.answer(query(1, 100))).is_ok());
    settle().await;
    let cut = list.get(query(3, 20), &[]).await;
    assert_eq!(cut.status, hit(30, Detail::Assembled));
    // Past that window it is waited for.
    pass(FRESH_FOR + REFRESHED_FOR + SECOND).await;
    let waited = list.get(query(3, 20), &[query(1, 100)]).await;
    assert_eq!(waited.status, filled(FillReason::Stale, 200, true));
}

#[tokio::test(start_paused = true)]
async fn a_cut_page_stands_in_as_a_stored_one_does() {
    let list = List::wide(100).await;
    let third = list.request(query(3, 20));
    pass(FRESH_FOR + REFRESHED_FOR + SECOND).await;
    let spent = UpstreamError::QuotaExhausted { retry_after: None };
    list.bench.upstream.then_fail_without_a_call(spent);
    let served = list.bench.pages.page(&third).await.unwrap();
    assert_eq!(served.status, hit(-61, Detail::Quota));

    let _never = list.bench.upstream.then_stall();
    let waiting = list.bench.get_meanwhile(third.clone()).await;
    pass(3 * SECOND).await;
    let served = waiting.await.unwrap().unwrap();
    assert_eq!(served.status, hit(-64, Detail::StaleIfSlow));
    assert_eq!(text(&served), body(query(3, 20), 100));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_wants_a_newer_page_gets_that_page() {
    let list = List::wide(100).await;
    list.bench.upstream.then_answer(list.answer(query(3, 20)));
    let request = ClientRequest {
        directives: NO_CACHE,
        ..list.request(query(3, 20))
    };
    let served = list.bench.pages.page(&request).await.unwrap();
    assert_eq!(served.status, filled(FillReason::UriMiss, 200, true));
    assert_eq!(
        list.bench.upstream.asked().last().unwrap().query,
        query(3, 20)
    );
}

#[tokio::test(start_paused = true)]
async fn a_range_that_fails_by_its_rows_is_exact_for_ten_minutes() {
    let inner = || UpstreamError::Failed(FailureSource::Inner { message: None });
    let too_large = || UpstreamError::InvalidResponse(InvalidAnswer::TooLarge(1));
    for error in [
        inner(),
        too_large(),
        UpstreamError::Timeout(SECOND),
        UpstreamError::Rejected,
    ] {
        let list = List::of(100);
        list.get(query(1, 20), &[query(1, 20)]).await;
        list.bench.upstream.then_fail(error);
        let asked = list.bench.upstream.calls();
        list.bench.upstream.then_answer(list.answer(query(2, 20)));
        let served = list.bench.get_page(2).await.unwrap();
        assert_eq!(served.status, filled(FillReason::UriMiss, 200, true));
        assert_eq!(served.calls, 2);
        assert_eq!(list.fetched_since(asked), [query(1, 100), query(2, 20)]);
        // Its neighbours do not try again.
        list.get(query(3, 20), &[query(3, 20)]).await;
        pass(Duration::from_secs(600)).await;
        list.get(query(4, 20), &[query(1, 100)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_that_may_not_be_stored_is_not_fetched_for_each_of_its_pages() {
    let list = List::of(100);
    list.get(query(1, 20), &[query(1, 20)]).await;
    let page = read_page(&body(query(1, 100), 100).into()).unwrap();
    let no_store = answer(Content::Page(page), &[("cache-control", "no-store")]);
    list.bench.upstream.then_answer(no_store);
    let served = list.bench.get_page(2).await.unwrap();
    assert_eq!(served.status, filled(FillReason::UriMiss, 200, false));
    assert_eq!(text(&served), body(query(2, 20), 100));
    list.get(query(3, 20), &[query(3, 20)]).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_no_fault_of_its_rows_is_answered_without_a_second_call() {
    let slow_down = UpstreamError::Failed(FailureSource::InnerSlowDown { message: None });
    for error in [
        UpstreamError::AuthFailed,
        UpstreamError::SpaceAccessDenied,
        slow_down,
    ] {
        let list = List::of(100);
        list.get(query(1, 20), &[query(1, 20)]).await;
        let told = error.as_str();
        list.bench.upstream.then_fail(error);
        let asked = list.bench.upstream.calls();
        let refused = list.bench.get_page(2).await.unwrap_err();
        assert_eq!(code(&refused), told);
        assert_eq!(list.fetched_since(asked), [query(1, 100)]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_exact_page_is_dropped_for_the_range_that_covers_it() {
    let list = List::wide(100).await;
    let space = list.request(query(1, 20)).key().list.space;
    let stored = list.bench.pages.store().pages_of(&space);
    let stored: Vec<_> = stored.iter().map(|part| part.query).collect();
    assert_eq!(stored, [query(1, 100)]);
}

#[tokio::test(start_paused = true)]
async fn a_page_is_put_together_from_as_many_rows_as_the_upstream_gives() {
    let list = List::of(250);
    // It was asked for 100 rows, and gives 50.
    let served = {
        let first = read_page(&body(query(1, 50), 250).into()).unwrap();
        list.bench
            .upstream
            .then_answer(answer(Content::Page(first), &[]));
        list.bench.upstream.then_answer(list.answer(query(2, 50)));
        let request = list.request(query(1, 100));
        list.bench.pages.page(&request).await.unwrap()
    };
    assert_eq!(text(&served), body(query(1, 100), 250));
    assert_eq!(served.status, filled(FillReason::UriMiss, 200, true));
    assert_eq!(served.calls, 2);
    assert_eq!(list.fetched_since(0), [query(1, 100), query(2, 50)]);
    list.get(query(2, 100), &[query(3, 50), query(4, 50)]).await;
    list.get(query(3, 100), &[query(5, 50)]).await;
    list.get(query(1, 20), &[]).await;
    // A forced one takes calls of its own.
    pass(SECOND).await;
    for part in [query(1, 50), query(2, 50)] {
        list.bench.upstream.then_answer(list.answer(part));
    }
    let forced = ClientRequest {
        directives: NO_CACHE,
        ..list.request(query(1, 100))
    };
    let served = list.bench.pages.page(&forced).await.unwrap();
    assert_eq!(text(&served), body(query(1, 100), 250));
    assert_eq!(served.calls, 2);
}

#[tokio::test(start_paused = true)]
async fn a_page_of_several_calls_is_stale_while_each_is_made_again() {
    let list = List::of(250);
    list.bench.upstream.then_answer(list.answer(query(1, 50)));
    list.bench.upstream.then_answer(list.answer(query(2, 50)));
    let whole = list.request(query(1, 100));
    list.bench.pages.page(&whole).await.unwrap();
    pass(FRESH_FOR + SECOND).await;

    let asked = list.bench.upstream.calls();
    let parts = [query(1, 50), query(2, 50)];
    let refreshed = parts.map(|part| (part, list.bench.upstream.then_stall()));
    for _ in 0..3 {
        let shown = list.bench.pages.page(&whole).await.unwrap();
        assert_eq!(shown.status, hit(-1, Detail::StaleWhileRevalidate));
        assert_eq!(text(&shown), body(query(1, 100), 250));
        settle().await;
    }
    assert_eq!(list.fetched_since(asked), parts);
    for (part, refreshed) in refreshed {
        assert!(refreshed.send(list.answer(part)).is_ok());
    }
    settle().await;
    let shown = list.get(query(1, 100), &[]).await;
    assert_eq!(shown.status, hit(30, Detail::Assembled));
    // Past that window it is waited for.
    pass(FRESH_FOR + REFRESHED_FOR + SECOND).await;
    list.get(query(1, 100), &parts).await;
}

/// An upstream whose list grows while it is read, and that may give few rows.
struct Growing {
    /// The newest first.
    ids: Vec<u32>,
    most: Option<u32>,
    /// Whether a task comes before each of the next calls, and how far below the head.
    growth: VecDeque<Option<usize>>,
}

impl Growing {
    fn answer(&mut self, asked: PageQuery) -> Outcome {
        if let Some(Some(place)) = self.growth.pop_front() {
            let id = u32::try_from(self.ids.len()).unwrap();
            self.ids.insert(place.min(self.ids.len()), id);
        }
        let page_size = asked.page_size.min(self.most.unwrap_or(u32::MAX));
        let span = query(asked.page, page_size).span();
        let place = |at: u64| usize::try_from(at).unwrap().min(self.ids.len());
        let rows = self.ids[place(span.start)..place(span.end)].iter();
        let rows: Vec<_> = rows.map(|id| format!(r#"{{"task_id":"{id}"}}"#)).collect();
        let body = format!(
            r#"{{"count":{},"status_code":200,"message":"Tasks Fetched Successfully","data":[{}]}}"#,
            self.ids.len(),
            rows.join(",")
        );
        answer(Content::Page(read_page(&body.into()).unwrap()), &[])
    }

    fn service(this: &Arc<Mutex<Self>>) -> Upstream {
        let this = this.clone();
        BoxCloneSyncService::new(service_fn(move |request: PageRequest| {
            request.calls.add();
            let (_call, outcome) = (request.call.take(), this.lock().answer(request.query));
            async move { outcome }
        }))
    }
}

/// Walks the list by `page_size`; the ids of each page, which is as long as its own count says.
async fn walk(bench: &Bench, upstream: &Arc<Mutex<Growing>>, page_size: u32) -> Vec<Vec<u32>> {
    let mut pages = Vec::new();
    for page in 1.. {
        let request = ClientRequest {
            query: query(page, page_size),
            upstream: Arc::new(Growing::service(upstream)),
            ..bench.request(PLAIN)
        };
        let served = bench.pages.page(&request).await.unwrap();
        let list_page = served.page.content.page();
        let id = |row| list_page.text_of(row, "task_id").unwrap().parse().unwrap();
        let ids: Vec<u32> = list_page.rows.iter().map(id).collect();
        let span = request.query.span();
        let expected = list_page.count.min(span.end).saturating_sub(span.start);
        assert_eq!(ids.len() as u64, expected, "{} is short", request.query);
        pages.push(ids);
        if span.end >= list_page.count {
            return pages;
        }
    }
    pages
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn a_walk_meets_every_row_whatever_a_call_brings(
        count in 0_u32..350,
        most in prop::option::of(10_u32..120),
        page_size in 1_u32..=100,
        fill_size in prop_oneof![Just(0_u32), 10_u32..150],
        growth in prop::collection::vec(prop::option::weighted(0.1, 0_usize..40), 0..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        // More would not fit together before their reader gave up.
        let mut growth = VecDeque::from(growth);
        let grows = growth.iter().flatten().count();
        if grows > 2 {
            growth.clear();
        }
        let is_steady = growth.iter().flatten().next().is_none();
        runtime.block_on(async {
            let bench = Bench::configured(&format!("fill_size = {fill_size}"), PLACES);
            let ids: Vec<_> = (0..count).rev().collect();
            let upstream = Arc::new(Mutex::new(Growing { ids: ids.clone(), most, growth }));
            let seen: Vec<_> = walk(&bench, &upstream, page_size).await.concat();
            if is_steady {
                assert_eq!(seen, ids);
            }
            let distinct: BTreeSet<_> = seen.into_iter().collect();
            assert!(ids.iter().all(|id| distinct.contains(id)), "a row is lost");
            upstream.lock().growth.clear();
            // What moved is fetched again, and then stands still.
            let again = walk(&bench, &upstream, page_size).await.concat();
            assert_eq!(again, upstream.lock().ids);
        });
    }
}
