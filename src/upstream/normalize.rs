//! Turns what the upstream answers into what it means: above this layer there is a page, a "not modified", or an honest error.
//!
//! Nearly every business error arrives as a 206 whose message alone tells the cases apart; the messages are data in [`rules`].

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{StatusCode, header};
use tower::{Layer, Service};
use tracing::warn;

use super::{
    Answer, CallLimits, ClientError, Content, FailureSource, InvalidAnswer, PageRequest, RawAnswer,
    UpstreamError,
    clock::Clock,
    envelope::{self, Envelope, Reading},
};
use crate::{domain::ListPage, off_runtime::by_size, telemetry::metrics::Metrics};

mod rules;

use self::rules::Meaning;
pub use self::rules::Rules;

/// What an answer turned out to be, besides the outcome itself.
enum Verdict {
    Known(Result<Answer, UpstreamError>),
    /// A 206 that no rule knows: an operator may want to add one.
    UnknownMessage(Option<String>),
}

/// Decides what `raw` means. Pure: [`Normalize`] only carries it out.
fn normalize(rules: &Rules, raw: RawAnswer, limits: &CallLimits) -> Verdict {
    let body = raw.body.clone();
    let reading = envelope::read(&body);
    let envelope = reading.as_ref().ok().map(Reading::envelope);
    let told = Told {
        status: effective_status(
            raw.status,
            envelope.as_ref().and_then(|said| said.status_code),
        ),
        envelope: envelope.as_ref(),
        rules,
        limits,
    };
    if told.is_throttle() {
        return Verdict::Known(Err(UpstreamError::QuotaExhausted { retry_after: None }));
    }
    if told.status == StatusCode::PARTIAL_CONTENT
        && let Some(envelope) = &envelope
    {
        return match rules.meaning(envelope) {
            Some(meaning) => Verdict::Known(Err(meaning.error(envelope.message.as_deref()))),
            None => Verdict::UnknownMessage(envelope.message.clone()),
        };
    }
    let page = || reading.and_then(|reading| reading.page(&body));
    Verdict::Known(by_status(&told, page, raw))
}

/// As the layer reads it, for a call that nobody waits for.
pub(super) fn meaning(
    rules: &Rules,
    raw: RawAnswer,
    limits: &CallLimits,
) -> Result<Answer, UpstreamError> {
    match normalize(rules, raw, limits) {
        Verdict::Known(outcome) => outcome,
        Verdict::UnknownMessage(_) => Err(UpstreamError::Rejected),
    }
}

/// What an answer tells of the request, as far as that is the upstream's own word.
///
/// What stands in between answers too, in text, in HTML or in JSON of its own; of access, spaces and tokens only the upstream knows.
struct Told<'a> {
    status: StatusCode,
    /// `None`: the body is no JSON object.
    envelope: Option<&'a Envelope>,
    rules: &'a Rules,
    limits: &'a CallLimits,
}

impl Told<'_> {
    /// The upstream's own envelope, which does not contradict the status it came with.
    fn own(&self) -> Option<&Envelope> {
        let said = self.envelope?.status_code;
        let agrees = said.is_none_or(|said| said == u64::from(self.status.as_u16()));
        self.envelope.filter(|_| agrees)
    }

    /// A bare `{"message":"Forbidden"}` is what firewalls and API gateways say: about access the upstream says more.
    fn denies_access(&self) -> bool {
        self.own().is_some_and(|own| {
            own.status_code.is_some()
                || own.error_code.is_some()
                || self.rules.meaning(own) == Some(Meaning::SpaceAccessDenied)
        })
    }

    fn tells_expired_token(&self) -> bool {
        self.own().is_some_and(|own| {
            let texts = [&own.message, &own.error_code];
            let mut texts = texts.into_iter().flatten().map(|text| text.to_lowercase());
            texts.any(|text| EXPIRED_TOKEN.iter().any(|expired| text.contains(expired)))
        })
    }

    /// Whether it refuses a call because there were too many, whatever the status says.
    fn is_throttle(&self) -> bool {
        let said = self.envelope.and_then(|said| said.status_code);
        let by_code = self
            .envelope
            .and_then(|said| said.error_code.as_deref())
            .is_some_and(|code| THROTTLE_CODES.iter().any(|known| contains(code, known)));
        match self.status.as_u16() {
            429 => true,
            _ if said == Some(429) || by_code => true,
            403 if self.tells_expired_token() => false,
            403 => self.limits.asks_to_wait || self.limits.is_spent(),
            503 => self.limits.is_spent(),
            _ => false,
        }
    }

    fn failure(&self) -> FailureSource {
        FailureSource::Status {
            status: self.status,
            retry_after: self.limits.retry_after.filter(|wait| !wait.is_zero()),
        }
    }
}

const EXPIRED_TOKEN: [&str; 3] = ["token has expired", "token_expired", "expired_token"];
/// In the `code` of an `error` object.
const THROTTLE_CODES: [&str; 5] = [
    "rate_limit",
    "ratelimit",
    "too_many_requests",
    "throttl",
    "429",
];

fn contains(text: &str, part: &str) -> bool {
    text.to_lowercase().contains(part)
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
    told: &Told<'_>,
    page: impl FnOnce() -> Result<ListPage, InvalidAnswer>,
    raw: RawAnswer,
) -> Result<Answer, UpstreamError> {
    match told.status.as_u16() {
        200 | 206 if is_html(&raw) => Err(UpstreamError::Failed(FailureSource::Html)),
        200 => {
            let page = page().map_err(UpstreamError::InvalidResponse)?;
            Ok(Answer {
                content: Content::Page(ListPage {
                    gzip: raw.gzip,
                    ..page
                }),
                head: raw.head,
            })
        }
        304 => Ok(Answer {
            content: Content::NotModified,
            head: raw.head,
        }),
        400 | 422 if told.own().is_some() => Err(UpstreamError::Rejected),
        401 if told.own().is_some() => Err(UpstreamError::AuthFailed),
        403 if told.tells_expired_token() => Err(UpstreamError::AuthFailed),
        403 if told.denies_access() => Err(UpstreamError::SpaceAccessDenied),
        404 | 410 if told.own().is_some() => Err(UpstreamError::SpaceNotFound {
            head: (raw.status == told.status).then(|| Arc::new(raw.head)),
        }),
        _ => Err(UpstreamError::Failed(told.failure())),
    }
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
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
}

impl NormalizeLayer {
    #[must_use]
    pub fn new(rules: Rules, metrics: Arc<Metrics>) -> Self {
        Self {
            rules,
            clock: Arc::new(Clock::new(metrics.clone())),
            metrics,
        }
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
        let NormalizeLayer {
            rules,
            clock,
            metrics,
        } = self.layer.clone();
        let conditional = !request.validators.is_empty();
        let cause = request.cause.clone();
        let budget = request.credential.budget().clone();
        let call = self.inner.call(request);
        Box::pin(async move {
            let mut counted = CountedCall::new(&metrics, &cause);
            let raw = call.await.map_err(from_client)?;
            counted.status = Some(raw.status);
            clock.note(&raw.head);
            let limits = CallLimits::read(&raw.head);
            let received = raw.head.received;
            let sent = received - raw.head.response_delay;
            let told = limits.clone();
            let verdict = by_size(raw.body.len(), move || normalize(&rules, raw, &told)).await;
            let outcome = match verdict {
                // A 304 nobody asked for has no page to stand for.
                Verdict::Known(Ok(Answer {
                    content: Content::NotModified,
                    ..
                })) if !conditional => Err(UpstreamError::Failed(FailureSource::Status {
                    status: StatusCode::NOT_MODIFIED,
                    retry_after: None,
                })),
                Verdict::Known(outcome) => outcome,
                Verdict::UnknownMessage(message) => {
                    report_unknown(&metrics, message.as_deref());
                    Err(UpstreamError::Rejected)
                }
            };
            if let Err(UpstreamError::QuotaExhausted { .. }) = outcome {
                let retry_after = Some(budget.throttled(&limits, sent, received));
                return Err(UpstreamError::QuotaExhausted { retry_after });
            }
            budget.learn(&limits, sent, received);
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
        self.metrics.upstream.answered(self.status, self.cause);
    }
}

/// As much of a message as is logged: it is the upstream's own text, of any length, and may hold anything.
fn shown(message: &str) -> &str {
    const SHOWN: usize = 200;
    let end = message.char_indices().nth(SHOWN);
    end.map_or(message, |(end, _)| &message[..end])
}

fn report_unknown(metrics: &Metrics, message: Option<&str>) {
    metrics.upstream.unknown_message();
    warn!(
        upstream.message = shown(message.unwrap_or_default()),
        "upstream answered 206 with a message that no rule knows; add one under [[normalize.rules]]"
    );
}

pub(super) fn from_client(error: ClientError) -> UpstreamError {
    match error {
        ClientError::TooLarge(limit) => {
            UpstreamError::InvalidResponse(InvalidAnswer::TooLarge(limit))
        }
        ClientError::Truncated(_) => UpstreamError::InvalidResponse(InvalidAnswer::Truncated),
        ClientError::UnknownCoding(_) | ClientError::TooManyCodings => {
            UpstreamError::InvalidResponse(InvalidAnswer::Coding(error.to_string()))
        }
        ClientError::Undecodable(ref cause) => {
            let text = format!("{error}: {cause}");
            UpstreamError::InvalidResponse(InvalidAnswer::Coding(text))
        }
        ClientError::HeaderTooLarge(_) => {
            UpstreamError::InvalidResponse(InvalidAnswer::HeaderTooLarge)
        }
        ClientError::NotHttp(_) => UpstreamError::InvalidResponse(InvalidAnswer::NotHttp),
        ClientError::Request(_) | ClientError::Broken(_) => {
            UpstreamError::Unreachable(Arc::new(error))
        }
    }
}

#[cfg(test)]
mod tests;
