use super::*;
use crate::{config::Config, upstream::TokenSlot};

const FIRST: &str = "[default]\ntoken = \"a\"\norg_handle = \"acme\"";

/// The credentials of `sections`, TOML below `[upstream.credentials]`.
fn config(base_url: &str, sections: &str) -> Config {
    let sections = sections.replace('[', "[upstream.credentials.");
    Config::from_toml(&format!(
        "[upstream]\nbase_url = \"{base_url}\"\nquota_per_minute = 60\n{sections}"
    ))
    .unwrap()
}

fn load(sections: &str) -> Credentials {
    Credentials::load(&config("https://unpod.example", sections).upstream).unwrap()
}

fn reload(before: &Credentials, sections: &str) -> (Credentials, Succession) {
    let config = config("https://unpod.example", sections);
    let (after, succession) = before.reload(&config.upstream).unwrap();
    after.succeed(before);
    (after, succession)
}

fn default(credentials: &Credentials) -> &Arc<Credential> {
    credentials.named("default").unwrap()
}

#[test]
fn who_is_the_same_user_keeps_pages_and_who_is_not_loses_them() {
    const SAME: &[CredentialId] = &[];
    const OLD: &[CredentialId] = &[CredentialId(1)];
    for (after, dropped, distrusted, why) in [
        (FIRST, SAME, SAME, "nothing changed"),
        (
            "[default]\ntoken = \"a\"\nnext_token = \"b\"\norg_handle = \"acme\"",
            SAME,
            SAME,
            "a next token is only tried where the current one fails",
        ),
        (
            "[default]\ntoken = \"b\"\norg_handle = \"acme\"",
            SAME,
            OLD,
            "nobody knows what a new token may see",
        ),
        (
            "[default]\ntoken = \"b\"\nnext_token = \"a\"\norg_handle = \"acme\"",
            SAME,
            SAME,
            "the known token stays in use",
        ),
        (
            "[default]\ntoken = \"a\"\norg_handle = \"globex\"",
            OLD,
            SAME,
            "another organization",
        ),
        (
            "[other]\ntoken = \"a\"\norg_handle = \"acme\"",
            OLD,
            SAME,
            "gone",
        ),
    ] {
        let before = load(FIRST);
        let (_, succession) = reload(&before, after);
        assert_eq!(succession.dropped, dropped, "{why}");
        assert_eq!(succession.distrusted, distrusted, "{why}");
    }
}

#[test]
fn another_upstream_is_another_user_and_no_name_is_given_out_twice() {
    let before = load(FIRST);
    let elsewhere = config("https://unpod.invalid", FIRST);
    let (after, succession) = before.reload(&elsewhere.upstream).unwrap();
    assert_eq!(succession.dropped, [default(&before).id]);
    assert_ne!(default(&after).id, default(&before).id);
    let (again, _) = reload(&after, FIRST);
    assert_ne!(default(&again).id, default(&before).id);
    assert_ne!(default(&again).id, default(&after).id);
}

#[tokio::test]
async fn a_reload_keeps_what_was_spent_and_how_the_credential_stands() {
    let before = load(FIRST);
    default(&before).set_refused(true);
    default(&before).block(Instant::now());

    let (same, _) = reload(&before, FIRST);
    assert!(default(&same).is_refused() && default(&same).is_blocked(Instant::now()));
    assert!(Arc::ptr_eq(
        default(&same).budget(),
        default(&before).budget()
    ));

    let (mended, _) = reload(&same, "[default]\ntoken = \"b\"\norg_handle = \"acme\"");
    assert!(
        !default(&mended).is_blocked(Instant::now()),
        "asked at once"
    );
    assert!(default(&mended).is_refused(), "until a good fill");

    let (moved, _) = reload(&mended, "[default]\ntoken = \"a\"\norg_handle = \"globex\"");
    assert!(!default(&moved).is_refused());
    assert!(
        Arc::ptr_eq(default(&moved).budget(), default(&before).budget()),
        "the quota is the token's"
    );
}

#[test]
fn the_token_in_use_stays_in_use_when_it_becomes_the_current_one() {
    let both = load("[default]\ntoken = \"a\"\nnext_token = \"b\"");
    assert!(default(&both).prefer(TokenSlot::Next));
    assert!(!default(&both).prefer(TokenSlot::Next), "no news");

    let (same, _) = reload(&both, "[default]\ntoken = \"a\"\nnext_token = \"b\"");
    assert_eq!(default(&same).preferred(), TokenSlot::Next);

    let (rotated, succession) = reload(&both, "[default]\ntoken = \"b\"");
    let rotated = default(&rotated);
    assert_eq!(rotated.preferred(), TokenSlot::Current);
    assert_eq!(rotated.authorization(TokenSlot::Current), "Token b");
    assert_eq!(rotated.other(TokenSlot::Current), None);
    assert_eq!(succession, Succession::default());
}

#[test]
fn two_equal_tokens_are_one() {
    let one = load("[default]\ntoken = \"a\"\nnext_token = \"a\"");
    assert_eq!(default(&one).other(TokenSlot::Current), None);
    assert_eq!(default(&one).secrets().count(), 1);
}

#[tokio::test]
async fn what_a_replaced_token_learns_late_says_nothing_of_the_new_one() {
    let old = load(FIRST);
    let (new, _) = reload(&old, "[default]\ntoken = \"b\"\norg_handle = \"acme\"");
    let (old, new) = (default(&old), default(&new));
    assert!(new.is_in_force() && !old.is_in_force());
    assert_ne!(new.token_pair(), old.token_pair());

    old.block(Instant::now());
    assert!(!old.set_refused(true), "no news");
    assert!(!new.is_blocked(Instant::now()) && !new.is_refused());

    assert!(new.set_refused(true));
    old.set_refused(false);
    assert!(new.is_refused(), "nor that it is good");
}

#[test]
fn a_configuration_that_is_only_read_changes_nothing() {
    let before = load(FIRST);
    let less = config(
        "https://unpod.example",
        "[default]\ntoken = \"b\"\norg_handle = \"acme\"",
    );
    let mut less = less.upstream;
    less.quota_per_minute = 5;
    let (read, _) = before.reload(&less).unwrap();
    let before = default(&before);
    assert!(before.is_in_force());
    assert_eq!(before.budget().per_minute(), Some(60));
    drop(read);
}

#[test]
fn who_is_gone_is_heard_no_more() {
    for after in [
        "[default]\ntoken = \"a\"\norg_handle = \"globex\"",
        "[other]\ntoken = \"a\"",
    ] {
        let before = load(FIRST);
        reload(&before, after);
        assert!(!default(&before).is_in_force(), "{after}");
    }
}

#[tokio::test]
async fn a_token_has_one_budget_whatever_it_is_called_and_wherever_it_was() {
    let acme = "token = \"a\"\norg_handle = \"acme\"";
    let default = format!("[default]\n{acme}");
    let budget =
        |credentials: &Credentials, name: &str| credentials.named(name).unwrap().budget().clone();
    let first = load(&default);
    let spent = budget(&first, "default");

    let (renamed, _) = reload(&first, &format!("[acme]\n{acme}"));
    assert!(Arc::ptr_eq(&budget(&renamed, "acme"), &spent), "renamed");

    let (gone, _) = reload(&renamed, "[other]\ntoken = \"b\"");
    assert!(!Arc::ptr_eq(&budget(&gone, "other"), &spent), "another");
    let (back, _) = reload(&gone, &default);
    assert!(Arc::ptr_eq(&budget(&back, "default"), &spent), "back");

    let elsewhere = config("https://unpod.invalid", &default);
    let (elsewhere, _) = back.reload(&elsewhere.upstream).unwrap();
    assert!(!Arc::ptr_eq(&budget(&elsewhere, "default"), &spent));
    let (returned, _) = reload(&elsewhere, &default);
    assert!(
        Arc::ptr_eq(&budget(&returned, "default"), &spent),
        "returned"
    );

    let (both, _) = reload(
        &returned,
        &format!("{default}\n[globex]\ntoken = \"a\"\norg_handle = \"globex\""),
    );
    assert!(Arc::ptr_eq(&budget(&both, "globex"), &spent), "shared");
}

#[tokio::test(start_paused = true)]
async fn the_budget_of_a_token_that_is_gone_is_forgotten_after_its_minute() {
    let first = load(FIRST);
    let spent = default(&first).budget().clone();
    let (gone, _) = reload(&first, "[other]\ntoken = \"b\"");
    tokio::time::advance(CallBudget::MEMORY).await;
    let (back, _) = reload(&gone, FIRST);
    assert!(!Arc::ptr_eq(default(&back).budget(), &spent));
}

#[test]
fn tokens_that_change_places_keep_what_was_spent_with_them() {
    let before = load("[one]\ntoken = \"a\"\n[two]\ntoken = \"b\"");
    let (after, _) = reload(&before, "[one]\ntoken = \"b\"\n[two]\ntoken = \"a\"");
    let budget =
        |credentials: &Credentials, name: &str| credentials.named(name).unwrap().budget().clone();
    assert!(Arc::ptr_eq(&budget(&after, "one"), &budget(&before, "two")));
    assert!(Arc::ptr_eq(&budget(&after, "two"), &budget(&before, "one")));
}
