//! `fields`: the members that a client wants to see of each row.

use url::form_urlencoded::byte_serialize;

use crate::domain::{FieldPath, View};

const MOST_PATHS: usize = 32;
const MOST_BYTES: usize = 1024;

/// What `fields` names.
#[derive(Clone, Debug)]
pub struct Fields {
    /// What is shown of each row.
    pub view: View,
    /// The parameter's value as it stands in a URL.
    pub canonical: String,
}

impl Fields {
    /// Reads 1 to 32 dotted paths that are joined by commas, of 1 KiB at most; `None` for anything else.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        if text.len() > MOST_BYTES || text.split(',').count() > MOST_PATHS {
            return None;
        }
        let paths: Result<Vec<_>, _> = text.split(',').map(FieldPath::dotted).collect();
        let canonical = text.split(',').map(|path| {
            let escaped: String = byte_serialize(path.as_bytes()).collect();
            escaped
        });
        Some(Self {
            view: View::new(&paths.ok()?),
            canonical: canonical.collect::<Vec<_>>().join(","),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_1_to_32_dotted_paths() {
        let many = |count: usize| vec!["a"; count].join(",");
        let long = |bytes: usize| "x".repeat(bytes);
        for good in ["a", "a.b.c", "a,b.c", "ä ö", &many(32), &long(1024)] {
            assert!(Fields::read(good).is_some(), "{good}");
        }
        let deep = vec!["a"; 33].join(".");
        for bad in [
            "",
            ",",
            "a,",
            ",a",
            "a,,b",
            ".",
            "a.",
            ".a",
            "a..b",
            &many(33),
            &long(1025),
            &deep,
        ] {
            assert!(Fields::read(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn fields_are_written_as_a_url_has_them() {
        let canonical = |text| Fields::read(text).unwrap().canonical;
        assert_eq!(
            canonical("task_id,output.call_id"),
            "task_id,output.call_id"
        );
        assert_eq!(canonical("a b,ä>\"&="), "a+b,%C3%A4%3E%22%26%3D");
    }
}
