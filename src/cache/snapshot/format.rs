//! Pages as they lie outside the process, sealed with their owners' keys: nobody else could have written them.
//!
//! A line that says what it is; of each page what is known of it, and its body; then, for each owner, a digest of it all that takes the
//! owner's key to make. However well it is sealed, every value in it is checked: what is taken in could have been asked for and stored.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, Read, Write},
    time::Duration,
};

use blake3::Hash;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::{
    Restored, SavedPage, SnapshotError,
    owners::{Known, Owner, Owners},
};
use crate::{
    cache::space::Mark,
    domain::{CredentialId, PageKey, PageQuery, SpaceKey, SpaceToken},
};

/// Raised whenever what was written before could be misread.
const VERSION: u32 = 2;
const MAGIC: &str = "unpod-gateway pages";
/// No first line of any version is longer.
const PREFACE_LENGTH: u64 = 256;
/// The end of the year 9999, which is the last that an HTTP date can name: no lifetime is longer.
const LONGEST_LIFETIME: Duration = Duration::from_secs(253_402_300_799);

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

/// What proves that an owner wrote all that stands before it.
#[derive(Serialize, Deserialize)]
struct Seal {
    owner: Owner,
    digest: String,
}

impl Seal {
    fn new(known: &Known, written: &Hash) -> Self {
        Self {
            owner: known.owner.clone(),
            digest: blake3::keyed_hash(&known.key, written.as_bytes()).to_string(),
        }
    }

    fn proves(&self, known: &Known, written: &Hash) -> bool {
        // Compared as a digest, which takes the same time wherever they differ.
        let expected = blake3::keyed_hash(&known.key, written.as_bytes());
        Hash::from_hex(&self.digest).is_ok_and(|digest| digest == expected)
    }
}

/// Writes `pages`; returns how many of them could be written and are somebody's.
pub(super) fn encode(
    out: impl Write,
    owners: &Owners,
    pages: impl Iterator<Item = SavedPage>,
) -> io::Result<usize> {
    let mut out = Digesting::new(out);
    let preface = Preface {
        magic: MAGIC.to_owned(),
        version: VERSION,
    };
    let mut line = serde_json::to_vec(&preface)?;
    line.push(b'\n');
    out.write(&line)?;
    let mut count = 0;
    let mut writers = BTreeSet::new();
    for page in pages {
        let credential = page.key.space.credential;
        let Some(head) = owners
            .writer(credential)
            .and_then(|known| head_of(&page, known))
        else {
            continue;
        };
        out.write_frame(&serde_json::to_vec(&head)?)?;
        out.write_frame(&page.body)?;
        writers.insert(credential);
        count += 1;
    }
    // No head is empty.
    out.write_frame(&[])?;
    let written = out.digest.finalize();
    let writers = writers.into_iter().filter_map(|id| owners.writer(id));
    let seals: Vec<_> = writers.map(|known| Seal::new(known, &written)).collect();
    out.write_frame(&serde_json::to_vec(&seals)?)?;
    Ok(count)
}

/// Reads what [`encode`] wrote; `known` finds who is called so. Pages of anybody else are counted and left out.
pub(super) fn decode<'k>(
    bytes: impl BufRead,
    known: impl Fn(&Owner) -> Option<(CredentialId, &'k Known)>,
) -> Result<Restored, SnapshotError> {
    let mut bytes = Digesting::new(bytes);
    check_preface(&bytes.read_line()?)?;
    let mut heads = Vec::new();
    loop {
        let head = bytes.read_frame()?;
        if head.is_empty() {
            break;
        }
        let body = bytes.read_frame()?;
        let head: PageHead = serde_json::from_slice(&head).map_err(|_| SnapshotError::Damaged)?;
        let body = known(&head.owner).map(|_| Bytes::from(body));
        heads.push((head, body));
    }
    let written = bytes.digest.finalize();
    let seals = bytes.read_frame()?;
    if !bytes.inner.fill_buf()?.is_empty() {
        return Err(SnapshotError::Damaged);
    }
    let seals: Vec<Seal> = serde_json::from_slice(&seals).map_err(|_| SnapshotError::Damaged)?;
    let mut proven = Vec::new();
    for seal in &seals {
        if let Some((credential, known)) = known(&seal.owner) {
            if !seal.proves(known, &written) {
                return Err(SnapshotError::Damaged);
            }
            proven.push((&seal.owner, credential));
        }
    }
    let mut restored = Restored {
        pages: Vec::new(),
        foreign: 0,
    };
    for (head, body) in heads {
        let owner = proven.iter().find(|(owner, _)| **owner == head.owner);
        match owner.zip(body) {
            Some(((_, credential), body)) => {
                let page = saved(head, body, *credential).ok_or(SnapshotError::Damaged)?;
                restored.pages.push(page);
            }
            None => restored.foreign += 1,
        }
    }
    Ok(restored)
}

fn check_preface(line: &[u8]) -> Result<(), SnapshotError> {
    let preface: Preface = serde_json::from_slice(line).map_err(|_| SnapshotError::Foreign)?;
    if preface.magic != MAGIC {
        return Err(SnapshotError::Foreign);
    }
    if preface.version != VERSION {
        return Err(SnapshotError::Version(preface.version));
    }
    Ok(())
}

/// `None` for a page that could not be written as it is.
fn head_of(page: &SavedPage, known: &Known) -> Option<PageHead> {
    let headers = page
        .headers
        .iter()
        .map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
        .collect::<Option<_>>()?;
    Some(PageHead {
        owner: known.owner.clone(),
        space: page.key.space.space.as_str().to_owned(),
        page: page.key.query.page,
        page_size: page.key.query.page_size,
        born_unix_ms: page.born_unix_ms,
        lifetime_ms: u64::try_from(page.lifetime.as_millis()).ok()?,
        headers,
        mark: page.mark,
    })
}

/// `None` where it is a page that nobody could have asked for or stored.
fn saved(head: PageHead, body: Bytes, credential: CredentialId) -> Option<SavedPage> {
    let mut headers = HeaderMap::new();
    for (name, value) in head.headers {
        let name = HeaderName::try_from(name).ok()?;
        let value = HeaderValue::try_from(value).ok()?;
        headers.try_append(name, value).ok()?;
    }
    let lifetime = Duration::from_millis(head.lifetime_ms);
    Some(SavedPage {
        key: PageKey {
            space: SpaceKey {
                credential,
                space: SpaceToken::new(&head.space).ok()?,
            },
            query: PageQuery::new(head.page, head.page_size)?,
        },
        born_unix_ms: head.born_unix_ms,
        lifetime: (lifetime <= LONGEST_LIFETIME).then_some(lifetime)?,
        headers,
        body,
        mark: head.mark,
    })
}

/// Takes a digest of all that is written or read.
struct Digesting<T> {
    inner: T,
    digest: blake3::Hasher,
}

impl<T> Digesting<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            digest: blake3::Hasher::new(),
        }
    }
}

impl<W: Write> Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.inner.write_all(bytes)
    }

    fn write_frame(&mut self, frame: &[u8]) -> io::Result<()> {
        self.write(&(frame.len() as u64).to_le_bytes())?;
        self.write(frame)
    }
}

impl<R: BufRead> Digesting<R> {
    fn read_line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut beginning = (&mut self.inner).take(PREFACE_LENGTH);
        beginning.read_until(b'\n', &mut line)?;
        self.digest.update(&line);
        Ok(line)
    }

    /// For a length that is not there no room is made.
    fn read_frame(&mut self) -> Result<Vec<u8>, SnapshotError> {
        let length = self.read(8)?;
        let length = length.try_into().map_err(|_| SnapshotError::Damaged)?;
        self.read(u64::from_le_bytes(length))
    }

    fn read(&mut self, length: u64) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = Vec::new();
        (&mut self.inner).take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != length {
            return Err(SnapshotError::Damaged);
        }
        self.digest.update(&bytes);
        bytes.shrink_to_fit();
        Ok(bytes)
    }
}
