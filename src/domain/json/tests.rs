use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;

#[test]
fn what_nests_deeper_than_any_stack_is_passed_over() {
    const DEEP: usize = 1_000_000;
    let arrays = "[".repeat(DEEP) + &"]".repeat(DEEP);
    assert_eq!(elements(&arrays).unwrap(), [&arrays[1..2 * DEEP - 1]]);
    assert!(elements(&arrays[..2 * DEEP - 1]).is_err());
    let objects = r#"{"":"#.repeat(DEEP) + "1" + &"}".repeat(DEEP);
    assert_eq!(members(&objects).unwrap().len(), 1);
    assert!(members(&objects[..objects.len() - 1]).is_err());
}

#[test]
fn members_stand_in_the_order_of_the_text_and_as_they_are_spelt() {
    let object = r#" { "b" : 1e+22 , "\u0061":[ ],"\ud800":null, "b":-0.0 } "#;
    let expected = [
        (r#""b""#, "1e+22"),
        (r#""\u0061""#, "[ ]"),
        (r#""\ud800""#, "null"),
        (r#""b""#, "-0.0"),
    ];
    assert_eq!(members(object).unwrap(), expected);
    assert_eq!(offset(object.as_bytes(), first_value(object)), 9);
}

/// The first value of `object`.
fn first_value(object: &str) -> &str {
    members(object).unwrap()[0].1
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

proptest! {
    #[test]
    fn members_and_elements_are_those_of_the_document(value in any_value(), pretty in any::<bool>()) {
        let printed = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
        let printed = printed.unwrap();
        let read = |raw: &str| serde_json::from_str::<Value>(raw).unwrap();
        match &value {
            Value::Object(_) => {
                let found = members(&printed).unwrap();
                let found = found.into_iter().map(|(name, value)| (text(name).unwrap().into_owned(), read(value)));
                prop_assert_eq!(Value::Object(found.collect()), read(&printed));
            }
            Value::Array(_) => {
                let found = elements(&printed).unwrap().into_iter().map(read);
                prop_assert_eq!(Value::Array(found.collect()), read(&printed));
            }
            _ => prop_assert!(members(&printed).is_err() && elements(&printed).is_err()),
        }
    }
}
