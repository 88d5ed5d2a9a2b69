//! What is known of a connection and of the client at its other end: the address, also as trusted proxies report it, and the certificate.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use http::{HeaderMap, HeaderName, header};
use ipnet::{IpNet, Ipv4Net};

use crate::config::{ForwardedHeader, ServerConfig, value::CertificateSubject};

mod forwarded;
pub mod proxy_protocol;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What a request's extensions tell of the connection it came by.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    pub peer: Peer,
    /// `None` where the client showed none.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// The other end of a connection, or whom a trusted proxy connects for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Canonical: never an IPv4 address mapped into IPv6. See [`Peer::at`].
    Address(IpAddr),
    /// Somebody whom the permissions of our Unix socket let in.
    UnixSocket,
    /// A proxy sent a PROXY header that names nobody, such as its own health check.
    Unnamed,
}

impl Peer {
    /// The peer at `address`. Of an IPv4-mapped IPv6 address the IPv4 address counts, everywhere.
    #[must_use]
    pub fn at(address: IpAddr) -> Self {
        Self::Address(address.to_canonical())
    }

    #[must_use]
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(address),
            Self::UnixSocket | Self::Unnamed => None,
        }
    }
}

/// What a certificate, verified when its connection began, says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    pub subjects: Vec<CertificateSubject>,
    pub not_after: SystemTime,
}

/// The proxies whose word on a client's address is taken, and the one field in which they give it.
#[derive(Clone, Debug)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    field: ForwardedHeader,
}

impl TrustedProxies {
    #[must_use]
    pub fn new(networks: impl IntoIterator<Item = IpNet>, field: ForwardedHeader) -> Self {
        Self {
            networks: networks.into_iter().map(canonical).collect(),
            field,
        }
    }

    /// Those of `server.trusted_proxies`.
    #[must_use]
    pub fn configured(server: &ServerConfig) -> Self {
        let networks = server.trusted_proxies.iter().map(|network| network.0);
        Self::new(networks, server.forwarded_header)
    }

    /// Whether `peer` is one of them, as everybody is whom a Unix socket's file lets in.
    #[must_use]
    pub fn include(&self, peer: Peer) -> bool {
        match peer {
            Peer::Address(address) => self.trusts(address),
            Peer::UnixSocket => true,
            Peer::Unnamed => false,
        }
    }

    /// The client's address: the peer's unless the peer is trusted, then the right-most hop that is not.
    ///
    /// A hop that cannot be read whole ends the walk, and the last good one is the client: what lies left of it was reported by nobody
    /// we know.
    #[must_use]
    pub fn client_address(&self, peer: Peer, headers: &HeaderMap) -> Option<IpAddr> {
        let mut client = peer.address();
        if !self.include(peer) {
            return client;
        }
        let lines = headers.get_all(name(self.field)).into_iter().rev();
        let hops = lines.flat_map(|line| forwarded::hops(self.field, line.as_bytes()));
        // Ends at the first hop that could not be read.
        for address in hops.map_while(|hop| hop) {
            client = Some(address);
            if !self.trusts(address) {
                break;
            }
        }
        client
    }

    /// Whether a trusted peer reports a client in the other field alone: `server.forwarded_header` may name the wrong one.
    #[must_use]
    pub fn overlook(&self, peer: Peer, headers: &HeaderMap) -> bool {
        self.include(peer)
            && !headers.contains_key(name(self.field))
            && headers.contains_key(name(other(self.field)))
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }
}

fn name(field: ForwardedHeader) -> HeaderName {
    match field {
        ForwardedHeader::XForwardedFor => X_FORWARDED_FOR,
        ForwardedHeader::Forwarded => header::FORWARDED,
    }
}

fn other(field: ForwardedHeader) -> ForwardedHeader {
    match field {
        ForwardedHeader::XForwardedFor => ForwardedHeader::Forwarded,
        ForwardedHeader::Forwarded => ForwardedHeader::XForwardedFor,
    }
}

/// A network of IPv4-mapped IPv6 addresses is one of IPv4, as its addresses are.
fn canonical(network: IpNet) -> IpNet {
    let mapped = match network.network() {
        IpAddr::V6(address) => address.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    };
    let length = network.prefix_len().checked_sub(96);
    mapped
        .zip(length)
        .and_then(|(address, length)| Ipv4Net::new(address, length).ok())
        .map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests;
