//! One task of the simulated world: its facts, and its JSON as the upstream prints it.
//!
//! The JSON is written by hand: `1e+22`, `-0.0` and escaped surrogate pairs would not survive a serializer.

use std::{
    fmt::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use super::random::SplitMix64;

/// The first task of every space was created at 2026-02-01T00:00:00Z.
const EPOCH_SECONDS: u64 = 1_769_904_000;
const SECONDS_BETWEEN_TASKS: u64 = 420;
const TASKS_OF_A_RUN: u64 = 10;

const STATUSES: [&str; 10] = [
    "completed",
    "completed",
    "completed",
    "completed",
    "failed",
    "pending",
    "scheduled",
    "in_progress",
    "hold",
    "partially_completed",
];
const SETTLED_STATUSES: [&str; 4] = ["completed", "completed", "completed", "failed"];
const NAMES: [&str; 6] = [
    "Ada Martin",
    "Bruno Costa",
    "Chen Wei",
    "Dana Novak",
    "Efe Yilmaz",
    "Farah Aziz",
];
/// Already JSON, quotes apart: escapes must reach the client as they are.
const UNICODE_NAMES: [&str; 7] = [
    "李小龍 🐉",
    "עברית ‏RTL",
    "مرحبا ١٢٣",
    r"escaped \ud83d\ude00 pair",
    "Zoë é (combining e\u{301})",
    r#"tab\tnl\nquote\"back\\slash \u001f"#,
    "line\u{2028}sep\u{2029}para",
];
const WORDS: [&str; 12] = [
    "budget",
    "callback",
    "delivery",
    "invoice",
    "meeting",
    "next week",
    "offer",
    "pricing",
    "renewal",
    "support",
    "tomorrow",
    "upgrade",
];
/// Numbers past 2^53 and keys that a parse and a print would change.
const ODD_MEMBERS: &str = r#"{"budget":1e+22,"big":9007199254740993,"neg_zero":-0.0,"flag":true,"deep":{"a":{"b":{"c":[1,[2,[3,null]]]}}},"dotted.key":"v","":"emptykey"}"#;

/// What the tasks of a space look like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Flavor {
    Plain,
    /// Transcripts of 2 to 200 KB.
    Long,
    /// Only completed and failed tasks.
    Settled,
    /// Text and numbers that careless JSON handling spoils.
    Unicode,
}

/// Who owns a task: what its JSON repeats from its space.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) space: &'static str,
    pub(super) space_id: u32,
    pub(super) organization_id: u32,
    pub(super) flavor: Flavor,
    pub(super) seed: u64,
}

/// A task with its JSON rendered once, so that a page is a concatenation.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) json: String,
    /// Stored so badly that its whole page fails.
    pub(super) poisoned: bool,
    number: u64,
    revision: u64,
}

impl Task {
    pub(super) fn new(place: &Place, number: u64) -> Self {
        let statuses: &[&str] = match place.flavor {
            Flavor::Settled => &SETTLED_STATUSES,
            Flavor::Plain | Flavor::Long | Flavor::Unicode => &STATUSES,
        };
        let status = draws(place, number).pick(statuses).to_owned();
        Self::with_status(place, number, status)
    }

    pub(super) fn with_status(place: &Place, number: u64, status: String) -> Self {
        let mut task = Self {
            id: format!("T{:07x}{number:024x}", place.space_id),
            status,
            json: String::new(),
            poisoned: false,
            number,
            revision: 0,
        };
        task.json = task.render(place);
        task
    }

    /// Which run of its space it belongs to, from 0.
    pub(super) fn run(&self) -> u64 {
        self.number / TASKS_OF_A_RUN
    }

    pub(super) fn run_id(&self, place: &Place) -> String {
        format!("R{:07x}{:024x}", place.space_id, self.run())
    }

    pub(super) fn created(&self, place: &Place) -> String {
        date(place, self.number, 0)
    }

    /// Changes the status and, as the upstream does, the time of modification.
    pub(super) fn set_status(&mut self, place: &Place, status: &str) {
        status.clone_into(&mut self.status);
        self.revision += 1;
        self.json = self.render(place);
    }

    fn render(&self, place: &Place) -> String {
        let (number, id, status) = (self.number, &self.id, quoted(&self.status));
        let (space, space_id, organization) = (place.space, place.space_id, place.organization_id);
        let (thread, reference) = match number % 3 {
            0 => (
                format!(r#""thread_{number}""#),
                format!(r#""doc_{number}""#),
            ),
            1 => ("null".to_owned(), format!(r#""doc_{number}""#)),
            _ => ("null".to_owned(), "null".to_owned()),
        };
        let mut random = draws(place, number);
        let name = match place.flavor {
            Flavor::Unicode => UNICODE_NAMES[(number % UNICODE_NAMES.len() as u64) as usize],
            Flavor::Plain | Flavor::Long | Flavor::Settled => random.pick(&NAMES),
        };
        let phone = 9_800_000_000 + random.next() % 1_000_000;
        let output = self.output(place, name, phone, &mut random);
        let attachments = match number % 4 {
            0 => r#"[{"url":"https://cdn.example.test/a.pdf","size":12}]"#,
            _ => "[]",
        };
        let execution = if number % 7 == 5 { "email" } else { "call" };
        let mode = if number % 5 == 0 { "prod" } else { "dev" };
        let run = self.run_id(place);
        let created = self.created(place);
        let modified = date(place, number, 300 + self.revision);
        format!(
            r#"{{"_id":"{space_id:08x}{number:016x}","space_id":"{space_id}","thread_id":{thread},"user":"2","user_org_id":"{organization}","user_info":{{"id":"2","email":"bob@example.test","full_name":"Bob Test","location":{{}}}},"run_id":"{run}","task_id":"{id}","collection_ref":"contact_data_{space}","execution_type":"{execution}","task":{{"objective":"Call the lead and discuss the project requirements. {name}"}},"input":{{"name":"{name}","contact_number":"{phone}","phone":"{phone}","email":"lead{number}@example.test","token":"{space}","document_id":"doc_{number}","quality":"good","labels":[],"nullable":null}},"output":{output},"attachments":{attachments},"ref_id":{reference},"assignee":"space-agent-8qmk42nslp91wrh3dz7btxc4","run_mode":"{mode}","status":{status},"created":"{created}","modified":"{modified}"}}"#
        )
    }

    fn output(&self, place: &Place, name: &str, phone: u64, random: &mut SplitMix64) -> String {
        match self.status.as_str() {
            "completed" | "partially_completed" => self.call(place, name, phone, random),
            "failed" => r#"{"error":"SIP 486 Busy Here","call_type":"outboundPhoneCall","type":"outboundPhoneCall"}"#
                .to_owned(),
            _ if place.flavor == Flavor::Long => self.call(place, name, phone, random),
            _ if self.number.is_multiple_of(2) => "null".to_owned(),
            _ => "{}".to_owned(),
        }
    }

    fn call(&self, place: &Place, name: &str, phone: u64, random: &mut SplitMix64) -> String {
        let number = self.number;
        let bytes = match place.flavor {
            Flavor::Long => [2_000, 5_000, 12_000, 30_000, 80_000, 200_000][(number % 6) as usize],
            Flavor::Plain | Flavor::Settled | Flavor::Unicode => 150,
        };
        let transcript = transcript(name, bytes, random);
        let odd = match place.flavor {
            Flavor::Unicode => ODD_MEMBERS,
            Flavor::Plain | Flavor::Long | Flavor::Settled => "{}",
        };
        format!(
            r#"{{"call_id":"CALL_{number:06}","customer":"{name}","contact_number":"{phone}","call_end_reason":null,"duration":{}.4,"cost":0.30000000000000004,"call_type":"inbound","recording_url":"https://cdn.example.test/rec/{number}.mp3?sig=a%2Fb&x=1","transcript":{transcript},"post_call_data":{{"summary":{{"status":"Interested","summary":"Spoke about proposal №{number}"}},"classification":{{"labels":["Interested","हिन्दी"]}},"profile_summary":{{}},"success_evaluator":"Good","structured_data":{odd}}},"metadata":{{"usage":{{"llm_prompt_tokens":1234,"tts_audio_duration":12.340000000000002}}}}}}"#,
            60 + number
        )
    }
}

fn draws(place: &Place, number: u64) -> SplitMix64 {
    SplitMix64::new(place.seed ^ (u64::from(place.space_id) << 40) ^ number)
}

/// Returns the turns of a call, at least `bytes` long.
fn transcript(name: &str, bytes: usize, random: &mut SplitMix64) -> String {
    let mut turns =
        format!(r#"[{{"role":"assistant","content":"Hello, am I speaking with {name}?"}}"#);
    while turns.len() < bytes {
        let (first, second) = (random.pick(&WORDS), random.pick(&WORDS));
        let at = random.next() % 100_000;
        // Writing to a String cannot fail.
        let _ = write!(
            turns,
            r#",{{"role":"user","content":"Yes, about the {first}.\n\"{second}\" \\ slash / 😀","timestamp":17383{at:05}.5}}"#
        );
    }
    turns.push(']');
    turns
}

/// Returns a date of the task, which some spaces end with `Z` and most do not.
fn date(place: &Place, number: u64, seconds_later: u64) -> String {
    let seconds = EPOCH_SECONDS + number * SECONDS_BETWEEN_TASKS + seconds_later;
    let stamp =
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
    match place.flavor {
        Flavor::Unicode if number.is_multiple_of(2) => stamp,
        Flavor::Unicode | Flavor::Plain | Flavor::Long | Flavor::Settled => {
            stamp.trim_end_matches('Z').to_owned()
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::{Flavor, Place, Task};

    fn place(flavor: Flavor) -> Place {
        Place {
            space: "SUPPORT0000000000000000A",
            space_id: 1,
            organization_id: 1,
            flavor,
            seed: 1,
        }
    }

    #[test]
    fn every_flavor_renders_json() {
        for flavor in [
            Flavor::Plain,
            Flavor::Long,
            Flavor::Settled,
            Flavor::Unicode,
        ] {
            for number in 0..40 {
                let task = Task::new(&place(flavor), number);
                let parsed: serde_json::Value = serde_json::from_str(&task.json).unwrap();
                assert_eq!(parsed["task_id"], task.id.as_str());
                assert_eq!(parsed["status"], task.status.as_str());
            }
        }
    }

    #[test]
    fn the_same_seed_renders_the_same_bytes() {
        let place = place(Flavor::Long);
        assert_eq!(Task::new(&place, 5).json, Task::new(&place, 5).json);
        assert!(Task::new(&place, 5).json.len() > 200_000);
    }

    #[test]
    fn a_new_status_changes_the_time_of_modification() {
        let mut task = Task::new(&place(Flavor::Plain), 3);
        let before = task.json.clone();
        task.set_status(&place(Flavor::Plain), "hold");
        assert!(task.json.contains(r#""status":"hold""#));
        assert!(
            task.json
                .ends_with(r#""created":"2026-02-01T00:21:00","modified":"2026-02-01T00:26:01"}"#)
        );
        assert_ne!(before, task.json);
    }
}
