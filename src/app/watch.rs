//! Watches files by polling, which works on every file system and with the symbolic links that Kubernetes swaps.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A file's modification stamp; `None`: it does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Path) -> Option<Self> {
        let found = std::fs::metadata(file).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

type Stamps = Vec<(PathBuf, Option<Stamp>)>;

fn stamps(files: Vec<PathBuf>) -> Stamps {
    files
        .into_iter()
        .map(|file| {
            let stamp = Stamp::of(&file);
            (file, stamp)
        })
        .collect()
}

/// Reports a change once it is stable for one poll, since a file may be half written.
#[derive(Debug, Default)]
pub(super) struct Watch {
    told: Stamps,
    seen: Stamps,
}

impl Watch {
    /// Polls `files`: whether they have changed and are stable. The first stable poll counts as a change: they may have changed since
    /// they were read.
    pub(super) fn has_changed(&mut self, files: Vec<PathBuf>) -> bool {
        self.look(stamps(files))
    }

    fn look(&mut self, now: Stamps) -> bool {
        let settled = now == self.seen;
        let news = settled && now != self.told;
        if news {
            self.told.clone_from(&now);
        }
        self.seen = now;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Stamps {
        let stamp = Stamp {
            device: 1,
            inode: 1,
            size: 1,
            changed: (second, 0),
        };
        vec![(PathBuf::from("a"), Some(stamp))]
    }

    #[test]
    fn a_change_is_told_once_it_holds_still() {
        let mut watch = Watch::default();
        let told: Vec<bool> = [1, 1, 1, 2, 3, 3, 3, 1, 1]
            .map(|second| watch.look(at(second)))
            .into();
        assert_eq!(
            told,
            [false, true, false, false, false, true, false, false, true]
        );
    }

    #[test]
    fn a_file_swapped_by_its_link_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        for (version, text) in [("one", "same"), ("two", "same")] {
            let file = folder.path().join(version);
            std::fs::write(&file, text).unwrap();
        }
        let swap = |version: &str| {
            let fresh = folder.path().join("fresh");
            std::os::unix::fs::symlink(folder.path().join(version), &fresh).unwrap();
            std::fs::rename(&fresh, &link).unwrap();
            Stamp::of(&link)
        };
        let one = swap("one");
        let two = swap("two");
        assert!(one.is_some() && two.is_some());
        assert_ne!(one, two);
        std::fs::remove_file(&link).unwrap();
        assert_eq!(Stamp::of(&link), None);
    }
}
