use std::fmt::Write as _;

use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use ForwardedHeader::{Forwarded, XForwardedFor};

fn trusting_ten(field: ForwardedHeader) -> TrustedProxies {
    TrustedProxies::new(["10.0.0.0/8".parse().unwrap()], field)
}

/// The client of a request from a trusted peer that has these lines of `field`.
fn client(field: ForwardedHeader, lines: &[&[u8]]) -> String {
    let peer = Peer::at("10.0.0.1".parse().unwrap());
    let values = lines
        .iter()
        .map(|line| (name(field), HeaderValue::from_bytes(line).unwrap()));
    let headers: HeaderMap = values.collect();
    let found = trusting_ten(field).client_address(peer, &headers);
    found.unwrap().to_string()
}

#[test]
fn the_right_most_hop_of_x_forwarded_for_that_is_not_trusted_is_the_client() {
    for (value, expected) in [
        ("203.0.113.9", "203.0.113.9"),
        ("1.1.1.1, 203.0.113.9, 10.9.9.9", "203.0.113.9"),
        ("1.1.1.1,203.0.113.9\t,\t10.9.9.9", "203.0.113.9"),
        ("10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("203.0.113.9,", "203.0.113.9"),
        (", ,203.0.113.9, ,", "203.0.113.9"),
        ("", "10.0.0.1"),
        (",,,", "10.0.0.1"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("[::ffff:203.0.113.9]:80", "203.0.113.9"),
        ("1.1.1.1, ::ffff:10.2.2.2", "1.1.1.1"),
    ] {
        assert_eq!(
            client(XForwardedFor, &[value.as_bytes()]),
            expected,
            "{value}"
        );
    }
}

#[test]
fn a_hop_that_is_no_whole_address_ends_the_walk() {
    let unreadable: [&[u8]; 27] = [
        b"unknown",
        b"_hidden",
        b"unix:",
        b"localhost",
        b"\"203.0.113.9\"",
        b"\"203.0.113.9",
        b"203.0.113.9\"",
        b"203.0.113.9 8.8.8.8",
        b"203.0.113.9;8.8.8.8",
        b"203.0.113.9:",
        b"203.0.113.9:http",
        b"203.0.113.9:+80",
        b"203.0.113.9:65536",
        b"203.0.113.9:80:80",
        b"203.0.113",
        b"203.0.113.009",
        b"203.0.113.9\\",
        b"203.0.113.9\xa0",
        b"\xef\xbc\x912.0.0.1",
        b"[203.0.113.9]",
        b"[2001:db8::1",
        b"2001:db8::1]",
        b"[2001:db8::1]x",
        b"[2001:db8::1]:",
        b"fe80::1%eth0",
        b"2001:db8::1::",
        b"for=203.0.113.9",
    ];
    for hop in unreadable {
        let shown = hop.escape_ascii();
        assert_eq!(client(XForwardedFor, &[hop]), "10.0.0.1", "{shown}");
        let before = [b"8.8.8.8, ", hop, b", 10.3.3.3"].concat();
        assert_eq!(client(XForwardedFor, &[&before]), "10.3.3.3", "{shown}");
        let after = [hop, b", 203.0.113.9"].concat();
        assert_eq!(client(XForwardedFor, &[&after]), "203.0.113.9", "{shown}");
    }
}

#[test]
fn the_right_most_element_of_forwarded_whose_for_is_not_trusted_is_the_client() {
    for (value, expected) in [
        ("for=203.0.113.9", "203.0.113.9"),
        ("FOR=203.0.113.9;proto=https;by=10.0.0.1", "203.0.113.9"),
        ("proto=https ; for=\"203.0.113.9:4711\"", "203.0.113.9"),
        ("for=\"203.0.113.9:_p\"", "203.0.113.9"),
        ("for=\"203\\.0.113.9\"", "203.0.113.9"),
        (
            "for=1.1.1.1, For=\"[2001:db8::1]:80\";proto=https",
            "2001:db8::1",
        ),
        ("for=\"[::ffff:203.0.113.9]\"", "203.0.113.9"),
        ("for=1.1.1.1, for=203.0.113.9, for=10.2.2.2", "203.0.113.9"),
        ("for=203.0.113.9, ,", "203.0.113.9"),
        ("for=203.0.113.9;", "203.0.113.9"),
        (";for=203.0.113.9", "203.0.113.9"),
        (r#"for=203.0.113.9;host="a,for=8.8.8.8""#, "203.0.113.9"),
        (r#"host="x;for=8.8.8.8";for=203.0.113.9"#, "203.0.113.9"),
        (
            r#"host="x\",for=8.8.8.8,\"";for=203.0.113.9"#,
            "203.0.113.9",
        ),
        (r#"for=203.0.113.9;host="x\\""#, "203.0.113.9"),
        (r#"for="8.8.8.8, for=203.0.113.9"#, "203.0.113.9"),
        (r#"for="8.8.8.8\, for="203.0.113.9""#, "203.0.113.9"),
    ] {
        assert_eq!(client(Forwarded, &[value.as_bytes()]), expected, "{value}");
    }
}

#[test]
fn an_element_that_cannot_be_read_whole_ends_the_walk() {
    let unreadable: [&[u8]; 24] = [
        b"by=10.0.0.2",
        b"for=unknown",
        b"for=_hidden",
        b"for=",
        b"for",
        b"for=\"\"",
        b"203.0.113.9",
        b"for=203.0.113.9;for=8.8.8.8",
        b"for=8.8.8.8;FOR=203.0.113.9",
        b"for=203.0.113.9 by=10.0.0.2",
        b"for = 203.0.113.9",
        b"for=2001:db8::1",
        b"for=\"2001:db8::1\"",
        b"for=203.0.113.9:80",
        b"for=[2001:db8::1]",
        b"for=\"203.0.113.9",
        b"for=203.0.113.9\"",
        b"for=\"203.0.113.9\\\"",
        b"for=\"203.0.113.9\"x",
        b"for=x\"203.0.113.9\"",
        b"for=203.0.113.9;host=\"\xff\"",
        b"for=203.0.113.9\xa0",
        b"for=203.0.113.9;=x",
        b"=203.0.113.9",
    ];
    for hop in unreadable {
        let shown = hop.escape_ascii();
        assert_eq!(client(Forwarded, &[hop]), "10.0.0.1", "{shown}");
        let before = [b"for=8.8.8.8, ", hop, b", for=10.3.3.3"].concat();
        assert_eq!(client(Forwarded, &[&before]), "10.3.3.3", "{shown}");
        let after = [hop, b", for=203.0.113.9"].concat();
        assert_eq!(client(Forwarded, &[&after]), "203.0.113.9", "{shown}");
    }
}

#[test]
fn several_lines_are_one_list() {
    assert_eq!(
        client(XForwardedFor, &[b"8.8.8.8", b"203.0.113.9"]),
        "203.0.113.9"
    );
    assert_eq!(
        client(XForwardedFor, &[b"203.0.113.9", b"10.2.2.2"]),
        "203.0.113.9"
    );
    assert_eq!(client(XForwardedFor, &[b"203.0.113.9", b""]), "203.0.113.9");
    assert_eq!(
        client(XForwardedFor, &[b"203.0.113.9", b"x", b"10.2.2.2"]),
        "10.2.2.2"
    );
    assert_eq!(
        client(Forwarded, &[b"for=\"8.8.8.8", b"for=203.0.113.9"]),
        "203.0.113.9"
    );
    assert_eq!(
        client(Forwarded, &[b"for=8.8.8.8;host=\"a", b"b\""]),
        "10.0.0.1"
    );
}

#[test]
fn one_field_alone_is_believed() {
    let mut both = HeaderMap::new();
    both.insert(X_FORWARDED_FOR, HeaderValue::from_static("203.0.113.9"));
    both.insert(header::FORWARDED, HeaderValue::from_static("for=8.8.8.8"));
    let peer = Peer::at("10.0.0.1".parse().unwrap());
    for (field, expected) in [(XForwardedFor, "203.0.113.9"), (Forwarded, "8.8.8.8")] {
        let proxies = trusting_ten(field);
        let found = proxies.client_address(peer, &both);
        assert_eq!(found, expected.parse().ok());
        assert!(!proxies.overlook(peer, &both));

        let mut only_the_other = both.clone();
        only_the_other.remove(name(field));
        let found = proxies.client_address(peer, &only_the_other);
        assert_eq!(found, peer.address());
        assert!(proxies.overlook(peer, &only_the_other));
        let stranger = Peer::at("192.0.2.1".parse().unwrap());
        assert!(!proxies.overlook(stranger, &only_the_other));
    }
}

#[test]
fn who_is_believed_about_others_depends_on_the_peer_alone() {
    let mut headers = HeaderMap::new();
    headers.insert(X_FORWARDED_FOR, HeaderValue::from_static("203.0.113.9"));
    let proxies = trusting_ten(XForwardedFor);
    let at = |text: &str| Peer::at(text.parse().unwrap());
    for (peer, expected) in [
        (at("10.0.0.1"), Some("203.0.113.9")),
        (at("::ffff:10.0.0.1"), Some("203.0.113.9")),
        (at("192.0.2.1"), Some("192.0.2.1")),
        (at("::ffff:192.0.2.1"), Some("192.0.2.1")),
        (Peer::UnixSocket, Some("203.0.113.9")),
        (Peer::Unnamed, None),
    ] {
        let expected = expected.map(|address| address.parse().unwrap());
        assert_eq!(proxies.client_address(peer, &headers), expected, "{peer:?}");
    }
    let bare = proxies.client_address(Peer::UnixSocket, &HeaderMap::new());
    assert_eq!(bare, None);
}

#[test]
fn a_network_of_mapped_addresses_is_one_of_ipv4() {
    for (network, address, expected) in [
        ("::ffff:10.0.0.0/104", "10.1.2.3", true),
        ("::ffff:10.0.0.0/104", "11.1.2.3", false),
        ("::ffff:10.0.0.1/128", "::ffff:10.0.0.1", true),
        ("::ffff:0:0/96", "192.0.2.1", true),
        ("::ffff:0:0/96", "2001:db8::1", false),
        ("2001:db8::/32", "2001:db8::1", true),
        ("::/0", "192.0.2.1", false),
    ] {
        let proxies = TrustedProxies::new([network.parse().unwrap()], XForwardedFor);
        let peer = Peer::at(address.parse().unwrap());
        assert_eq!(proxies.include(peer), expected, "{network} {address}");
    }
}

#[test]
fn ten_thousand_hops_are_walked_once() {
    let mut line = String::new();
    for _ in 0..10_000 {
        write!(line, "10.1.1.1,").unwrap();
    }
    assert_eq!(client(XForwardedFor, &[line.as_bytes()]), "10.1.1.1");
    let quotes = [b"for=".as_slice(), &b"\\\"".repeat(100_000)].concat();
    assert_eq!(client(Forwarded, &[&quotes]), "10.0.0.1");
}

/// What a client may write: any bytes of a field, and often those that mean something.
fn of_a_client() -> impl Strategy<Value = Vec<u8>> {
    let telling = prop::sample::select(vec![
        &b"\""[..],
        b"\\",
        b",",
        b";",
        b"=",
        b" ",
        b"\t",
        b"for=",
        b"10.0.0.2",
        b"8.8.8.8",
        b"[",
        b"]",
        b":80",
        b"\"for=8.8.8.8\"",
        b"unknown",
        b"host=\"",
        b"\xff",
        b"\x80\"",
    ]);
    let telling = telling.prop_map(<[u8]>::to_vec);
    let any = prop_oneof![0x20_u8..=0x7e, 0x80_u8..=0xff].prop_map(|byte| vec![byte]);
    prop::collection::vec(prop_oneof![3 => telling, 1 => any], 0..40)
        .prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn what_a_client_writes_never_changes_what_the_proxies_report(prefix in of_a_client()) {
        let reported: [(ForwardedHeader, &[&[u8]]); 2] = [
            (XForwardedFor, &[b"203.0.113.9", b"203.0.113.9, 10.2.2.2", b"[::ffff:203.0.113.9]:80,"]),
            (
                Forwarded,
                &[
                    b"for=203.0.113.9",
                    b"for=\"203.0.113.9:80\";host=\"a\\\",for=8.8.8.8,b\";proto=https, for=10.2.2.2",
                    b"by=_x;for=203.0.113.9, for=\"10.2.2.2\"",
                ],
            ),
        ];
        for (field, reported) in reported {
            for own in reported {
                let appended = [&prefix[..], b", ", own].concat();
                prop_assert_eq!(client(field, &[&appended]), "203.0.113.9");
                prop_assert_eq!(client(field, &[&prefix, own]), "203.0.113.9");
            }
        }
    }
}
