//! Verifies that a server does the job before it is measured.

use std::{io::Read, time::Duration};

use bytes::Bytes;
use hyper::{
    Response,
    header::{AUTHORIZATION, CONTENT_ENCODING, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH},
};

use crate::{
    load::{Expect, Job, Load, Pace, Result, fetch, other},
    pages::{Key, LARGE, SMALL},
    request::{Feed, Form},
    server::{Kind, Server},
    upstream::Upstream,
};

/// Keys that no measurement uses.
const FIRST: u64 = 1 << 40;
/// How many concurrent requests for one page that is not stored.
const AT_ONCE: usize = 100;

/// Checks a server, one kind of response after the other.
///
/// # Errors
///
/// Returns the first failed check.
pub async fn check(server: &Server, upstream: &Upstream) -> Result<()> {
    let check = Check { server, upstream };
    let checked = match server.kind {
        Kind::Hyper(fixed) if fixed.not_modified => {
            let (reply, _) = check.get(Key(0), fixed.page_size, None).await?;
            expect("a 304", 304, reply.status().as_u16())
        }
        Kind::Hyper(fixed) => check.same_bytes(fixed.page_size, Key(0)).await,
        _ => check.cache().await,
    };
    checked.map_err(|error| other(format!("{}: {error}", server.kind.name())))
}

struct Check<'a> {
    server: &'a Server,
    upstream: &'a Upstream,
}

impl Check<'_> {
    async fn cache(&self) -> Result<()> {
        self.keys_are_checked().await?;
        for page_size in [SMALL, LARGE] {
            self.one_call_then_the_same_bytes(page_size).await?;
            self.a_known_page_is_not_sent_again(page_size).await?;
            // Another page of the space, and the same page of other spaces.
            for key in [FIRST + 1, FIRST + 90, FIRST + 180] {
                self.same_bytes(page_size, Key(key)).await?;
            }
        }
        if self.server.kind.codes() {
            self.coded_pages_are_the_same().await?;
        }
        // HAProxy cannot.
        if self.server.kind != Kind::Haproxy {
            self.many_cost_one_call().await?;
        }
        Ok(())
    }

    async fn keys_are_checked(&self) -> Result<()> {
        let before = self.upstream.calls();
        for key in [None, Some("Token ugw_wrong")] {
            let mut request = Form::new(SMALL).request(&self.server.target, Key(FIRST));
            request.headers_mut().remove(AUTHORIZATION);
            if let Some(key) = key {
                let key = HeaderValue::from_static(key);
                request.headers_mut().insert(AUTHORIZATION, key);
            }
            let (reply, _) = fetch(&self.server.target, request).await?;
            expect("a bad key", 401, reply.status().as_u16())?;
        }
        expect("calls for bad keys", before, self.upstream.calls())
    }

    async fn one_call_then_the_same_bytes(&self, page_size: u32) -> Result<()> {
        let before = self.upstream.calls();
        for _ in 0..3 {
            self.same_bytes(page_size, Key(FIRST)).await?;
        }
        expect("calls for one page", before + 1, self.upstream.calls())
    }

    async fn a_known_page_is_not_sent_again(&self, page_size: u32) -> Result<()> {
        let tag = self.tag(Key(FIRST), page_size).await?;
        for (tag, status) in [(tag, 304), (HeaderValue::from_static("\"other\""), 200)] {
            let field = Some((IF_NONE_MATCH, tag));
            let (reply, body) = self.get(Key(FIRST), page_size, field).await?;
            expect("a conditional request", status, reply.status().as_u16())?;
            expect("a body", status == 200, !body.is_empty())?;
        }
        Ok(())
    }

    async fn coded_pages_are_the_same(&self) -> Result<()> {
        let keys = [FIRST + 2, FIRST + 3, FIRST + 92, FIRST + 182].map(Key);
        // The first may be uncompressed: a miss does not wait for compression.
        for key in keys.into_iter().chain(keys) {
            self.get_gzip(key).await?;
        }
        for key in keys {
            let (reply, body) = self.get_gzip(key).await?;
            expect("gzip", true, reply.headers().contains_key(CONTENT_ENCODING))?;
            let page = self.upstream.pages(LARGE).body(key);
            expect("a coded page's bytes", true, plain(&reply, body)? == page)?;
            self.same_bytes(LARGE, key).await?;
        }
        Ok(())
    }

    async fn many_cost_one_call(&self) -> Result<()> {
        let before = self.upstream.calls();
        let job = Job {
            target: self.server.target.clone(),
            form: Form::new(LARGE),
            feed: Feed::of(FIRST + 4, 1, AT_ONCE as u64),
            expected: Expect {
                status: 200,
                length: Some(self.upstream.pages(LARGE).body_len()),
            },
        };
        let mut load = Load::connect(job, AT_ONCE, 1).await?;
        self.upstream.set_latency(Duration::from_millis(100));
        let ran = load.run(Pace::Closed, Duration::MAX / 4).await;
        self.upstream.set_latency(Duration::ZERO);
        ran?;
        expect("calls for many at once", before + 1, self.upstream.calls())
    }

    async fn same_bytes(&self, page_size: u32, key: Key) -> Result<()> {
        let (reply, body) = self.get(key, page_size, None).await?;
        expect("a page", 200, reply.status().as_u16())?;
        let page = self.upstream.pages(page_size).body(key);
        expect("the upstream's bytes", true, plain(&reply, body)? == page)
    }

    async fn tag(&self, key: Key, page_size: u32) -> Result<HeaderValue> {
        let (reply, _) = self.get(key, page_size, None).await?;
        let tag = reply.headers().get(ETAG).cloned();
        tag.ok_or_else(|| other("no entity tag"))
    }

    async fn get_gzip(&self, key: Key) -> Result<(Response<()>, Bytes)> {
        let form = Form::new(LARGE).with_gzip(true);
        fetch(&self.server.target, form.request(&self.server.target, key)).await
    }

    async fn get(
        &self,
        key: Key,
        page_size: u32,
        field: Option<(HeaderName, HeaderValue)>,
    ) -> Result<(Response<()>, Bytes)> {
        let mut request = Form::new(page_size).request(&self.server.target, key);
        request.headers_mut().extend(field);
        fetch(&self.server.target, request).await
    }
}

/// The ETag of the first page.
///
/// # Errors
///
/// Returns that there is none.
pub async fn tag_of_first_page(server: &Server, upstream: &Upstream) -> Result<HeaderValue> {
    Check { server, upstream }.tag(Key(0), SMALL).await
}

fn plain(reply: &Response<()>, body: Bytes) -> Result<Bytes> {
    if !reply.headers().contains_key(CONTENT_ENCODING) {
        return Ok(body);
    }
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(&body[..]).read_to_end(&mut plain)?;
    Ok(plain.into())
}

fn expect<T: Copy + PartialEq + std::fmt::Debug>(what: &str, expected: T, got: T) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(other(format!("{what}: expected {expected:?}, got {got:?}")))
}
