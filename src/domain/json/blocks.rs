//! Finding where a string cannot just go on, many bytes at a time.

/// How many bytes are looked at together, a bit for each.
pub(super) const BLOCK: usize = 64;

/// [`run_ends`] of the block of that number. Behind the text there are ends only.
pub(super) fn run_ends_of(text: &[u8], block: usize) -> u64 {
    let rest = text.get(BLOCK * block..).unwrap_or_default();
    if let Some(block) = rest.first_chunk() {
        return run_ends(block);
    }
    let mut last = [0; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    run_ends(&last)
}

/// The bytes with which a string cannot just go on, a bit for each: quotes, escapes, and what no string may hold.
///
/// Many at a time, since strings are short: where each ends is what a processor guesses wrong when it looks for it byte by byte.
fn run_ends(block: &[u8; BLOCK]) -> u64 {
    let mut ends = [0; BLOCK];
    for (end, byte) in ends.iter_mut().zip(block) {
        *end = u8::from((*byte == b'"') | (*byte == b'\\') | (*byte < b' '));
    }
    let (words, _) = ends.as_chunks();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    words
        .rev()
        .fold(0, |bits, word| bits << 8 | lowest_bits(word))
}

/// The lowest bit of each of eight bytes, that of the first lowest. The product puts all of them side by side into its highest byte.
fn lowest_bits(bytes: u64) -> u64 {
    bytes.wrapping_mul(0x0102_0408_1020_4080) >> 56
}
