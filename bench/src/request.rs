//! The requests and their order.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{
    Request,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HOST, HeaderValue, IF_NONE_MATCH},
};

use crate::{
    load::Target,
    pages::{self, Key},
};

/// The client's key; the servers have its digest or the key itself.
pub const CLIENT_KEY: &str = "ugw_bench_key_for_loopback_only";

/// What all requests of a load share.
#[derive(Clone, Debug)]
pub struct Form {
    pub page_size: u32,
    pub takes_gzip: bool,
    /// The client's ETag.
    pub has: Option<HeaderValue>,
}

impl Form {
    pub fn new(page_size: u32) -> Self {
        Self {
            page_size,
            takes_gzip: false,
            has: None,
        }
    }

    pub fn with_gzip(self, takes_gzip: bool) -> Self {
        Self { takes_gzip, ..self }
    }

    pub fn request(&self, target: &Target, key: Key) -> Request<Empty<Bytes>> {
        let (space, page, page_size) = (key.space(), key.page(), self.page_size);
        let mut request = get(
            target,
            &format!("/spaces/{space}/tasks?page={page}&page_size={page_size}"),
        );
        let headers = request.headers_mut();
        if self.takes_gzip {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        }
        if let Some(tag) = &self.has {
            headers.insert(IF_NONE_MATCH, tag.clone());
        }
        request
    }
}

/// A request with the client's key.
pub fn get(target: &Target, path: &str) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    // HTTP/2 sends scheme and authority, HTTP/1.1 a path and `Host`.
    let host = target.address.to_string();
    let uri = if target.http2 {
        format!("https://{host}{path}")
    } else {
        path.to_owned()
    };
    *request.uri_mut() = uri.parse().expect("a path of letters and digits");
    let headers = request.headers_mut();
    if !target.http2 {
        let host = HeaderValue::try_from(host);
        headers.insert(HOST, host.expect("an address is ASCII"));
    }
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let authorization = HeaderValue::try_from(format!("Token {CLIENT_KEY}"));
    headers.insert(AUTHORIZATION, authorization.expect("the key is ASCII"));
    request
}

/// A sequence of keys, shared by all connections of a load.
#[derive(Clone, Debug)]
pub struct Feed {
    order: Arc<[u32]>,
    first: u64,
    keys: u64,
    next: Arc<AtomicU64>,
    times: u64,
}

impl Feed {
    /// The keys from `first` in turn, `times` in all.
    pub fn of(first: u64, keys: u64, times: u64) -> Self {
        Self {
            order: Arc::default(),
            first,
            keys,
            next: Arc::default(),
            times,
        }
    }

    /// The keys below `keys` by Zipf's law, the first most often, for ever; the order is the same in every run.
    pub fn zipf(keys: u64) -> Self {
        Self {
            order: zipf_order(keys).into(),
            ..Self::of(0, keys, u64::MAX)
        }
    }

    /// The next key; `None` if there are no more.
    pub fn next(&self) -> Option<Key> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        if at >= self.times {
            return None;
        }
        let of_order = || self.order.get(at as usize % self.order.len().max(1));
        Some(Key(match of_order() {
            Some(key) => u64::from(*key),
            None => self.first + at % self.keys,
        }))
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
        let feed = Feed::of(5, 2, 3);
        let keys: Vec<_> = std::iter::from_fn(|| feed.next()).collect();
        assert_eq!(keys, [5, 6, 5].map(Key));
        assert_eq!(Feed::zipf(9).next(), Feed::zipf(9).next());
    }
}
