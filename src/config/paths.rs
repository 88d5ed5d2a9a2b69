//! The files that settings name: keys that end in `_file`, and lists that end in `_files`.

use std::path::{Path, PathBuf};

use figment::value::{Dict, Value};

/// Shorter than any token.
const LONGEST_SHOWN: usize = 31;

/// Has relative paths count from `folder`, the one of the file that names them.
pub(super) fn resolve(dict: &mut Dict, folder: &Path) {
    each(dict, &mut |_, value| {
        let path = folder.join(value.as_str().unwrap_or_default());
        if let Some(path) = path.to_str() {
            *value = Value::from(path);
        }
    });
}

/// All files that `dict` names to be read.
pub(super) fn named_files(dict: &Dict) -> Vec<PathBuf> {
    let mut named = Vec::new();
    each(&mut dict.clone(), &mut |key, value| {
        // The snapshot is written, not read.
        if key != "snapshot_file" {
            named.extend(value.as_str().map(PathBuf::from));
        }
    });
    named
}

/// The file that the problem's key names, such as `cache.redis.ca_file` or `auth.browser_tokens.verify_key_files[0]`.
pub(super) fn file_of<'a>(key: &str, dict: &'a Dict) -> Option<&'a str> {
    let (first, rest) = match key.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (key, None),
    };
    let (name, place) = match first.strip_suffix(']').and_then(|key| key.split_once('[')) {
        Some((name, place)) => (name, Some(place.parse::<usize>().ok()?)),
        None => (first, None),
    };
    let mut value = dict.get(name)?;
    if let Some(place) = place {
        value = value.as_array()?.get(place)?;
    }
    let ending = if place.is_some() { "_files" } else { "_file" };
    match rest {
        Some(rest) => file_of(rest, value.as_dict()?),
        None if name.ends_with(ending) => value.as_str(),
        None => None,
    }
}

/// The path as a message has it: a long name may be the secret itself, put where its file should be named.
pub(super) fn shown(file: &str) -> String {
    let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
    if name.len() <= LONGEST_SHOWN {
        return file.to_owned();
    }
    format!("{folder}/…")
}

/// Calls `what` with every path in `dict`, and the key that names it.
fn each(dict: &mut Dict, what: &mut impl FnMut(&str, &mut Value)) {
    for (key, value) in dict {
        match value {
            Value::Dict(_, inner) => each(inner, what),
            Value::Array(_, items) if key.ends_with("_files") => {
                let paths = items.iter_mut().filter(|item| item.as_str().is_some());
                paths.for_each(|path| what(key, path));
            }
            path @ Value::String(..) if key.ends_with("_file") => what(key, path),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMING: &str = "
        [server.tls]
        cert_file = 'a'
        key_file = 1
        [upstream]
        ca_file = '/b'
        credentials.other.token_file = 'c'
        [auth.browser_tokens]
        verify_key_files = ['d', 'e', 5]
        [cache]
        snapshot_file = 'written'
        no_such_file = { inner_file = 'f' }
        ttl = 'g'
    ";

    fn naming() -> Dict {
        toml::from_str(NAMING).unwrap()
    }

    #[test]
    fn the_files_to_read_are_found_wherever_they_are_named() {
        let mut named = named_files(&naming());
        named.sort();
        assert_eq!(named, ["/b", "a", "c", "d", "e", "f"].map(PathBuf::from));
    }

    #[test]
    fn a_relative_path_counts_from_the_folder() {
        for (folder, prefix) in [
            ("/etc/gateway", "/etc/gateway/"),
            ("here", "here/"),
            ("", ""),
        ] {
            let mut dict = naming();
            resolve(&mut dict, Path::new(folder));
            let file = |key| file_of(key, &dict).map(|file| file.strip_prefix(prefix));
            assert_eq!(file("server.tls.cert_file"), Some(Some("a")));
            assert_eq!(file("cache.snapshot_file"), Some(Some("written")));
            assert_eq!(
                file("auth.browser_tokens.verify_key_files[1]"),
                Some(Some("e"))
            );
            assert_eq!(file_of("upstream.ca_file", &dict), Some("/b"));
            assert_eq!(dict["cache"].as_dict().unwrap()["ttl"].as_str(), Some("g"));
        }
    }

    #[test]
    fn a_token_in_place_of_a_path_is_not_shown() {
        for (given, expected) in [
            ("/run/secrets/unpod-token", "/run/secrets/unpod-token"),
            ("token", "token"),
            ("/etc/0123456789abcdef0123456789abcdef01234567", "/etc/…"),
            ("0123456789abcdef0123456789abcdef01234567", "/…"),
        ] {
            assert_eq!(shown(given), expected);
        }
    }

    #[test]
    fn only_a_key_that_names_a_file_has_one() {
        for key in [
            "server.tls",
            "server.tls.key_file",
            "cache.ttl",
            "nowhere.ca_file",
            "auth.browser_tokens.verify_key_files",
            "auth.browser_tokens.verify_key_files[9]",
            "auth.browser_tokens.verify_key_files[x]",
            "",
        ] {
            assert_eq!(file_of(key, &naming()), None, "{key}");
        }
    }
}
