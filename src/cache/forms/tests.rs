use proptest::prelude::*;

use super::*;

const COLD_SECONDS: u32 = 60;
const COLD_AFTER: Duration = Duration::from_secs(COLD_SECONDS as u64);

const CODINGS: [Coding; 3] = [Coding::Brotli, Coding::Zstd, Coding::Gzip];

/// Forms that are there, and the second each was taken in.
type TakenAt = &'static [(Coding, u32)];

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

fn held(forms: &Forms) -> Vec<Coding> {
    let all = Coding::BY_PREFERENCE.into_iter();
    all.filter(|coding| forms.is_held(*coding)).collect()
}

async fn advance() -> Instant {
    tokio::time::advance(COLD_AFTER).await;
    Instant::now()
}

#[test]
fn what_is_kept_is_what_somebody_took_lately() {
    let taken = |forms: &[(Coding, u32)]| {
        let mut taken = Taken::default();
        for (coding, second) in forms {
            taken[*coding as usize] = Some(*second);
        }
        taken
    };
    let table: &[(TakenAt, u32, Plan)] = &[
        (
            &[(Coding::Identity, 0)],
            COLD_SECONDS - 1,
            Plan::NotBefore(COLD_SECONDS),
        ),
        (&[(Coding::Identity, 0)], COLD_SECONDS, Plan::Code),
        (
            &[(Coding::Identity, 5)],
            COLD_SECONDS,
            Plan::NotBefore(COLD_SECONDS + 5),
        ),
        // A variant is there already: it is what clients take.
        (
            &[(Coding::Identity, 0), (Coding::Gzip, 0)],
            COLD_SECONDS,
            Plan::Only(Coding::Gzip),
        ),
        (
            &[(Coding::Identity, 0), (Coding::Gzip, 1)],
            COLD_SECONDS,
            Plan::Variants,
        ),
        (
            &[(Coding::Identity, 1), (Coding::Gzip, 0)],
            COLD_SECONDS,
            Plan::NotBefore(COLD_SECONDS + 1),
        ),
        // The one taken last, of several.
        (
            &[
                (Coding::Identity, 0),
                (Coding::Gzip, 2),
                (Coding::Zstd, 0),
                (Coding::Brotli, 1),
            ],
            COLD_SECONDS + 2,
            Plan::Only(Coding::Gzip),
        ),
        (
            &[(Coding::Gzip, 0), (Coding::Brotli, 1)],
            COLD_SECONDS,
            Plan::NotBefore(COLD_SECONDS + 1),
        ),
        (
            &[(Coding::Gzip, 0), (Coding::Brotli, 1)],
            COLD_SECONDS + 1,
            Plan::Only(Coding::Brotli),
        ),
        // Nothing is left to drop.
        (&[(Coding::Gzip, 0)], COLD_SECONDS, Plan::Nothing),
        (&[(Coding::Zstd, 7)], 0, Plan::Nothing),
        (
            &[(Coding::Identity, u32::MAX)],
            u32::MAX - 1,
            Plan::NotBefore(u32::MAX),
        ),
    ];
    for (forms, now, expected) in table {
        assert_eq!(
            plan(&taken(forms), *now, COLD_SECONDS),
            *expected,
            "{forms:?} at {now}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_nobody_takes_becomes_one_small_copy() {
    let body = tasks(400);
    let forms = Forms::new(body.clone(), Instant::now(), &BodyMemory::default());
    let early = forms.pack(Instant::now(), COLD_AFTER);
    let due = Some(Instant::now() + COLD_AFTER);
    assert_eq!(
        early,
        Packed {
            changed: false,
            due
        }
    );

    let packed = forms.pack(advance().await, COLD_AFTER);

    assert_eq!(
        packed,
        Packed {
            changed: true,
            due: None
        }
    );
    assert_eq!(held(&forms), [Coding::Zstd]);
    assert!(forms.weight() < body.len() / 5, "{}", forms.weight());
    assert_eq!(forms.length_in(Coding::Identity), Some(body.len()));
    assert_eq!(forms.plain(), body);
    assert_eq!(
        held(&forms),
        [Coding::Zstd],
        "reading it is not asking for it"
    );
    assert_eq!(forms.pack(advance().await, COLD_AFTER), Packed::default());
}

#[tokio::test(start_paused = true)]
async fn who_takes_the_identity_has_it_kept_and_the_copy_stays() {
    let body = tasks(400);
    let forms = Forms::new(body.clone(), Instant::now(), &BodyMemory::default());
    forms.pack(advance().await, COLD_AFTER);

    let taken = forms.get(Coding::Identity, Instant::now()).await;

    assert_eq!((taken.coding, taken.bytes), (Coding::Identity, body));
    assert_eq!(held(&forms), [Coding::Zstd, Coding::Identity]);
    let due = Instant::now() + COLD_AFTER;
    assert_eq!(forms.pack(Instant::now(), COLD_AFTER).due, Some(due));
    assert!(forms.pack(advance().await, COLD_AFTER).changed);
    assert_eq!(held(&forms), [Coding::Zstd]);
}

#[tokio::test(start_paused = true)]
async fn the_variant_that_clients_take_is_the_copy() {
    let forms = Forms::new(tasks(400), Instant::now(), &BodyMemory::default());
    forms.pack(advance().await, COLD_AFTER);

    let coded = forms.get(Coding::Gzip, advance().await).await;

    assert_eq!(held(&forms), [Coding::Zstd, Coding::Gzip]);
    forms.pack(advance().await, COLD_AFTER);
    assert_eq!(held(&forms), [Coding::Gzip]);
    let again = forms.get(Coding::Gzip, Instant::now()).await;
    assert_eq!(again.bytes, coded.bytes);
    assert_eq!(held(&forms), [Coding::Gzip], "it goes out as it is");
}

#[tokio::test(start_paused = true)]
async fn a_form_in_use_outlives_the_identity_that_nobody_takes() {
    let forms = Forms::new(tasks(400), Instant::now(), &BodyMemory::default());
    forms.get(Coding::Brotli, Instant::now()).await;
    forms.get(Coding::Gzip, Instant::now()).await;
    advance().await;
    forms.get(Coding::Gzip, Instant::now()).await;

    let packed = forms.pack(Instant::now(), COLD_AFTER);

    assert_eq!(held(&forms), [Coding::Brotli, Coding::Gzip]);
    assert_eq!(packed.due, Some(Instant::now() + COLD_AFTER));
    forms.pack(advance().await, COLD_AFTER);
    assert_eq!(held(&forms), [Coding::Gzip]);
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_stays_in_use_is_moved_once() {
    let body = tasks(400);
    let forms = Forms::new(body.clone(), Instant::now(), &BodyMemory::default());
    let mut moves = 0;
    let mut lay_at = body.as_ptr();
    for _ in 0..5 {
        let taken = forms.get(Coding::Identity, advance().await).await;
        assert_eq!(taken.bytes, body);
        moves += usize::from(taken.bytes.as_ptr() != lay_at);
        lay_at = taken.bytes.as_ptr();
        let due = Some(Instant::now() + COLD_AFTER);
        assert_eq!(
            forms.pack(Instant::now(), COLD_AFTER),
            Packed {
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
        let forms = Forms::new(body, Instant::now(), &BodyMemory::default());
        assert_eq!(forms.pack(advance().await, COLD_AFTER), Packed::default());
        assert_eq!(held(&forms), [Coding::Identity]);
    }
}

#[tokio::test]
async fn a_variant_holds_no_more_than_it_weighs() {
    let forms = Forms::new(tasks(400), Instant::now(), &BodyMemory::default());
    for coding in CODINGS {
        let coded = forms.get(coding, Instant::now()).await.bytes;
        let held = forms.held.load().get(coding).cloned().unwrap();
        drop(forms.held.swap(Arc::default()));
        drop(held);
        // The one handle that is left gives its buffer away as it is.
        let buffer = coded.try_into_mut().unwrap();
        assert_eq!(buffer.capacity(), buffer.len(), "{coding:?}");
        forms.held.store(Arc::new(
            Held::default().with(Coding::Identity, Form::new(tasks(400), &forms.memory)),
        ));
    }
}

#[test]
fn what_is_printed_holds_no_task() {
    let printed = format!(
        "{:?}",
        Forms::new(tasks(3), Instant::now(), &BodyMemory::default())
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
        steps in prop::collection::vec((0..FORMS, 0..20_u64), 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut now = Instant::now();
            let forms = Forms::new(body.clone(), now, &BodyMemory::default());
            for (form, seconds) in steps {
                now += Duration::from_secs(seconds);
                forms.pack(now, COLD_AFTER);
                let taken = forms.get(Coding::BY_PREFERENCE[form], now).await;
                let read = decode(taken.coding, &taken.bytes, body.len()).unwrap();
                prop_assert_eq!(&read, &body);
                prop_assert_eq!(&forms.plain(), &body);
                prop_assert_eq!(forms.length_in(taken.coding), Some(taken.bytes.len()));
                let weight: usize = held(&forms)
                    .into_iter()
                    .filter_map(|coding| forms.length_in(coding))
                    .sum();
                prop_assert_eq!(forms.weight(), weight);
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
            if let Ok(read) = decode(coding, &bytes.clone().into(), length) {
                prop_assert_eq!(read.len(), length);
            }
        }
    }
}
