//! Reading the files that a configuration names.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Several times the largest CA bundle; a device such as `/dev/zero` never ends.
const LONGEST: u64 = 4 << 20;

/// What `file` holds.
///
/// # Errors
///
/// Returns why it cannot be read; a file longer than 4 MiB is not.
pub fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(file)?;
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::other("it is longer than 4 MiB"));
    }
    Ok(bytes)
}

/// As [`read`], for a file of text.
pub(super) fn read_text(file: &Path) -> io::Result<String> {
    String::from_utf8(read(file)?).map_err(|_| io::Error::other("it is no UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_end_is_refused() {
        assert!(read(Path::new("/dev/null")).unwrap().is_empty());
        let error = read(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error.to_string(), "it is longer than 4 MiB");
    }

    #[test]
    fn text_is_text() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (bytes, is_text) in [(&b"t\xc3\xb6ken\n"[..], true), (b"t\xf6ken", false)] {
            std::fs::write(file.path(), bytes).unwrap();
            assert_eq!(read_text(file.path()).is_ok(), is_text, "{bytes:?}");
        }
    }
}
