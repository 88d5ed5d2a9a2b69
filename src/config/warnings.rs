//! What of a valid configuration can hardly be meant.

use std::time::SystemTime;

use super::{ClientConfig, Config, ServerConfig, value::ListenAddress};

/// What of `config` works at `now`, and will hardly be meant, each under its key.
pub(super) fn warnings(config: &Config, now: SystemTime) -> Vec<String> {
    let no_clients = config.clients.is_empty().then(|| {
        "clients: there is none, so every request will be refused: add [[clients]]".to_owned()
    });
    let expired = config.clients.iter().enumerate();
    let expired = expired
        .filter(|(_, client)| client.expires.is_some_and(|end| end.0 <= now))
        .map(|(place, _)| {
            format!("clients[{place}].expires: has passed, so this client is refused")
        });
    let in_the_clear = sends_keys_in_the_clear(&config.server, &config.clients).then(|| {
        "server.listen: clients send their keys to this address without TLS, readable on the way: set [server.tls], or \
         server.trusted_proxies where a proxy ends TLS"
            .to_owned()
    });
    no_clients
        .into_iter()
        .chain(expired)
        .chain(in_the_clear)
        .collect()
}

/// Behind a trusted proxy, TLS ends there.
fn sends_keys_in_the_clear(server: &ServerConfig, clients: &[ClientConfig]) -> bool {
    let is_reachable = match &server.listen {
        ListenAddress::Tcp(address) => !address.ip().is_loopback(),
        ListenAddress::Unix(_) => false,
    };
    let has_keys = clients.iter().any(|client| !client.key_sha256.is_empty());
    is_reachable && has_keys && server.tls.is_none() && server.trusted_proxies.is_empty()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const CLIENT: &str = "[[clients]]
        name = 'crm'
        spaces = ['*']
        key_sha256 = ['0000000000000000000000000000000000000000000000000000000000000001']";

    fn warned(rest: &str) -> Vec<String> {
        let text = format!(
            "upstream.base_url = 'https://unpod.example'
             upstream.credentials.default.token = 'abc'
             {rest}"
        );
        let config = Config::from_toml(&text).unwrap();
        // 2001-09-09T01:46:40Z
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let keys = warnings(&config, now).into_iter();
        keys.map(|told| told.split_once(": ").unwrap().0.to_owned())
            .collect()
    }

    #[test]
    fn what_is_surely_a_mistake_is_warned_of_and_nothing_else() {
        let listen = |address: &str| format!("server.listen = '{address}'\n{CLIENT}");
        let public = listen("0.0.0.0:80");
        let no_keys = "server.listen = '0.0.0.0:80'
            auth.jwt = { issuer = 'i', audience = 'a', jwks_url = 'https://id.example' }
            [[clients]]
            name = 'crm'
            spaces = ['*']";
        for (config, expected) in [
            (CLIENT.to_owned(), vec![]),
            (String::new(), vec!["clients"]),
            (
                format!("{CLIENT}\nexpires = '2001-09-09T01:46:40Z'"),
                vec!["clients[0].expires"],
            ),
            (
                format!("{CLIENT}\nexpires = '2001-09-09T01:46:41Z'"),
                vec![],
            ),
            (public.clone(), vec!["server.listen"]),
            (listen("[::]:80"), vec!["server.listen"]),
            (listen("10.0.0.1:80"), vec!["server.listen"]),
            (listen("127.0.0.2:80"), vec![]),
            (listen("[::1]:80"), vec![]),
            (listen("unix:/tmp/socket"), vec![]),
            (
                format!("server.trusted_proxies = ['10.0.0.0/8']\n{public}"),
                vec![],
            ),
            (no_keys.to_owned(), vec![]),
        ] {
            assert_eq!(warned(&config), expected, "{config}");
        }
    }
}
