//! TLS on the data listener: the handshake, and the name by which a client's certificate is known.

use std::{io, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore,
    crypto::ring,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_cert::{
    Certificate,
    der::{self, Decode},
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use crate::{
    config::{
        Problems, TlsConfig,
        tls::TlsMaterial,
        value::CertificateSubject::{self, Distinguished, Email, Uri},
    },
    peer::ClientCertificate,
};

const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The TLS set-up that new connections take. A clone is the same one.
#[derive(Clone, Debug)]
pub struct Tls(Arc<ArcSwap<rustls::ServerConfig>>);

impl Tls {
    #[must_use]
    pub fn new(setup: Arc<rustls::ServerConfig>) -> Self {
        Self(Arc::new(ArcSwap::new(setup)))
    }

    /// Reads the certificate, its key and the clients' authorities.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the files, each by its key.
    pub fn read(config: &TlsConfig) -> Result<Arc<rustls::ServerConfig>, Problems> {
        config.read().map(server_config).map(Arc::new)
    }

    /// New connections take `setup`; those that are open go on with what they began with.
    pub fn replace(&self, setup: Arc<rustls::ServerConfig>) {
        self.0.store(setup);
    }

    /// Shakes hands. Takes as long as the peer does.
    pub(super) async fn accept<I: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: I,
    ) -> io::Result<TlsStream<I>> {
        TlsAcceptor::from(self.0.load_full()).accept(io).await
    }
}

fn server_config(material: TlsMaterial) -> rustls::ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of both versions");
    let asks = material.client_roots.is_some();
    let builder = match material.client_roots {
        None => builder.with_no_client_auth(),
        Some(roots) => builder.with_client_cert_verifier(verifier(roots)),
    };
    let shown = SingleCertAndKey::from(material.certified_key);
    let mut config = builder.with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    if asks {
        // A session taken up again is not verified again: a certificate that has expired meanwhile would pass.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    config
}

/// Who shows no certificate may still have a key.
fn verifier(roots: RootCertStore) -> Arc<dyn ClientCertVerifier> {
    let provider = Arc::new(ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .expect("there is an authority and no revocation list that could be malformed")
}

/// The certificate that was verified in the handshake; `None` where none was shown.
pub(super) fn client_certificate<I>(stream: &TlsStream<I>) -> Option<ClientCertificate> {
    let (_, session) = stream.get_ref();
    let shown = session.peer_certificates()?.first()?;
    // What the verifier takes and this parser does not names nobody.
    read_certificate(shown).ok()
}

fn read_certificate(encoded: &[u8]) -> der::Result<ClientCertificate> {
    let certificate = Certificate::from_der(encoded)?;
    let certificate = certificate.tbs_certificate();
    let subject = certificate.subject();
    let mut subjects = vec![Distinguished(subject.to_string())];
    if let Some(name) = subject.common_name()? {
        subjects.push(CertificateSubject::name(&name.value()));
    }
    if let Some((_, SubjectAltName(names))) = certificate.get_extension()? {
        subjects.extend(names.iter().filter_map(alternative));
    }
    Ok(ClientCertificate {
        subjects,
        not_after: certificate.validity().not_after.to_system_time(),
    })
}

fn alternative(name: &GeneralName) -> Option<CertificateSubject> {
    match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(Uri(uri.to_string())),
        GeneralName::Rfc822Name(address) => Some(Email(address.to_string())),
        GeneralName::DnsName(name) => Some(CertificateSubject::name(name.as_str())),
        GeneralName::OtherName(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EdiPartyName(_)
        | GeneralName::IpAddress(_)
        | GeneralName::RegisteredId(_) => None,
    }
}
