//! Where a request comes from: the peer's address, or the one that trusted proxies report, and the certificate it showed.

use std::{net::IpAddr, time::SystemTime};

use http::{HeaderMap, HeaderName, header::FORWARDED};
use ipnet::IpNet;

use crate::config::{ServerConfig, value::CertificateSubject};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The other end of a connection, or whom a trusted proxy connects for; `None` on a Unix socket, and where the proxy names nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub Option<IpAddr>);

/// What a certificate, verified when its connection began, says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    pub subjects: Vec<CertificateSubject>,
    pub not_after: SystemTime,
}

/// The proxies whose word on a client's address is taken.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    #[must_use]
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self(networks.into_iter().collect())
    }

    /// Those of `server.trusted_proxies`.
    #[must_use]
    pub fn configured(server: &ServerConfig) -> Self {
        Self::new(server.trusted_proxies.iter().map(|network| network.0))
    }

    /// Whether `peer` is one of them, as everybody is whom a Unix socket's file lets in.
    #[must_use]
    pub fn include(&self, peer: Peer) -> bool {
        peer.0
            .is_none_or(|address| self.trusts(address.to_canonical()))
    }

    /// The client's address: the peer's unless the peer is trusted, then the right-most hop that is not.
    ///
    /// `Forwarded` (RFC 7239) is asked first. A hop that is no address ends the search: what lies left of it was
    /// reported by nobody we know.
    #[must_use]
    pub fn client_address(&self, peer: Peer, headers: &HeaderMap) -> Option<IpAddr> {
        let peer = peer.0.map(|address| address.to_canonical())?;
        if !self.trusts(peer) {
            return Some(peer);
        }
        let mut client = peer;
        for hop in hops(headers).iter().rev() {
            let Some(address) = parse_hop(hop) else {
                break;
            };
            client = address;
            if !self.trusts(address) {
                break;
            }
        }
        Some(client)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// The reported hops, left to right.
fn hops(headers: &HeaderMap) -> Vec<&str> {
    let members = |name: HeaderName| {
        headers
            .get_all(name)
            .into_iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| split_unquoted(line, ','))
            .map(str::trim)
            // A list may have empty members (RFC 9110 section 5.6.1.2).
            .filter(|member| !member.is_empty())
    };
    if headers.contains_key(FORWARDED) {
        members(FORWARDED).map(for_parameter).collect()
    } else {
        members(X_FORWARDED_FOR).collect()
    }
}

/// The parts of `text` between separators that stand in no quoted string (RFC 9110 section 5.6.4): what a proxy quotes, a client may have
/// written.
fn split_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |next| {
        match next {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ => return !is_quoted && next == separator,
        }
        false
    })
}

fn for_parameter(element: &str) -> &str {
    split_unquoted(element, ';')
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| name.eq_ignore_ascii_case("for"))
        .map_or("", |(_, value)| value)
}

/// An address, with or without quotes, brackets and port.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim_matches('"');
    let bare = match hop.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?,
        None if hop.matches(':').count() == 1 => hop.split(':').next()?,
        None => hop,
    };
    bare.parse::<IpAddr>()
        .ok()
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_most_hop_that_is_not_trusted_is_the_client() {
        let trusted = TrustedProxies::new(["10.0.0.0/8".parse().unwrap()]);
        let table = [
            ("192.0.2.1", "x-forwarded-for", "203.0.113.9", "192.0.2.1"),
            ("10.0.0.1", "x-forwarded-for", "203.0.113.9", "203.0.113.9"),
            (
                "10.0.0.1",
                "x-forwarded-for",
                "1.1.1.1, 203.0.113.9, 10.9.9.9",
                "203.0.113.9",
            ),
            (
                "10.0.0.1",
                "x-forwarded-for",
                "1.1.1.1, unknown",
                "10.0.0.1",
            ),
            (
                "10.0.0.1",
                "x-forwarded-for",
                "203.0.113.9:4711",
                "203.0.113.9",
            ),
            (
                "10.0.0.1",
                "x-forwarded-for",
                "10.1.1.1, 10.2.2.2",
                "10.1.1.1",
            ),
            (
                "10.0.0.1",
                "forwarded",
                "for=1.1.1.1, For=\"[2001:db8::1]:80\";proto=https",
                "2001:db8::1",
            ),
            ("10.0.0.1", "forwarded", "by=10.0.0.2", "10.0.0.1"),
            (
                "10.0.0.1",
                "forwarded",
                r#"for=203.0.113.9;host="a,for=8.8.8.8""#,
                "203.0.113.9",
            ),
            (
                "10.0.0.1",
                "forwarded",
                r#"host="x;for=8.8.8.8";for=203.0.113.9"#,
                "203.0.113.9",
            ),
            (
                "10.0.0.1",
                "forwarded",
                r#"host="x\",for=8.8.8.8,\"";for=203.0.113.9"#,
                "203.0.113.9",
            ),
            ("10.0.0.1", "forwarded", "for=203.0.113.9, ,", "203.0.113.9"),
            ("10.0.0.1", "x-forwarded-for", "203.0.113.9,", "203.0.113.9"),
            (
                "::ffff:10.0.0.1",
                "x-forwarded-for",
                "203.0.113.9",
                "203.0.113.9",
            ),
        ];
        for (peer, name, value, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            let found = trusted.client_address(Peer(peer.parse().ok()), &headers);
            assert_eq!(found, expected.parse().ok(), "{peer} {name}: {value}");
        }
    }

    #[test]
    fn a_peer_without_an_address_has_none() {
        let trusted = TrustedProxies::default();
        assert_eq!(trusted.client_address(Peer(None), &HeaderMap::new()), None);
    }
}
