//! The clients that read, and what they accept.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use serde::Deserialize;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use unpod_gateway::simulator::SplitMix64;

use crate::{
    call::{Call, Key, any_key},
    checks::must_be_heard,
    client::{Answer, Connection},
    gateway::{READER, REFRESHER},
    lane::Place,
    recorder::Body,
    truth::Known,
};

/// Maximum pause between requests, in milliseconds.
const THINKS: u64 = 100;
/// How long after an end its effects may show: `negative_ttl` and `rejected_ttl` are 1 s at most, a fill that began before takes up to 3 s.
const LINGERS: Duration = Duration::from_secs(5);

/// A forced fill joins one that is under way, which is longer than its call.
const JOINS: Duration = Duration::from_secs(1);

/// One request for a page.
#[derive(Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) key: Key,
    pub(crate) gateway: usize,
    pub(crate) is_forced: bool,
    pub(crate) sent: Instant,
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { space, page, size } = self.key;
        let forced = if self.is_forced { "forced " } else { "" };
        write!(
            f,
            "{forced}page {page} of {size} of {space} at gateway {}",
            self.gateway
        )
    }
}

/// What a response was judged by.
struct Shown {
    /// The calls whose rows it holds.
    calls: BTreeSet<usize>,
    tag: String,
    key: Key,
}

#[derive(Deserialize)]
struct Row {
    call: usize,
    task_id: String,
}

/// Reads random pages through random gateways, and checks each response.
pub(crate) async fn read(place: Arc<Place>, mut random: SplitMix64, stop: CancellationToken) {
    let mut connections: Vec<_> = place.gateways.iter().map(|_| None).collect();
    let mut last: Option<Shown> = None;
    while !stop.is_cancelled() {
        sleep(Duration::from_millis(random.below(THINKS))).await;
        let gateway = random.below(place.gateways.len() as u64) as usize;
        let is_forced = random.below(100) == 0 && place.allows("force");
        let is_conditional = !is_forced && random.below(10) == 0;
        let shown = last.as_ref().filter(|_| is_conditional);
        let key = shown.map_or_else(|| any_key(&mut random), |shown| shown.key);
        let sent = Instant::now();
        let Some(addresses) = place.gateways[gateway].addresses() else {
            continue;
        };
        let open = &mut connections[gateway];
        if open
            .as_ref()
            .is_none_or(|(address, _)| *address != addresses.data)
        {
            *open = Some((addresses.data, Connection::new(addresses.data)));
        }
        let Some((_, connection)) = open else {
            continue;
        };
        let ask = Ask {
            key,
            gateway,
            is_forced,
            sent,
        };
        if is_forced {
            place.truth.changed(Some(key.space));
        }
        let answer = connection.ask(request(&ask, shown)).await;
        if is_forced {
            place.truth.changed(Some(key.space));
        }
        match answer {
            Ok(answer) => {
                if let Some(shown) = judge(&place, &ask, &answer, shown) {
                    last = Some(shown);
                }
            }
            Err(error) => judge_silence(&place, &ask, &error),
        }
    }
}

fn request(ask: &Ask, shown: Option<&Shown>) -> Request<Empty<Bytes>> {
    let Key { space, page, size } = ask.key;
    let client = if ask.is_forced { REFRESHER } else { READER };
    let mut request = Request::get(format!(
        "/spaces/{space}/tasks?page={page}&page_size={size}"
    ))
    .header("host", "gateway")
    .header("authorization", format!("Token {client}"));
    if ask.is_forced {
        request = request.header("cache-control", "no-cache");
    }
    if let Some(shown) = shown {
        request = request.header("if-none-match", &shown.tag);
    }
    request
        .body(Empty::new())
        .expect("a path and plain fields make a request")
}

/// Whether the page is served, and not as a fallback.
pub(crate) async fn is_there(connection: &mut Connection, key: Key) -> bool {
    let (gateway, is_forced, sent) = (0, false, Instant::now());
    let ask = Ask {
        key,
        gateway,
        is_forced,
        sent,
    };
    let answer = connection.ask(request(&ask, None)).await;
    answer.is_ok_and(|answer| {
        answer.status == 200 && !answer.header("cache-status").contains("detail=stale")
    })
}

fn judge_silence(place: &Place, ask: &Ask, error: &str) {
    let failed = Instant::now();
    let excused = place.truth.with(|known| {
        let mut outages = known.outages[ask.gateway].iter();
        outages.any(|outage| outage.excuses_no_answer(ask.sent, failed))
    });
    if excused {
        place.count("request to a gateway that went down");
    } else {
        place.wrong("no answer", format!("{ask}: {error}"));
    }
}

/// Checks a response; returns what it showed, if it is a page.
fn judge(place: &Place, ask: &Ask, answer: &Answer, shown: Option<&Shown>) -> Option<Shown> {
    let status = answer.header("cache-status");
    let detail = status.split("detail=").nth(1).unwrap_or_default();
    let judged = match (answer.status, shown) {
        (200, _) => judge_page(place, ask, answer),
        (304, Some(shown)) if shown.tag == answer.header("etag") => Ok(Shown {
            calls: shown.calls.clone(),
            tag: shown.tag.clone(),
            key: ask.key,
        }),
        _ => {
            if let Err(what) = judge_error(place, ask, answer) {
                place.wrong("status", format!("{what}: {} to {ask}", answer.status));
            }
            return None;
        }
    };
    let shown = match judged {
        Ok(shown) => shown,
        Err(what) => {
            place.wrong("page", format!("{what}: {ask}"));
            return None;
        }
    };
    place.count(format!("{} {detail}", answer.status).trim_end());
    let truth = &place.truth;
    truth.with(|known| judge_age(place, known, ask, &shown, detail));
    Some(shown)
}

/// Every byte is from the upstream, and pages of a generation make up one list.
fn judge_page(place: &Place, ask: &Ask, answer: &Answer) -> Result<Shown, String> {
    let body: Body = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    let rows = body.data.iter().map(|row| serde_json::from_str(row.get()));
    let rows: Vec<Row> = rows
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let calls: BTreeSet<_> = rows.iter().map(|row| row.call).collect();
    let ids: Vec<_> = rows.into_iter().map(|row| row.task_id).collect();
    let generation = answer.header("x-list-generation");
    place.truth.with(|known| {
        for number in &calls {
            let call = known.calls.get(*number).ok_or("a row of no call")?;
            judge_bytes(call, *number, calls.len() == 1, ask, answer, &body)?;
        }
        if generation.is_empty() {
            return Ok(());
        }
        known
            .generations
            .note(generation, ask.key, body.count, &ids)
    })?;
    Ok(Shown {
        calls,
        tag: answer.header("etag").to_owned(),
        key: ask.key,
    })
}

/// The page is the one that the call was answered with, or assembled from its rows.
fn judge_bytes(
    call: &Call,
    number: usize,
    is_alone: bool,
    ask: &Ask,
    answer: &Answer,
    body: &Body,
) -> Result<(), String> {
    let page = call.page.as_ref().filter(|page| page.count == body.count);
    let page = page.ok_or("a row of a call with another page")?;
    if call.key.space != ask.key.space {
        return Err("a page of another space".to_owned());
    }
    let is_page = is_alone && call.key == ask.key && page.body == blake3::hash(&answer.body);
    let stamp = format!("{{\"call\":{number},");
    let mut ours = body.data.iter().filter(|row| row.get().starts_with(&stamp));
    let are_rows = ours.all(|row| page.rows.contains(&blake3::hash(row.get().as_bytes())));
    let is_assembled = call.key.size != ask.key.size && are_rows;
    (is_page || is_assembled)
        .then_some(())
        .ok_or_else(|| "other bytes than the upstream sent".to_owned())
}

/// No page is older than its lifetimes allow, or than what made it void.
fn judge_age(place: &Place, known: &Known, ask: &Ask, shown: &Shown, detail: &str) {
    let calls = || shown.calls.iter().map(|number| &known.calls[*number]);
    let Some(oldest) = calls().min_by_key(|call| call.started) else {
        return;
    };
    let age = ask.sent.saturating_duration_since(oldest.started);
    let most = match detail {
        "" | "assembled" | "stale-while-revalidate" => place.plan.most_age,
        _ => place.plan.most_age_of_fallbacks,
    };
    let describe = |what: &str| {
        format!(
            "{what}, age {age:.3?}, call at {:.3}: {ask} {detail}",
            place.seconds(oldest.started)
        )
    };
    if age > most {
        place.wrong("age", describe("too old"));
    }
    if ask.is_forced
        && detail.is_empty()
        && oldest.ended.is_none_or(|ended| ended + JOINS < ask.sent)
    {
        place.wrong("forced fill", describe("fetched before it was asked for"));
    }
    let since = ask.sent.checked_sub(place.plan.most_age_of_fallbacks);
    let recent = known.invalidations.iter().filter(|invalidation| {
        let is_recent = since.is_none_or(|since| invalidation.cause > since);
        is_recent
            && invalidation
                .space
                .is_none_or(|space| space == ask.key.space)
    });
    let heard =
        recent.filter(|recent| must_be_heard(recent, ask.gateway, ask.sent, &known.outages));
    let Some(last) = heard.max_by_key(|heard| heard.cause) else {
        return;
    };
    if last.cause <= oldest.started {
        place.count("check: page after a purge or a refusal");
        return;
    }
    let check = match last.by {
        _ if last.is_pending => "void by a purge answered 202",
        Some(_) => "void by a purge",
        None => "void by a refusal",
    };
    let (cause, at) = (place.seconds(last.cause), place.seconds(last.known));
    place.wrong(
        check,
        describe(&format!("of {cause:.3}, known at {at:.3} to {:?}", last.by)),
    );
}

fn judge_error(place: &Place, ask: &Ask, answer: &Answer) -> Result<(), String> {
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let code = body["code"].as_str().unwrap_or_default().to_owned();
    place.count(format!("{} {code}", answer.status));
    let now = Instant::now();
    let overlaps = |(from, to): &(Instant, Option<Instant>)| {
        *from <= now && to.is_none_or(|to| to + LINGERS >= ask.sent)
    };
    let (is_revoked, is_failing) = place.truth.with(|known| {
        let revoked = known.revoked.get(ask.key.space);
        (
            revoked.is_some_and(|times| times.iter().any(overlaps)),
            known.failing.iter().any(overlaps),
        )
    });
    match answer.status {
        503 if !answer.header("retry-after").is_empty() => Ok(()),
        503 => Err("no Retry-After".to_owned()),
        502 | 504 if is_failing => Ok(()),
        403 | 404 if is_revoked => Ok(()),
        _ => Err(code),
    }
}
