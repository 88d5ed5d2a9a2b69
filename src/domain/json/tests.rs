use proptest::prelude::*;
use serde_json::{Map, Value, value::RawValue};

use super::*;

fn is_json(text: &str) -> bool {
    let mut scanner = Scanner::new(text);
    scanner.value().is_ok() && scanner.end().is_ok()
}

fn serde_takes(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

#[test]
fn takes_and_refuses_what_the_grammar_does() {
    for text in [
        "0",
        "-0.0",
        "1e+22",
        "9007199254740993",
        " \t\r\n[ ] ",
        "{}",
        r#"{"":{"":[{},[],null,true,false]}}"#,
        r#"{"a" : 1 , "a" : 2}"#,
        r#""\"\\\/\b\f\n\r\t\u00e9\uD800""#,
        "\"\u{7f}\u{80}é😀\"",
    ] {
        assert!(is_json(text) && serde_takes(text), "{text}");
    }
    for text in [
        "",
        " ",
        "01",
        "-",
        "+1",
        ".5",
        "1.",
        "1e",
        "1e+",
        "0x1",
        "NaN",
        "nul",
        "nullx",
        "truefalse",
        "[",
        "]",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1}",
        "{1:2}",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        r#"{"a":1]"#,
        r#"{"a",1}"#,
        r#"""#,
        r#""\"#,
        r#""\x""#,
        r#""\u12g4""#,
        r#""\u123"#,
        "\"tab\tin a string\"",
        "\"0123456\u{1f}\"",
        "'a'",
        "\u{feff}{}",
        "{} {}",
        "// a comment",
    ] {
        assert!(!is_json(text) && !serde_takes(text), "{text}");
    }
}

/// Where a string ends must not depend on how it lies among the words that are looked at.
#[test]
fn a_string_may_end_anywhere() {
    for before in 0..20 {
        for length in 0..40 {
            let text = format!(
                "[{}\"{}\",7]",
                " ".repeat(before),
                "é\u{80}x".repeat(length)
            );
            assert!(is_json(&text), "{text}");
            let escaped = format!("\"{}\\n{}\"", "a".repeat(before), "b".repeat(length));
            assert!(is_json(&escaped), "{escaped}");
            let broken = format!("\"{}\n{}\"", "a".repeat(before), "b".repeat(length));
            assert!(!is_json(&broken), "{broken}");
        }
    }
}

#[test]
fn what_nests_deeper_than_any_stack_is_passed_over() {
    const DEEP: usize = 1_000_000;
    let arrays = "[".repeat(DEEP) + &"]".repeat(DEEP);
    assert!(is_json(&arrays));
    assert!(!is_json(&arrays[1..]));
    let objects = r#"{"":"#.repeat(DEEP) + "1" + &"}".repeat(DEEP);
    assert!(is_json(&objects));
    assert!(!is_json(&objects[..objects.len() - 1]));
}

#[test]
fn a_member_is_found_by_its_name_however_it_is_spelt() {
    for (object, expected) in [
        (r#"{"a":1}"#, Some("1")),
        (r#" { "x" : {"a":1} , "a" : [ 2 ] } "#, Some("[ 2 ]")),
        (r#"{"\u0061":null}"#, Some("null")),
        (r#"{"b":1}"#, None),
        (r#"{"a":1,"a":1}"#, None),
        (r#"["a",1]"#, None),
        ("null", None),
        ("", None),
    ] {
        assert_eq!(member(object, "a"), expected, "{object}");
    }
}

#[test]
fn a_string_is_told_from_what_is_none() {
    for (value, expected) in [
        (r#""""#, Some("")),
        (r#""é""#, Some("é")),
        (r#""\u00e9\n""#, Some("é\n")),
        (r#""\ud800""#, None),
        ("7", None),
        ("null", None),
        ("\"", None),
    ] {
        assert_eq!(text(value).as_deref(), expected, "{value}");
    }
}

/// Any value there is, also with names that need escapes.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            proptest::collection::btree_map(any::<String>(), inner, 0..8)
                .prop_map(|members| members.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}

/// Text of which much is nearly JSON.
fn any_soup() -> impl Strategy<Value = String> {
    const PIECES: [&str; 30] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\"a\"",
        "\"a\":",
        "\"\\n\"",
        "\"\\ud800\"",
        "\\u00e9",
        "\\u12",
        "0",
        "1",
        "-",
        "1.5",
        ".",
        "e",
        "E+1",
        "true",
        "nul",
        "null",
        " ",
        "\n",
        "\u{1}",
        "é",
        "{}",
        "[]",
    ];
    proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..12)
        .prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn every_document_is_taken(value in any_value()) {
        let compact = serde_json::to_string(&value).unwrap();
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        prop_assert!(is_json(&compact) && is_json(&pretty));
    }

    #[test]
    fn of_nearly_json_the_same_is_taken_as_elsewhere(text in any_soup()) {
        prop_assert_eq!(is_json(&text), serde_takes(&text));
    }

    /// A document with one character taken out, put in or changed, or without its end.
    #[test]
    fn of_spoilt_documents_the_same_is_taken_as_elsewhere(
        value in any_value(),
        pretty in any::<bool>(),
        at in any::<prop::sample::Index>(),
        by in any::<Option<char>>(),
        cut in 0..3_usize,
    ) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
        let mut characters: Vec<char> = text.unwrap().chars().collect();
        let at = at.index(characters.len());
        let until = if cut == 2 { characters.len() } else { at + cut };
        characters.splice(at..until, by);
        let spoilt: String = characters.into_iter().collect();
        prop_assert_eq!(is_json(&spoilt), serde_takes(&spoilt));
    }

    #[test]
    fn members_and_elements_are_those_of_the_document(value in any_value(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
        let text = text.unwrap();
        let mut scanner = Scanner::new(&text);
        let read = |raw: &str| serde_json::from_str::<Value>(raw).unwrap();
        let found = match scanner.peek().unwrap() {
            b'{' => {
                let mut members = Map::new();
                let each = |scanner: &mut Scanner<'_>, name: Cow<'_, str>| {
                    members.insert(name.into_owned(), read(scanner.value()?));
                    Ok(())
                };
                scanner.members(each).unwrap();
                members.into()
            }
            b'[' => {
                let mut elements = Vec::new();
                let each = |scanner: &mut Scanner<'_>| {
                    elements.push(read(scanner.value()?));
                    Ok(())
                };
                scanner.elements(each).unwrap();
                elements.into()
            }
            _ => read(scanner.value().unwrap()),
        };
        prop_assert_eq!(found, read(&text));
        prop_assert!(scanner.end().is_ok());
    }
}
