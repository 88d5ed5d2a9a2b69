//! TLS on the data listener: versions, protocols, certificates that name clients, and files that change.

use http::Method;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, SanType};
use rustls::{
    HandshakeKind, ProtocolVersion,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use unpod_gateway::simulator::world;

use crate::{
    answer::Answer,
    gateway::{Gateway, READER, client, patiently, setup, until},
    http2::Http2,
    pki::{Authority, Pair, TlsClient, TlsFiles, shown},
    raw,
};

fn path() -> String {
    format!("/spaces/{}/tasks", world::SUPPORT)
}

fn key_line(key: &str) -> String {
    format!("Authorization: Token {key}\r\n")
}

/// A gateway whose clients, known by these names, may read every space.
async fn asking(authority: &Authority, clients: &[(&str, &str)]) -> (Gateway, TlsFiles) {
    let files = TlsFiles::new(&authority.server(), Some(authority));
    let clients: String = clients
        .iter()
        .map(|(name, subject)| {
            format!("[[clients]]\nname = \"{name}\"\nspaces = [\"*\"]\ncertificate_subject = '{subject}'\n")
        })
        .collect();
    let gateway = setup().with(&files.toml()).with(&clients).start().await;
    (gateway, files)
}

/// Asks for a page over a connection of its own.
async fn ask(gateway: &Gateway, client: &TlsClient, lines: &str) -> Answer {
    let stream = client.connect(gateway.address()).await;
    raw::send_over(stream, "GET", &path(), lines).await
}

#[tokio::test]
async fn both_versions_are_spoken() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server(), None);
    let gateway = setup().with(&files.toml()).start().await;
    let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    for (version, negotiated) in [
        (&TLS12, ProtocolVersion::TLSv1_2),
        (&TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let client = TlsClient::speaking(&[version], &authority, None);
        let stream = client.connect(gateway.address()).await;
        assert_eq!(stream.get_ref().1.protocol_version(), Some(negotiated));

        let answer = raw::send_over(stream, "GET", &path(), &key_line(READER)).await;

        answer.assert_page(&expected);
    }
}

#[tokio::test]
async fn the_protocol_is_agreed_upon_in_the_handshake() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server(), None);
    let gateway = setup().with(&files.toml()).start().await;
    let agreed = async |offered: &[&str]| {
        let client = TlsClient::trusting(&authority).offering(offered);
        let stream = client.connect(gateway.address()).await;
        let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        (stream, String::from_utf8(protocol.unwrap()).unwrap())
    };

    let (stream, protocol) = agreed(&["http/1.1", "h2"]).await;
    assert_eq!(protocol, "h2");
    let connection = Http2::over(stream).await;
    let answer = connection.get(&path(), Some(READER)).await.unwrap();
    assert_eq!(answer.status, 200);
    let head = connection.ask(Method::HEAD, &path(), Some(READER));
    assert_eq!(head.await.unwrap().status, 200);

    let (stream, protocol) = agreed(&["http/1.1"]).await;
    assert_eq!(protocol, "http/1.1");
    let answer = raw::send_over(stream, "GET", &path(), &key_line(READER)).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn plain_http_on_a_tls_port_ends_cleanly() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server(), None);
    let gateway = setup().with(&files.toml()).start().await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();

    let told = raw::exchange(&mut stream, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;

    const ALERT: u8 = 21;
    assert_eq!(told.first(), Some(&ALERT), "{}", told.escape_ascii());
    let counted = "gateway_connection_failures_total{reason=\"tls_handshake\"} 1";
    until(|| gateway.counts(counted)).await;
}

#[tokio::test]
async fn a_handshake_that_never_ends_holds_nobody_up() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server(), None);
    let patient = "[server]\nheader_read_timeout = \"1h\"";
    let gateway = setup().with(patient).with(&files.toml()).start().await;
    let mut waiting = Vec::new();
    for begun in [&b""[..], b"\x16", b"\x16\x03\x01\x00\xff"] {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        stream.write_all(begun).await.unwrap();
        waiting.push(stream);
    }

    let answer = ask(
        &gateway,
        &TlsClient::trusting(&authority),
        &key_line(READER),
    )
    .await;

    assert_eq!(answer.status, 200);
    // Nor does it hold up the end.
    assert!(gateway.app.drain().await);
}

#[tokio::test]
async fn a_handshake_is_given_the_time_of_a_header() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server(), None);
    let impatient = "[server]\nheader_read_timeout = \"100ms\"";
    let gateway = setup().with(impatient).with(&files.toml()).start().await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    stream.write_all(b"\x16\x03\x01").await.unwrap();

    assert_eq!(raw::until_end(&mut stream).await, b"");

    let counted = "gateway_connection_failures_total{reason=\"too_slow\"} 1";
    until(|| gateway.counts(counted)).await;
}

/// Certificates, each with one name by which a client is known.
fn named(authority: &Authority) -> [(&'static str, Pair); 5] {
    let with_san = |san: SanType| {
        authority.issue(&[], |params: &mut CertificateParams| {
            params.subject_alt_names.push(san);
        })
    };
    let with_subject = |attributes: &[(DnType, &str)]| {
        authority.issue(&["unknown.internal"], |params| {
            for (kind, value) in attributes {
                params.distinguished_name.push(kind.clone(), *value);
            }
        })
    };
    let uri = SanType::URI("spiffe://example.org/crm".try_into().unwrap());
    let mail = SanType::Rfc822Name("crm@example.org".try_into().unwrap());
    let organization = (DnType::OrganizationName, "Acme, Inc");
    [
        ("by-uri", with_san(uri)),
        ("by-mail", with_san(mail)),
        ("by-dns", authority.issue(&["CRM.internal"], |_| {})),
        ("by-cn", with_subject(&[(DnType::CommonName, "the crm")])),
        (
            "by-subject",
            with_subject(&[organization, (DnType::CommonName, "other")]),
        ),
    ]
}

const NAMED: [(&str, &str); 5] = [
    ("by-uri", "spiffe://example.org/crm"),
    ("by-mail", "crm@example.org"),
    ("by-dns", "crm.internal"),
    ("by-cn", "The CRM"),
    ("by-subject", "CN=other,O=Acme\\, Inc"),
];

#[tokio::test]
async fn a_certificate_names_its_client() {
    let authority = Authority::new();
    let (gateway, _files) = asking(&authority, &NAMED).await;
    for (name, own) in named(&authority) {
        for version in [&TLS12, &TLS13] {
            let client = TlsClient::speaking(&[version], &authority, Some(&own));
            assert_eq!(ask(&gateway, &client, "").await.status, 200, "{name}");
        }
        let counted = format!(
            "gateway_http_requests_total{{route=\"tasks\",status=\"200\",client=\"{name}\"}} 2"
        );
        assert!(gateway.counts(&counted), "{name}");
    }
}

#[tokio::test]
async fn a_certificate_names_its_client_for_every_request_of_its_connection() {
    let authority = Authority::new();
    let (gateway, _files) = asking(&authority, &[("crm", "crm.internal")]).await;
    let own = authority.issue(&["crm.internal"], |_| {});
    let client = TlsClient::showing(&authority, &own).offering(&["h2"]);
    let connection = Http2::over(client.connect(gateway.address()).await).await;
    for _ in 0..3 {
        let answer = connection.get(&path(), None).await.unwrap();
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test]
async fn a_certificate_that_names_no_client_or_two_gets_the_same_401_as_none() {
    let authority = Authority::new();
    let clients = [
        ("one", "one.internal"),
        ("two", "two.internal"),
        ("uri", "urn:one"),
    ];
    let (gateway, _files) = asking(&authority, &clients).await;
    let uri_as_cn = |params: &mut CertificateParams| {
        params
            .distinguished_name
            .push(DnType::CommonName, "urn:one");
    };
    let strangers = [
        TlsClient::trusting(&authority),
        TlsClient::showing(&authority, &authority.issue(&["three.internal"], |_| {})),
        TlsClient::showing(
            &authority,
            &authority.issue(&["one.internal", "two.internal"], |_| {}),
        ),
        TlsClient::showing(&authority, &authority.issue(&[], uri_as_cn)),
        TlsClient::showing(&authority, &authority.issue(&[], |_| {})),
    ];
    let mut bodies = Vec::new();
    for stranger in strangers {
        let answer = ask(&gateway, &stranger, "X-Request-Id: same\r\n").await;
        answer.assert_error("unauthenticated");
        bodies.push(answer.body);
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1);
    assert_eq!(gateway.upstream().requests(), 0);
}

#[tokio::test]
async fn an_authorization_decides_alone() {
    let authority = Authority::new();
    let (gateway, _files) = asking(&authority, &[("crm", "crm.internal")]).await;
    let own = authority.issue(&["crm.internal"], |_| {});
    let client = TlsClient::showing(&authority, &own);

    let with_key = ask(&gateway, &client, &key_line(READER)).await;

    assert_eq!(with_key.status, 200);
    let reader = "gateway_http_requests_total{route=\"tasks\",status=\"200\",client=\"reader\"} 1";
    assert!(gateway.counts(reader));
    for lines in [
        key_line("ugw_wrong"),
        "Authorization: Basic abc\r\n".to_owned(),
        "Authorization:\r\n".to_owned(),
        key_line(READER) + &key_line(READER),
    ] {
        let refused = ask(&gateway, &client, &lines).await;
        refused.assert_error("unauthenticated");
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_may_have_a_key() {
    let authority = Authority::new();
    let (gateway, _files) = asking(&authority, &[]).await;
    let client = TlsClient::trusting(&authority);
    assert_eq!(ask(&gateway, &client, &key_line(READER)).await.status, 200);
}

#[tokio::test]
async fn a_client_may_have_both_a_key_and_a_certificate() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server(), Some(&authority));
    let both = client(
        "both",
        "ugw_both",
        "spaces = [\"*\"]\ncertificate_subject = \"crm.internal\"",
    );
    let gateway = setup().with(&files.toml()).with(&both).start().await;
    let own = authority.issue(&["crm.internal"], |_| {});

    let by_certificate = ask(&gateway, &TlsClient::showing(&authority, &own), "").await;
    let plain = TlsClient::trusting(&authority);
    let by_key = ask(&gateway, &plain, &key_line("ugw_both")).await;

    assert_eq!((by_certificate.status, by_key.status), (200, 200));
    let counted = "gateway_http_requests_total{route=\"tasks\",status=\"200\",client=\"both\"} 2";
    assert!(gateway.counts(counted));
}

#[tokio::test]
async fn an_expired_client_is_refused_whatever_its_certificate() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server(), Some(&authority));
    let expired = "[[clients]]\nname = \"crm\"\nspaces = [\"*\"]\n\
                   certificate_subject = \"crm.internal\"\nexpires = \"2020-01-01T00:00:00Z\"";
    let gateway = setup().with(&files.toml()).with(expired).start().await;
    let own = authority.issue(&["crm.internal"], |_| {});

    let answer = ask(&gateway, &TlsClient::showing(&authority, &own), "").await;

    answer.assert_error("unauthenticated");
    let counted = "gateway_auth_failures_total{reason=\"expired\"} 1";
    assert!(gateway.counts(counted));
}

/// Whether the gateway broke off before an answer. In TLS 1.3 a client learns only then what became of its certificate.
async fn is_broken_off(gateway: &Gateway, client: &TlsClient) -> bool {
    let stream = TcpStream::connect(gateway.address()).await.unwrap();
    let Ok(mut stream) = client.shake_hands(stream).await else {
        return true;
    };
    // The peer may be gone.
    let _ = stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    let mut answer = Vec::new();
    let read = patiently("the end", stream.read_to_end(&mut answer)).await;
    read.is_err() && answer.is_empty()
}

#[tokio::test]
async fn an_invalid_certificate_fails_the_handshake() {
    let authority = Authority::new();
    let (gateway, _files) = asking(&authority, &[("crm", "crm.internal")]).await;
    let past = |params: &mut CertificateParams| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    };
    let for_servers = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let invalid = [
        Authority::new().issue(&["crm.internal"], |_| {}),
        authority.issue(&["crm.internal"], past),
        authority.issue(&["crm.internal"], for_servers),
    ];
    for own in &invalid {
        for version in [&TLS12, &TLS13] {
            let client = TlsClient::speaking(&[version], &authority, Some(own));
            assert!(is_broken_off(&gateway, &client).await);
        }
    }
    let counted = "gateway_connection_failures_total{reason=\"tls_handshake\"} 6";
    until(|| gateway.counts(counted)).await;
    let valid = authority.issue(&["crm.internal"], |_| {});
    let client = TlsClient::showing(&authority, &valid);
    assert!(!is_broken_off(&gateway, &client).await);
}

/// How a second connection of the same client began.
async fn second_handshake(gateway: &Gateway, client: &TlsClient) -> Option<HandshakeKind> {
    // To its end: tickets come with the answer.
    assert_eq!(ask(gateway, client, &key_line(READER)).await.status, 200);
    let stream = client.connect(gateway.address()).await;
    stream.get_ref().1.handshake_kind()
}

#[tokio::test]
async fn a_session_is_taken_up_again_only_where_no_certificate_would_escape_its_check() {
    let authority = Authority::new();
    let (asking, _files) = asking(&authority, &[]).await;
    let files = TlsFiles::new(&authority.server(), None);
    let not_asking = setup().with(&files.toml()).start().await;
    for version in [&TLS12, &TLS13] {
        let own = authority.issue(&["crm.internal"], |_| {});
        let client = TlsClient::speaking(&[version], &authority, Some(&own));
        assert_eq!(
            second_handshake(&asking, &client).await,
            Some(HandshakeKind::Full)
        );
        let client = TlsClient::speaking(&[version], &authority, None);
        assert_eq!(
            second_handshake(&not_asking, &client).await,
            Some(HandshakeKind::Resumed)
        );
    }
}

/// Asks over a connection that stays open.
async fn ask_again(stream: &mut TlsStream<TcpStream>) {
    let request = format!(
        "GET /healthz HTTP/1.1\r\nHost: a\r\n{}\r\n",
        key_line(READER)
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        let read = stream.read_buf(&mut answer);
        assert_ne!(patiently("an answer", read).await.unwrap(), 0);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn new_connections_take_new_files_and_old_ones_go_on() {
    let authority = Authority::new();
    let (first, second) = (authority.server(), authority.server());
    let files = TlsFiles::new(&first, None);
    let gateway = setup().with(&files.toml()).start().await;
    let client = TlsClient::trusting(&authority);
    let mut old = client.connect(gateway.address()).await;
    assert_eq!(&shown(&old), first.certificate.der());
    ask_again(&mut old).await;

    files.put_pair(&second);
    gateway.app.reload("a test").await.unwrap();

    let mut new = client.connect(gateway.address()).await;
    assert_eq!(&shown(&new), second.certificate.der());
    ask_again(&mut new).await;
    ask_again(&mut old).await;
}

#[tokio::test]
async fn broken_files_are_refused_and_the_old_stay_in_force() {
    let authority = Authority::new();
    let own = authority.server();
    let files = TlsFiles::new(&own, Some(&authority));
    let gateway = setup().with(&files.toml()).start().await;
    for (name, content, key) in [
        ("cert.pem", "junk", "server.tls.cert_file"),
        ("key.pem", "", "server.tls.key_file"),
        ("ca.pem", "junk", "server.tls.client_ca_file"),
    ] {
        files.put(name, content);
        let problems = gateway.app.reload("a test").await.unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| &problem.key).collect();
        assert_eq!(keys, [key]);
        files.put_pair(&own);
        files.put("ca.pem", &authority.pem());
    }
    // Half of a rotation: the certificate is new, its key not yet.
    files.put("cert.pem", &authority.server().certificate.pem());
    assert!(gateway.app.reload("a test").await.is_err());

    let stream = TlsClient::trusting(&authority)
        .connect(gateway.address())
        .await;
    assert_eq!(&shown(&stream), own.certificate.der());
}

#[tokio::test]
async fn an_authority_is_replaced_too() {
    let (old, new) = (Authority::new(), Authority::new());
    let (gateway, files) = asking(&old, &[("crm", "crm.internal")]).await;
    let showing = |own: &Pair| TlsClient::showing(&old, own);
    let of_old = showing(&old.issue(&["crm.internal"], |_| {}));
    let of_new = showing(&new.issue(&["crm.internal"], |_| {}));
    assert!(is_broken_off(&gateway, &of_new).await);
    assert_eq!(ask(&gateway, &of_old, "").await.status, 200);

    files.put("ca.pem", &new.pem());
    gateway.app.reload("a test").await.unwrap();

    assert!(is_broken_off(&gateway, &of_old).await);
    assert_eq!(ask(&gateway, &of_new, "").await.status, 200);
}
