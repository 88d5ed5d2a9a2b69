//! The upstream's pages: any page of any space, in the shape of Unpod's, each unique.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};

/// Tasks on a page of 2 KB.
pub const SMALL: u32 = 2;
/// Tasks on a page of 40 KB.
pub const LARGE: u32 = 40;

/// Pages per space; all numbers have two digits, so that all keys have the same length.
const PAGES_PER_SPACE: u64 = 90;
const FIRST_PAGE: u64 = 10;
const TOKEN_PREFIX: &str = "BENCH";
/// The digits of a space's token.
const SPACE_DIGITS: usize = 19;
/// The template's placeholder for a page's own digits: the space's, then the page's.
const MARK: &str = "000000000000000000000";

/// A space with a single page of [`LARGE`] tasks, which change.
pub const WATCHED: &str = "WATCHED";

/// One page of one space, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub u64);

impl Key {
    pub fn space(self) -> String {
        let number = self.0 / PAGES_PER_SPACE;
        format!("{TOKEN_PREFIX}{number:0SPACE_DIGITS$}")
    }

    pub fn page(self) -> u64 {
        FIRST_PAGE + self.0 % PAGES_PER_SPACE
    }

    /// The key of the requested page; `None` if it does not exist.
    pub fn read(space: &str, page: &str) -> Option<Self> {
        let digits = space.strip_prefix(TOKEN_PREFIX)?;
        if digits.len() != SPACE_DIGITS {
            return None;
        }
        let number: u64 = digits.parse().ok()?;
        let page = page.parse::<u64>().ok()?.checked_sub(FIRST_PAGE)?;
        (page < PAGES_PER_SPACE).then(|| Self(number * PAGES_PER_SPACE + page))
    }

    /// The unique part of a page, as long as [`MARK`].
    fn digits(self) -> String {
        let number = self.0 / PAGES_PER_SPACE;
        format!("{number:0SPACE_DIGITS$}{}", self.page())
    }
}

/// All pages of one size.
#[derive(Clone, Debug)]
pub struct Pages {
    template: Vec<u8>,
    /// Where a page's own digits go.
    marks: Vec<usize>,
}

impl Pages {
    pub fn of(page_size: u32) -> Self {
        let template = template(page_size).into_bytes();
        let marks = find_all(&template, MARK.as_bytes());
        Self { template, marks }
    }

    pub fn body(&self, key: Key) -> Bytes {
        let digits = key.digits();
        let mut body = self.template.clone();
        for mark in &self.marks {
            body[*mark..*mark + digits.len()].copy_from_slice(digits.as_bytes());
        }
        body.into()
    }

    /// The page of the watched space after so many changes of every task.
    pub fn watched(&self, revision: u64) -> Bytes {
        let body = String::from_utf8_lossy(&self.template);
        let body = body.replace(r#""count":1000000"#, &format!(r#""count":{LARGE}"#));
        let quality = format!(r#""quality":"{revision}""#);
        body.replace(r#""quality":"good""#, &quality).into()
    }

    /// The length of each body.
    pub fn body_len(&self) -> usize {
        self.template.len()
    }
}

/// As a well-configured origin would send it.
pub fn gzip(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(body).expect("a vector takes everything");
    encoder.finish().expect("a vector takes everything").into()
}

fn find_all(text: &[u8], wanted: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = 0;
    while at + wanted.len() <= text.len() {
        if text[at..].starts_with(wanted) {
            found.push(at);
            at += wanted.len();
        } else {
            at += 1;
        }
    }
    found
}

fn template(page_size: u32) -> String {
    let tasks: Vec<_> = (0..page_size).map(task).collect();
    format!(
        r#"{{"count":1000000,"status_code":200,"message":"Tasks Fetched Successfully","data":[{}]}}"#,
        tasks.join(",")
    )
}

const STATUSES: [&str; 5] = ["completed", "failed", "pending", "scheduled", "hold"];
const NAMES: [&str; 6] = [
    "Priya Sharma",
    "José Ñuñez",
    "Bob Test",
    "Ngozi Okafor",
    "Lena Vogt",
    "Tom O'Neill",
];

/// A task of about 1,000 bytes, like the captured ones; every second one has the output of a call.
fn task(index: u32) -> String {
    let seed = mix(u64::from(index));
    let status = STATUSES[seed as usize % STATUSES.len()];
    let name = NAMES[(seed >> 8) as usize % NAMES.len()];
    let phone = 9_800_000_000 + (seed >> 16) % 100_000_000;
    let minute = index % 60;
    let output = if index.is_multiple_of(2) {
        String::from("{}")
    } else {
        let (seconds, reference) = (seed % 600, mix(seed));
        format!(
            r#"{{"call_id":"CALL_{reference:016x}","customer":"{name}","contact_number":"{phone}","duration":{seconds}.25,"call_type":"outbound","recording_url":"https://cdn.example.test/rec/{reference:016x}.mp3?sig=a%2Fb&x=1","transcript":[{{"role":"assistant","content":"Hello, am I speaking with {name}?"}},{{"role":"user","content":"Yes.\n\"{seconds} rooms\" \\ please"}}],"post_call_data":{{"summary":{{"status":"Interested","summary":"Spoke about offer {phone}"}}}}}}"#
        )
    };
    format!(
        r#"{{"space_id":"1","thread_id":null,"user":"2","user_org_id":"1","user_info":{{"id":"2","email":"bob@example.test","full_name":"Bob Test","location":{{}}}},"run_id":"R{seed:032x}","task_id":"T{MARK}{index:03}","collection_ref":"contact_data_1","execution_type":"call","task":{{"objective":"Call the lead and discuss the project requirements. {name}"}},"input":{{"name":"{name}","contact_number":"{phone}","email":"lead{index}@example.test","document_id":"doc_{index}","quality":"good","labels":[],"nullable":null}},"output":{output},"attachments":[],"ref_id":"doc_{index}","assignee":"space-agent-8qmk42nslp91wrh3dz7btxc4","run_mode":"dev","status":"{status}","created":"2026-02-01T11:{minute:02}:00","modified":"2026-02-01T11:{minute:02}:30"}}"#
    )
}

/// SplitMix64: the same tasks in every run.
pub fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_json_of_the_size_they_are_named_for() {
        for (page_size, sizes) in [(SMALL, 1_800..2_300), (LARGE, 38_000..46_000)] {
            let body = Pages::of(page_size).body(Key(7));
            let page: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(page["data"].as_array().unwrap().len(), page_size as usize);
            assert!(sizes.contains(&body.len()), "{}", body.len());
            let factor = body.len() / gzip(&body).len();
            assert!(page_size == SMALL || (5..=12).contains(&factor), "{factor}");
        }
    }

    #[test]
    fn no_page_is_like_another() {
        let pages = Pages::of(SMALL);
        let bodies: std::collections::HashSet<_> =
            (0..500).map(|number| pages.body(Key(number))).collect();
        assert_eq!(bodies.len(), 500);
        assert!(bodies.iter().all(|body| body.len() == pages.body_len()));
    }

    #[test]
    fn a_key_is_read_back_from_what_is_asked() {
        for number in [0, 89, 90, 9_999, 123_456_789] {
            let key = Key(number);
            let page = key.page().to_string();
            assert_eq!(page.len(), 2);
            assert_eq!(Key::read(&key.space(), &page), Some(key));
        }
        assert_eq!(Key::read("BENCH1", "10"), None);
        assert_eq!(Key::read(&Key(0).space(), "9"), None);
        assert_eq!(Key::read(&Key(0).space(), "100"), None);
    }
}
