//! Pages that nobody asked for any more: what their clients get is what they got before, to the byte.

use std::{ops::ControlFlow, time::Duration};

use tokio::time::Instant;
use unpod_gateway::{
    cache::{PageStore, http_semantics::ContentCoding, store::IDLE_AFTER},
    domain::PageQuery,
    simulator::{
        Options, Simulator,
        world::{SUPPORT, TRANSCRIPTS},
    },
};

use crate::gateway::{Gateway, client, setup, start};

const BROWSER: &str = "ugw_browser_key";

/// Packs as if nobody had asked for anything in the last minutes.
fn pack(gateway: &Gateway) {
    let now = Instant::now() + IDLE_AFTER + Duration::from_secs(600);
    store(gateway).compress_idle(now, |_| ControlFlow::Continue(()));
}

fn store(gateway: &Gateway) -> &PageStore {
    gateway.app.pages().store()
}

/// The encodings there are of the one page of `page_size` tasks.
fn held(gateway: &Gateway, page_size: u32) -> Vec<ContentCoding> {
    let spaces = store(gateway).largest_spaces(9).into_iter();
    let mut stored = spaces.flat_map(|space| store(gateway).pages_of(&space));
    let query = PageQuery { page: 1, page_size };
    let part = stored.find(|part| part.query == query).unwrap();
    let all = ContentCoding::BY_PREFERENCE.into_iter();
    let whole = part.page.content.whole();
    all.filter(|coding| whole.encodings.is_available(*coding))
        .collect()
}

#[tokio::test]
async fn a_packed_page_gives_every_client_what_it_gave_before() {
    let table: [(&str, &[ContentCoding]); 5] = [
        ("identity", &[ContentCoding::Zstd, ContentCoding::Identity]),
        ("zstd", &[ContentCoding::Zstd]),
        ("gzip", &[ContentCoding::Zstd, ContentCoding::Gzip]),
        ("br", &[ContentCoding::Brotli, ContentCoding::Zstd]),
        ("br;q=0.1, zstd", &[ContentCoding::Zstd]),
    ];
    // One that is read back between two requests, and one that is too long for that.
    for (space, page_size) in [(SUPPORT, 20), (TRANSCRIPTS, 2)] {
        let query = format!("?page_size={page_size}");
        for (accepted, left) in table {
            let gateway = start().await;
            let filled = gateway.tasks(space, &query).await;
            pack(&gateway);
            assert_eq!(held(&gateway, page_size), [ContentCoding::Zstd]);
            let size = store(&gateway).size().0;
            assert!(size < filled.body.len() as u64, "{size}");

            let asked = gateway.tasks(space, &query);
            let answer = asked.accept_encoding(accepted).await;

            assert_eq!(answer.decoded(), filled.body, "{accepted}");
            assert_eq!(answer.header("etag"), filled.header("etag"));
            assert_eq!(answer.cache_status(), "hit");
            let length = answer.body.len().to_string();
            assert_eq!(answer.header("content-length"), Some(length.as_str()));
            assert_eq!(held(&gateway, page_size), left, "{accepted}");
            assert_eq!(gateway.upstream().requests(), 1);
        }
    }
}

#[tokio::test]
async fn the_coding_that_clients_take_is_what_is_kept() {
    let gateway = start().await;
    gateway.tasks(SUPPORT, "").await;
    let gzip = || gateway.tasks(SUPPORT, "").accept_encoding("gzip");
    let before = gzip().await;

    pack(&gateway);
    let after = gzip().await;

    assert_eq!(held(&gateway, 20), [ContentCoding::Gzip]);
    assert_eq!(after.body, before.body);
}

#[tokio::test]
async fn neither_head_nor_a_304_unpacks() {
    let gateway = start().await;
    let filled = gateway.tasks(SUPPORT, "").await;
    let etag = filled.header("etag").unwrap();
    pack(&gateway);

    let path = format!("/spaces/{SUPPORT}/tasks");
    let head = gateway.ask("HEAD", &path).await;
    let unchanged = gateway.tasks(SUPPORT, "").if_none_match(etag).await;

    let length = filled.body.len().to_string();
    assert_eq!(head.header("content-length"), Some(length.as_str()));
    assert_eq!(unchanged.status, 304);
    assert_eq!(held(&gateway, 20), [ContentCoding::Zstd]);
    let coded = gateway.ask("HEAD", &path).accept_encoding("zstd").await;
    let got = gateway.tasks(SUPPORT, "").accept_encoding("zstd").await;
    for name in ["content-length", "content-encoding"] {
        assert_eq!(coded.header(name), got.header(name), "{name}");
    }
}

#[tokio::test]
async fn a_view_of_a_packed_page_shows_what_it_showed_before() {
    let view = client("browser", BROWSER, "spaces = [\"*\"]\nview = \"public\"");
    let view = format!("[views.public]\nfields = [\"task_id\", \"output\"]\n{view}");
    let viewed = || setup().with(&view);
    let page = |gateway: &Gateway| gateway.tasks(TRANSCRIPTS, "?page_size=2");
    let unpacked = viewed().start().await;
    page(&unpacked).await;
    let expected = page(&unpacked).key(BROWSER).await;

    let gateway = viewed().start().await;
    page(&gateway).await;
    // The page is packed when what it shows is first asked for, and that itself is the second time.
    for _ in ["the page", "what it shows"] {
        pack(&gateway);
        let before = store(&gateway).size().0;
        let shown = page(&gateway).key(BROWSER).await;
        shown.assert_page(&expected.body);
        assert_eq!(shown.header("etag"), expected.header("etag"));
        assert_eq!(held(&gateway, 2), [ContentCoding::Zstd]);
        let made = store(&gateway).size().0 - before;
        assert!(made >= shown.body.len() as u64, "{made}");
    }
}

#[tokio::test]
async fn a_page_is_cut_from_packed_ones() {
    let exact = "[upstream]\nfill_size = 0\n[cache]\nassemble_pages = true";
    let gateway = setup().with(exact).start().await;
    let whole = gateway.upstream().expect_page(SUPPORT, 1, 20);
    for page in 1..=2 {
        let query = format!("?page={page}&page_size=10");
        gateway.tasks(SUPPORT, &query).await;
    }
    pack(&gateway);

    let cut = gateway.tasks(SUPPORT, "?page_size=20").await;

    cut.assert_page(&whole);
    assert_eq!(cut.cache_status(), "hit; detail=assembled");
    assert_eq!(held(&gateway, 10), [ContentCoding::Zstd]);
}

#[tokio::test]
async fn a_packed_page_outlives_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pages");
    let setup = setup().with(&format!("[cache]\nsnapshot_file = '{}'", file.display()));
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let base_url = simulator.base_url();
    let gateway = setup.clone().start_before(&base_url).await;
    let filled = gateway.tasks(SUPPORT, "").await;
    pack(&gateway);
    assert!(gateway.app.drain().await);
    simulator.stop().await;

    let gateway = setup.start_before(&base_url).await;
    pack(&gateway);
    assert_eq!(held(&gateway, 20), [ContentCoding::Zstd]);
    let stale = gateway.tasks(SUPPORT, "").await;

    stale.assert_page(&filled.body);
    assert_eq!(stale.cache_status(), "hit; detail=stale-if-error");
}
