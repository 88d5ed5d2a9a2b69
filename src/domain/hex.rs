//! Bytes as lowercase hex digits.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Writes the two digits of each of `bytes` into `digits`, as far as there is room.
pub fn write_hex(bytes: &[u8], digits: &mut [u8]) {
    let (pairs, _) = digits.as_chunks_mut();
    for ([high, low], byte) in pairs.iter_mut().zip(bytes) {
        *high = DIGITS[usize::from(byte >> 4)];
        *low = DIGITS[usize::from(byte & 0xf)];
    }
}
