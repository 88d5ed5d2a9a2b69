use std::{fs, os::unix::fs::PermissionsExt};

use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use crate::domain::{CredentialId, ListId, ListKey, PageQuery, SpaceKey, SpaceToken};

const MOST: u64 = 1 << 20;

fn owners(token: &str) -> Owners {
    let mut owners = Owners::default();
    owners.add(
        CredentialId(0),
        "default",
        &[b"https://a.test", token.as_bytes()],
    );
    owners
}

fn page(number: u32) -> SavedPage {
    SavedPage {
        key: PageKey {
            list: ListKey {
                space: SpaceKey {
                    credential: CredentialId(0),
                    space: SpaceToken::new("SPACE").unwrap(),
                },
                id: ListId::TASKS,
            },
            query: PageQuery {
                page: number,
                page_size: 20,
            },
        },
        born_unix_ms: 1_800_000_000_123,
        lifetime: Duration::from_secs(30),
        headers: HeaderMap::from_iter([(
            http::header::ETAG,
            HeaderValue::from_static("\"upstream\""),
        )]),
        body: Bytes::from(format!("{{\"n\":{number}}}\n")),
        epoch: 0,
    }
}

fn encoded(pages: &[SavedPage], owners: &Owners) -> Vec<u8> {
    let mut bytes = Vec::new();
    let count = encode(&mut bytes, owners, pages.iter().cloned()).unwrap();
    assert_eq!(count, pages.len());
    bytes
}

fn decoded(bytes: &[u8], token: &str) -> Result<Restored, SnapshotError> {
    let owners = owners(token);
    decode(bytes, |owner| owners.called(owner))
}

fn written(pages: &[SavedPage]) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pages");
    let count = write(&path, &owners("token"), pages.iter().cloned()).unwrap();
    assert_eq!(count, pages.len());
    (folder, path)
}

#[test]
fn what_was_written_is_read_and_is_its_owners_alone() {
    let pages = [page(1), page(2)];
    let (_folder, path) = written(&pages);
    let restored = read(&path, &owners("token"), MOST).unwrap().unwrap();
    assert_eq!(restored.pages, pages);
    assert_eq!(restored.foreign, 0);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn pages_of_another_token_are_left_out() {
    let (_folder, path) = written(&[page(1)]);
    let restored = read(&path, &owners("another"), MOST).unwrap().unwrap();
    assert_eq!((restored.pages.len(), restored.foreign), (0, 1));
}

#[test]
fn a_file_that_is_not_there_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let read = read(&folder.path().join("none"), &owners("token"), MOST);
    assert!(matches!(read, Ok(None)));
}

#[test]
fn what_is_not_exactly_what_was_written_is_refused() {
    let good = encoded(&[page(1), page(2)], &owners("token"));
    assert_eq!(decoded(&good, "token").unwrap().pages.len(), 2);
    for cut in 0..good.len() {
        assert!(decoded(&good[..cut], "token").is_err(), "cut at {cut}");
    }
    for place in 0..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 1;
        // Where a page names another owner it is left out, and the other page stays.
        let pages = decoded(&bad, "token").map_or(Vec::new(), |restored| restored.pages);
        assert!(pages.len() < 2, "bit {place}");
        assert!(
            pages.iter().all(|taken| [page(1), page(2)].contains(taken)),
            "bit {place}"
        );
    }
    let more = [&good[..], b" "].concat();
    assert!(matches!(
        decoded(&more, "token"),
        Err(SnapshotError::Damaged)
    ));
    let newer = String::from_utf8_lossy(&good).replace("\"version\":4", "\"version\":5");
    assert!(matches!(
        decoded(newer.as_bytes(), "token"),
        Err(SnapshotError::Version(5))
    ));
    for nothing in [&b"{}\n"[..], b"", b"\n", &[0; 1000]] {
        assert!(matches!(
            decoded(nothing, "token"),
            Err(SnapshotError::Foreign)
        ));
    }
}

/// What stands in a file of who it is that wrote it.
fn told(owners: &Owners, id: u32) -> Vec<u8> {
    serde_json::to_vec(owners.owner(CredentialId(id)).unwrap()).unwrap()
}

/// With `to` in the place of `from`, which is as long, the first `times` it stands there.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8], times: usize) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    for _ in 0..times {
        let at = bytes.windows(from.len()).position(|part| part == from);
        let at = at.unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

#[test]
fn who_does_not_have_the_token_forges_no_page() {
    // All but the secret is known: the owner's name stands in every file.
    let (known, forger) = (owners("token"), owners("forger"));
    let (from, to) = (told(&forger, 0), told(&known, 0));
    let forged = encoded(&[page(1)], &forger);
    for (times, refused) in [(0, false), (1, true)] {
        let forged = replaced(&forged, &from, &to, times);
        let taken = decoded(&forged, "token");
        assert_eq!(taken.is_err(), refused, "{times}: {taken:?}");
        assert!(taken.is_err() || taken.unwrap().pages.is_empty());
    }
}

#[test]
fn each_owner_reads_its_own_pages_alone() {
    let mut both = owners("token");
    both.add(CredentialId(1), "another", &[b"secret"]);
    let mut of_other = page(2);
    of_other.key.list.space.credential = CredentialId(1);
    let bytes = encoded(&[page(1), of_other.clone()], &both);
    assert_eq!(decoded(&bytes, "token").unwrap().pages, [page(1)]);
    let whole = decode(&bytes[..], |owner| both.called(owner)).unwrap();
    assert_eq!(whole.pages, [page(1), of_other]);
}

#[test]
fn no_value_is_taken_in_that_nothing_could_have() {
    let of = |number, page_size| PageKey {
        query: PageQuery {
            page: number,
            page_size,
        },
        ..page(1).key
    };
    let header = |count| {
        let value = HeaderValue::from_static("1");
        let mut headers = HeaderMap::new();
        (0..count).for_each(|_| {
            headers.append(http::header::ETAG, value.clone());
        });
        headers
    };
    for (name, page, is_taken) in [
        ("as it is", page(1), true),
        (
            "page 0",
            SavedPage {
                key: of(0, 20),
                ..page(1)
            },
            false,
        ),
        (
            "page beyond the last",
            SavedPage {
                key: of(1_000_001, 20),
                ..page(1)
            },
            false,
        ),
        (
            "page_size 0",
            SavedPage {
                key: of(1, 0),
                ..page(1)
            },
            false,
        ),
        (
            "largest page_size",
            SavedPage {
                key: of(1_000_000, u32::MAX),
                ..page(1)
            },
            true,
        ),
        (
            "lifetime without end",
            SavedPage {
                lifetime: Duration::from_millis(u64::MAX),
                ..page(1)
            },
            false,
        ),
        (
            "born at the beginning",
            SavedPage {
                born_unix_ms: 0,
                ..page(1)
            },
            true,
        ),
        (
            "born at the end",
            SavedPage {
                born_unix_ms: u64::MAX,
                ..page(1)
            },
            true,
        ),
        (
            "many values",
            SavedPage {
                headers: header(1000),
                ..page(1)
            },
            true,
        ),
    ] {
        let bytes = encoded(&[page], &owners("token"));
        let taken = decoded(&bytes, "token");
        assert_eq!(taken.is_ok(), is_taken, "{name}: {taken:?}");
    }
}

#[test]
fn a_sealed_page_is_read_by_its_owner_alone_and_for_itself_alone() {
    let first = page(1);
    let sealed = seal(&owners("token"), first.clone()).unwrap();
    let read = |bytes: &[u8], token, page: &SavedPage| unseal(bytes, &owners(token), &page.key);
    assert_eq!(read(&sealed, "token", &first).unwrap(), first);
    assert!(read(&sealed, "another", &first).is_err());
    assert!(read(&sealed, "token", &page(2)).is_err());
    for place in 0..sealed.len() {
        let mut bad = sealed.clone();
        bad[place] ^= 1;
        // Not every bit of what is compressed means anything.
        let taken = read(&bad, "token", &first).ok();
        assert!(taken.is_none_or(|page| page == first), "bit {place}");
    }
    // Whatever the credential is called where it is read.
    let mut renamed = Owners::default();
    renamed.add(CredentialId(0), "renamed", &[b"https://a.test", b"token"]);
    assert_eq!(unseal(&sealed, &renamed, &first.key).unwrap(), first);
    // With a token that its credential has besides.
    let mut both = owners("token");
    both.add(CredentialId(0), "default", &[b"besides"]);
    let mut besides = Owners::default();
    besides.add(CredentialId(0), "default", &[b"besides"]);
    let sealed = seal(&besides, page(1)).unwrap();
    assert!(unseal(&sealed, &besides, &first.key).is_ok());
    assert!(unseal(&sealed, &both, &first.key).is_err());
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let (folder, path) = written(&[page(1)]);
    fs::create_dir(folder.path().join("pages.new")).unwrap();
    assert!(write(&path, &owners("token"), [page(2)].into_iter()).is_err());
    let restored = read(&path, &owners("token"), MOST).unwrap().unwrap();
    assert_eq!(restored.pages, [page(1)]);
}

#[test]
fn a_length_that_is_not_there_takes_no_memory() {
    let good = encoded(&[page(1)], &owners("token"));
    let line = good.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for length in [u64::MAX, 1 << 62, 1 << 40] {
        let mut bad = good.clone();
        bad[line..line + 8].copy_from_slice(&length.to_le_bytes());
        assert!(decoded(&bad, "token").is_err(), "{length}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(decoded(&bytes, "token").is_err());
    }

    #[test]
    fn any_bytes_behind_a_good_beginning_are_refused_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        kept in 0_usize..600,
    ) {
        let good = encoded(&[page(1)], &owners("token"));
        let kept = kept.min(good.len() - 1);
        let mixed = [&good[..kept], &bytes[..]].concat();
        let pages = decoded(&mixed, "token").map_or(0, |restored| restored.pages.len());
        prop_assert!(pages == 0 || mixed == good);
    }
}
