//! One call with each credential that nobody waits for: what an operator learns of the upstream before the gateway runs.

use std::sync::Arc;

use http::HeaderValue;
use tower::Service;

use super::{
    CallLimits, Client, Credential, Credentials, PageRequest, Rules, UpstreamError,
    normalize::{from_client, meaning},
    pause::clock_skew,
};
use crate::{
    config::{ClientConfig, UpstreamConfig},
    domain::{ListId, PageQuery, SpaceToken},
};

/// Stands in where no space is named. No space is called so: whoever says that it does not exist has taken the token.
const NO_SPACE: &str = "unpod-gateway-check";

/// What a call told.
#[derive(Debug)]
pub struct Probe {
    pub credential: String,
    /// The key that names the space that was asked for; `None`: none is named.
    pub space: Option<String>,
    /// Whether the page could be read.
    pub outcome: Result<(), UpstreamError>,
    pub limits: CallLimits,
    /// By how many seconds the upstream's clock is ahead of ours, if it tells the time.
    pub clock_skew: Option<i64>,
}

/// Asks with each credential in turn, once and within `upstream.timeout`, for the first task of a space that `clients` may read.
///
/// Counts in no budget, no circuit and no metric.
pub async fn probe_all(
    client: &Client,
    credentials: &Credentials,
    config: &UpstreamConfig,
    clients: &[ClientConfig],
    rules: &Rules,
) -> Vec<Probe> {
    let mut all = Vec::new();
    for credential in credentials.all() {
        let (space, token) = named_space(config, clients, credentials, credential).unzip();
        let token = token.unwrap_or_else(|| SpaceToken::new(NO_SPACE).expect("it has the form"));
        let query = PageQuery {
            page: PageQuery::DEFAULT_PAGE,
            page_size: 1,
        };
        let request = PageRequest {
            request_id: HeaderValue::from_static("unpod-gateway-check"),
            ..PageRequest::new(
                credential.clone(),
                token,
                ListId::TASKS,
                query,
                "check".into(),
            )
        };
        let answer = client.clone().call(request);
        let raw = match tokio::time::timeout(config.timeout, answer).await {
            Ok(raw) => raw.map_err(from_client),
            Err(_) => Err(UpstreamError::Timeout(config.timeout)),
        };
        let head = raw.as_ref().map(|raw| &raw.head).ok();
        let limits = head.map(CallLimits::read).unwrap_or_default();
        let clock_skew = head.and_then(clock_skew);
        let outcome = raw.and_then(|raw| meaning(rules, raw, &limits)).map(drop);
        all.push(Probe {
            credential: credential.name.clone(),
            space,
            outcome,
            limits,
            clock_skew,
        });
    }
    all
}

/// The first space that a client reads with `credential`, else the first that the credential serves, and its key.
fn named_space(
    config: &UpstreamConfig,
    clients: &[ClientConfig],
    credentials: &Credentials,
    credential: &Arc<Credential>,
) -> Option<(String, SpaceToken)> {
    let of_clients = clients.iter().enumerate().flat_map(|(at, client)| {
        let is_used = |space: &SpaceToken| match &client.credential {
            Some(name) => *name == credential.name,
            None => {
                let serving = credentials.serving(space);
                serving.is_some_and(|serving| serving.name == credential.name)
            }
        };
        spaces(format!("clients[{at}].spaces"), &client.spaces)
            .filter(move |(_, space)| is_used(space))
    });
    let section = config.credentials.get(&credential.name);
    let own = section.into_iter().flat_map(|section| {
        let key = format!("upstream.credentials.{}.spaces", credential.name);
        spaces(key, &section.spaces)
    });
    of_clients.chain(own).next()
}

fn spaces(key: String, listed: &[String]) -> impl Iterator<Item = (String, SpaceToken)> {
    let named = listed.iter().enumerate();
    // `*` is no space.
    named
        .filter_map(move |(at, space)| Some((format!("{key}[{at}]"), SpaceToken::new(space).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_space_is_asked_for_that_a_client_reads_with_the_credential() {
        const KEY: &str = "0000000000000000000000000000000000000000000000000000000000000001";
        for (credential, client, expected) in [
            ("{token = 'a'}", "['*']", None),
            (
                "{token = 'a'}",
                "['A', 'B']",
                Some(("clients[0].spaces[0]", "A")),
            ),
            (
                "{token = 'a', spaces = ['C']}",
                "['*']",
                Some(("upstream.credentials.default.spaces[0]", "C")),
            ),
            (
                "{token = 'a', spaces = ['C']}",
                "['O', 'A']",
                Some(("clients[0].spaces[1]", "A")),
            ),
        ] {
            let text = format!(
                "upstream.base_url = 'https://unpod.example'
                 upstream.credentials.default = {credential}
                 upstream.credentials.other = {{token = 'b', spaces = ['O']}}
                 [[clients]]
                 name = 'crm'
                 key_sha256 = ['{KEY}']
                 spaces = {client}"
            );
            let config = Config::from_toml(&text).unwrap();
            let credentials = Credentials::load(&config.upstream).unwrap();
            let credential = credentials.named("default").unwrap();
            let named = named_space(&config.upstream, &config.clients, &credentials, credential);
            let named = named
                .as_ref()
                .map(|(key, space)| (key.as_str(), space.as_str()));
            assert_eq!(named, expected, "{client}");
        }
    }
}
