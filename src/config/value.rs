//! Types of single values. Their errors say what is expected and never quote the value.

use std::{
    fmt, marker::PhantomData, net::IpAddr, num::NonZeroU32, os::unix::fs::FileTypeExt,
    str::FromStr, time::Duration,
};

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};

/// Text that is parsed by `FromStr`, with `EXPECTED` in place of the parser's own words.
struct Parsed<T> {
    expected: &'static str,
    of: PhantomData<T>,
}

impl<T: FromStr> Visitor<'_> for Parsed<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse()
            .map_err(|_| E::custom(format_args!("expected {}", self.expected)))
    }
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr>(
    deserializer: D,
    expected: &'static str,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(Parsed {
        expected,
        of: PhantomData,
    })
}

/// A newtype around text of a fixed form.
macro_rules! text_value {
    ($(#[$doc:meta])* $name:ident($inner:ty), $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name(pub $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                parsed(deserializer, $expected).map($name)
            }
        }
    };
}

text_value!(
    /// An absolute URL.
    Address(url::Url),
    "a URL such as \"https://unpod.dev\""
);
text_value!(
    /// A network.
    Network(ipnet::IpNet),
    "a network such as \"10.0.0.0/8\""
);

/// Without the parts that may be secret: user, password, query and fragment.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_secrets(&self.0))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `url` without its user, password, query and fragment.
pub(in crate::config) fn without_secrets(url: &url::Url) -> String {
    let mut shown = url.clone();
    // Each fails for a URL that cannot have that part, which is fine.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown.set_fragment(None);
    shown.into()
}

/// A length of time.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let parsed: humantime::Duration = parsed(
        deserializer,
        "a duration such as \"250ms\", \"30s\" or \"1h\"",
    )?;
    Ok(parsed.into())
}

/// A length of time, where one is given.
pub fn some_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// A number of bytes.
pub fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let parsed: bytesize::ByteSize =
        parsed(deserializer, "a size such as \"256MiB\" or \"1048576B\"")?;
    usize::try_from(parsed.as_u64()).map_err(|_| de::Error::custom("too large"))
}

/// A share from 0 to 1.
pub fn ratio<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let ratio = f64::deserialize(deserializer)?;
    if (0.0..=1.0).contains(&ratio) {
        Ok(ratio)
    } else {
        Err(de::Error::custom("expected a number from 0 to 1"))
    }
}

/// Requests a second.
pub fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let rate = f64::deserialize(deserializer)?;
    if (0.0001..=1_000_000.0).contains(&rate) {
        Ok(rate)
    } else {
        Err(de::Error::custom(
            "expected a number from 0.0001 to 1000000",
        ))
    }
}

/// Requests at once.
pub fn burst<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NonZeroU32, D::Error> {
    let burst = u32::deserialize(deserializer)?;
    NonZeroU32::new(burst)
        .filter(|burst| burst.get() <= 1_000_000)
        .ok_or_else(|| de::Error::custom("expected a number from 1 to 1000000"))
}

/// Text that a header field can hold, where it is given.
pub fn visible_ascii<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(de::Error::custom("expected visible ASCII without spaces"));
    }
    Ok(Some(text))
}

/// A SHA-256 digest as 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sha256Digest(pub [u8; 32]);

impl FromStr for Sha256Digest {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut digest = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(());
        }
        for (place, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).map_err(|_| ())?;
        }
        // `from_str_radix` takes a sign.
        if text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(Self(digest))
        } else {
            Err(())
        }
    }
}

impl<'de> Deserialize<'de> for Sha256Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, "a SHA-256 digest of 64 hex digits")
    }
}

/// A name in a certificate. Its form decides which field it is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CertificateSubject {
    /// `spiffe://example.org/crm`: a URI among the alternative names.
    Uri(String),
    /// `crm@example.com`: a mail address among the alternative names.
    Email(String),
    /// `crm.internal`: a DNS name among the alternative names, or the common name. In lower case.
    Name(String),
    /// `CN=crm,O=Acme`: the whole subject, as RFC 4514 writes it.
    Distinguished(String),
}

impl CertificateSubject {
    /// A DNS name or a common name, case-insensitive.
    #[must_use]
    pub fn name(text: &str) -> Self {
        Self::Name(text.to_ascii_lowercase())
    }
}

impl FromStr for CertificateSubject {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let plain = !text.is_empty() && text.trim() == text && !text.contains(char::is_control);
        match text {
            _ if !plain => Err(()),
            _ if has_scheme(text) => Ok(Self::Uri(text.to_owned())),
            _ if text.contains('=') => {
                // Normalized: RFC 4514 allows different escapes.
                let name: x509_cert::name::Name = text.parse().map_err(|_| ())?;
                Ok(Self::Distinguished(name.to_string()))
            }
            _ if text.contains('@') => Ok(Self::Email(text.to_owned())),
            _ => Ok(Self::name(text)),
        }
    }
}

/// Whether it begins with a URI scheme (RFC 3986 section 3.1).
fn has_scheme(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, rest)| {
        !rest.is_empty()
            && scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte))
    })
}

impl<'de> Deserialize<'de> for CertificateSubject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(
            deserializer,
            "a certificate's name such as \"spiffe://example.org/crm\", \"crm.internal\", \"crm@example.com\" or \"CN=crm,O=Acme\"",
        )
    }
}

/// A point in time, as RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub std::time::SystemTime);

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parsed: humantime::Timestamp =
            parsed(deserializer, "a time such as \"2027-01-01T00:00:00Z\"")?;
        Ok(Self(parsed.into()))
    }
}

/// Where a listener binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    Tcp(std::net::SocketAddr),
    Unix(std::path::PathBuf),
}

impl ListenAddress {
    /// Whether only this machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

/// The longest socket path, with its terminating zero.
const LONGEST_SOCKET_PATH: usize = 108;

impl ListenAddress {
    /// Checks what can be checked without binding.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let Self::Unix(path) = self else {
            return Ok(());
        };
        if path.as_os_str().len() >= LONGEST_SOCKET_PATH {
            return Err("expected the path of a socket, which has at most 107 bytes");
        }
        if !path.parent().is_some_and(std::path::Path::is_dir) {
            return Err("expected the path of a socket in a folder that exists");
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                Err("is there already, and is no socket: it would have to be removed")
            }
            _ => Ok(()),
        }
    }

    /// Whether the two cannot be bound at the same time.
    pub(super) fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix(one), Self::Unix(other)) => one == other,
            (Self::Tcp(one), Self::Tcp(other)) => {
                let covers = |one: IpAddr, other: IpAddr| {
                    // A listener on all IPv6 addresses takes all IPv4 addresses too.
                    one == other || one.is_unspecified() && (one.is_ipv6() || other.is_ipv4())
                };
                let (a, b) = (one.ip(), other.ip());
                one.port() != 0 && one.port() == other.port() && (covers(a, b) || covers(b, a))
            }
            (Self::Tcp(_), Self::Unix(_)) | (Self::Unix(_), Self::Tcp(_)) => false,
        }
    }
}

impl FromStr for ListenAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(_) => Err(()),
            None => text.parse().map(Self::Tcp).map_err(|_| ()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(
            deserializer,
            "an address such as \"127.0.0.1:8080\" or \"unix:/path\"",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{
        CertificateSubject::{self, Distinguished, Email, Name, Uri},
        ListenAddress,
    };

    #[test]
    fn two_listeners_cannot_have_one_address() {
        for (one, other, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::]:80", "0.0.0.0:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("unix:/a", "unix:/a", true),
            ("unix:/a", "unix:/b", false),
            ("unix:/a", "127.0.0.1:80", false),
        ] {
            let read = |text: &str| text.parse::<ListenAddress>().unwrap();
            let (one, other) = (read(one), read(other));
            assert_eq!(one.excludes(&other), expected, "{one} {other}");
            assert_eq!(other.excludes(&one), expected, "{other} {one}");
        }
    }

    #[test]
    fn a_socket_has_a_short_path_in_a_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "kept").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        let long = "n".repeat(107);
        for (name, expected) in [
            ("new", true),
            ("socket", true),
            ("file", false),
            ("none/new", false),
            ("", false),
            (long.as_str(), false),
        ] {
            let address = ListenAddress::Unix(path(name));
            assert_eq!(address.check().is_ok(), expected, "{name}");
        }
        assert_eq!(std::fs::read_to_string(path("file")).unwrap(), "kept");
    }

    #[test]
    fn the_form_of_a_certificates_name_says_where_it_stands() {
        type Kind = fn(String) -> CertificateSubject;
        let table: [(&str, Kind, &str); 12] = [
            ("spiffe://example.org/crm", Uri, "spiffe://example.org/crm"),
            ("urn:uuid:1", Uri, "urn:uuid:1"),
            ("https://crm/?a=b@c", Uri, "https://crm/?a=b@c"),
            ("crm@example.com", Email, "crm@example.com"),
            ("crm.internal", Name, "crm.internal"),
            ("CRM.Internal", Name, "crm.internal"),
            ("The CRM", Name, "the crm"),
            ("CN=crm,O=Acme", Distinguished, "CN=crm,O=Acme"),
            ("CN=a@b", Distinguished, "CN=a@b"),
            ("CN=https://crm", Distinguished, "CN=https://crm"),
            // Two of the ways to write one name.
            ("CN=M\\C3\\BCller", Distinguished, "CN=Müller"),
            ("CN=Acme\\2c Inc", Distinguished, "CN=Acme\\, Inc"),
        ];
        for (text, kind, expected) in table {
            let read: Result<CertificateSubject, ()> = text.parse();
            assert_eq!(read, Ok(kind(expected.to_owned())), "{text}");
        }
        for text in ["", " crm", "crm ", "c\0rm", "cn = crm", "crm=", "=crm"] {
            assert_eq!(text.parse::<CertificateSubject>(), Err(()), "{text}");
        }
    }
}
