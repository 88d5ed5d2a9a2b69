//! Reads HTTP/1.1 responses incrementally, without storing them: the status and the length of the body.

use memchr::memchr;

/// A complete response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body_len: u64,
}

/// Why the bytes are not a response to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    Head,
    Chunk,
    /// There are more bytes than the response's length.
    Surplus,
}

/// Reads the responses of a connection with one request in flight at a time.
#[derive(Debug, Default)]
pub struct Reader {
    /// The incomplete head so far.
    head: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Head,
    Body {
        answer: Answer,
        left: u64,
    },
    Chunked {
        answer: Answer,
        place: Place,
    },
}

/// The position in a chunked body.
#[derive(Clone, Copy, Debug)]
enum Place {
    Size(u64),
    /// After the size, up to the end of the line.
    SizeEnd(u64),
    Data(u64),
    /// The line end after a chunk, or, with `true`, after the last.
    LineEnd(bool),
}

/// The parts of the head that matter.
struct Head {
    len: usize,
    status: u16,
    length: Option<u64>,
    chunked: bool,
}

impl Reader {
    /// Takes bytes; returns the response once it is complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<Answer>, Unreadable> {
        match self.state {
            State::Head => self.feed_head(bytes),
            State::Body { answer, left } => self.feed_body(bytes, answer, left),
            State::Chunked { answer, place } => self.feed_chunks(bytes, answer, place),
        }
    }

    fn feed_head(&mut self, bytes: &[u8]) -> Result<Option<Answer>, Unreadable> {
        // The head nearly always arrives in one piece and is parsed in place.
        if self.head.is_empty() {
            return match read_head(bytes)? {
                Some(head) => self.begin_body(&head, &bytes[head.len..]),
                None => {
                    self.head.extend_from_slice(bytes);
                    Ok(None)
                }
            };
        }
        let known = self.head.len();
        self.head.extend_from_slice(bytes);
        let Some(head) = read_head(&self.head)? else {
            return Ok(None);
        };
        self.head.clear();
        self.begin_body(&head, &bytes[head.len - known..])
    }

    fn begin_body(&mut self, head: &Head, rest: &[u8]) -> Result<Option<Answer>, Unreadable> {
        let answer = Answer {
            status: head.status,
            body_len: 0,
        };
        let has_body = !matches!(head.status, 204 | 304);
        match head.length {
            _ if !has_body => self.feed_body(rest, answer, 0),
            Some(length) => self.feed_body(rest, answer, length),
            None if head.chunked => self.feed_chunks(rest, answer, Place::Size(0)),
            None => Err(Unreadable::Head),
        }
    }

    fn feed_body(
        &mut self,
        bytes: &[u8],
        mut answer: Answer,
        left: u64,
    ) -> Result<Option<Answer>, Unreadable> {
        let came = bytes.len() as u64;
        let left = left.checked_sub(came).ok_or(Unreadable::Surplus)?;
        answer.body_len += came;
        if left == 0 {
            self.state = State::Head;
            return Ok(Some(answer));
        }
        self.state = State::Body { answer, left };
        Ok(None)
    }

    fn feed_chunks(
        &mut self,
        mut bytes: &[u8],
        mut answer: Answer,
        mut place: Place,
    ) -> Result<Option<Answer>, Unreadable> {
        while let Some((first, rest)) = bytes.split_first() {
            match place {
                Place::Size(size) => {
                    let digit = char::from(*first).to_digit(16);
                    place = match digit {
                        Some(digit) => Place::Size(size * 16 + u64::from(digit)),
                        None => Place::SizeEnd(size),
                    };
                    if digit.is_some() {
                        bytes = rest;
                    }
                }
                Place::SizeEnd(size) => {
                    let Some(end) = memchr(b'\n', bytes) else {
                        break;
                    };
                    bytes = &bytes[end + 1..];
                    place = match size {
                        0 => Place::LineEnd(true),
                        size => Place::Data(size),
                    };
                }
                Place::Data(left) => {
                    let taken = left.min(bytes.len() as u64);
                    answer.body_len += taken;
                    bytes = &bytes[taken as usize..];
                    place = match left - taken {
                        0 => Place::LineEnd(false),
                        left => Place::Data(left),
                    };
                }
                Place::LineEnd(is_last) => {
                    bytes = rest;
                    match (*first, is_last) {
                        (b'\r', _) => {}
                        (b'\n', false) => place = Place::Size(0),
                        (b'\n', true) if bytes.is_empty() => {
                            self.state = State::Head;
                            return Ok(Some(answer));
                        }
                        _ => return Err(Unreadable::Chunk),
                    }
                }
            }
        }
        self.state = State::Chunked { answer, place };
        Ok(None)
    }
}

/// `None` if the head is incomplete.
fn read_head(bytes: &[u8]) -> Result<Option<Head>, Unreadable> {
    let mut head = Head {
        len: 0,
        status: 0,
        length: None,
        chunked: false,
    };
    while let Some(end) = memchr(b'\n', &bytes[head.len..]) {
        let line = bytes[head.len..head.len + end].trim_ascii_end();
        if line.is_empty() {
            head.len += end + 1;
            return if head.status == 0 {
                Err(Unreadable::Head)
            } else {
                Ok(Some(head))
            };
        }
        if head.status == 0 {
            head.status = status(line).ok_or(Unreadable::Head)?;
        } else if let Some(value) = field(line, "content-length:") {
            head.length = Some(number(value).ok_or(Unreadable::Head)?);
        } else if let Some(value) = field(line, "transfer-encoding:") {
            head.chunked = value.eq_ignore_ascii_case(b"chunked");
        }
        head.len += end + 1;
    }
    Ok(None)
}

fn status(line: &[u8]) -> Option<u16> {
    let code = line.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    number(code).and_then(|code| u16::try_from(code).ok())
}

fn field<'line>(line: &'line [u8], name: &str) -> Option<&'line [u8]> {
    let (found, value) = line.split_at_checked(name.len())?;
    found
        .eq_ignore_ascii_case(name.as_bytes())
        .then(|| value.trim_ascii())
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body_len: u64) -> Answer {
        Answer { status, body_len }
    }

    #[test]
    fn an_answer_is_read_however_it_is_cut() {
        let cases: [(&str, Answer); 4] = [
            (
                "HTTP/1.1 200 OK\r\nDate: x\r\ncontent-LENGTH: 5\r\n\r\nhello",
                answer(200, 5),
            ),
            (
                "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
                answer(304, 0),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n",
                answer(200, 21),
            ),
            (
                "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
                answer(401, 0),
            ),
        ];
        for (text, expected) in cases {
            for cut in 1..text.len() {
                let (first, second) = text.as_bytes().split_at(cut);
                let mut reader = Reader::default();
                assert_eq!(reader.feed(first), Ok(None), "{text:?} cut at {cut}");
                let found = reader.feed(second);
                assert_eq!(found, Ok(Some(expected)), "{text:?} cut at {cut}");
            }
            assert_eq!(Reader::default().feed(text.as_bytes()), Ok(Some(expected)));
        }
    }

    #[test]
    fn what_is_no_answer_is_told() {
        let cases = [
            ("HTTP/1.0 200 OK\r\n\r\n", Unreadable::Head),
            ("HTTP/1.1 200 OK\r\n\r\n", Unreadable::Head),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
                Unreadable::Head,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
                Unreadable::Surplus,
            ),
            (
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 1\r\n\r\na",
                Unreadable::Surplus,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
                Unreadable::Chunk,
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(
                Reader::default().feed(text.as_bytes()),
                Err(expected),
                "{text:?}"
            );
        }
    }

    #[test]
    fn one_connection_carries_one_answer_after_the_other() {
        let mut reader = Reader::default();
        for length in [3, 0, 5] {
            let text = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{}",
                "x".repeat(length)
            );
            let found = reader.feed(text.as_bytes());
            assert_eq!(found, Ok(Some(answer(200, length as u64))));
        }
    }
}
