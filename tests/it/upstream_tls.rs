//! An upstream behind TLS: trusted by its authority, and by nothing else.

use std::{net::SocketAddr, sync::Arc};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use unpod_gateway::simulator::{Options, Simulator, world::SUPPORT};

use crate::gateway::setup;

/// Ends TLS before another server.
pub(crate) struct TlsFront {
    address: SocketAddr,
    pub(crate) authority: tempfile::NamedTempFile,
}

impl TlsFront {
    pub(crate) async fn before(upstream: SocketAddr) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let authority = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(authority.path(), cert.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A client that does not trust us ends the handshake.
                    let Ok(mut client) = acceptor.accept(client).await else {
                        return;
                    };
                    let mut upstream = TcpStream::connect(upstream).await.unwrap();
                    // Either side may end first.
                    let _ = copy_bidirectional(&mut client, &mut upstream).await;
                });
            }
        });
        Self { address, authority }
    }

    pub(crate) fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.address.port())
    }
}

#[tokio::test]
async fn an_upstream_of_a_named_authority_is_trusted() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let front = TlsFront::before(simulator.address()).await;
    let trusting = setup().with(&format!(
        "[upstream]\nca_file = '{}'",
        front.authority.path().display()
    ));

    let gateway = trusting.start_before(&front.url("localhost")).await;

    let expected = simulator.control().expect_page(SUPPORT, 1, 20);
    gateway.tasks(SUPPORT, "").await.assert_page(&expected);
}

#[tokio::test]
async fn an_upstream_that_proves_nothing_never_sees_the_token() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let front = TlsFront::before(simulator.address()).await;
    let authority = front.authority.path().display();
    let unknown = setup().start_before(&front.url("localhost")).await;
    let misnamed = setup()
        .with(&format!("[upstream]\nca_file = '{authority}'"))
        .start_before(&front.url("127.0.0.1"))
        .await;

    for gateway in [unknown, misnamed] {
        gateway
            .tasks(SUPPORT, "")
            .await
            .assert_error("upstream_unreachable");
    }
    assert_eq!(simulator.control().requests(), 0);
}
