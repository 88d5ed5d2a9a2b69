//! The requests as bytes, and their order.

use std::{fmt::Write as _, net::SocketAddr};

use crate::pages::{self, Key};

/// The client's key; the servers have its digest or the key itself.
pub const CLIENT_KEY: &str = "ugw_bench_key_for_loopback_only";

/// What all requests of a lane share.
#[derive(Clone, Debug)]
pub struct Form {
    pub host: SocketAddr,
    pub page_size: u32,
    pub takes_gzip: bool,
    /// The client's ETag.
    pub has: Option<String>,
}

impl Form {
    pub fn new(host: SocketAddr, page_size: u32) -> Self {
        Self {
            host,
            page_size,
            takes_gzip: false,
            has: None,
        }
    }

    pub fn with_gzip(self, takes_gzip: bool) -> Self {
        Self { takes_gzip, ..self }
    }

    pub fn path(&self, key: Key) -> String {
        let (space, page, page_size) = (key.space(), key.page(), self.page_size);
        format!("/spaces/{space}/tasks?page={page}&page_size={page_size}")
    }

    pub fn bytes(&self, key: Key) -> Vec<u8> {
        let mut text = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: bench/1\r\nAccept: application/json\r\nAuthorization: Token {CLIENT_KEY}\r\n",
            self.path(key),
            self.host
        );
        if self.takes_gzip {
            text.push_str("Accept-Encoding: gzip\r\n");
        }
        if let Some(tag) = &self.has {
            let _ = write!(text, "If-None-Match: {tag}\r\n");
        }
        text.push_str("\r\n");
        text.into_bytes()
    }
}

/// The sequence of requests.
#[derive(Clone, Debug)]
pub enum Feed {
    /// Built once and repeated in a fixed order, forever.
    Known {
        requests: Vec<Vec<u8>>,
        order: Vec<u32>,
        next: usize,
    },
    /// Each key of a range once.
    Each { form: Form, next: u64, end: u64 },
    /// Uniformly random keys below a number, forever.
    Any { form: Form, keys: u64, draw: u64 },
    /// The same request a number of times.
    Times { request: Vec<u8>, left: u64 },
}

impl Feed {
    pub fn one(form: &Form) -> Self {
        Self::Known {
            requests: vec![form.bytes(Key(0))],
            order: vec![0],
            next: 0,
        }
    }

    /// The keys below `keys` by Zipf's law, the first most often; the order is the same in every run.
    pub fn zipf(form: &Form, keys: u64) -> Self {
        Self::Known {
            requests: (0..keys).map(|key| form.bytes(Key(key))).collect(),
            order: zipf_order(keys),
            next: 0,
        }
    }

    pub fn each(form: &Form, keys: std::ops::Range<u64>) -> Self {
        Self::Each {
            form: form.clone(),
            next: keys.start,
            end: keys.end,
        }
    }

    pub fn any(form: &Form, keys: u64) -> Self {
        Self::Any {
            form: form.clone(),
            keys,
            draw: 0,
        }
    }

    pub fn times(form: &Form, key: Key, times: u64) -> Self {
        Self::Times {
            request: form.bytes(key),
            left: times,
        }
    }

    /// Passes the next request to `send`; `None` if there are no more.
    pub fn next<R>(&mut self, send: impl FnOnce(&[u8]) -> R) -> Option<R> {
        match self {
            Self::Known {
                requests,
                order,
                next,
            } => {
                let request = &requests[order[*next] as usize];
                *next = (*next + 1) % order.len();
                Some(send(request))
            }
            Self::Each { form, next, end } => {
                let key = (*next < *end).then_some(Key(*next))?;
                *next += 1;
                Some(send(&form.bytes(key)))
            }
            Self::Any { form, keys, draw } => {
                let key = Key(pages::mix(*draw) % *keys);
                *draw += 1;
                Some(send(&form.bytes(key)))
            }
            Self::Times { request, left } => {
                *left = left.checked_sub(1)?;
                Some(send(request))
            }
        }
    }
}

/// More requests than a round sends in a tenth of a second.
const ORDER_LEN: u64 = 1 << 18;

fn zipf_order(keys: u64) -> Vec<u32> {
    let mut reached = 0.0;
    let weights: Vec<f64> = (1..=keys)
        .map(|rank| {
            reached += 1.0 / rank as f64;
            reached
        })
        .collect();
    // Ranks are shuffled over the keys: neighbours in memory should not have similar ranks.
    let key_of_rank = shuffled(keys);
    (0..ORDER_LEN)
        .map(|draw| {
            let share = (pages::mix(draw) >> 11) as f64 / (1_u64 << 53) as f64;
            let rank = weights.partition_point(|weight| *weight < share * reached);
            key_of_rank[rank.min(key_of_rank.len() - 1)]
        })
        .collect()
}

fn shuffled(keys: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..keys as u32).collect();
    for place in (1..order.len()).rev() {
        let other = pages::mix(!(place as u64)) % (place as u64 + 1);
        order.swap(place, other as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_zipf_is_asked_for_most() {
        let mut counts = vec![0_u32; 1000];
        for key in zipf_order(1000) {
            counts[key as usize] += 1;
        }
        counts.sort_unstable_by(|one, other| other.cmp(one));
        // The share of rank r is 1 / (r * H), with H = 7.49 for a thousand keys.
        for (rank, share) in [(1, 0.1336), (2, 0.0668), (10, 0.0134)] {
            let found = f64::from(counts[rank - 1]) / ORDER_LEN as f64;
            assert!((found / share - 1.0).abs() < 0.1, "{rank}: {found}");
        }
        assert!(counts.iter().all(|count| *count > 0));
    }

    #[test]
    fn a_feed_ends_where_it_should() {
        let form = Form::new(([127, 0, 0, 1], 80).into(), pages::SMALL);
        let mut lengths = Vec::new();
        let mut feed = Feed::each(&form, 85..95);
        while let Some(length) = feed.next(<[u8]>::len) {
            lengths.push(length);
        }
        assert_eq!(lengths.len(), 10);
        assert!(lengths.iter().all(|length| *length == lengths[0]));
        let mut feed = Feed::times(&form, Key(0), 2);
        assert!(feed.next(|_| ()).is_some() && feed.next(|_| ()).is_some());
        assert!(feed.next(|_| ()).is_none());
    }
}
