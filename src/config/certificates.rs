//! When the certificates that a configuration names end.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use x509_cert::{Certificate, der::Decode};

use super::{Config, tls};

impl Config {
    /// The files of certificates, each with when it ends: the first end in a chain that the gateway presents, the last among the
    /// authorities that it trusts. Blocking: reads them, and leaves out what cannot be read.
    #[must_use]
    pub fn certificate_ends(&self) -> BTreeMap<PathBuf, SystemTime> {
        let tls = self.server.tls.as_ref();
        let redis = &self.cache.redis;
        let presented = [
            tls.and_then(|tls| tls.cert_file.as_deref()),
            redis.client_cert_file(),
        ];
        let trusted = [
            tls.and_then(|tls| tls.client_ca_file.as_deref()),
            self.upstream.ca_file.as_deref(),
            redis.ca_file(),
        ];
        let first = presented.map(|file| Some((file?, ends(file?).min()?)));
        let last = trusted.map(|file| Some((file?, ends(file?).max()?)));
        let found = last.into_iter().chain(first).flatten();
        found.map(|(file, end)| (file.to_owned(), end)).collect()
    }
}

/// When each certificate in `file` ends.
fn ends(file: &Path) -> impl Iterator<Item = SystemTime> {
    let chain = tls::read(file).and_then(|pem| tls::chain(&pem));
    chain.unwrap_or_default().into_iter().filter_map(|encoded| {
        let certificate = Certificate::from_der(&encoded).ok()?;
        let validity = certificate.tbs_certificate().validity();
        Some(validity.not_after.to_system_time())
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn certificate(end: SystemTime) -> String {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = end.into();
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn a_chain_ends_with_its_first_and_authorities_with_their_last() {
        let whole_days = |days| SystemTime::UNIX_EPOCH + 30_000 * DAY + days * DAY;
        let [soon, late] = [1, 2].map(whole_days);
        let both = certificate(late) + &certificate(soon);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, text) in [("both", &*both), ("late", &certificate(late)), ("bad", "")] {
            std::fs::write(path(name), text).unwrap();
        }
        let ends_of = |cert: &str, ca: &str| {
            let mut config = Config::from_toml(
                "[upstream]\nbase_url = 'https://unpod.example'\n\
                 [upstream.credentials.default]\ntoken = 'abc'",
            )
            .unwrap();
            config.server.tls = Some(super::super::TlsConfig {
                cert_file: Some(path(cert)),
                key_file: None,
                client_ca_file: Some(path(ca)),
            });
            config.certificate_ends()
        };
        let of = |pairs: &[(&str, SystemTime)]| {
            let pairs = pairs.iter().map(|(name, end)| (path(name), *end));
            pairs.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(
            ends_of("both", "late"),
            of(&[("both", soon), ("late", late)])
        );
        assert_eq!(
            ends_of("late", "both"),
            of(&[("late", late), ("both", late)])
        );
        // One file in both places is listed once, by what ends first.
        assert_eq!(ends_of("both", "both"), of(&[("both", soon)]));
        assert_eq!(ends_of("late", "bad"), of(&[("late", late)]));
    }
}
