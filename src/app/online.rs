//! Asks the upstream once with each credential, and says what the answer means to an operator: `check --online`.

use super::Prepared;
use crate::upstream::{CallLimits, Probe, Rules, UpstreamError, probe_all};

/// A difference up to this is no news: clocks drift.
const CLOCKS_AGREE: u64 = 30;

/// What the upstream said of a credential.
#[derive(Debug)]
pub struct Asked {
    /// The key of its section.
    pub key: String,
    /// What is well, or why the credential or its space cannot be used.
    pub verdict: Result<String, String>,
    /// What works, and will hardly be meant.
    pub warnings: Vec<String>,
}

impl Prepared {
    /// Asks with each credential in turn: one call each, whatever it answers.
    pub async fn ask_upstream(&self) -> Vec<Asked> {
        let (config, built) = (&self.config, &self.built);
        let rules = Rules::new(&config.normalize);
        let probes = probe_all(
            &built.client,
            &built.credentials,
            &config.upstream,
            &config.clients,
            &rules,
        );
        let asked = probes.await.into_iter().map(|probe| Asked {
            key: format!("upstream.credentials.{}", probe.credential),
            verdict: judge(&probe),
            warnings: warnings(&probe, config.upstream.quota_per_minute),
        });
        asked.collect()
    }
}

fn judge(probe: &Probe) -> Result<String, String> {
    let limits = limits(&probe.limits);
    match (&probe.outcome, &probe.space) {
        (Ok(()), Some(key)) => Ok(format!("token accepted, {key} readable, {limits}")),
        // Whoever knows no such space, or lets nobody in, knows the token.
        (
            Ok(()) | Err(UpstreamError::SpaceNotFound { .. } | UpstreamError::SpaceAccessDenied),
            None,
        ) => Ok(format!(
            "token accepted, no space is named that could be read, {limits}"
        )),
        (Err(UpstreamError::SpaceNotFound { .. }), Some(key)) => Err(format!(
            "token accepted, but the upstream knows no such space as {key}: compare it, and org_handle"
        )),
        (Err(UpstreamError::SpaceAccessDenied), Some(key)) => Err(format!(
            "token accepted, but its user may not read {key}: give it a role in that space"
        )),
        (Err(UpstreamError::AuthFailed), _) => {
            Err("the upstream refuses this token: it is wrong, expired or revoked".to_owned())
        }
        (Err(UpstreamError::QuotaExhausted { .. }), _) => {
            Err("no call is left just now: try again in a minute".to_owned())
        }
        (Err(error), _) => {
            let reason = error.reason().map(|reason| format!(": {reason}"));
            let reason = reason.unwrap_or_default();
            Err(format!("the upstream gave no page: {error}{reason}"))
        }
    }
}

fn limits(limits: &CallLimits) -> String {
    match (limits.limit, limits.remaining) {
        (Some(limit), Some(left)) => format!("{left} of {limit} calls left"),
        (Some(limit), None) => format!("limit of {limit} calls"),
        (None, Some(left)) => format!("{left} calls left"),
        (None, None) => "no limit told".to_owned(),
    }
}

fn warnings(probe: &Probe, quota_per_minute: u32) -> Vec<String> {
    let skew = probe
        .clock_skew
        .filter(|skew| skew.unsigned_abs() > CLOCKS_AGREE);
    let skew = skew.map(|skew| {
        let side = if skew > 0 { "ahead of" } else { "behind" };
        format!(
            "the upstream's clock is {} s {side} this machine's",
            skew.unsigned_abs()
        )
    });
    let limit = probe.limits.limit.filter(|limit| quota_per_minute > *limit);
    let limit = limit.map(|limit| {
        format!("upstream.quota_per_minute: more than the {limit} calls that the upstream allows")
    });
    skew.into_iter().chain(limit).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn probe(outcome: Result<(), UpstreamError>, space: Option<&str>) -> Probe {
        Probe {
            credential: "default".to_owned(),
            space: space.map(str::to_owned),
            outcome,
            limits: CallLimits::default(),
            clock_skew: None,
        }
    }

    #[test]
    fn a_token_is_well_where_it_was_taken_and_what_is_named_can_be_read() {
        use UpstreamError::*;
        let not_found = || SpaceNotFound { head: None };
        for (outcome, is_named, expected) in [
            (Ok(()), true, Ok("token accepted, KEY readable")),
            (Ok(()), false, Ok("token accepted, no space")),
            (Err(not_found()), false, Ok("token accepted, no space")),
            (
                Err(SpaceAccessDenied),
                false,
                Ok("token accepted, no space"),
            ),
            (Err(not_found()), true, Err("knows no such space as KEY")),
            (Err(SpaceAccessDenied), true, Err("may not read KEY")),
            (Err(AuthFailed), true, Err("refuses this token")),
            (Err(AuthFailed), false, Err("refuses this token")),
            (
                Err(QuotaExhausted { retry_after: None }),
                true,
                Err("no call is left"),
            ),
            (
                Err(Timeout(Duration::from_secs(10))),
                true,
                Err("no answer within 10s"),
            ),
            (Err(Rejected), false, Err("refused the request")),
        ] {
            let told = judge(&probe(outcome, is_named.then_some("KEY")));
            let text = told.as_ref().unwrap_or_else(|text| text);
            assert_eq!(told.is_ok(), expected.is_ok(), "{text}");
            let part = expected.unwrap_or_else(|part| part);
            assert!(text.contains(part), "{text}: {part}");
        }
    }

    #[test]
    fn limits_are_told_as_far_as_they_are_known() {
        for (limit, remaining, expected) in [
            (Some(60), Some(58), "58 of 60 calls left"),
            (Some(60), None, "limit of 60 calls"),
            (None, Some(3), "3 calls left"),
            (None, None, "no limit told"),
        ] {
            let told = CallLimits {
                limit,
                remaining,
                ..CallLimits::default()
            };
            assert_eq!(limits(&told), expected);
        }
    }

    #[test]
    fn a_clock_that_is_off_and_a_quota_beyond_the_limit_are_warned_of() {
        for (clock_skew, limit, quota, expected) in [
            (None, None, 60, vec![]),
            (Some(30), Some(60), 60, vec![]),
            (Some(-30), Some(60), 0, vec![]),
            (Some(31), None, 0, vec!["31 s ahead of"]),
            (Some(-3600), None, 0, vec!["3600 s behind"]),
            (Some(0), Some(5), 60, vec!["more than the 5 calls"]),
        ] {
            let mut probe = probe(Ok(()), None);
            probe.clock_skew = clock_skew;
            probe.limits.limit = limit;
            let told = warnings(&probe, quota);
            assert_eq!(told.len(), expected.len(), "{told:?}");
            for (told, expected) in told.iter().zip(expected) {
                assert!(told.contains(expected), "{told}");
            }
        }
    }
}
