//! Pages outside the process: a line that names the format; of each page a head, its body and a tag; an empty frame as the end.
//!
//! A tag is a digest of its page that takes its owner's key to make, so nobody else can have written the page. Still every value is
//! checked: what is taken in could have been asked for and stored.

use std::{
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
use crate::domain::{CredentialId, ListId, ListKey, PageKey, PageQuery, SpaceKey, SpaceToken};

/// Raised whenever what was written before could be misread.
const VERSION: u32 = 4;
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
    /// Its path below the space.
    list: String,
    page: u32,
    page_size: u32,
    born_unix_ms: u64,
    lifetime_ms: u64,
    headers: Vec<(String, String)>,
    #[serde(default)]
    epoch: u64,
}

/// Proves that who has the key of `owner` wrote both frames.
fn tag(owner: &Known, head: &[u8], body: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new_keyed(&owner.key);
    for frame in [head, body] {
        hasher.update(&(frame.len() as u64).to_le_bytes());
        hasher.update(frame);
    }
    hasher.finalize()
}

/// Writes `pages`; returns how many of them could be written and are somebody's.
pub(super) fn encode(
    mut out: impl Write,
    owners: &Owners,
    pages: impl Iterator<Item = SavedPage>,
) -> io::Result<usize> {
    let preface = Preface {
        magic: MAGIC.to_owned(),
        version: VERSION,
    };
    serde_json::to_writer(&mut out, &preface)?;
    out.write_all(b"\n")?;
    let mut count = 0;
    for page in pages {
        let Some(owner) = owners.writer(page.key.list.space.credential) else {
            continue;
        };
        let Some(head) = head_of(&page, owner) else {
            continue;
        };
        let head = serde_json::to_vec(&head)?;
        let tag = tag(owner, &head, &page.body);
        for frame in [&head[..], &page.body, tag.as_bytes()] {
            write_frame(&mut out, frame)?;
        }
        count += 1;
    }
    // No head is empty.
    write_frame(&mut out, &[])?;
    Ok(count)
}

/// Reads what [`encode`] wrote; `known` finds who is called so. Pages of anybody else are counted and left out.
pub(super) fn decode<'k>(
    mut bytes: impl BufRead,
    known: impl Fn(&Owner) -> Option<(CredentialId, &'k Known)>,
) -> Result<Restored, SnapshotError> {
    check_preface(&mut bytes)?;
    let mut restored = Restored {
        pages: Vec::new(),
        foreign: 0,
    };
    loop {
        let head = read_frame(&mut bytes)?;
        if head.is_empty() {
            break;
        }
        let (body, proof) = (read_frame(&mut bytes)?, read_frame(&mut bytes)?);
        let parsed: PageHead = serde_json::from_slice(&head).map_err(|_| SnapshotError::Damaged)?;
        let Some((credential, owner)) = known(&parsed.owner) else {
            restored.foreign += 1;
            continue;
        };
        // Compared as digests, which takes the same time wherever they differ.
        if Hash::from_slice(&proof).ok() != Some(tag(owner, &head, &body)) {
            return Err(SnapshotError::Damaged);
        }
        let page = saved(parsed, body.into(), credential).ok_or(SnapshotError::Damaged)?;
        restored.pages.push(page);
    }
    if !bytes.fill_buf()?.is_empty() {
        return Err(SnapshotError::Damaged);
    }
    Ok(restored)
}

fn check_preface(bytes: &mut impl BufRead) -> Result<(), SnapshotError> {
    let mut line = Vec::new();
    bytes.take(PREFACE_LENGTH).read_until(b'\n', &mut line)?;
    let preface: Preface = serde_json::from_slice(&line).map_err(|_| SnapshotError::Foreign)?;
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
        space: page.key.list.space.space.as_str().to_owned(),
        list: page.key.list.id.to_string(),
        page: page.key.query.page,
        page_size: page.key.query.page_size,
        born_unix_ms: page.born_unix_ms,
        lifetime_ms: u64::try_from(page.lifetime.as_millis()).ok()?,
        headers,
        epoch: page.epoch,
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
            list: ListKey {
                space: SpaceKey {
                    credential,
                    space: SpaceToken::new(&head.space).ok()?,
                },
                id: ListId::of_path(&head.list)?,
            },
            query: PageQuery::new(head.page, head.page_size)?,
        },
        born_unix_ms: head.born_unix_ms,
        lifetime: (lifetime <= LONGEST_LIFETIME).then_some(lifetime)?,
        headers,
        body,
        epoch: head.epoch,
    })
}

fn write_frame(out: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    out.write_all(&(frame.len() as u64).to_le_bytes())?;
    out.write_all(frame)
}

fn read_frame(bytes: &mut impl Read) -> Result<Vec<u8>, SnapshotError> {
    let length = read(bytes, 8)?;
    let length = length.try_into().map_err(|_| SnapshotError::Damaged)?;
    read(bytes, u64::from_le_bytes(length))
}

/// Allocates for what is there, whatever `length` says.
fn read(bytes: &mut impl Read, length: u64) -> Result<Vec<u8>, SnapshotError> {
    let mut read = Vec::new();
    bytes.take(length).read_to_end(&mut read)?;
    if read.len() as u64 != length {
        return Err(SnapshotError::Damaged);
    }
    read.shrink_to_fit();
    Ok(read)
}
