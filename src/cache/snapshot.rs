//! A warm start: the pages on disk, written now and then and read once.
//!
//! One file: a line that says what it is and whose, a frame a page, and a digest of it all. It replaces its predecessor in one
//! step, and a file that is not exactly what it says is not used at all.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::space::Mark;
use crate::domain::{CredentialId, PageKey, PageQuery, SpaceKey, SpaceToken};

/// Raised whenever a file of before could be misread.
const VERSION: u32 = 1;
const MAGIC: &str = "unpod-gateway pages";
const DIGEST_LENGTH: usize = blake3::OUT_LEN;

/// Whose pages: a credential's name, and a digest of what it reads with and where. Another token may see other pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners(HashMap<CredentialId, Vec<Known>>);

/// A way to know a credential by, and what only those know who have it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    owner: Owner,
    key: [u8; blake3::KEY_LEN],
}

/// Who read a page, as a file tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    name: String,
    fingerprint: String,
}

impl Owner {
    /// What tells it from others, of its secret nothing.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl Owners {
    /// Adds a way to know a credential by; `secret` is all that decides what it sees. The first added is what is written.
    pub fn add(&mut self, id: CredentialId, name: &str, secret: &[&[u8]]) {
        let derived = |context| {
            let mut hasher = blake3::Hasher::new_derive_key(context);
            for part in secret {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
            hasher.finalize()
        };
        let owner = Owner {
            name: name.to_owned(),
            fingerprint: derived("unpod-gateway snapshot owner").to_hex().to_string(),
        };
        let key = derived("unpod-gateway shared pages").into();
        self.0.entry(id).or_default().push(Known { owner, key });
    }

    /// Under whom to write what belongs to a credential.
    #[must_use]
    pub fn owner(&self, id: CredentialId) -> Option<&Owner> {
        Some(&self.0.get(&id)?.first()?.owner)
    }

    /// Whose it is that `owner` wrote.
    #[must_use]
    pub fn id(&self, owner: &Owner) -> Option<CredentialId> {
        self.0
            .iter()
            .find(|(_, known)| known.iter().any(|known| known.owner == *owner))
            .map(|(id, _)| *id)
    }

    /// Every owner a credential is known by, each with the key that only those have who have its secret.
    pub fn known(
        &self,
        id: CredentialId,
    ) -> impl Iterator<Item = (&Owner, &[u8; blake3::KEY_LEN])> {
        let known = self.0.get(&id).into_iter().flatten();
        known.map(|known| (&known.owner, &known.key))
    }

    /// The key that only those have who have the secret of what belongs to a credential.
    #[must_use]
    pub fn key(&self, id: CredentialId) -> Option<&[u8; blake3::KEY_LEN]> {
        Some(&self.0.get(&id)?.first()?.key)
    }
}

/// A page as it stands on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedPage {
    pub key: PageKey,
    /// When its age was nothing, in Unix milliseconds.
    pub born_unix_ms: u64,
    /// How long it was fresh from then.
    pub lifetime: Duration,
    /// The upstream's fields that outlive an answer.
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Under which state of the space all replicas share it.
    pub mark: Option<Mark>,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot be read or written: {0}")]
    Io(#[from] io::Error),
    #[error("is not a snapshot")]
    Foreign,
    #[error("is of format {0}, and this program reads {VERSION}")]
    Version(u32),
    #[error("is damaged")]
    Damaged,
}

/// What a file held that is ours.
#[derive(Debug, PartialEq)]
pub struct Restored {
    pub pages: Vec<SavedPage>,
    /// Pages of another base URL, organization or token.
    pub foreign: usize,
}

#[derive(Serialize, Deserialize)]
struct Preface {
    magic: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct PageHead {
    owner: Owner,
    space: String,
    page: u32,
    page_size: u32,
    born_unix_ms: u64,
    lifetime_ms: u64,
    headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<Mark>,
}

/// Writes `pages` in place of what `path` holds, readable by its owner alone.
///
/// # Errors
///
/// Returns the system's error; the old file stays.
pub fn write(
    path: &Path,
    owners: &Owners,
    pages: impl Iterator<Item = SavedPage>,
) -> Result<usize, SnapshotError> {
    replace(path, |file| {
        let out = BufWriter::new(file);
        let (out, count) = write_to(out, blake3::Hasher::new(), owners, pages)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(count)
    })
}

/// One page as a file of it alone would hold it, sealed with its owner's key: nobody else could have written it. `None` where it
/// cannot be written as it is, or is nobody's.
#[must_use]
pub fn seal(owners: &Owners, page: SavedPage) -> Option<Vec<u8>> {
    let digest = blake3::Hasher::new_keyed(owners.key(page.key.space.credential)?);
    let (bytes, count) = write_to(Vec::new(), digest, owners, std::iter::once(page)).ok()?;
    (count == 1).then_some(bytes)
}

/// The page under `key` that [`seal`] wrote.
///
/// # Errors
///
/// Returns in which way the bytes are not to be trusted; those of another page are foreign.
pub fn unseal(bytes: &[u8], owners: &Owners, key: &PageKey) -> Result<SavedPage, SnapshotError> {
    let seal = owners.key(key.space.credential);
    let digest = blake3::Hasher::new_keyed(seal.ok_or(SnapshotError::Foreign)?);
    let pages = decode(bytes, digest, owners)?.pages;
    let mut pages = pages.into_iter().filter(|page| page.key == *key);
    pages.next().ok_or(SnapshotError::Foreign)
}

/// Puts a file that `write` fills in place of what `path` holds, in one step and readable by its owner alone.
///
/// # Errors
///
/// Returns the system's error or that of `write`; the old file stays.
pub fn replace<T, E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(File) -> Result<T, E>,
) -> Result<T, E> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = Path::new(&unfinished);
    // What a crash left there may have other rights.
    match fs::remove_file(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(unfinished)?;
    match write(file) {
        Ok(written) => {
            fs::rename(unfinished, path)?;
            Ok(written)
        }
        Err(error) => {
            // Of use to nobody.
            let _ = fs::remove_file(unfinished);
            Err(error)
        }
    }
}

/// Writes to `out`, with what `digest` makes of it at the end.
fn write_to<W: Write>(
    out: W,
    digest: blake3::Hasher,
    owners: &Owners,
    pages: impl Iterator<Item = SavedPage>,
) -> Result<(W, usize), SnapshotError> {
    let mut out = Digesting { out, digest };
    let preface = Preface {
        magic: MAGIC.to_owned(),
        version: VERSION,
    };
    let mut line = serde_json::to_vec(&preface).map_err(io::Error::from)?;
    line.push(b'\n');
    out.write_all(&line)?;
    let mut count = 0;
    for page in pages {
        let Some(head) = head_of(&page, owners) else {
            continue;
        };
        let head = serde_json::to_vec(&head).map_err(io::Error::from)?;
        for part in [&head[..], &page.body[..]] {
            out.write_all(&(part.len() as u64).to_le_bytes())?;
            out.write_all(part)?;
        }
        count += 1;
    }
    let digest = out.digest.finalize();
    out.out.write_all(digest.as_bytes())?;
    Ok((out.out, count))
}

/// `None` for a page that could not be written as it is, or is nobody's.
fn head_of(page: &SavedPage, owners: &Owners) -> Option<PageHead> {
    let headers = page
        .headers
        .iter()
        .map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
        .collect::<Option<_>>()?;
    Some(PageHead {
        owner: owners.owner(page.key.space.credential)?.clone(),
        space: page.key.space.space.as_str().to_owned(),
        page: page.key.query.page,
        page_size: page.key.query.page_size,
        born_unix_ms: page.born_unix_ms,
        lifetime_ms: u64::try_from(page.lifetime.as_millis()).unwrap_or(u64::MAX),
        headers,
        mark: page.mark,
    })
}

struct Digesting<W> {
    out: W,
    digest: blake3::Hasher,
}

impl<W: Write> Digesting<W> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.out.write_all(bytes)
    }
}

/// Reads the pages that `path` holds for `owners`; `None` where there is no file.
///
/// # Errors
///
/// Returns in which way the file is not to be trusted.
pub fn read(path: &Path, owners: &Owners) -> Result<Option<Restored>, SnapshotError> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    decode(&bytes, blake3::Hasher::new(), owners).map(Some)
}

fn decode(
    bytes: &[u8],
    mut digests: blake3::Hasher,
    owners: &Owners,
) -> Result<Restored, SnapshotError> {
    let line = bytes
        .iter()
        .take(256)
        .position(|byte| *byte == b'\n')
        .ok_or(SnapshotError::Foreign)?;
    let preface: Preface =
        serde_json::from_slice(&bytes[..line]).map_err(|_| SnapshotError::Foreign)?;
    if preface.magic != MAGIC {
        return Err(SnapshotError::Foreign);
    }
    if preface.version != VERSION {
        return Err(SnapshotError::Version(preface.version));
    }
    let (content, digest) = bytes
        .split_last_chunk::<DIGEST_LENGTH>()
        .filter(|(content, _)| content.len() > line)
        .ok_or(SnapshotError::Damaged)?;
    if digests.update(content).finalize() != *digest {
        return Err(SnapshotError::Damaged);
    }
    let mut rest = &content[line + 1..];
    let mut restored = Restored {
        pages: Vec::new(),
        foreign: 0,
    };
    while !rest.is_empty() {
        let head = frame(&mut rest).ok_or(SnapshotError::Damaged)?;
        let body = frame(&mut rest).ok_or(SnapshotError::Damaged)?;
        let head: PageHead = serde_json::from_slice(head).map_err(|_| SnapshotError::Damaged)?;
        match owners.id(&head.owner) {
            Some(credential) => restored
                .pages
                .push(saved(head, body, credential).ok_or(SnapshotError::Damaged)?),
            None => restored.foreign += 1,
        }
    }
    Ok(restored)
}

fn frame<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (frame, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(frame)
}

fn saved(head: PageHead, body: &[u8], credential: CredentialId) -> Option<SavedPage> {
    let mut headers = HeaderMap::new();
    for (name, value) in head.headers {
        headers.append(
            HeaderName::try_from(name).ok()?,
            HeaderValue::try_from(value).ok()?,
        );
    }
    Some(SavedPage {
        key: PageKey {
            space: SpaceKey {
                credential,
                space: SpaceToken::new(&head.space).ok()?,
            },
            query: PageQuery {
                page: head.page,
                page_size: head.page_size,
            },
        },
        born_unix_ms: head.born_unix_ms,
        lifetime: Duration::from_millis(head.lifetime_ms),
        headers,
        body: Bytes::copy_from_slice(body),
        mark: head.mark,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

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
                space: SpaceKey {
                    credential: CredentialId(0),
                    space: SpaceToken::new("SPACE").unwrap(),
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
            mark: None,
        }
    }

    fn plain() -> blake3::Hasher {
        blake3::Hasher::new()
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
        let restored = read(&path, &owners("token")).unwrap().unwrap();
        assert_eq!(restored.pages, pages);
        assert_eq!(restored.foreign, 0);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn pages_of_another_token_are_left_out() {
        let (_folder, path) = written(&[page(1)]);
        let restored = read(&path, &owners("another")).unwrap().unwrap();
        assert_eq!((restored.pages.len(), restored.foreign), (0, 1));
    }

    #[test]
    fn a_file_that_is_not_there_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let read = read(&folder.path().join("none"), &owners("token"));
        assert!(matches!(read, Ok(None)));
    }

    #[test]
    fn what_is_not_exactly_what_was_written_is_refused() {
        let (_folder, path) = written(&[page(1), page(2)]);
        let good = fs::read(&path).unwrap();
        let owners = owners("token");
        for cut in 0..good.len() {
            assert!(
                decode(&good[..cut], plain(), &owners).is_err(),
                "cut at {cut}"
            );
        }
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            assert!(decode(&bad, plain(), &owners).is_err(), "bit {place}");
        }
        let newer = String::from_utf8_lossy(&good).replace("\"version\":1", "\"version\":2");
        assert!(matches!(
            decode(newer.as_bytes(), plain(), &owners),
            Err(SnapshotError::Version(2))
        ));
        assert!(matches!(
            decode(b"{}\n", plain(), &owners),
            Err(SnapshotError::Foreign)
        ));
        assert!(matches!(
            decode(b"", plain(), &owners),
            Err(SnapshotError::Foreign)
        ));
    }

    #[test]
    fn a_sealed_page_is_read_by_its_owner_alone_and_for_itself_alone() {
        let first = page(1);
        let mark = Mark {
            name: 5,
            era: [3, 4],
            epoch: 1,
            generation: 2,
        };
        let shared = SavedPage {
            mark: Some(mark),
            ..page(1)
        };
        let sealed = seal(&owners("token"), shared.clone()).unwrap();
        let read = |bytes: &[u8], token, page: &SavedPage| unseal(bytes, &owners(token), &page.key);
        assert_eq!(read(&sealed, "token", &first).unwrap(), shared);
        assert!(read(&sealed, "another", &first).is_err());
        assert!(read(&sealed, "token", &page(2)).is_err());
        for place in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[place] ^= 1;
            assert!(read(&bad, "token", &first).is_err(), "bit {place}");
        }
        // What anybody could have written.
        let (forged, _) = write_to(
            Vec::new(),
            plain(),
            &owners("token"),
            std::iter::once(page(1)),
        )
        .unwrap();
        assert!(read(&forged, "token", &first).is_err());
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let (folder, path) = written(&[page(1)]);
        fs::create_dir(folder.path().join("pages.new")).unwrap();
        assert!(write(&path, &owners("token"), [page(2)].into_iter()).is_err());
        let restored = read(&path, &owners("token")).unwrap().unwrap();
        assert_eq!(restored.pages, [page(1)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(decode(&bytes, plain(), &owners("token")).is_err());
        }
    }
}
