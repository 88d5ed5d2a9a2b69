//! `[upstream]`: where Unpod is, with which limits it is called, and with which tokens.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use rustls::RootCertStore;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::{Host, Url};

use super::{
    Problems, files, tls,
    value::{self, Address},
};
use crate::domain::SpaceToken;

/// `[upstream]`: the one origin, and the limits of calls to it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Checked to be there: use [`UpstreamConfig::base_url`].
    base_url: Option<Address>,
    #[serde(deserialize_with = "value::duration")]
    pub connect_timeout: Duration,
    /// The maximum age of a connection.
    #[serde(deserialize_with = "value::duration")]
    pub connection_max_age: Duration,
    /// The deadline of an upstream request, including queueing and retries.
    #[serde(deserialize_with = "value::duration")]
    pub timeout: Duration,
    pub max_concurrency: usize,
    /// Requests that may queue for a slot.
    pub max_queue: usize,
    /// Largest answer, decoded.
    #[serde(deserialize_with = "value::bytes")]
    pub max_body: usize,
    pub retries: u32,
    #[serde(deserialize_with = "value::ratio")]
    pub retry_budget: f64,
    pub proxy: Option<Address>,
    pub ca_file: Option<PathBuf>,
    pub allow_plain_http: bool,
    /// Calls a minute per credential; 0: unlimited.
    pub quota_per_minute: u32,
    /// Rows that one call fetches where several pages of a list are wanted; 0: each page by itself.
    pub fill_size: u32,
    pub circuit: CircuitConfig,
    #[serde(skip)]
    pub credentials: BTreeMap<String, CredentialConfig>,
}

/// `[upstream.circuit]`: the circuit breaker.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitConfig {
    pub enabled: bool,
    #[serde(deserialize_with = "value::ratio")]
    pub failure_ratio: f64,
    pub min_calls: u32,
    #[serde(deserialize_with = "value::duration")]
    pub window: Duration,
    #[serde(deserialize_with = "value::duration")]
    pub open_for: Duration,
}

/// `[upstream.credentials.NAME]`: one API token with its organization.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialConfig {
    pub token: Option<SecretString>,
    pub token_file: Option<PathBuf>,
    /// The next token, tried when the upstream refuses the current one.
    pub next_token: Option<SecretString>,
    pub next_token_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "value::visible_ascii")]
    pub org_handle: Option<String>,
    /// The spaces it serves, for clients without a `credential`.
    #[serde(default)]
    pub spaces: Vec<String>,
}

impl CredentialConfig {
    /// The token, read from its file where one is named.
    ///
    /// # Errors
    ///
    /// Returns the key of the token or its file, and what is wrong with it.
    pub fn read_token(&self) -> Result<SecretString, (&'static str, String)> {
        read_secret(
            ["token", "token_file"],
            self.token.as_ref(),
            self.token_file.as_deref(),
        )?
        .ok_or_else(|| ("token", "required: `token` or `token_file`".to_owned()))
    }

    /// The next token, if one is configured.
    ///
    /// # Errors
    ///
    /// As [`CredentialConfig::read_token`].
    pub fn read_next_token(&self) -> Result<Option<SecretString>, (&'static str, String)> {
        let file = self.next_token_file.as_deref();
        read_secret(
            ["next_token", "next_token_file"],
            self.next_token.as_ref(),
            file,
        )
    }
}

/// The token given under the first of `keys`, or in the file that the second names.
fn read_secret(
    [key, file_key]: [&'static str; 2],
    given: Option<&SecretString>,
    file: Option<&Path>,
) -> Result<Option<SecretString>, (&'static str, String)> {
    let (key, token) = match (given, file) {
        (Some(_), Some(_)) => {
            return Err((key, format!("give `{key}` or `{file_key}`, not both")));
        }
        (None, None) => return Ok(None),
        (Some(token), None) => (key, token.expose_secret().to_owned()),
        (None, Some(file)) => match files::read_text(file) {
            Ok(token) => (file_key, token),
            Err(error) => return Err((file_key, format!("cannot be read: {error}"))),
        },
    };
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err((
            key,
            "the token must be visible ASCII without spaces".to_owned(),
        ));
    }
    Ok(Some(token.into()))
}

impl CircuitConfig {
    /// The number of failed pages that are remembered: with a higher minimum they could not open the circuit.
    pub const MOST_MIN_CALLS: u32 = 1000;
}

impl UpstreamConfig {
    /// The upstream's origin and path prefix, without a trailing slash.
    ///
    /// # Panics
    ///
    /// Never after [`super::Config::load`], which refuses a configuration without it.
    #[must_use]
    pub fn base_url(&self) -> &Url {
        &self
            .base_url
            .as_ref()
            .expect("a loaded configuration has a base URL")
            .0
    }

    /// With a placeholder for a missing base URL, so that checking can continue.
    pub(super) fn readable(mut self) -> Self {
        let nowhere = || Address(Url::parse("https://nowhere.invalid").expect("a URL"));
        self.base_url.get_or_insert_with(nowhere);
        self
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        match &self.base_url {
            None => problems.add(
                "upstream.base_url",
                "required, such as \"https://unpod.dev\"",
            ),
            Some(Address(url)) => {
                if let Err(text) = check_base_url(url, self.allow_plain_http) {
                    problems.add("upstream.base_url", text);
                }
            }
        }
        self.check_limits(problems);
        if let Err(text) = self.read_authorities() {
            problems.add("upstream.ca_file", text);
        }
        self.check_proxy(problems);
        if self.credentials.is_empty() {
            problems.add(
                "upstream.credentials.default",
                "required: at least one credential with `token` or `token_file`",
            );
        }
        for (name, credential) in &self.credentials {
            check_credential(name, credential, problems);
        }
        self.check_shared_spaces(problems);
    }

    /// Additional trusted authorities.
    ///
    /// # Errors
    ///
    /// Says what is wrong with their file, without quoting it.
    pub fn read_authorities(&self) -> Result<RootCertStore, String> {
        self.ca_file
            .as_deref()
            .map_or_else(|| Ok(RootCertStore::empty()), tls::authorities)
    }

    /// Plain http is allowed to loopback only, and not through a proxy elsewhere.
    fn check_proxy(&self, problems: &mut Problems) {
        let Some(Address(proxy)) = &self.proxy else {
            return;
        };
        if !matches!(proxy.scheme(), "http" | "https") || !proxy.has_host() {
            problems.add(
                "upstream.proxy",
                "expected the http or https URL of a proxy",
            );
            return;
        }
        let is_plain = |Address(url): &Address| url.scheme() == "http";
        if self.base_url.as_ref().is_some_and(is_plain)
            && !is_loopback(proxy)
            && !self.allow_plain_http
        {
            problems.add_depending(
                "upstream.proxy",
                "upstream.base_url is plain http, which would show the token to this proxy and on the way to it: use https, or set \
                 upstream.allow_plain_http",
                &["upstream.base_url"],
            );
        }
    }

    fn check_limits(&self, problems: &mut Problems) {
        for (key, time) in [
            ("upstream.connect_timeout", self.connect_timeout),
            ("upstream.connection_max_age", self.connection_max_age),
            ("upstream.timeout", self.timeout),
            ("upstream.circuit.window", self.circuit.window),
            ("upstream.circuit.open_for", self.circuit.open_for),
        ] {
            if time.is_zero() {
                problems.add(key, "must be longer than 0s");
            }
        }
        if !(1..=1024).contains(&self.max_concurrency) {
            problems.add("upstream.max_concurrency", "expected 1 to 1024");
        }
        if self.max_body == 0 {
            problems.add("upstream.max_body", "must be larger than 0B");
        }
        if self.fill_size > 1000 {
            problems.add("upstream.fill_size", "expected 1000 or fewer");
        }
        if self.retries > 10 {
            problems.add("upstream.retries", "expected 10 or fewer");
        }
        if !(1..=CircuitConfig::MOST_MIN_CALLS).contains(&self.circuit.min_calls) {
            problems.add("upstream.circuit.min_calls", "expected 1 to 1000");
        }
    }

    /// Two credentials must not list the same space: either could be used.
    fn check_shared_spaces(&self, problems: &mut Problems) {
        let mut served = BTreeMap::new();
        for (name, credential) in &self.credentials {
            for space in &credential.spaces {
                if let Some(other) = served.insert(space, name) {
                    problems.add(
                        format!("upstream.credentials.{name}.spaces"),
                        format!("a space that upstream.credentials.{other} serves already"),
                    );
                }
            }
        }
    }
}

fn check_base_url(url: &Url, allow_plain_http: bool) -> Result<(), &'static str> {
    let bare = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && url.has_host();
    match url.scheme() {
        _ if !bare => Err("expected scheme, host, and at most a port and a path"),
        "https" => Ok(()),
        "http" if allow_plain_http || is_loopback(url) => Ok(()),
        "http" => Err(
            "plain http would show the token to everybody on the way: use https, or set upstream.allow_plain_http",
        ),
        _ => Err("expected http or https"),
    }
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn check_credential(name: &str, credential: &CredentialConfig, problems: &mut Problems) {
    let key = |part: &str| format!("upstream.credentials.{name}.{part}");
    if let Err((part, text)) = credential.read_token() {
        // The token may be in a file whose name could not be read.
        problems.add_depending(key(part), text, &[&key("token_file")]);
    }
    if let Err((part, text)) = credential.read_next_token() {
        problems.add(key(part), text);
    }
    check_space_tokens(&credential.spaces, &key("spaces"), problems);
}

/// Reports each of `spaces`, listed under `key`, that is not a space token.
pub(super) fn check_space_tokens(spaces: &[String], key: &str, problems: &mut Problems) {
    for (place, space) in spaces.iter().enumerate() {
        if SpaceToken::new(space).is_err() {
            problems.add(format!("{key}[{place}]"), "expected a space token");
        }
    }
}
