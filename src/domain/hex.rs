//! Bytes of digests and ids as hex digits.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Writes lowercase digits, two of each of `bytes`, until `digits` is full.
pub fn write_hex(bytes: &[u8], digits: &mut [u8]) {
    debug_assert!(digits.len() <= 2 * bytes.len(), "{}", digits.len());
    let (pairs, _) = digits.as_chunks_mut();
    for ([high, low], byte) in pairs.iter_mut().zip(bytes) {
        *high = DIGITS[usize::from(byte >> 4)];
        *low = DIGITS[usize::from(byte & 0xf)];
    }
}
