//! What the simulated upstream can be told to do wrong, and how often.

use std::{fmt, str::FromStr};

/// A fault and the share of tasks requests that meets it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    pub kind: FaultKind,
    /// From 0 (never) to 1 (always).
    pub ratio: f64,
}

impl Fault {
    /// Returns the fault that every request meets.
    pub fn always(kind: FaultKind) -> Self {
        Self { kind, ratio: 1.0 }
    }
}

/// One way to fail; the variants' names on the command line are in [`FaultKind::ALL`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FaultKind {
    /// 500 with an HTML page: an inner connection was refused.
    ServerError,
    BadGateway,
    Unavailable,
    GatewayTimeout,
    /// 206 `Tasks Fetch Failed`, the inner text `Internal Server Error`.
    InnerFailed,
    /// 206 with an inner HTML page that names an inner host.
    InnerHtml,
    /// 206 with an inner 429.
    InnerSlowDown,
    Unauthorized,
    TokenExpired,
    /// 429 with `Retry-After`.
    RateLimited,
    /// 200 with an HTML page.
    Html,
    /// A `Content-Length` larger than what is sent, then the connection closes.
    Truncate,
    /// The connection closes with no answer.
    Reset,
    /// No answer until the client goes away.
    Hang,
    /// The true answer, one byte every 100 ms.
    SlowBody,
    /// 200 with `count` and `data` null.
    NullData,
    /// An error's `status_code` in the body of a 200.
    StatusInBody,
    /// 302 to another host.
    Redirect,
    /// 200 with no body.
    Empty,
    /// 200 that is not JSON.
    Garbage,
    /// 200, some 70 KB of gzip that grow to 64 MiB.
    GzipBomb,
}

impl FaultKind {
    /// Every kind with its name.
    pub const ALL: [(&'static str, Self); 21] = [
        ("500", Self::ServerError),
        ("502", Self::BadGateway),
        ("503", Self::Unavailable),
        ("504", Self::GatewayTimeout),
        ("206-failed", Self::InnerFailed),
        ("206-html", Self::InnerHtml),
        ("206-slow-down", Self::InnerSlowDown),
        ("401", Self::Unauthorized),
        ("403-expired", Self::TokenExpired),
        ("429", Self::RateLimited),
        ("html", Self::Html),
        ("truncate", Self::Truncate),
        ("reset", Self::Reset),
        ("hang", Self::Hang),
        ("slow-body", Self::SlowBody),
        ("null-data", Self::NullData),
        ("status-in-body", Self::StatusInBody),
        ("redirect", Self::Redirect),
        ("empty", Self::Empty),
        ("garbage", Self::Garbage),
        ("gzip-bomb", Self::GzipBomb),
    ];

    /// Its name on the command line, under which it is counted too.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let named = Self::ALL.into_iter().find(|(_, kind)| *kind == self);
        named.expect("every kind is in the list").0
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find_map(|(known, kind)| (known == name).then_some(kind))
    }
}

/// A fault that could not be read from text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ParseFaultError {
    Kind(String),
    Ratio(String),
}

impl fmt::Display for ParseFaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(given) => {
                let kinds = FaultKind::ALL.map(|(name, _)| name).join(", ");
                write!(
                    f,
                    "unknown fault `{given}`; expected KIND or KIND=RATIO, where KIND is one of: {kinds}"
                )
            }
            Self::Ratio(given) => write!(f, "`{given}` is not a ratio between 0 and 1"),
        }
    }
}

impl std::error::Error for ParseFaultError {}

impl FromStr for Fault {
    type Err = ParseFaultError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, ratio) = text.split_once('=').unwrap_or((text, "1"));
        let kind = FaultKind::named(name).ok_or_else(|| ParseFaultError::Kind(name.to_owned()))?;
        let ratio = ratio
            .parse()
            .ok()
            .filter(|ratio| (0.0..=1.0).contains(ratio))
            .ok_or_else(|| ParseFaultError::Ratio(ratio.to_owned()))?;
        Ok(Self { kind, ratio })
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, FaultKind, ParseFaultError};

    #[test]
    fn a_fault_is_a_kind_with_an_optional_ratio() {
        assert_eq!("500".parse(), Ok(Fault::always(FaultKind::ServerError)));
        let ratio = 0.25;
        let kind = FaultKind::GzipBomb;
        assert_eq!("gzip-bomb=0.25".parse(), Ok(Fault { kind, ratio }));
    }

    #[test]
    fn an_unknown_kind_is_told_the_known_ones() {
        let error = "teapot=1".parse::<Fault>().unwrap_err().to_string();
        assert!(error.starts_with("unknown fault `teapot`; expected KIND or KIND=RATIO"));
        for (name, _) in FaultKind::ALL {
            assert!(error.contains(name), "{name} is missing");
        }
    }

    #[test]
    fn a_ratio_lies_between_zero_and_one() {
        for ratio in ["1.5", "-0.1", "NaN", "half", ""] {
            let expected = Err(ParseFaultError::Ratio(ratio.to_owned()));
            assert_eq!(format!("reset={ratio}").parse::<Fault>(), expected);
        }
    }
}
