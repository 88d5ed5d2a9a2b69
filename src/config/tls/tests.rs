use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;

use super::*;
use crate::config::Config;

/// Files of every kind, good and bad.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pair = || generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let CertifiedKey { cert, signing_key } = pair();
        let other = pair();
        let pem = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        for (name, content) in [
            ("cert", cert.pem()),
            ("key", signing_key.serialize_pem()),
            ("both", cert.pem() + &signing_key.serialize_pem()),
            ("other_key", other.signing_key.serialize_pem()),
            ("two_certs", cert.pem() + &other.cert.pem()),
            ("empty", String::new()),
            ("text", "c4n4ry".to_owned()),
            ("bad_label", "-----BEGIN c4n4ry\nAAAA\n".to_owned()),
            ("bad_base64", pem("CERTIFICATE", "c4n4ry!")),
            ("bad_cert", pem("CERTIFICATE", "YzRuNHJ5")),
            ("bad_key", pem("PRIVATE KEY", "YzRuNHJ5")),
            ("cut", cert.pem()[..200].to_owned()),
        ] {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        Self(directory)
    }

    /// Reads the named files; an empty name stands for a key that is not given.
    fn read(&self, [cert, key, ca]: [&str; 3]) -> Result<TlsMaterial, Problems> {
        let path = |name: &str| (!name.is_empty()).then(|| self.0.path().join(name));
        let config = TlsConfig {
            cert_file: path(cert),
            key_file: path(key),
            client_ca_file: path(ca),
        };
        config.read()
    }
}

#[test]
fn a_pair_and_authorities_are_taken() {
    let files = Files::new();
    for names in [
        ["cert", "key", ""],
        ["both", "both", ""],
        ["two_certs", "key", ""],
        ["cert", "key", "cert"],
        ["cert", "key", "two_certs"],
    ] {
        let read = files.read(names).unwrap();
        assert_eq!(read.client_roots.is_some(), !names[2].is_empty());
    }
}

/// Which files are given, and what is told of them.
type Case<'a> = ([&'a str; 3], &'a [(&'a str, &'a str)]);

#[test]
fn what_is_wrong_with_a_file_is_told_by_its_key_and_never_its_content() {
    let files = Files::new();
    let missing = "cannot be read: No such file or directory (os error 2)";
    let no_cert = "holds no certificate in PEM form";
    let no_key = "holds no private key in PEM form";
    let mismatch = "is not the key of the certificate in server.tls.cert_file";
    let unusable_cert = "holds a certificate that cannot be used";
    let no_authority = "holds a certificate that cannot be an authority's";
    let not_pem = "is not valid PEM";
    let table: &[Case] = &[
        (
            ["", "", ""],
            &[(CERT_FILE, "required"), (KEY_FILE, "required")],
        ),
        (["", "key", "cert"], &[(CERT_FILE, "required")]),
        (["cert", "", "cert"], &[(KEY_FILE, "required")]),
        (
            ["nowhere", "nowhere", "nowhere"],
            &[
                (CERT_FILE, missing),
                (KEY_FILE, missing),
                (CLIENT_CA_FILE, missing),
            ],
        ),
        (
            ["empty", "empty", "empty"],
            &[
                (CERT_FILE, no_cert),
                (KEY_FILE, no_key),
                (CLIENT_CA_FILE, no_cert),
            ],
        ),
        (
            ["text", "text", "text"],
            &[
                (CERT_FILE, no_cert),
                (KEY_FILE, no_key),
                (CLIENT_CA_FILE, no_cert),
            ],
        ),
        // One in place of the other.
        (
            ["key", "cert", "key"],
            &[
                (CERT_FILE, no_cert),
                (KEY_FILE, no_key),
                (CLIENT_CA_FILE, no_cert),
            ],
        ),
        (["cert", "other_key", ""], &[(KEY_FILE, mismatch)]),
        (
            ["cert", "bad_key", ""],
            &[(KEY_FILE, "holds a key that cannot be used")],
        ),
        (["bad_cert", "key", ""], &[(CERT_FILE, unusable_cert)]),
        (
            ["cert", "key", "bad_cert"],
            &[(CLIENT_CA_FILE, no_authority)],
        ),
        (["bad_base64", "key", ""], &[(CERT_FILE, not_pem)]),
        (["bad_label", "key", ""], &[(CERT_FILE, not_pem)]),
        (["cut", "key", ""], &[(CERT_FILE, not_pem)]),
        // A pair that does not match and bad authorities: both at once.
        (
            ["cert", "other_key", "empty"],
            &[(KEY_FILE, mismatch), (CLIENT_CA_FILE, no_cert)],
        ),
    ];
    for (names, expected) in table {
        let problems = files.read(*names).unwrap_err();
        let told: Vec<(&str, &str)> = problems
            .iter()
            .map(|problem| (problem.key.as_str(), problem.text.as_str()))
            .collect();
        assert_eq!(told, *expected, "{names:?}");
        assert!(!format!("{problems:?}").contains("c4n4ry"), "{names:?}");
    }
}

/// A whole configuration; `tls` and `clients` as TOML.
fn load(tls: &str, clients: &str) -> Result<Config, Vec<String>> {
    let text = format!(
        "[upstream]\nbase_url = 'https://unpod.example'\n\
         [upstream.credentials.default]\ntoken = 'abc'\n{tls}\n{clients}"
    );
    Config::from_toml(&text).map_err(|problems| {
        let keys = problems.iter().map(|problem| problem.key.clone());
        keys.collect()
    })
}

fn tls(files: &Files, [cert, key, ca]: [&str; 3]) -> String {
    let root = files.0.path().display();
    let mut text =
        format!("[server.tls]\ncert_file = '{root}/{cert}'\nkey_file = '{root}/{key}'\n");
    if !ca.is_empty() {
        text.push_str(&format!("client_ca_file = '{root}/{ca}'\n"));
    }
    text
}

/// Clients without keys, known by these names.
fn certified_clients(subjects: &[&str]) -> String {
    let tables = subjects.iter().enumerate().map(|(place, subject)| {
        format!(
            "[[clients]]\nname = 'c{place}'\nspaces = ['*']\ncertificate_subject = '{subject}'\n"
        )
    });
    tables.collect()
}

#[test]
fn the_files_are_read_with_the_rest_of_the_configuration() {
    let files = Files::new();
    let good = load(&tls(&files, ["cert", "key", "cert"]), "").unwrap();
    let watched = good.files();
    assert_eq!(watched.len(), 3);

    let bad = tls(&files, ["cert", "other_key", "empty"]);
    let unnamed = "[[clients]]\nname = 'c'\nspaces = ['*']\n[cache]\njitter = 7.0";
    let keys = load(&bad, unnamed).unwrap_err();
    assert_eq!(
        keys,
        [
            KEY_FILE,
            CLIENT_CA_FILE,
            "cache.jitter",
            "clients[0].key_sha256"
        ]
    );
}

#[test]
fn a_certificate_stands_for_a_key_where_certificates_are_asked_for() {
    let files = Files::new();
    let asking = tls(&files, ["cert", "key", "cert"]);
    let clients = certified_clients(&["spiffe://x", "crm", "CN=crm"]);
    assert!(load(&asking, &clients).is_ok());

    let not_asking = tls(&files, ["cert", "key", ""]);
    let keys = load(&not_asking, &certified_clients(&["crm"])).unwrap_err();
    assert_eq!(keys, ["clients[0].certificate_subject"]);
}

#[test]
fn no_two_clients_share_a_certificates_name() {
    let files = Files::new();
    let asking = tls(&files, ["cert", "key", "cert"]);
    for subjects in [
        ["crm", "CRM"],
        ["spiffe://x", "spiffe://x"],
        ["CN=a\\,b", "CN=a\\2cb"],
    ] {
        let keys = load(&asking, &certified_clients(&subjects)).unwrap_err();
        assert_eq!(keys, ["clients[1].certificate_subject"]);
    }
}
