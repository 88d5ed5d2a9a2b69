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
        let chain = required(self.cert_file.as_deref(), CERT_FILE, &mut problems, chain);
        let key = required(self.key_file.as_deref(), KEY_FILE, &mut problems, key);
        let roots = self.client_ca_file.as_deref().map(authorities).transpose();
        let roots = noted(roots, CLIENT_CA_FILE, &mut problems);
        let pair = chain.zip(key).and_then(|(chain, key)| {
            certified(chain, key)
                .map_err(|(key, text)| problems.add(key, text))
                .ok()
        });
        match (pair, roots) {
            (Some(certified_key), Some(client_roots)) => Ok(TlsMaterial {
                certified_key,
                client_roots,
            }),
            _ => Err(problems),
        }
    }
}

fn required<T>(
    file: Option<&Path>,
    key: &str,
    problems: &mut Problems,
    read: impl FnOnce(&Path) -> Result<T, String>,
) -> Option<T> {
    let read = file.ok_or_else(|| "required".to_owned()).and_then(read);
    noted(read, key, problems)
}

fn noted<T>(read: Result<T, String>, key: &str, problems: &mut Problems) -> Option<T> {
    read.map_err(|text| problems.add(key, text)).ok()
}

fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(file)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(&error, "certificate"))?;
    if chain.is_empty() {
        return Err(unreadable(&pem::Error::NoItemsFound, "certificate"));
    }
    Ok(chain)
}

fn key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&read(file)?).map_err(|error| unreadable(&error, "private key"))
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    files::read(file).map_err(|error| format!("cannot be read: {error}"))
}

/// The certificates of a file as trusted authorities, at least one.
///
/// # Errors
///
/// Says what is wrong with the file, without quoting it.
pub fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(file)? {
        roots
            .add(certificate)
            .map_err(|_| "holds a certificate that cannot be an authority's".to_owned())?;
    }
    Ok(roots)
}

/// The chain with its key, or which of the two is wrong and how.
fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, (&'static str, &'static str)> {
    use rustls::Error;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
        Error::InvalidCertificate(_) => (CERT_FILE, "holds a certificate that cannot be used"),
        Error::InconsistentKeys(_) => (KEY_FILE, "is not the key of the certificate in cert_file"),
        _ => (KEY_FILE, "holds a key that cannot be used"),
    })
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
