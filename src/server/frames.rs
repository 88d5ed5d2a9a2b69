//! Whether what a peer has sent so far ends where a request may begin, or within something that it has yet to finish.

/// What begins every HTTP/2 connection (RFC 9113 section 3.4), and no HTTP/1 request.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;

/// Follows the bytes of a connection as they are read.
#[derive(Debug)]
pub(super) enum Incoming {
    /// So many bytes are those of the preface.
    Preface(usize),
    Http1,
    Http2(Frames),
}

/// Where a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    Http1,
    /// HTTP/2, between two frames.
    Between,
    /// HTTP/2, within the preface, a frame, or a block of header fields.
    Within {
        /// Whether it began with this read.
        is_new: bool,
    },
}

impl Default for Incoming {
    fn default() -> Self {
        Self::Preface(0)
    }
}

impl Incoming {
    /// Goes on by what was read: one byte at least.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Position {
        match self {
            Self::Http1 => Position::Http1,
            Self::Http2(frames) => frames.read(bytes),
            Self::Preface(known) => {
                let expected = &PREFACE[*known..];
                let length = expected.len().min(bytes.len());
                if bytes[..length] != expected[..length] {
                    *self = Self::Http1;
                    return Position::Http1;
                }
                let is_new = *known == 0;
                if length < expected.len() {
                    *known += length;
                    return Position::Within { is_new };
                }
                let mut frames = Frames::default();
                let position = frames.read(&bytes[length..]);
                *self = Self::Http2(frames);
                position
            }
        }
    }
}

/// Where in a stream of frames it is.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: [u8; FRAME_HEADER],
    /// How much of the next frame's header is there.
    filled: usize,
    /// How much of the frame is to come.
    left: usize,
    /// Whether a block of header fields has begun and not ended: nothing else may come until then.
    in_block: bool,
    /// Whether a whole frame came: a preface alone asks for nothing.
    has_begun: bool,
}

impl Frames {
    fn read(&mut self, mut bytes: &[u8]) -> Position {
        let mut is_new = self.is_between();
        while !bytes.is_empty() {
            bytes = if self.left > 0 {
                let length = self.left.min(bytes.len());
                self.left -= length;
                &bytes[length..]
            } else {
                self.read_header(bytes)
            };
            is_new |= self.is_between();
        }
        if self.is_between() {
            Position::Between
        } else {
            Position::Within { is_new }
        }
    }

    fn read_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let length = (FRAME_HEADER - self.filled).min(bytes.len());
        self.header[self.filled..][..length].copy_from_slice(&bytes[..length]);
        self.filled += length;
        if self.filled == FRAME_HEADER {
            let [high, middle, low, kind, flags, ..] = self.header;
            self.filled = 0;
            self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            self.has_begun = true;
            if kind == HEADERS || kind == CONTINUATION {
                self.in_block = flags & END_HEADERS == 0;
            }
        }
        &bytes[length..]
    }

    fn is_between(&self) -> bool {
        self.has_begun && self.filled == 0 && self.left == 0 && !self.in_block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: u8 = 0x4;
    const PING: u8 = 0x6;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let rest = [kind, flags, 0, 0, 0, 1];
        [&length[1..], &rest, payload].concat()
    }

    /// Where the last of these reads ends.
    fn after(reads: &[&[u8]]) -> Position {
        let mut incoming = Incoming::default();
        let mut position = Position::Http1;
        for read in reads {
            position = incoming.read(read);
        }
        position
    }

    #[test]
    fn what_a_peer_has_not_finished_is_told_from_what_it_has() {
        let within = |is_new| Position::Within { is_new };
        let settings = frame(SETTINGS, 0, &[]);
        let open = frame(HEADERS, 0, b"fields");
        let whole = frame(HEADERS, END_HEADERS, b"fields");
        let more = frame(CONTINUATION, 0, b"fields");
        let rest = frame(CONTINUATION, END_HEADERS, b"fields");
        let ping = frame(PING, 0, &[0; 8]);
        let begun = [PREFACE, &settings].concat();
        let table: &[(&[&[u8]], Position)] = &[
            (&[b"GET / HTTP/1.1\r\n"], Position::Http1),
            (&[b"P", b"OST / HTTP/1.1\r\n"], Position::Http1),
            (&[b"PRI * HTTP/1.1\r\n"], Position::Http1),
            (&[b"P"], within(true)),
            (&[b"PRI * ", b"HTTP/2.0\r\n"], within(false)),
            (&[PREFACE], within(false)),
            (&[&PREFACE[..10], &PREFACE[10..]], within(false)),
            (&[&begun], Position::Between),
            (&[&PREFACE[..10], &begun[10..]], Position::Between),
            (&[&begun, &ping], Position::Between),
            (&[&begun, &ping[..5]], within(true)),
            (&[&begun, &ping[..5], &ping[5..12]], within(false)),
            (&[&begun, &ping[..5], &ping[5..]], Position::Between),
            (&[&begun, &whole], Position::Between),
            (&[&begun, &whole[..12]], within(true)),
            (&[&begun, &open], within(true)),
            (&[&begun, &open, &more], within(false)),
            (&[&begun, &open, &more, &rest[..3]], within(false)),
            (&[&begun, &open, &more, &rest], Position::Between),
            (
                &[&begun, &open, &[&rest[..], &ping[..3]].concat()],
                within(true),
            ),
            (&[&[&begun[..], &whole, &ping[..1]].concat()], within(true)),
        ];
        for (reads, expected) in table {
            assert_eq!(after(reads), *expected, "{reads:?}");
        }
    }

    #[test]
    fn it_matters_not_how_the_bytes_are_cut() {
        let frames = [
            frame(SETTINGS, 0, &[0; 6]),
            frame(HEADERS, 0, &[1; 300]),
            frame(CONTINUATION, END_HEADERS, &[]),
            frame(PING, 0, &[0; 8]),
        ];
        let all = [PREFACE, &frames.concat()].concat();
        for size in 1..all.len() {
            let reads: Vec<&[u8]> = all.chunks(size).collect();
            assert_eq!(after(&reads), Position::Between, "{size}");
        }
    }
}
