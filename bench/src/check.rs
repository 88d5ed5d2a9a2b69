//! Verifies that a server does the job before it is measured.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

use crate::{
    client::{self, Reply},
    load::{Expect, Load},
    pages::{Key, LARGE, SMALL},
    request::{CLIENT_KEY, Feed, Form},
    server::{Kind, Server},
    upstream::Upstream,
};

/// Keys that no measurement uses.
const FIRST: u64 = 1 << 40;
/// How many concurrent requests for one page that is not stored.
const AT_ONCE: u64 = 100;
/// Fewer than the checks request.
const ENOUGH_LINES: usize = 10;
const GZIP: (&str, &str) = ("Accept-Encoding", "gzip");
const LOGGED_WITHIN: Duration = Duration::from_secs(60);

/// Checks a server, one kind of response after the other.
///
/// # Errors
///
/// Returns the first failed check.
pub fn check(server: &Server, upstream: &Upstream) -> Result<(), String> {
    let check = Check { server, upstream };
    let checked = if server.kind.is_cache() {
        check.cache()
    } else {
        check.limit()
    };
    checked.map_err(|error| format!("{}: {error}", server.kind.name()))
}

struct Check<'a> {
    server: &'a Server,
    upstream: &'a Upstream,
}

impl Check<'_> {
    fn cache(&self) -> Result<(), String> {
        self.keys_are_checked()?;
        for page_size in [SMALL, LARGE] {
            self.one_call_then_the_same_bytes(page_size)?;
            self.a_known_page_is_not_sent_again(page_size)?;
        }
        self.pages_are_told_apart()?;
        if self.server.kind.codes() {
            self.coded_pages_are_the_same()?;
        }
        if self.server.kind.collapses() {
            self.many_cost_one_call()?;
        }
        self.requests_are_logged()
    }

    /// Checks the access log, if there is one; servers write it with a delay.
    fn requests_are_logged(&self) -> Result<(), String> {
        let deadline = Instant::now() + LOGGED_WITHIN;
        while let Some(log) = self.server.logged() {
            if log.lines().filter(|line| line.contains("200")).count() >= ENOUGH_LINES {
                break;
            }
            if Instant::now() > deadline {
                return Err("requests are not logged".to_owned());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// A limit server has pages of one size and encoding; its measurement checks status and length.
    fn limit(&self) -> Result<(), String> {
        match self.server.kind {
            Kind::Hyper(fixed) if fixed.not_modified => {
                let reply = self.get(Key(0), fixed.page_size, &[])?;
                expect("a 304", 304, reply.status)
            }
            Kind::Hyper(fixed) => self.same_bytes(fixed.page_size, Key(0)),
            Kind::HyperMap { page_size, .. } => {
                self.keys_are_checked()?;
                self.same_bytes(page_size, Key(0))?;
                self.same_bytes(page_size, Key(99))
            }
            Kind::Gateway
            | Kind::Nginx
            | Kind::NginxCopy
            | Kind::Varnish
            | Kind::VarnishGzip
            | Kind::Haproxy => Ok(()),
        }
    }

    fn keys_are_checked(&self) -> Result<(), String> {
        let before = self.upstream.calls();
        let path = Form::new(self.server.address, SMALL).path(Key(FIRST));
        for (what, fields) in [
            ("no key", vec![]),
            ("a wrong key", vec![("Authorization", "Token ugw_wrong")]),
        ] {
            let reply = client::get(self.server.address, &path, &fields).map_err(text)?;
            expect(what, 401, reply.status)?;
        }
        expect("calls for bad keys", before, self.upstream.calls())
    }

    fn one_call_then_the_same_bytes(&self, page_size: u32) -> Result<(), String> {
        let before = self.upstream.calls();
        for _ in 0..3 {
            self.same_bytes(page_size, Key(FIRST))?;
        }
        expect("calls for one page", before + 1, self.upstream.calls())
    }

    fn a_known_page_is_not_sent_again(&self, page_size: u32) -> Result<(), String> {
        let before = self.upstream.calls();
        let tag = entity_tag(&self.get(Key(FIRST), page_size, &[])?)?;
        let reply = self.get(Key(FIRST), page_size, &[("If-None-Match", &tag)])?;
        expect("a known page", 304, reply.status)?;
        expect("bytes of a 304", 0, reply.body.len())?;
        let reply = self.get(Key(FIRST), page_size, &[("If-None-Match", "\"other\"")])?;
        expect("another tag", 200, reply.status)?;
        expect("calls for conditions", before, self.upstream.calls())
    }

    fn pages_are_told_apart(&self) -> Result<(), String> {
        // Another page of the space, and the same page of other spaces.
        for key in [FIRST + 1, FIRST + 90, FIRST + 180] {
            self.same_bytes(SMALL, Key(key))?;
            self.same_bytes(LARGE, Key(key))?;
        }
        Ok(())
    }

    fn coded_pages_are_the_same(&self) -> Result<(), String> {
        let keys = [FIRST + 2, FIRST + 3, FIRST + 92, FIRST + 182].map(Key);
        // The first may be uncompressed: a miss does not wait for compression.
        for key in keys {
            self.get(key, LARGE, &[GZIP])?;
        }
        for key in keys {
            let reply = self.get(key, LARGE, &[GZIP])?;
            expect("a coding", Some("gzip"), reply.field("content-encoding"))?;
            let plain = reply.decoded().map_err(text)?;
            let page = self.upstream.pages(LARGE).body(key);
            expect("a coded page's bytes", true, plain == page)?;
            self.same_bytes(LARGE, key)?;
        }
        Ok(())
    }

    fn many_cost_one_call(&self) -> Result<(), String> {
        let before = self.upstream.calls();
        let form = Form::new(self.server.address, LARGE);
        let feed = Feed::times(&form, Key(FIRST + 4), AT_ONCE);
        let expected = Expect {
            status: 200,
            body_len: Some(self.upstream.pages(LARGE).body_len() as u64),
        };
        let at_once = usize::try_from(AT_ONCE).expect("a hundred fit");
        self.upstream.set_latency(Duration::from_millis(100));
        let asked = Load::closed(self.server.address, at_once, feed, expected)
            .and_then(|mut load| load.run_out());
        self.upstream.set_latency(Duration::ZERO);
        asked.map_err(text)?;
        expect("calls for many at once", before + 1, self.upstream.calls())
    }

    fn same_bytes(&self, page_size: u32, key: Key) -> Result<(), String> {
        let reply = self.get(key, page_size, &[])?;
        expect("a page", 200, reply.status)?;
        let plain = reply.decoded().map_err(text)?;
        let page = self.upstream.pages(page_size).body(key);
        expect("the upstream's bytes", true, plain == page)
    }

    fn get(&self, key: Key, page_size: u32, more: &[(&str, &str)]) -> Result<Reply, String> {
        let path = Form::new(self.server.address, page_size).path(key);
        let authorization = format!("Token {CLIENT_KEY}");
        let mut fields = vec![("Authorization", authorization.as_str())];
        fields.extend_from_slice(more);
        client::get(self.server.address, &path, &fields).map_err(text)
    }
}

/// The ETag of a page.
///
/// # Errors
///
/// Returns that there is none.
pub fn tag_of_first_page(server: &Server, upstream: &Upstream) -> Result<String, String> {
    let reply = Check { server, upstream }.get(Key(0), SMALL, &[])?;
    entity_tag(&reply)
}

fn entity_tag(reply: &Reply) -> Result<String, String> {
    let tag = reply.field("etag").ok_or("no entity tag")?;
    Ok(tag.to_owned())
}

fn expect<T: Copy + PartialEq + std::fmt::Debug>(
    what: &str,
    expected: T,
    got: T,
) -> Result<(), String> {
    if expected == got {
        return Ok(());
    }
    Err(format!("{what}: expected {expected:?}, got {got:?}"))
}

fn text(error: impl Display) -> String {
    error.to_string()
}
