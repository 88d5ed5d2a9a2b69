//! A warm start: the pages on disk, written now and then and read once.
//!
//! A file replaces its predecessor atomically. One that is damaged, or that others may have written, is not used at all.

use std::{
    io::{self, BufReader, BufWriter},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;

use self::{
    format::{decode, encode},
    owners::Known,
};
use super::{
    compression::{compress, decompress},
    http_semantics::ContentCoding,
};
use crate::domain::PageKey;

mod file;
mod format;
mod owners;

pub use self::{
    file::{FileError, read_whole, replace},
    owners::{Owner, Owners},
};

/// No page is longer, with its header.
const LONGEST_SEALED: usize = 64 << 20;

/// A page as it is saved.
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
    /// That of its space.
    pub epoch: u64,
}

/// Why a file or a record is not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("is not a snapshot")]
    Foreign,
    #[error("is of format {0}, which this program does not read")]
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

/// Writes `pages` in place of what `path` holds, readable by its owner alone. Returns how many of them are somebody's.
///
/// # Errors
///
/// Returns the system's error; the old file stays.
pub fn write(
    path: &Path,
    owners: &Owners,
    pages: impl Iterator<Item = SavedPage>,
) -> io::Result<usize> {
    replace(path, |file| {
        let mut out = BufWriter::new(file);
        let count = encode(&mut out, owners, pages)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(count)
    })
}

/// Reads the pages that `path` holds for `owners`, if it has no more than `most` bytes; `None` where there is no file.
///
/// # Errors
///
/// Returns in which way the file is not to be trusted.
pub fn read(path: &Path, owners: &Owners, most: u64) -> Result<Option<Restored>, SnapshotError> {
    let Some(file) = file::open(path, most)? else {
        return Ok(None);
    };
    decode(BufReader::new(file), |owner| owners.called(owner)).map(Some)
}

/// One page for other replicas, sealed by its owner: the length of what follows in four bytes, and that compressed by zstd. `None` where it
/// cannot be written as it is, or is nobody's.
#[must_use]
pub fn seal(owners: &Owners, page: SavedPage) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let count = encode(&mut bytes, owners, std::iter::once(page)).ok()?;
    if count != 1 || bytes.len() > LONGEST_SEALED {
        return None;
    }
    pack(&bytes)
}

/// What other replicas unpack: the length in four bytes, and `bytes` compressed by zstd. `None` where they are too many.
#[must_use]
pub fn pack(bytes: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(bytes.len()).ok()?.to_le_bytes();
    let packed = compress(ContentCoding::Zstd, bytes).ok()?;
    Some([&length[..], &packed].concat())
}

/// What [`pack`] packed.
///
/// # Errors
///
/// Returns in which way the bytes are not to be trusted.
pub fn unpack(bytes: &[u8]) -> Result<Bytes, SnapshotError> {
    let (length, packed) = bytes.split_first_chunk().ok_or(SnapshotError::Foreign)?;
    let length = u32::from_le_bytes(*length) as usize;
    // Who writes there may claim any length.
    if length > LONGEST_SEALED {
        return Err(SnapshotError::Foreign);
    }
    let packed = Bytes::copy_from_slice(packed);
    let bytes = decompress(ContentCoding::Zstd, &packed, length);
    bytes.map_err(|_| SnapshotError::Damaged)
}

/// The page under `key` that [`seal`] wrote.
///
/// # Errors
///
/// Returns in which way the bytes are not to be trusted; those of another page are foreign.
pub fn unseal(bytes: &[u8], owners: &Owners, key: &PageKey) -> Result<SavedPage, SnapshotError> {
    let credential = key.list.space.credential;
    // What another token of the credential sees is not this one's; what a replica calls the credential is its own affair.
    let writer = owners.writer(credential);
    let known = |owner: &Owner| {
        let sees_the_same = |writer: &&Known| writer.owner.fingerprint() == owner.fingerprint();
        let writer = writer.filter(sees_the_same)?;
        Some((credential, writer))
    };
    let bytes = unpack(bytes)?;
    let pages = decode(&bytes[..], known)?.pages;
    let mut pages = pages.into_iter().filter(|page| page.key == *key);
    pages.next().ok_or(SnapshotError::Foreign)
}

#[cfg(test)]
mod tests;
