use proptest::prelude::*;

use super::*;

fn view(fields: &[&[&str]]) -> View {
    let paths: Vec<_> = fields.iter().map(|names| path(names)).collect();
    View::new(&paths)
}

fn path(names: &[&str]) -> FieldPath {
    FieldPath::new(names.iter().map(|name| (*name).to_owned()).collect()).unwrap()
}

/// What a view of `fields`, dotted, shows of `task` within a page.
fn shown(fields: &[&str], task: &str) -> String {
    let paths: Vec<_> = fields
        .iter()
        .map(|field| FieldPath::dotted(field).unwrap())
        .collect();
    within_page(&View::new(&paths), task)
}

fn within_page(view: &View, task: &str) -> String {
    let page = format!(r#"{{"count":1,"data":[{task}]}}"#);
    let shown = view.apply(page.as_bytes()).unwrap();
    let shown = String::from_utf8(shown.into()).unwrap();
    let task = shown.strip_prefix(r#"{"count":1,"data":["#);
    task.unwrap().strip_suffix("]}").unwrap().to_owned()
}

#[test]
fn a_task_shows_the_members_that_are_named_and_no_other() {
    let task = r#"{"task_id":"T","phone":"+1","output":{"call_id":7,"transcript":[{"role":"user","content":"hi"},{"role":"bot"}]},"n":null}"#;
    for (fields, expected) in [
        (&["task_id"][..], r#"{"task_id":"T"}"#),
        (&["n", "task_id"], r#"{"task_id":"T","n":null}"#),
        (&["nowhere"], "{}"),
        (&["TASK_ID", "task_id ", "task"], "{}"),
        (&["output.call_id"], r#"{"output":{"call_id":7}}"#),
        (&["output.nowhere"], r#"{"output":{}}"#),
        // A path goes through arrays to each element.
        (
            &["output.transcript.role"],
            r#"{"output":{"transcript":[{"role":"user"},{"role":"bot"}]}}"#,
        ),
        (
            &["output.transcript.content"],
            r#"{"output":{"transcript":[{"content":"hi"},{}]}}"#,
        ),
        // A path that ends at an object or an array shows all of it, whatever else is named.
        (
            &["output", "output.call_id"],
            r#"{"output":{"call_id":7,"transcript":[{"role":"user","content":"hi"},{"role":"bot"}]}}"#,
        ),
        (
            &["output.transcript.role", "output.transcript"],
            r#"{"output":{"transcript":[{"role":"user","content":"hi"},{"role":"bot"}]}}"#,
        ),
    ] {
        assert_eq!(shown(fields, task), expected, "{fields:?}");
    }
}

#[test]
fn an_intersection_shows_what_both_views_name() {
    let task = r#"{"task_id":"T","output":{"call_id":7,"cost":1},"input":{"a":1},"n":null}"#;
    for (one, other, expected) in [
        (&["task_id", "n"][..], &["n", "input"][..], r#"{"n":null}"#),
        (
            &["output"],
            &["output.call_id"],
            r#"{"output":{"call_id":7}}"#,
        ),
        (&["output.cost"], &["output.call_id"], r#"{"output":{}}"#),
        (&["task_id"], &["status"], "{}"),
        (&["task_id.x"], &["task_id"], "{}"),
    ] {
        let of = |fields: &[&str]| {
            let paths = fields.iter().map(|field| FieldPath::dotted(field).unwrap());
            View::new(&paths.collect::<Vec<_>>())
        };
        let (one, other) = (of(one), of(other));
        let both = one.intersection(&other);
        assert_eq!(within_page(&both, task), expected);
        assert_eq!(other.intersection(&one).id(), both.id());
        assert_eq!(both.intersection(&one).id(), both.id());
        assert_eq!(one.intersection(&one).id(), one.id());
    }
}

#[test]
fn what_has_not_the_form_of_its_path_is_hidden_and_null_stays_null() {
    for (value, expected) in [
        ("null", r#"{"output":null}"#),
        ("{}", r#"{"output":{}}"#),
        ("[]", r#"{"output":[]}"#),
        (r#""call_id""#, "{}"),
        ("5", "{}"),
        ("-0.0", "{}"),
        ("true", "{}"),
        ("false", "{}"),
        (
            r#"["secret",5,null,true,{"call_id":1,"x":2},[{"call_id":3,"x":4},"secret"]]"#,
            r#"{"output":[null,{"call_id":1},[{"call_id":3}]]}"#,
        ),
        (
            r#"{"call_id":{"call_id":1}}"#,
            r#"{"output":{"call_id":{"call_id":1}}}"#,
        ),
        (r#"{"x":{"call_id":1}}"#, r#"{"output":{}}"#),
    ] {
        let task = format!(r#"{{"output":{value}}}"#);
        assert_eq!(shown(&["output.call_id"], &task), expected, "{value}");
    }
}

#[test]
fn a_task_that_is_no_object_shows_nothing() {
    for (task, expected) in [
        (r#""secret""#, ""),
        ("5", ""),
        ("null", "null"),
        (r#"["secret",{"secret":1}]"#, "[{}]"),
        (r#""secret",{"task_id":1},5"#, r#"{"task_id":1}"#),
        ("", ""),
    ] {
        assert_eq!(shown(&["task_id"], task), expected, "{task}");
    }
}

#[test]
fn values_pass_untouched() {
    let values = [
        "9007199254740993",
        "1e+22",
        "-0.0",
        "0.30000000000000004",
        r#""tab\tquote\"back\\slash \u001f \ud83d\ude00 \/""#,
        "\"line\u{2028}sep \u{202e} 李小龍 🐉\"",
        r#"{"b":1,"a":{"":[1,[2,{}]],"dotted.key":"}],{"},"b":2}"#,
        "[ 1 , [ ] , { } ]",
    ];
    for value in values {
        let task = format!(r#"{{"hidden":{value},"kept":{value},"also":{value}}}"#);
        let expected = format!(r#"{{"kept":{value}}}"#);
        assert_eq!(shown(&["kept"], &task), expected);
    }
}

#[test]
fn space_around_what_is_shown_stays() {
    let task = "{ \"a\" : 1 ,\n \"b\" : { \"x\" : [ 1 , 2 ] } , \"c\" : { } }";
    assert_eq!(shown(&["a", "b", "c"], task), task);
    assert_eq!(shown(&["a", "b.x", "c.x"], task), task);
    assert_eq!(shown(&["b.x"], task), "{\n \"b\" : { \"x\" : [ 1 , 2 ] } }");
}

#[test]
fn a_name_may_be_empty_or_hold_a_dot_where_it_is_given_on_its_own() {
    let task = r#"{"":1,"a.b":2,"a":{"b":3,"":4}}"#;
    for (fields, expected) in [
        (&[&[""][..]][..], r#"{"":1}"#),
        (&[&["a.b"]], r#"{"a.b":2}"#),
        (&[&["a", "b"]], r#"{"a":{"b":3}}"#),
        (&[&["a", ""]], r#"{"a":{"":4}}"#),
    ] {
        assert_eq!(within_page(&view(fields), task), expected, "{fields:?}");
    }
}

#[test]
fn a_name_that_stands_twice_is_shown_twice_or_not_at_all() {
    // The escapes spell `task_id` and `phone`: any reader takes them for it.
    let task = r#"{"task_id":1,"phone":2,"task\u005fid":3,"p\u0068one":4,"task_id":{"phone":5}}"#;
    assert_eq!(
        shown(&["task_id"], task),
        r#"{"task_id":1,"task\u005fid":3,"task_id":{"phone":5}}"#
    );
    assert_eq!(shown(&["task_id.x"], task), r#"{"task_id":{}}"#);
    // Half a surrogate pair is no character: the name is on no list.
    assert_eq!(shown(&["a", "a\u{fffd}"], r#"{"a\ud800":1}"#), "{}");
}

#[test]
fn of_the_page_only_the_envelope_and_the_tasks_are_shown() {
    let page = r#"{"errors":"secret","count":57,"next":"secret","status_code":200,"message":"ok","data":[{"a":1,"b":2}],"debug":{"data":[{"a":1}]}}"#;
    let view = view(&[&["a"], &["count"]]);
    assert_eq!(
        view.apply(page.as_bytes()).unwrap(),
        r#"{"count":57,"status_code":200,"message":"ok","data":[{"a":1}]}"#
    );
    let empty = r#"{"count":0,"data":[]}"#;
    assert_eq!(view.apply(empty.as_bytes()).unwrap(), empty);
}

#[test]
fn what_is_no_json_is_not_shown_in_part() {
    let view = view(&[&["a"]]);
    for text in [
        "",
        " ",
        "5",
        "\"text\"",
        "{",
        "{\"count\":1",
        "{\"count\":",
        "{\"count",
        "{\"count\\",
        "{\"count\" 1}",
        "{count:1}",
        "{\"count\":1]",
        "{\"count\":1 \"data\":[]}",
        "{\"data\":[{\"a\":1}",
        "{\"data\":[{\"a\":}]}",
        "{\"hidden\":]}",
        "{\"hidden\":,}",
    ] {
        assert_eq!(view.apply(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn nesting_costs_neither_stack_nor_time() {
    let deep = |open: &str, inner: &str, close: &str| {
        format!("{}{inner}{}", open.repeat(100_000), close.repeat(100_000))
    };
    let arrays = deep("[", "{\"a\":1}", "]");
    let objects = deep("{\"a\":", "1", "}");
    let mixed = deep("[{\"a\":", "1", "}]");
    for value in [&arrays, &objects, &mixed] {
        // Passed over, and shown whole.
        assert_eq!(shown(&["b"], &format!("{{\"a\":{value}}}")), "{}");
        let task = format!("{{\"a\":{value}}}");
        assert!(shown(&["a"], &task) == task);
    }
    // Followed as far as it may go: the page, its tasks and the member are three of the levels.
    let followed = shown(&["a.a"], &format!("{{\"a\":{arrays}}}"));
    let levels = MAX_DEPTH - 2;
    assert_eq!(
        followed,
        format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels))
    );
}

#[test]
fn paths_are_read_from_names_and_dots() {
    assert_eq!(FieldPath::dotted("a.b"), Ok(path(&["a", "b"])));
    assert_eq!(FieldPath::dotted(" a"), Ok(path(&[" a"])));
    for bad in ["", ".", "a.", ".a", "a..b"] {
        assert_eq!(FieldPath::dotted(bad), Err(InvalidFieldPath), "{bad}");
    }
    let names = |count| vec!["n".to_owned(); count];
    assert!(FieldPath::new(names(FieldPath::MAX_NAMES)).is_ok());
    for count in [0, FieldPath::MAX_NAMES + 1] {
        assert_eq!(FieldPath::new(names(count)), Err(InvalidFieldPath));
    }
}

#[test]
fn an_id_is_of_what_a_view_shows_and_not_of_how_it_is_written() {
    let id = |fields: &[&[&str]]| view(fields).id();
    let a_and_b = id(&[&["a"], &["b"]]);
    assert_eq!(a_and_b, id(&[&["b"], &["a"], &["b"]]));
    assert_eq!(a_and_b, id(&[&["a", "x"], &["b"], &["a"]]));
    let others = [
        id(&[&["a"]]),
        id(&[&["a", "b"]]),
        id(&[&["a.b"]]),
        id(&[&["ab"]]),
        id(&[&["a", "x"], &["b"]]),
        id(&[&["a", "b", "c"]]),
        id(&[&["a", "b"], &["c"]]),
    ];
    for (place, one) in others.iter().enumerate() {
        assert_ne!(*one, a_and_b);
        assert!(!others[..place].contains(one), "{place}");
    }
}

/// JSON as it is written, which `serde_json::Value` does not keep.
#[derive(Clone, Debug)]
enum Json {
    Scalar(&'static str),
    Array(Vec<Json>),
    Object(Vec<(&'static str, Json)>),
}

impl Json {
    fn print(&self) -> String {
        match self {
            Self::Scalar(text) => (*text).to_owned(),
            Self::Array(items) => {
                let items: Vec<_> = items.iter().map(Self::print).collect();
                format!("[{}]", items.join(","))
            }
            Self::Object(members) => {
                let members: Vec<_> = members
                    .iter()
                    .map(|(name, value)| format!("{name}:{}", value.print()))
                    .collect();
                format!("{{{}}}", members.join(","))
            }
        }
    }

    /// What `paths` show of it, said in the plainest way: the oracle.
    fn cut(&self, paths: &[&[&str]]) -> Option<Self> {
        if paths.contains(&&[][..]) {
            return Some(self.clone());
        }
        match self {
            Self::Scalar(text) => (*text == "null").then(|| self.clone()),
            Self::Array(items) => Some(Self::Array(
                items.iter().filter_map(|item| item.cut(paths)).collect(),
            )),
            Self::Object(members) => {
                let shown = members.iter().filter_map(|(name, value)| {
                    let below: Vec<_> = paths
                        .iter()
                        .filter(|path| path[0] == decoded(name))
                        .map(|path| &path[1..])
                        .collect();
                    let listed = !below.is_empty();
                    Some((*name, value.cut(&below).filter(|_| listed)?))
                });
                Some(Self::Object(shown.collect()))
            }
        }
    }

    /// The names on the way to every value that is not null, an object or an array.
    fn leaves(&self, way: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
        match self {
            Self::Scalar("null") => {}
            Self::Scalar(_) => found.push(way.clone()),
            Self::Array(items) => items.iter().for_each(|item| item.leaves(way, found)),
            Self::Object(members) => {
                for (name, value) in members {
                    way.push(decoded(name));
                    value.leaves(way, found);
                    way.pop();
                }
            }
        }
    }
}

fn decoded(name: &str) -> String {
    serde_json::from_str(name).unwrap()
}

const NAMES: [&str; 7] = [
    r#""a""#,
    r#""b""#,
    r#""\u0061""#,
    r#""""#,
    r#""a.b""#,
    r#""\"""#,
    r#""é""#,
];

const SCALARS: [&str; 10] = [
    "null",
    "true",
    "0",
    "-0.0",
    "1e+22",
    "9007199254740993",
    r#""""#,
    r#""a""#,
    r#""}]\",{[:\\""#,
    r#""\ud83d\ude00\ud800""#,
];

fn any_json() -> impl Strategy<Value = Json> {
    let scalar = prop::sample::select(&SCALARS[..]).prop_map(Json::Scalar);
    scalar.prop_recursive(5, 60, 6, |inner| {
        let member = (prop::sample::select(&NAMES[..]), inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..5).prop_map(Json::Array),
            prop::collection::vec(member, 0..6).prop_map(Json::Object),
        ]
    })
}

fn any_paths() -> impl Strategy<Value = Vec<Vec<String>>> {
    let name = prop::sample::select(&NAMES[..]).prop_map(decoded);
    prop::collection::vec(prop::collection::vec(name, 1..4), 1..4)
}

/// Whether `part` is `whole` with bytes left out.
fn is_within(part: &str, whole: &str) -> bool {
    let mut rest = whole.bytes();
    part.bytes().all(|byte| rest.any(|other| other == byte))
}

proptest! {
    #[test]
    fn what_is_shown_is_part_of_the_page_and_allowed_and_all_that_is(
        tasks in prop::collection::vec(any_json(), 0..4),
        paths in any_paths(),
    ) {
        let tasks = Json::Array(tasks);
        let page = format!(r#"{{"data":{},"count":1}}"#, tasks.print());
        let fields: Vec<_> = paths.iter().map(|names| FieldPath::new(names.clone()).unwrap()).collect();

        let shown = View::new(&fields).apply(page.as_bytes()).unwrap();

        let shown = std::str::from_utf8(&shown).unwrap();
        prop_assert!(is_within(shown, &page), "{} of {}", shown, page);
        let names: Vec<Vec<&str>> = paths.iter().map(|path| path.iter().map(String::as_str).collect()).collect();
        let names: Vec<&[&str]> = names.iter().map(Vec::as_slice).collect();
        let expected = tasks.cut(&names).unwrap();
        prop_assert_eq!(shown, format!(r#"{{"data":{},"count":1}}"#, expected.print()));
        let mut leaves = Vec::new();
        expected.leaves(&mut Vec::new(), &mut leaves);
        for leaf in leaves {
            prop_assert!(paths.iter().any(|path| leaf.starts_with(path)), "{:?}", leaf);
        }
    }

    #[test]
    fn an_intersection_shows_what_is_left_when_both_are_applied_in_turn(
        tasks in prop::collection::vec(any_json(), 0..4),
        one in any_paths(),
        other in any_paths(),
    ) {
        let page = format!(r#"{{"data":{},"count":1}}"#, Json::Array(tasks).print());
        let of = |paths: &[Vec<String>]| {
            let fields: Vec<_> = paths.iter().map(|names| FieldPath::new(names.clone()).unwrap()).collect();
            View::new(&fields)
        };
        let (one, other) = (of(&one), of(&other));

        let both = one.intersection(&other);

        let shown = both.apply(page.as_bytes()).unwrap();
        for (first, second) in [(&one, &other), (&other, &one)] {
            let seen = first.apply(page.as_bytes()).unwrap();
            prop_assert_eq!(&second.apply(&seen).unwrap(), &shown);
            prop_assert!(is_within(std::str::from_utf8(&shown).unwrap(), std::str::from_utf8(&seen).unwrap()));
        }
        prop_assert_eq!(other.intersection(&one).id(), both.id());
    }

    #[test]
    fn no_bytes_panic(text in "[\\[\\]{},:\"\\\\ a1nu-]{0,40}") {
        let view = view(&[&["a", "a"], &["n"]]);
        let within = format!("{{\"data\":[{{\"a\":{text}}}]}}");
        for page in [&text, &within] {
            // Whether it is shown or not, it ends.
            let _ = view.apply(page.as_bytes()).is_some();
        }
    }
}
