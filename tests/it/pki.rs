//! Authorities, certificates and TLS clients, made for one test.

use std::{io, net::SocketAddr, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    client::WebPkiServerVerifier,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::gateway::patiently;

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for the listener.
    pub(crate) fn server(&self) -> Pair {
        self.issue(&["localhost"], |_| {})
    }

    /// A certificate for these DNS names, after `change`.
    pub(crate) fn issue(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair { certificate, key }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }
}

/// A certificate and its key.
pub(crate) struct Pair {
    pub(crate) certificate: rcgen::Certificate,
    pub(crate) key: KeyPair,
}

/// The files of `[server.tls]`.
pub(crate) struct TlsFiles {
    directory: tempfile::TempDir,
    asks: bool,
}

impl TlsFiles {
    /// The listener's own, and the authority of its clients' certificates.
    pub(crate) fn new(own: &Pair, clients: Option<&Authority>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let asks = clients.is_some();
        let files = Self { directory, asks };
        files.put_pair(own);
        if let Some(authority) = clients {
            files.put("ca.pem", &authority.pem());
        }
        files
    }

    pub(crate) fn put(&self, name: &str, content: &str) {
        std::fs::write(self.directory.path().join(name), content).unwrap();
    }

    pub(crate) fn put_pair(&self, pair: &Pair) {
        self.put("cert.pem", &pair.certificate.pem());
        self.put("key.pem", &pair.key.serialize_pem());
    }

    pub(crate) fn toml(&self) -> String {
        let root = self.directory.path().display();
        let ca = match self.asks {
            true => format!("client_ca_file = '{root}/ca.pem'\n"),
            false => String::new(),
        };
        format!("[server.tls]\ncert_file = '{root}/cert.pem'\nkey_file = '{root}/key.pem'\n{ca}")
    }
}

/// A client that trusts one authority.
#[derive(Clone)]
pub(crate) struct TlsClient {
    config: ClientConfig,
}

impl TlsClient {
    pub(crate) fn trusting(authority: &Authority) -> Self {
        Self::speaking(rustls::ALL_VERSIONS, authority, None)
    }

    /// Shows `own` where it is asked for a certificate.
    pub(crate) fn showing(authority: &Authority, own: &Pair) -> Self {
        Self::speaking(rustls::ALL_VERSIONS, authority, Some(own))
    }

    pub(crate) fn speaking(
        versions: &[&'static SupportedProtocolVersion],
        authority: &Authority,
        own: Option<&Pair>,
    ) -> Self {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(authority.roots());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_webpki_verifier(verifier.build().unwrap());
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(Pair { certificate, key }) => {
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                let chain = vec![certificate.der().clone()];
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        Self { config }
    }

    pub(crate) fn offering(mut self, protocols: &[&str]) -> Self {
        self.config.alpn_protocols = protocols
            .iter()
            .map(|protocol| protocol.as_bytes().to_vec())
            .collect();
        self
    }

    /// A connection to `address`.
    pub(crate) async fn connect(&self, address: SocketAddr) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        self.shake_hands(stream).await.unwrap()
    }

    /// Over a connection that there is already.
    pub(crate) async fn shake_hands<I: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: I,
    ) -> io::Result<TlsStream<I>> {
        let connector = TlsConnector::from(Arc::new(self.config.clone()));
        let name = ServerName::try_from("localhost").unwrap();
        patiently("a handshake", connector.connect(name, stream)).await
    }
}

/// The certificate that the listener showed.
pub(crate) fn shown<I>(stream: &TlsStream<I>) -> CertificateDer<'static> {
    let (_, session) = stream.get_ref();
    session.peer_certificates().unwrap()[0].clone().into_owned()
}
