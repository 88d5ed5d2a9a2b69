//! Tells `--version` which revision of the source was built, where that is known: in a release build from this repository's own checkout.

use std::{path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[expect(
        clippy::disallowed_methods,
        reason = "cargo tells a build script by its environment"
    )]
    let profile = std::env::var("PROFILE");
    // A development build would compile anew with every commit.
    let is_release = profile.is_ok_and(|profile| profile == "release");
    let revision = is_release.then(revision).flatten();
    let revision = revision.map_or_else(String::new, |revision| format!(" ({revision})"));
    let version = env!("CARGO_PKG_VERSION");
    println!("cargo:rustc-env=UNPOD_GATEWAY_VERSION={version}{revision}");
}

/// `1f2e3d4c5b6a`, or `1f2e3d4c5b6a-dirty` where files differ from it; `None` in an unpacked archive.
fn revision() -> Option<String> {
    // An archive may have been unpacked within another repository.
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    for file in [log.as_str(), "src", "config", "Cargo.toml", "Cargo.lock"] {
        // Of a file that is not there cargo would say each time that it has changed.
        if Path::new(file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    git(&[
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
