//! A small gzip body that grows to 64 MiB.

use std::sync::LazyLock;

use bytes::Bytes;
use flate2::{Compress, Compression, Crc, FlushCompress};

const BLOCK: usize = 1 << 20;
const BLOCKS: usize = 64;
const BEFORE: &[u8] =
    br#"{"count":1,"status_code":200,"message":"Tasks Fetched Successfully","data":[{"task_id":"T1","output":""#;
const AFTER: &[u8] = br#""}]}"#;
/// Deflate, no flags, no time, unknown system (RFC 1952).
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// Returns one gzip member holding a page with a task of 64 MiB.
pub(super) fn gzip_bomb() -> Bytes {
    static BOMB: LazyLock<Bytes> = LazyLock::new(build);
    BOMB.clone()
}

/// Compresses one block and repeats it: after a full flush nothing refers back, so its bytes fit anywhere.
fn build() -> Bytes {
    let block = vec![b'a'; BLOCK];
    let mut deflate = Compress::new(Compression::best(), false);
    let mut bomb = GZIP_HEADER.to_vec();
    bomb.extend(compress(&mut deflate, BEFORE, FlushCompress::Full));
    bomb.extend(compress(&mut deflate, &block, FlushCompress::Full).repeat(BLOCKS));
    bomb.extend(compress(&mut deflate, AFTER, FlushCompress::Finish));

    let mut sum = checksum(BEFORE);
    let block_sum = checksum(&block);
    (0..BLOCKS).for_each(|_| sum.combine(&block_sum));
    sum.combine(&checksum(AFTER));
    bomb.extend(sum.sum().to_le_bytes());
    bomb.extend(sum.amount().to_le_bytes());
    bomb.into()
}

fn compress(deflate: &mut Compress, bytes: &[u8], flush: FlushCompress) -> Vec<u8> {
    let mut compressed = Vec::with_capacity(1 << 16);
    deflate
        .compress_vec(bytes, &mut compressed, flush)
        .expect("deflate only fails on a missing dictionary");
    compressed
}

fn checksum(bytes: &[u8]) -> Crc {
    let mut sum = Crc::new();
    sum.update(bytes);
    sum
}

#[cfg(test)]
mod tests {
    use std::io::{Read, sink};

    use super::{AFTER, BEFORE, BLOCK, BLOCKS, gzip_bomb};

    #[test]
    fn it_is_small_and_one_valid_gzip_member() {
        let bomb = gzip_bomb();
        assert!(bomb.len() < 100_000, "{}", bomb.len());
        let mut gzip = flate2::read::GzDecoder::new(&bomb[..]);
        let mut start = vec![0; BEFORE.len() + 1];
        gzip.read_exact(&mut start).unwrap();
        assert_eq!(start, [BEFORE, b"a"].concat());
        let rest = std::io::copy(&mut gzip, &mut sink()).unwrap();
        assert_eq!(rest as usize, BLOCKS * BLOCK - 1 + AFTER.len());
        assert!(gzip.into_inner().is_empty());
    }
}
