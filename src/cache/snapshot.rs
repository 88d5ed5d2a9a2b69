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

use crate::domain::{CredentialId, PageKey, PageQuery, SpaceKey, SpaceToken};

/// Raised whenever a file of before could be misread.
const VERSION: u32 = 1;
const MAGIC: &str = "unpod-gateway pages";
const DIGEST_LENGTH: usize = blake3::OUT_LEN;

/// Whose pages: a credential's name, and a digest of what it reads with and where. Another token may see other pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners(HashMap<CredentialId, Vec<Owner>>);

/// Who read a page, as a file tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    name: String,
    fingerprint: String,
}

impl Owners {
    /// Adds a way to know a credential by; `secret` is all that decides what it sees. The first added is what is written.
    pub fn add(&mut self, id: CredentialId, name: &str, secret: &[&[u8]]) {
        let mut hasher = blake3::Hasher::new_derive_key("unpod-gateway snapshot owner");
        for part in secret {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let owner = Owner {
            name: name.to_owned(),
            fingerprint: hasher.finalize().to_hex().to_string(),
        };
        self.0.entry(id).or_default().push(owner);
    }

    /// Under whom to write what belongs to a credential.
    #[must_use]
    pub fn owner(&self, id: CredentialId) -> Option<&Owner> {
        self.0.get(&id)?.first()
    }

    /// Whose it is that `owner` wrote.
    #[must_use]
    pub fn id(&self, owner: &Owner) -> Option<CredentialId> {
        self.0
            .iter()
            .find(|(_, known)| known.contains(owner))
            .map(|(id, _)| *id)
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
    replace(path, |file| write_to(file, owners, pages))
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

fn write_to(
    file: File,
    owners: &Owners,
    pages: impl Iterator<Item = SavedPage>,
) -> Result<usize, SnapshotError> {
    let mut out = Digesting {
        out: BufWriter::new(file),
        digest: blake3::Hasher::new(),
    };
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
    let file = out
        .out
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(count)
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
    decode(&bytes, owners).map(Some)
}

fn decode(bytes: &[u8], owners: &Owners) -> Result<Restored, SnapshotError> {
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
    if blake3::hash(content) != *digest {
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
        }
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
            assert!(decode(&good[..cut], &owners).is_err(), "cut at {cut}");
        }
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            assert!(decode(&bad, &owners).is_err(), "bit {place}");
        }
        let newer = String::from_utf8_lossy(&good).replace("\"version\":1", "\"version\":2");
        assert!(matches!(
            decode(newer.as_bytes(), &owners),
            Err(SnapshotError::Version(2))
        ));
        assert!(matches!(
            decode(b"{}\n", &owners),
            Err(SnapshotError::Foreign)
        ));
        assert!(matches!(decode(b"", &owners), Err(SnapshotError::Foreign)));
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
            prop_assert!(decode(&bytes, &owners("token")).is_err());
        }
    }
}
