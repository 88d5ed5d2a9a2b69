//! Turns what the upstream answers into what it means: above this layer there is a page, a "not modified", or an honest error.
//!
//! Nearly every business error arrives as a 206 whose message alone tells the cases apart; the messages are data in [`RULES`].

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{StatusCode, header};
use tokio::time::Instant;
use tower::{Layer, Service};
use tracing::warn;

use super::{
    Answer, ClientError, Content, FailureSource, Head, InvalidAnswer, PageRequest, RawAnswer,
    UpstreamError, retry_after,
    tasks::{self, Envelope, Reading},
};
use crate::{
    config::{NormalizeConfig, normalize::RuleCode},
    domain::TaskPage,
    telemetry::metrics::Metrics,
};

/// What a message means. Asked in order; the first whose texts are all found, in any case, decides.
struct BuiltInRule {
    message: &'static str,
    /// Found in `errors`, where the message alone does not tell.
    inner: Option<&'static str>,
    meaning: Meaning,
}

/// What a 206 can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    SpaceNotFound,
    SpaceAccessDenied,
    Rejected,
    Failed,
    SlowDown,
    AuthFailed,
    QuotaExhausted,
}

const fn rule(message: &'static str, inner: Option<&'static str>, meaning: Meaning) -> BuiltInRule {
    BuiltInRule {
        message,
        inner,
        meaning,
    }
}

const RULES: [BuiltInRule; 10] = [
    rule("invalid space token", None, Meaning::SpaceNotFound),
    rule("you don't have access", None, Meaning::SpaceAccessDenied),
    rule("invalid role code", None, Meaning::Failed),
    rule(
        "tasks fetch failed",
        Some("skip must be"),
        Meaning::Rejected,
    ),
    rule("tasks fetch failed", Some("8-byte ints"), Meaning::Rejected),
    rule("fetch failed", Some("slow down"), Meaning::SlowDown),
    rule("fetch failed", Some("too many requests"), Meaning::SlowDown),
    rule("fetch failed", Some("rate limit"), Meaning::SlowDown),
    rule("fetch failed", Some("throttled"), Meaning::SlowDown),
    rule("fetch failed", None, Meaning::Failed),
];

/// The operator's rules, then the built-in ones.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    own: Arc<[(String, Meaning)]>,
}

impl Rules {
    #[must_use]
    pub fn new(config: &NormalizeConfig) -> Self {
        let own = config
            .rules
            .iter()
            .map(|rule| (rule.contains.to_lowercase(), Meaning::from(rule.code)))
            .collect();
        Self { own }
    }

    /// What a 206 means; `None` where no rule knows its message.
    fn meaning(&self, envelope: &Envelope) -> Option<Meaning> {
        let message = envelope.message.as_deref()?.to_lowercase();
        if let Some((_, meaning)) = self.own.iter().find(|(text, _)| message.contains(text)) {
            return Some(*meaning);
        }
        let errors = envelope.errors.as_deref().unwrap_or("").to_lowercase();
        RULES
            .iter()
            .find(|rule| {
                message.contains(rule.message)
                    && rule.inner.is_none_or(|inner| errors.contains(inner))
            })
            .map(|rule| rule.meaning)
    }
}

impl From<RuleCode> for Meaning {
    fn from(code: RuleCode) -> Self {
        match code {
            RuleCode::SpaceNotFound => Self::SpaceNotFound,
            RuleCode::SpaceAccessDenied => Self::SpaceAccessDenied,
            RuleCode::UpstreamRejected => Self::Rejected,
            RuleCode::UpstreamFailed => Self::Failed,
            RuleCode::UpstreamAuthFailed => Self::AuthFailed,
            RuleCode::UpstreamQuotaExhausted => Self::QuotaExhausted,
        }
    }
}

impl Meaning {
    fn error(self, message: Option<&str>, head: &Head) -> UpstreamError {
        let message = || message.map(|message| shown(message).into());
        match self {
            Self::SpaceNotFound => UpstreamError::SpaceNotFound { head: None },
            Self::SpaceAccessDenied => UpstreamError::SpaceAccessDenied,
            Self::Rejected => UpstreamError::Rejected,
            Self::Failed => UpstreamError::Failed(FailureSource::Inner { message: message() }),
            Self::SlowDown => {
                UpstreamError::Failed(FailureSource::InnerSlowDown { message: message() })
            }
            Self::AuthFailed => UpstreamError::AuthFailed,
            Self::QuotaExhausted => UpstreamError::QuotaExhausted {
                retry_after: retry_after(&head.headers, head.received_unix),
            },
        }
    }
}

/// What an answer turned out to be, besides the outcome itself.
enum Verdict {
    Known(Result<Answer, UpstreamError>),
    /// A 206 that no rule knows: an operator may want to add one.
    UnknownMessage(Option<String>),
}

/// Decides what `raw` means. Pure: [`Normalize`] only carries it out.
fn normalize(rules: &Rules, raw: RawAnswer) -> Verdict {
    let body = raw.body.clone();
    let reading = tasks::read(&body);
    let envelope = reading.as_ref().ok().map(Reading::envelope);
    let said = envelope.as_ref().and_then(|envelope| envelope.status_code);
    let status = effective_status(raw.status, said);
    if status == StatusCode::PARTIAL_CONTENT {
        if envelope.is_none() && is_html(&raw) {
            return Verdict::Known(Err(UpstreamError::Failed(FailureSource::Html)));
        }
        let envelope = envelope.unwrap_or_default();
        return match rules.meaning(&envelope) {
            Some(meaning) => {
                Verdict::Known(Err(meaning.error(envelope.message.as_deref(), &raw.head)))
            }
            None => Verdict::UnknownMessage(envelope.message),
        };
    }
    let page = || reading.and_then(|reading| reading.page(&body));
    Verdict::Known(by_status(status, envelope.as_ref(), page, raw))
}

/// A failure told in the body under a 200 counts as the status it names.
fn effective_status(status: StatusCode, said: Option<u64>) -> StatusCode {
    let Some(said) = said.filter(|said| *said >= 400 || *said == 206) else {
        return status;
    };
    if status != StatusCode::OK {
        return status;
    }
    // Beyond what HTTP knows it is a failure all the same.
    u16::try_from(said)
        .ok()
        .and_then(|said| StatusCode::from_u16(said).ok())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn by_status(
    status: StatusCode,
    envelope: Option<&Envelope>,
    page: impl FnOnce() -> Result<TaskPage, InvalidAnswer>,
    raw: RawAnswer,
) -> Result<Answer, UpstreamError> {
    let is_json = envelope.is_some();
    let failed = |source| Err(UpstreamError::Failed(source));
    match status.as_u16() {
        200 if is_html(&raw) => failed(FailureSource::Html),
        200 => {
            let page = page().map_err(UpstreamError::InvalidResponse)?;
            Ok(Answer {
                content: Content::Page(page),
                head: raw.head,
            })
        }
        304 => Ok(Answer {
            content: Content::NotModified,
            head: raw.head,
        }),
        // A proxy's page on the way, which says nothing of what was asked.
        400 | 403 | 410 | 422 if is_html(&raw) => failed(FailureSource::Html),
        400 | 422 => Err(UpstreamError::Rejected),
        401 => Err(UpstreamError::AuthFailed),
        403 if tells_expired_token(envelope) => Err(UpstreamError::AuthFailed),
        403 => Err(UpstreamError::SpaceAccessDenied),
        404 if !is_json => failed(by_its_status(status, &raw.head)),
        404 | 410 => Err(UpstreamError::SpaceNotFound {
            head: (raw.status == status).then(|| Arc::new(raw.head)),
        }),
        429 => Err(UpstreamError::QuotaExhausted {
            retry_after: retry_after(&raw.head.headers, raw.head.received_unix),
        }),
        _ => failed(by_its_status(status, &raw.head)),
    }
}

fn by_its_status(status: StatusCode, head: &Head) -> FailureSource {
    FailureSource::Status {
        status,
        retry_after: retry_after(&head.headers, head.received_unix),
    }
}

fn tells_expired_token(envelope: Option<&Envelope>) -> bool {
    envelope
        .and_then(|envelope| envelope.message.as_deref())
        .is_some_and(|message| message.to_lowercase().contains("token has expired"))
}

fn is_html(raw: &RawAnswer) -> bool {
    let declared = raw
        .head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.to_ascii_lowercase().contains("html"));
    declared || raw.body.trim_ascii_start().starts_with(b"<")
}

/// Gives every answer its meaning.
#[derive(Clone, Debug)]
pub struct NormalizeLayer {
    rules: Rules,
    metrics: Arc<Metrics>,
}

impl NormalizeLayer {
    #[must_use]
    pub fn new(rules: Rules, metrics: Arc<Metrics>) -> Self {
        Self { rules, metrics }
    }
}

impl<S> Layer<S> for NormalizeLayer {
    type Service = Normalize<S>;

    fn layer(&self, inner: S) -> Normalize<S> {
        Normalize {
            inner,
            layer: self.clone(),
        }
    }
}

/// Raw answer in, page or error out.
#[derive(Clone, Debug)]
pub struct Normalize<S> {
    inner: S,
    layer: NormalizeLayer,
}

impl<S> Service<PageRequest> for Normalize<S>
where
    S: Service<PageRequest, Response = RawAnswer, Error = ClientError>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = UpstreamError;
    type Future = BoxFuture<'static, Result<Answer, UpstreamError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        self.inner.poll_ready(cx).map_err(from_client)
    }

    fn call(&mut self, request: PageRequest) -> Self::Future {
        let NormalizeLayer { rules, metrics } = self.layer.clone();
        let conditional = !request.validators.is_empty();
        let cause = request.cause.clone();
        let purse = request.credential.purse().clone();
        let call = self.inner.call(request);
        Box::pin(async move {
            let mut counted = CountedCall::new(&metrics, &cause);
            let raw = call.await.map_err(from_client)?;
            let status = raw.status;
            counted.status = Some(status);
            let outcome = match normalize(&rules, raw) {
                // A 304 nobody asked for has no page to stand for.
                Verdict::Known(Ok(Answer {
                    content: Content::NotModified,
                    head,
                })) if !conditional => Err(UpstreamError::Failed(by_its_status(
                    StatusCode::NOT_MODIFIED,
                    &head,
                ))),
                Verdict::Known(outcome) => outcome,
                Verdict::UnknownMessage(message) => {
                    report_unknown(&metrics, message.as_deref());
                    Err(UpstreamError::Rejected)
                }
            };
            // What a 429 says of it in its header is learned below.
            if status != StatusCode::TOO_MANY_REQUESTS
                && let Err(UpstreamError::QuotaExhausted { retry_after }) = &outcome
            {
                purse.refused(*retry_after, Instant::now());
            }
            outcome
        })
    }
}

/// Counts a call when it ends, however it does: one that the deadline cuts off is a call too.
struct CountedCall<'a> {
    metrics: &'a Metrics,
    cause: &'a str,
    /// None where there was no answer.
    status: Option<StatusCode>,
}

impl<'a> CountedCall<'a> {
    fn new(metrics: &'a Metrics, cause: &'a str) -> Self {
        Self {
            metrics,
            cause,
            status: None,
        }
    }
}

impl Drop for CountedCall<'_> {
    fn drop(&mut self) {
        self.metrics.upstream_answered(self.status, self.cause);
    }
}

/// As much of a message as is logged: it is the upstream's own text, of any length, and may hold anything.
fn shown(message: &str) -> &str {
    const SHOWN: usize = 200;
    let end = message.char_indices().nth(SHOWN);
    end.map_or(message, |(end, _)| &message[..end])
}

fn report_unknown(metrics: &Metrics, message: Option<&str>) {
    metrics.unknown_message();
    warn!(
        upstream.message = shown(message.unwrap_or_default()),
        "upstream answered 206 with a message that no rule knows; add one under [[normalize.rules]]"
    );
}

fn from_client(error: ClientError) -> UpstreamError {
    match error {
        ClientError::TooLarge(limit) => {
            UpstreamError::InvalidResponse(InvalidAnswer::TooLarge(limit))
        }
        ClientError::Truncated(_) => UpstreamError::InvalidResponse(InvalidAnswer::Truncated),
        ClientError::NotHttp(_) => UpstreamError::InvalidResponse(InvalidAnswer::NotHttp),
        ClientError::Request(_) | ClientError::Broken(_) => {
            UpstreamError::Unreachable(Arc::new(error))
        }
    }
}

#[cfg(test)]
mod tests;
