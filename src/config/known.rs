//! The keys that exist, as `config/default.toml` has them, and which of them an environment variable was meant for.

use std::sync::LazyLock;

use super::DEFAULTS;

/// What every setting's variable begins with.
pub(super) const PREFIX: &str = "UNPOD_GATEWAY__";
/// Stands for a name of the operator's, such as a credential's.
const ANY: &str = "*";
/// Tables that the operator names.
const NAMED: [&str; 2] = ["upstream.credentials.", "views."];

/// The parts of a dotted key.
type Key = Vec<&'static str>;

/// Every key outside of lists, those included that the shipped file holds as comments.
fn keys() -> &'static [Key] {
    static READ: LazyLock<Vec<Key>> = LazyLock::new(|| {
        let mut section = "";
        let mut keys = Vec::new();
        for line in DEFAULTS.lines() {
            let line = line.trim_start_matches(['#', ' ']);
            if let Some(header) = line.strip_prefix('[') {
                section = header.split(']').next().unwrap_or_default();
            } else if let Some((name, _)) = line.split_once(" = ")
                && is_name(name)
                && !section.starts_with('[')
            {
                keys.push(key(section, name));
            }
        }
        keys
    });
    &READ
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn key(section: &'static str, name: &'static str) -> Key {
    let mut key: Key = section.split('.').collect();
    if let Some(named) = NAMED.iter().find(|named| section.starts_with(**named)) {
        key[named.matches('.').count()] = ANY;
    }
    key.push(name);
    key
}

/// The right name of the variable that `name` equals but for underscores and case; `None`: it is right, or resembles none.
///
/// Never a name that Kubernetes makes up for a service that is called like the gateway.
pub(super) fn variable_meant(name: &str) -> Option<String> {
    let upper = name.to_ascii_uppercase();
    if upper.contains("_PORT") || upper.contains("_SERVICE_") {
        return None;
    }
    let folded = fold(name);
    let rest = folded.strip_prefix(&fold(PREFIX))?;
    let dotted = name.strip_prefix(PREFIX).map(str::to_ascii_lowercase);
    let given: Vec<_> = dotted.iter().flat_map(|key| key.split("__")).collect();
    let mut meant: Option<(String, usize)> = None;
    for key in keys() {
        if is_key(key, &given) {
            return None;
        }
        let Some(operators) = operators_part(key, rest) else {
            continue;
        };
        // `NEXT_TOKEN` of `A`, rather than `TOKEN` of `A_NEXT`.
        if meant.as_ref().is_none_or(|(_, len)| operators.len() < *len) {
            let spelled: Vec<_> = key
                .iter()
                .map(|part| if *part == ANY { operators } else { part })
                .collect();
            let spelled = format!("{PREFIX}{}", spelled.join("__")).to_ascii_uppercase();
            meant = Some((spelled, operators.len()));
        }
    }
    meant.map(|(name, _)| name)
}

fn fold(name: &str) -> String {
    name.replace('_', "").to_ascii_lowercase()
}

fn is_key(key: &Key, given: &[&str]) -> bool {
    key.len() == given.len()
        && key
            .iter()
            .zip(given)
            .all(|(part, given)| *part == ANY || part == given)
}

/// What `folded` has in the place that the operator names, if it is `key` otherwise; empty where there is no such place.
fn operators_part<'a>(key: &Key, folded: &'a str) -> Option<&'a str> {
    let whole = fold(&key.concat());
    match whole.split_once(ANY) {
        None => (whole == folded).then_some(""),
        Some((before, after)) => folded
            .strip_prefix(before)?
            .strip_suffix(after)
            .filter(|part| !part.is_empty()),
    }
}

#[cfg(test)]
pub(super) fn dotted_keys() -> Vec<String> {
    keys().iter().map(|key| key.join(".")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_known_whether_they_have_a_default_or_not() {
        let known = dotted_keys();
        for key in [
            "server.listen",
            "server.tls.cert_file",
            "auth.jwt.issuer",
            "routes.tasks.max_page_size",
            "upstream.base_url",
            "upstream.credentials.*.next_token_file",
            "cache.redis.url",
            "views.*.runs.fields",
        ] {
            assert!(known.iter().any(|known| known == key), "{key}: {known:?}");
        }
        assert!(
            !known.iter().any(|key| key.contains("clients")),
            "{known:?}"
        );
    }

    #[test]
    fn a_name_that_is_almost_a_settings_is_told_from_those_of_others() {
        for (given, meant) in [
            ("UNPOD_GATEWAY_CACHE_TTL", Some("CACHE__TTL")),
            ("UNPOD_GATEWAY__CACHE_TTL", Some("CACHE__TTL")),
            ("UNPOD_GATEWAY_CACHE__TTL", Some("CACHE__TTL")),
            ("UNPOD_GATEWAY__CACHE__T_TL", Some("CACHE__TTL")),
            ("unpod_gateway__cache__ttl", Some("CACHE__TTL")),
            ("UnpodGateway_Cache_Ttl", Some("CACHE__TTL")),
            (
                "UNPOD_GATEWAY_CACHE_REDIS_URL_FILE",
                Some("CACHE__REDIS__URL_FILE"),
            ),
            (
                "UNPOD_GATEWAY_UPSTREAM_CREDENTIALS_DEFAULT_TOKEN",
                Some("UPSTREAM__CREDENTIALS__DEFAULT__TOKEN"),
            ),
            (
                "UNPOD_GATEWAY_UPSTREAM_CREDENTIALS_CRM_NEXT_TOKEN_FILE",
                Some("UPSTREAM__CREDENTIALS__CRM__NEXT_TOKEN_FILE"),
            ),
            ("UNPOD_GATEWAY__CACHE__TTL", None),
            ("UNPOD_GATEWAY__cache__ttl", None),
            ("UNPOD_GATEWAY__UPSTREAM__CREDENTIALS__NEXT__TOKEN", None),
            ("UNPOD_GATEWAY__UPSTREAM__CREDENTIALS__A_B__TOKEN", None),
            ("UNPOD_GATEWAY__VIEWS__PUBLIC__FIELDS", None),
            ("UNPOD_GATEWAY__VIEWS__PUBLIC__RUNS__FIELDS", None),
            ("UNPOD_GATEWAY__CLIENTS", None),
            ("UNPOD_GATEWAY__CACHE__TLL", None),
            ("UNPOD_GATEWAY__", None),
            ("UNPOD_GATEWAY_CONFIG", None),
            ("UNPOD_GATEWAY_REVISION", None),
            ("UNPOD_GATEWAY_PORT", None),
            ("UNPOD_GATEWAY_PORT_8080_TCP_ADDR", None),
            ("UNPOD_GATEWAY_SERVICE_HOST", None),
            ("UNPOD_GATEWAY_SERVICE_PORT_HTTP", None),
            ("UNPOD_GATEWAY_ADMIN_PORT_9090_TCP", None),
            ("UNPOD_GATEWAY_CACHE_TTL_SERVICE_HOST", None),
            ("PATH", None),
        ] {
            let expected = meant.map(|meant| format!("{PREFIX}{meant}"));
            assert_eq!(variable_meant(given), expected, "{given}");
        }
    }
}
