//! Files that a process leaves to the next: what others may have written there is not read.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::OFlags;

const GROUP_OR_OTHERS_WRITE: u32 = 0o022;
const OTHERS_WRITE: u32 = 0o002;
/// In such a folder a file is renamed and removed by its owner alone.
const STICKY: u32 = 0o1000;
const ROOT: u32 = 0;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Untrusted(&'static str),
    #[error("has {length} bytes, and at most {most} are read")]
    TooLong { length: u64, most: u64 },
}

/// A file that only this user or root can have written, of `most` bytes or fewer; `None` where there is none.
///
/// Never waits for another process, as opening a pipe does.
///
/// # Errors
///
/// Returns why it is not read.
pub(super) fn open(path: &Path, most: u64) -> Result<Option<impl Read + use<>>, FileError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(FileError::Untrusted("is a symbolic link"));
        }
        Err(error) => return Err(error.into()),
    };
    let found = file.metadata()?;
    let ours = rustix::process::geteuid().as_raw();
    if let Some(why) = distrusted(&found, &fs::metadata(folder_of(path))?, ours) {
        return Err(FileError::Untrusted(why));
    }
    if found.len() > most {
        return Err(FileError::TooLong {
            length: found.len(),
            most,
        });
    }
    // It may grow meanwhile.
    Ok(Some(file.take(most)))
}

/// The bytes of a file that only this user or root can have written, `most` or fewer; `None` where there is none.
///
/// # Errors
///
/// Returns why it is not read.
pub fn read_whole(path: &Path, most: u64) -> Result<Option<Vec<u8>>, FileError> {
    let Some(mut file) = open(path, most)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn distrusted(file: &Metadata, folder: &Metadata, ours: u32) -> Option<&'static str> {
    if !file.is_file() {
        return Some("is no regular file");
    }
    judge(Rights::of(file), Rights::of(folder), ours)
}

#[derive(Clone, Copy, Debug)]
struct Rights {
    owner: u32,
    mode: u32,
}

impl Rights {
    fn of(found: &Metadata) -> Self {
        Self {
            owner: found.uid(),
            mode: found.mode(),
        }
    }
}

/// Why anybody but the user `ours` and root may have written `file`.
fn judge(file: Rights, folder: Rights, ours: u32) -> Option<&'static str> {
    if file.owner != ours && file.owner != ROOT {
        return Some("belongs to another user");
    }
    if file.mode & GROUP_OR_OTHERS_WRITE != 0 {
        return Some("may be written by its group or by others");
    }
    if folder.mode & OTHERS_WRITE != 0 && folder.mode & STICKY == 0 {
        return Some("lies in a folder where everybody may put files");
    }
    None
}

/// Puts a file that `write` fills in place of what `path` holds, in one step and readable by its owner alone.
///
/// # Errors
///
/// Returns the system's error or that of `write`; the old file stays.
pub fn replace<T, E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(File) -> Result<T, E>,
) -> Result<T, E> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = Path::new(&unfinished);
    // What a crash left there may have other rights.
    match fs::remove_file(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(unfinished)?;
    match write(file) {
        Ok(written) => {
            fs::rename(unfinished, path)?;
            sync_folder(folder_of(path))?;
            Ok(written)
        }
        Err(error) => {
            // Of use to nobody.
            let _ = fs::remove_file(unfinished);
            Err(error)
        }
    }
}

/// Without it a power cut brings the old file back, and with it what was revoked since.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some file systems know no such thing.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        // A bare name lies where the process runs.
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn contents(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        read_whole(path, 100)
    }

    fn refusal(path: &Path) -> String {
        contents(path).unwrap_err().to_string()
    }

    #[test]
    fn a_file_that_others_may_have_written_is_refused() {
        let (ours, other) = (1000, 1001);
        for (owner, mode, folder, trusted) in [
            (ours, 0o600, 0o755, true),
            (ours, 0o644, 0o755, true),
            (ROOT, 0o644, 0o755, true),
            (ours, 0o600, 0o1777, true),
            (ours, 0o600, 0o775, true),
            (other, 0o600, 0o755, false),
            (ours, 0o620, 0o755, false),
            (ours, 0o660, 0o755, false),
            (ours, 0o602, 0o755, false),
            (ROOT, 0o666, 0o755, false),
            (ours, 0o600, 0o777, false),
            (ours, 0o600, 0o702, false),
        ] {
            let file = Rights { owner, mode };
            let folder = Rights {
                owner: ROOT,
                mode: folder,
            };
            let why = judge(file, folder, ours);
            assert_eq!(why.is_none(), trusted, "{file:?} in {folder:?}: {why:?}");
        }
    }

    #[test]
    fn what_is_written_is_its_owners_alone_and_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert!(contents(&path).unwrap().is_none());
        for text in ["one", "two"] {
            replace(&path, |mut file| {
                io::Write::write_all(&mut file, text.as_bytes())
            })
            .unwrap();
            assert_eq!(contents(&path).unwrap().unwrap(), text.as_bytes());
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn no_link_is_read_or_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("file"), folder.path().join("target"));
        fs::write(&target, "old").unwrap();
        symlink(&target, &path).unwrap();
        symlink(&target, folder.path().join("file.new")).unwrap();
        assert_eq!(refusal(&path), "is a symbolic link");

        replace(&path, |mut file| io::Write::write_all(&mut file, b"new")).unwrap();

        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(contents(&path).unwrap().unwrap(), b"new");
    }

    #[test]
    fn what_is_no_file_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for path in [&pipe, folder.path(), Path::new("/dev/zero")] {
            assert_eq!(refusal(path), "is no regular file", "{path:?}");
        }
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, vec![b'x'; 100]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(contents(&path).unwrap().unwrap().len(), 100);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        // A hole: nothing of it lies anywhere.
        file.set_len(1 << 40).unwrap();
        assert!(matches!(contents(&path), Err(FileError::TooLong { .. })));
    }
}
