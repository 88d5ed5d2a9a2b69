use proptest::prelude::*;

use super::*;

const IDLE_SECONDS: u32 = 60;
const IDLE_AFTER: Duration = Duration::from_secs(IDLE_SECONDS as u64);

const CODINGS: [ContentCoding; 3] = [
    ContentCoding::Brotli,
    ContentCoding::Zstd,
    ContentCoding::Gzip,
];

/// Encodings that are there, and the second each was taken in.
type TakenAt = &'static [(ContentCoding, u32)];

/// A body that shrinks well.
fn tasks(count: usize) -> Bytes {
    let task = |number| format!(r#"{{"task_id":"T{number}","status":"completed","output":null}}"#);
    let tasks: Vec<_> = (0..count).map(task).collect();
    format!(r#"{{"count":{count},"data":[{}]}}"#, tasks.join(",")).into()
}

/// Bytes that do not shrink, the same in every run.
fn noise(length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes.into()
}

fn held(encodings: &Encodings) -> Vec<ContentCoding> {
    let all = ContentCoding::BY_PREFERENCE.into_iter();
    all.filter(|coding| encodings.is_available(*coding))
        .collect()
}

async fn advance() -> Instant {
    tokio::time::advance(IDLE_AFTER).await;
    Instant::now()
}

#[test]
fn what_is_kept_is_what_somebody_took_lately() {
    let taken = |encodings: &[(ContentCoding, u32)]| {
        let mut taken = LastUsed::default();
        for (coding, second) in encodings {
            taken[*coding as usize] = Some(*second);
        }
        taken
    };
    let table: &[(TakenAt, u32, Plan)] = &[
        (
            &[(ContentCoding::Identity, 0)],
            IDLE_SECONDS - 1,
            Plan::NotBefore(IDLE_SECONDS),
        ),
        (
            &[(ContentCoding::Identity, 0)],
            IDLE_SECONDS,
            Plan::Compress,
        ),
        (
            &[(ContentCoding::Identity, 5)],
            IDLE_SECONDS,
            Plan::NotBefore(IDLE_SECONDS + 5),
        ),
        // A variant is there already: it is what clients take.
        (
            &[(ContentCoding::Identity, 0), (ContentCoding::Gzip, 0)],
            IDLE_SECONDS,
            Plan::DropAllBut(ContentCoding::Gzip),
        ),
        (
            &[(ContentCoding::Identity, 0), (ContentCoding::Gzip, 1)],
            IDLE_SECONDS,
            Plan::DropPlain,
        ),
        (
            &[(ContentCoding::Identity, 1), (ContentCoding::Gzip, 0)],
            IDLE_SECONDS,
            Plan::NotBefore(IDLE_SECONDS + 1),
        ),
        // The one taken last, of several.
        (
            &[
                (ContentCoding::Identity, 0),
                (ContentCoding::Gzip, 2),
                (ContentCoding::Zstd, 0),
                (ContentCoding::Brotli, 1),
            ],
            IDLE_SECONDS + 2,
            Plan::DropAllBut(ContentCoding::Gzip),
        ),
        (
            &[(ContentCoding::Gzip, 0), (ContentCoding::Brotli, 1)],
            IDLE_SECONDS,
            Plan::NotBefore(IDLE_SECONDS + 1),
        ),
        (
            &[(ContentCoding::Gzip, 0), (ContentCoding::Brotli, 1)],
            IDLE_SECONDS + 1,
            Plan::DropAllBut(ContentCoding::Brotli),
        ),
        // Nothing is left to drop.
        (&[(ContentCoding::Gzip, 0)], IDLE_SECONDS, Plan::Nothing),
        (&[(ContentCoding::Zstd, 7)], 0, Plan::Nothing),
        (
            &[(ContentCoding::Identity, u32::MAX)],
            u32::MAX - 1,
            Plan::NotBefore(u32::MAX),
        ),
    ];
    for (encodings, now, expected) in table {
        assert_eq!(
            plan(&taken(encodings), *now, IDLE_SECONDS),
            *expected,
            "{encodings:?} at {now}"
        );
    }
}

#[tokio::test]
async fn however_many_ask_at_once_an_encoding_is_made_once() {
    let now = Instant::now();
    let encodings = Encodings::new(tasks(1000), now, &BodyMemory::default());
    let asking = (0..50).map(|_| encodings.get(ContentCoding::Gzip, now));
    let made = futures_util::future::join_all(asking).await;
    let first = made[0].bytes.as_ptr();
    assert!(made.iter().all(|one| one.bytes.as_ptr() == first));
    assert!(made.iter().all(|one| one.coding == ContentCoding::Gzip));
}

#[tokio::test]
async fn what_came_in_gzip_is_offered_in_gzip_first() {
    let now = Instant::now();
    let plain = Encodings::new(tasks(1000), now, &BodyMemory::default());
    assert_eq!(plain.codings()[0], ContentCoding::Brotli);
    let encodings = plain.with_gzip(Bytes::from_static(b"as it came"));
    assert_eq!(encodings.codings()[0], ContentCoding::Gzip);
    let taken = encodings.get(ContentCoding::Gzip, now).await;
    assert_eq!(taken.bytes, "as it came");
    assert_eq!(encodings.memory().bytes(), encodings.weight());
}

#[tokio::test(start_paused = true)]
async fn a_body_nobody_takes_becomes_one_small_copy() {
    let body = tasks(400);
    let encodings = Encodings::new(body.clone(), Instant::now(), &BodyMemory::default());
    let early = encodings.compress_idle(Instant::now(), IDLE_AFTER);
    let due = Some(Instant::now() + IDLE_AFTER);
    assert_eq!(
        early,
        IdleCompression {
            changed: false,
            due
        }
    );

    let packed = encodings.compress_idle(advance().await, IDLE_AFTER);

    assert_eq!(
        packed,
        IdleCompression {
            changed: true,
            due: None
        }
    );
    assert_eq!(held(&encodings), [ContentCoding::Zstd]);
    assert!(
        encodings.weight() < body.len() / 5,
        "{}",
        encodings.weight()
    );
    assert_eq!(
        encodings.length_in(ContentCoding::Identity),
        Some(body.len())
    );
    assert_eq!(encodings.plain(), body);
    assert_eq!(
        held(&encodings),
        [ContentCoding::Zstd],
        "reading it is not asking for it"
    );
    assert_eq!(
        encodings.compress_idle(advance().await, IDLE_AFTER),
        IdleCompression::default()
    );
}

#[tokio::test(start_paused = true)]
async fn who_takes_the_identity_has_it_kept_and_the_copy_stays() {
    let body = tasks(400);
    let encodings = Encodings::new(body.clone(), Instant::now(), &BodyMemory::default());
    encodings.compress_idle(advance().await, IDLE_AFTER);

    let taken = encodings.get(ContentCoding::Identity, Instant::now()).await;

    assert_eq!((taken.coding, taken.bytes), (ContentCoding::Identity, body));
    assert_eq!(
        held(&encodings),
        [ContentCoding::Zstd, ContentCoding::Identity]
    );
    let due = Instant::now() + IDLE_AFTER;
    assert_eq!(
        encodings.compress_idle(Instant::now(), IDLE_AFTER).due,
        Some(due)
    );
    assert!(encodings.compress_idle(advance().await, IDLE_AFTER).changed);
    assert_eq!(held(&encodings), [ContentCoding::Zstd]);
}

#[tokio::test(start_paused = true)]
async fn the_variant_that_clients_take_is_the_copy() {
    let encodings = Encodings::new(tasks(400), Instant::now(), &BodyMemory::default());
    encodings.compress_idle(advance().await, IDLE_AFTER);

    let coded = encodings.get(ContentCoding::Gzip, advance().await).await;

    assert_eq!(held(&encodings), [ContentCoding::Zstd, ContentCoding::Gzip]);
    encodings.compress_idle(advance().await, IDLE_AFTER);
    assert_eq!(held(&encodings), [ContentCoding::Gzip]);
    let again = encodings.get(ContentCoding::Gzip, Instant::now()).await;
    assert_eq!(again.bytes, coded.bytes);
    assert_eq!(
        held(&encodings),
        [ContentCoding::Gzip],
        "it goes out as it is"
    );
}

#[tokio::test(start_paused = true)]
async fn a_form_in_use_outlives_the_identity_that_nobody_takes() {
    let encodings = Encodings::new(tasks(400), Instant::now(), &BodyMemory::default());
    encodings.get(ContentCoding::Brotli, Instant::now()).await;
    encodings.get(ContentCoding::Gzip, Instant::now()).await;
    advance().await;
    encodings.get(ContentCoding::Gzip, Instant::now()).await;

    let packed = encodings.compress_idle(Instant::now(), IDLE_AFTER);

    assert_eq!(
        held(&encodings),
        [ContentCoding::Brotli, ContentCoding::Gzip]
    );
    assert_eq!(packed.due, Some(Instant::now() + IDLE_AFTER));
    encodings.compress_idle(advance().await, IDLE_AFTER);
    assert_eq!(held(&encodings), [ContentCoding::Gzip]);
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_stays_in_use_is_moved_once() {
    let body = tasks(400);
    let encodings = Encodings::new(body.clone(), Instant::now(), &BodyMemory::default());
    let mut moves = 0;
    let mut lay_at = body.as_ptr();
    for _ in 0..5 {
        let taken = encodings
            .get(ContentCoding::Identity, advance().await)
            .await;
        assert_eq!(taken.bytes, body);
        moves += usize::from(taken.bytes.as_ptr() != lay_at);
        lay_at = taken.bytes.as_ptr();
        let due = Some(Instant::now() + IDLE_AFTER);
        assert_eq!(
            encodings.compress_idle(Instant::now(), IDLE_AFTER),
            IdleCompression {
                changed: false,
                due
            }
        );
    }
    assert_eq!(moves, 1);
}

#[tokio::test(start_paused = true)]
async fn what_would_save_too_little_stays_plain() {
    for body in [tasks(10), noise(100_000)] {
        let encodings = Encodings::new(body, Instant::now(), &BodyMemory::default());
        assert_eq!(
            encodings.compress_idle(advance().await, IDLE_AFTER),
            IdleCompression::default()
        );
        assert_eq!(held(&encodings), [ContentCoding::Identity]);
    }
}

#[tokio::test]
async fn a_variant_holds_no_more_than_it_weighs() {
    let encodings = Encodings::new(tasks(400), Instant::now(), &BodyMemory::default());
    for coding in CODINGS {
        let coded = encodings.get(coding, Instant::now()).await.bytes;
        let held = encodings
            .available
            .load()
            .get(coding)
            .unwrap()
            .bytes
            .clone();
        drop(encodings.available.swap(Arc::default()));
        drop(held);
        // The one handle that is left gives its buffer away as it is.
        let buffer = coded.try_into_mut().unwrap();
        assert_eq!(buffer.capacity(), buffer.len(), "{coding:?}");
        let plain = EncodedBody::new(tasks(400), ContentCoding::Identity, &encodings.memory);
        encodings
            .available
            .store(Arc::new(Available::default().with(plain)));
    }
}

#[test]
fn what_is_printed_holds_no_task() {
    let printed = format!(
        "{:?}",
        Encodings::new(tasks(3), Instant::now(), &BodyMemory::default())
    );
    assert!(printed.contains("length") && !printed.contains("completed"));
}

fn any_body() -> impl Strategy<Value = Bytes> {
    let random = prop::collection::vec(any::<u8>(), 0..20_000).prop_map(Bytes::from);
    prop_oneof![random, (0..2000_usize).prop_map(tasks)]
}

proptest! {
    // Whatever was taken and packed in between, every form gives the same bytes.
    #[test]
    fn every_form_gives_the_body_however_it_was_packed(
        body in any_body(),
        steps in prop::collection::vec((0..ENCODINGS, 0..20_u64), 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut now = Instant::now();
            let encodings = Encodings::new(body.clone(), now, &BodyMemory::default());
            for (form, seconds) in steps {
                now += Duration::from_secs(seconds);
                encodings.compress_idle(now, IDLE_AFTER);
                let taken = encodings.get(ContentCoding::BY_PREFERENCE[form], now).await;
                let read = decompress(taken.coding, &taken.bytes, body.len()).unwrap();
                prop_assert_eq!(&read, &body);
                prop_assert_eq!(&encodings.plain(), &body);
                prop_assert_eq!(encodings.length_in(taken.coding), Some(taken.bytes.len()));
                let weight: usize = held(&encodings)
                    .into_iter()
                    .filter_map(|coding| encodings.length_in(coding))
                    .sum();
                prop_assert_eq!(encodings.weight(), weight);
            }
            Ok(())
        })?;
    }

    #[test]
    fn what_was_not_coded_here_is_an_error_and_no_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        length in 0..1000_usize,
    ) {
        for coding in CODINGS {
            if let Ok(read) = decompress(coding, &bytes.clone().into(), length) {
                prop_assert_eq!(read.len(), length);
            }
        }
    }
}
