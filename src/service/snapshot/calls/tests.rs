use super::*;
use crate::{config::Config, domain::CredentialId};

const NOW_MS: u64 = 1_800_000_000_000;
const MINUTE: Duration = Duration::from_secs(60);

fn credentials(token: &str) -> Credentials {
    let config = Config::from_toml(&format!(
        "[upstream]\nbase_url = 'https://unpod.example'\nquota_per_minute = 10\n\
         [upstream.credentials.default]\ntoken = '{token}'"
    ))
    .unwrap();
    Credentials::load(&config.upstream).unwrap()
}

fn id(credentials: &Credentials) -> CredentialId {
    credentials.named("default").unwrap().id
}

fn owners(credentials: &Credentials, token: &str) -> Owners {
    let mut owners = Owners::default();
    owners.add(id(credentials), "default", &[token.as_bytes()]);
    owners
}

fn remaining(credentials: &Credentials) -> Option<u32> {
    let budget = credentials.named("default").unwrap().budget();
    budget.remaining(Instant::now())
}

/// Five calls, ten seconds apart, the last just now; then the end.
async fn spend_and_end(path: &Path) {
    let before = credentials("token");
    let budget = before.named("default").unwrap().budget().clone();
    tokio::time::advance(MINUTE).await;
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(10)).await;
        budget.acquire_now().await.unwrap().note_sent(true);
    }
    let owners = owners(&before, "token");
    write(path, &before, &owners, Moment::End, NOW_MS);
    assert!(budget.acquire_now().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_minute_goes_on_in_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = beside(&folder.path().join("pages"));
    for (later, left) in [(0, 5), (19, 5), (21, 6), (61, 10), (-3600, 5)] {
        spend_and_end(&path).await;
        let after = credentials("token");
        assert_eq!(remaining(&after), Some(5), "cautious");

        let now_ms = NOW_MS.checked_add_signed(later * 1000).unwrap();
        take(&path, &after, &owners(&after, "token"), now_ms);

        assert_eq!(remaining(&after), Some(left), "{later} s later");
        // Should it crash now, the next one knows as much.
        let (third, now_ms) = (credentials("token"), now_ms + 1);
        take(&path, &third, &owners(&third, "token"), now_ms);
        assert!(remaining(&third) < Some(5), "{later} s later");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_what_may_be_missing_counts_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("calls");
    let before = credentials("token");
    let budget = before.named("default").unwrap().budget().clone();
    tokio::time::advance(MINUTE).await;
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(10)).await;
        budget.acquire_now().await.unwrap().note_sent(true);
    }
    let under_way = budget.acquire_now().await.unwrap();
    let owners = owners(&before, "token");
    write(&path, &before, &owners, Moment::Meanwhile, NOW_MS);
    assert!(budget.acquire_now().await.is_ok(), "it goes on");
    drop(under_way);

    let after = credentials("token");
    take(&path, &after, &owners, NOW_MS + 1000);

    // Of ten a minute four are known, and a burst of three and one more may be missing: two are left, and at half the pace.
    assert_eq!(remaining(&after), Some(0));
    let budget = after.named("default").unwrap().budget();
    let mut made = 0;
    for _ in 0..60 {
        if let Ok(mut call) = budget.acquire_now().await {
            call.note_sent(true);
            made += 1;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!((1..=5).contains(&made), "{made}");
}

#[tokio::test(start_paused = true)]
async fn where_none_can_be_written_an_older_file_says_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("calls");
    let credentials = credentials("token");
    let owners = owners(&credentials, "token");
    let write = || write(&path, &credentials, &owners, Moment::Meanwhile, NOW_MS);
    assert!(write() && path.exists());
    // In the way of the file that takes its place.
    fs::create_dir(folder.path().join("calls.new")).unwrap();
    assert!(!write() && !path.exists());
}

#[tokio::test(start_paused = true)]
async fn what_is_another_tokens_or_damaged_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("calls");
    spend_and_end(&path).await;
    let after = credentials("another");
    take(&path, &after, &owners(&after, "another"), NOW_MS + 60_000);
    assert_eq!(remaining(&after), Some(5), "cautious");

    left(&path, b"[{");
    take(&path, &after, &owners(&after, "another"), NOW_MS + 60_000);
    assert_eq!(remaining(&after), Some(5), "cautious");
}

/// Leaves a file there as a process would.
fn left(path: &Path, text: &[u8]) {
    replace(path, |mut file| io::Write::write_all(&mut file, text)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_others_may_have_written_or_is_too_long_is_not_used() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("calls");
    let elsewhere = folder.path().join("elsewhere");
    type Spoil = (&'static str, fn(&Path, &Path));
    let spoils: [Spoil; 4] = [
        ("writable by the group", |path, _| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o620)).unwrap();
        }),
        ("writable by others", |path, _| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o602)).unwrap();
        }),
        ("a link", |path, elsewhere| {
            fs::rename(path, elsewhere).unwrap();
            symlink(elsewhere, path).unwrap();
        }),
        ("too long", |path, _| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(1 << 40).unwrap();
        }),
    ];
    for (name, spoil) in spoils {
        spend_and_end(&path).await;
        spoil(&path, &elsewhere);
        let after = credentials("token");
        // A minute later all calls would be there again.
        take(&path, &after, &owners(&after, "token"), NOW_MS + 61_000);
        assert_eq!(remaining(&after), Some(5), "{name}: cautious");
    }
}

#[tokio::test(start_paused = true)]
async fn no_number_in_it_is_too_large_to_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("calls");
    let after = credentials("token");
    let owners = owners(&after, "token");
    let owner = serde_json::to_string(owners.owner(id(&after)).unwrap()).unwrap();
    let many = vec!["0"; 2 * MOST_CALLS].join(",");
    let most = u64::MAX;
    for ended in ["", "18446744073709551615,0", many.as_str()] {
        let text = format!(
            r#"{{"complete":true,"credentials":[{{"owner":{owner},"ended":[{ended}],"others":[{count},{most}],"hold_until":{most},"learned":{count}}}]}}"#,
            count = u32::MAX,
        );
        left(&path, text.as_bytes());
        take(&path, &after, &owners, NOW_MS);
        assert_eq!(remaining(&after), Some(0), "held, for a while");
        tokio::time::advance(60 * MINUTE).await;
        assert_ne!(remaining(&after), Some(0));
    }
}
