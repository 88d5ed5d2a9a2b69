//! `[server.tls]`: the data listener's certificate, and which client certificates it accepts.

use std::path::{Path, PathBuf};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use serde::Deserialize;

use super::{Problems, files};

const CERT_FILE: &str = "server.tls.cert_file";
const KEY_FILE: &str = "server.tls.key_file";
const CLIENT_CA_FILE: &str = "server.tls.client_ca_file";

/// `[server.tls]`: files in PEM form.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    // Required, but optional here so that both are reported at once, with all other problems.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// The authorities of client certificates; absent: none are requested.
    pub client_ca_file: Option<PathBuf>,
}

/// What the files hold.
#[derive(Clone, Debug)]
pub struct TlsMaterial {
    /// The certificate chain and its key.
    pub certified_key: CertifiedKey,
    pub client_roots: Option<RootCertStore>,
}

impl TlsConfig {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// Returns every problem, each by its key; never a file's content.
    pub fn read(&self) -> Result<TlsMaterial, Problems> {
        let mut problems = Problems::default();
        let pair = [
            (CERT_FILE, self.cert_file.as_deref()),
            (KEY_FILE, self.key_file.as_deref()),
        ];
        let pair = read_pair(pair, &mut problems);
        let roots = self.client_ca_file.as_deref().map(authorities).transpose();
        let roots = noted(roots, CLIENT_CA_FILE, &mut problems);
        match (pair, roots) {
            (Some(pair), Some(client_roots)) => Ok(TlsMaterial {
                certified_key: pair.certified_key,
                client_roots,
            }),
            _ => Err(problems),
        }
    }
}

/// A certificate chain and its key.
pub(super) struct Pair {
    pub(super) certified_key: CertifiedKey,
    /// Both as their files hold them, in PEM form.
    pub(super) pem: [Vec<u8>; 2],
}

/// Reads a certificate chain and its key from files, each given with its configuration key. Both are required.
pub(super) fn read_pair(
    [(cert_file, cert), (key_file, key)]: [(&'static str, Option<&Path>); 2],
    problems: &mut Problems,
) -> Option<Pair> {
    let mut required = |file: Option<&Path>, key| {
        let text = file.ok_or_else(|| "required".to_owned()).and_then(read);
        noted(text, key, problems)
    };
    let [cert, key] = [required(cert, cert_file), required(key, key_file)];
    let chain = cert.as_deref().map(chain).transpose();
    let chain = noted(chain, cert_file, problems).flatten();
    let private = key.as_deref().map(private_key).transpose();
    let private = noted(private, key_file, problems).flatten();
    let provider = rustls::crypto::ring::default_provider();
    let certified_key = CertifiedKey::from_der(chain?, private?, &provider);
    let certified_key = certified_key.map_err(|error| match error {
        rustls::Error::InvalidCertificate(_) => {
            problems.add(cert_file, "holds a certificate that cannot be used");
        }
        rustls::Error::InconsistentKeys(_) => problems.add(
            key_file,
            format!("is not the key of the certificate in {cert_file}"),
        ),
        _ => problems.add(key_file, "holds a key that cannot be used"),
    });
    let certified_key = certified_key.ok()?;
    let pem = [cert?, key?];
    Some(Pair { certified_key, pem })
}

fn noted<T>(read: Result<T, String>, key: &str, problems: &mut Problems) -> Option<T> {
    read.map_err(|text| problems.add(key, text)).ok()
}

pub(super) fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(&error, "certificate"))?;
    if chain.is_empty() {
        return Err(unreadable(&pem::Error::NoItemsFound, "certificate"));
    }
    Ok(chain)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| unreadable(&error, "private key"))
}

/// What `file` holds.
///
/// # Errors
///
/// Says why it cannot be read.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, String> {
    files::read(file).map_err(|error| format!("cannot be read: {error}"))
}

/// The certificates of a file as trusted authorities, at least one.
///
/// # Errors
///
/// Says what is wrong with the file, without quoting it.
pub fn authorities(file: &Path) -> Result<RootCertStore, String> {
    authorities_in(&read(file)?)
}

/// As [`authorities`], from a file's content.
pub(super) fn authorities_in(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(pem)? {
        roots
            .add(certificate)
            .map_err(|_| "holds a certificate that cannot be an authority's".to_owned())?;
    }
    Ok(roots)
}

/// Not the parser's own text, which quotes the file.
fn unreadable(error: &pem::Error, what: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("holds no {what} in PEM form"),
        _ => "is not valid PEM".to_owned(),
    }
}

#[cfg(test)]
mod tests;
