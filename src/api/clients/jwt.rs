//! Tokens of an identity provider: JWTs (RFC 7519) whose claims name a client, and perhaps fewer spaces than it has.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, Header};
use serde_json::{Map, Value};

use super::{
    client::AllowedSpaces,
    jwks::{KeySet, LiveKeys},
    proof::Proof,
    signature::unproven_claims,
};
use crate::{
    config::{JwtConfig, Problems},
    domain::SpaceToken,
    telemetry::metrics::AuthFailure,
};

/// The tolerated clock difference.
const LEEWAY: Duration = Duration::from_secs(30);
/// The last second of the year 9999, beyond which no time is represented.
const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);

type Claims = Map<String, Value>;

/// One identity provider: its keys, and what its tokens must say.
#[derive(Debug)]
pub(super) struct IdentityProvider {
    config: JwtConfig,
    keys: Arc<LiveKeys>,
}

impl IdentityProvider {
    /// The provider of `config`. The keys of `running` are kept if it is the same provider, until new ones have been read.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the place of its keys.
    pub(super) fn new(config: &JwtConfig, running: Option<&Self>) -> Result<Self, Problems> {
        let kept = running.filter(|running| running.keys.are_of(config));
        // Another issuer's keys prove nothing here.
        let before = running.filter(|running| running.config.issuer == config.issuer);
        let keys = match kept {
            Some(running) => running.keys.clone(),
            None => Arc::new(LiveKeys::start(
                config,
                before.map(|running| &*running.keys),
            )?),
        };
        Ok(Self {
            config: config.clone(),
            keys,
        })
    }

    pub(super) fn judges_like(&self, other: &Self) -> bool {
        self.config == other.config && Arc::ptr_eq(&self.keys, &other.keys)
    }

    pub(super) fn keys(&self) -> &LiveKeys {
        &self.keys
    }

    /// What `token` proves, its signature and its claims checked, and the keys that prove it.
    ///
    /// # Errors
    ///
    /// Returns why it proves nothing.
    pub(super) fn verify(
        &self,
        token: &[u8],
        header: &Header,
        now: SystemTime,
        may_verify: impl FnOnce(Duration) -> bool,
    ) -> Result<(Proof, Arc<KeySet>), AuthFailure> {
        if !is_access_token(header) {
            return Err(AuthFailure::Malformed);
        }
        if !self.takes(header.alg) {
            return Err(AuthFailure::WrongAlgorithm);
        }
        // Claims first: a token that would be refused anyway need not wait for keys.
        let claims = unproven_claims(token)?;
        let proof = judge(&claims, &self.config, now)?;
        let keys = self.keys.current().ok_or(AuthFailure::KeysNotLoaded)?;
        let key = keys.find(header).inspect_err(|failure| {
            if *failure == AuthFailure::UnknownKey && header.kid.is_some() {
                self.keys.missed();
            }
        })?;
        if !may_verify(key.cost()) {
            return Err(AuthFailure::RateLimited);
        }
        key.prove(token)?;
        Ok((proof, keys.clone()))
    }

    fn takes(&self, algorithm: Algorithm) -> bool {
        let mut taken = self.config.algorithms.iter();
        taken.any(|taken| Algorithm::from(*taken) == algorithm)
    }
}

/// Whether the header is that of an access token (RFC 8725 section 3.11): providers sign other tokens, such as logout tokens, with the
/// same keys.
fn is_access_token(header: &Header) -> bool {
    let typ = header.typ.as_deref().map(str::to_ascii_lowercase);
    // The prefix may be left out (RFC 7515 section 4.1.9).
    let short = |typ| str::strip_prefix(typ, "application/").unwrap_or(typ);
    let typ = typ.as_deref().map(short);
    matches!(typ, None | Some("jwt" | "at+jwt" | "jose"))
}

/// What claims prove at `now`, once their signature is proven.
fn judge(claims: &Claims, rules: &JwtConfig, now: SystemTime) -> Result<Proof, AuthFailure> {
    let expires = time(claims, "exp")?.ok_or(AuthFailure::BadClaims)?;
    if expires + LEEWAY <= now {
        return Err(AuthFailure::Expired);
    }
    if time(claims, "nbf")?.is_some_and(|begins| begins > now + LEEWAY) {
        return Err(AuthFailure::NotYetValid);
    }
    if text(claims, "iss") != Some(&rules.issuer) {
        return Err(AuthFailure::WrongIssuer);
    }
    if !is_for(claims.get("aud"), &rules.audience) {
        return Err(AuthFailure::WrongAudience);
    }
    let client = text(claims, &rules.client_claim).ok_or(AuthFailure::BadClaims)?;
    let spaces = match &rules.spaces_claim {
        None => AllowedSpaces::All,
        Some(name) => spaces(claims.get(name))?,
    };
    Ok(Proof {
        client: client.to_owned(),
        spaces,
        expires,
        leeway: LEEWAY,
        views: Vec::new(),
    })
}

/// A NumericDate (RFC 7519 section 2): seconds, whole or not; `None` where it is missing.
fn time(claims: &Claims, name: &str) -> Result<Option<SystemTime>, AuthFailure> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let seconds = value.as_f64().ok_or(AuthFailure::BadClaims)?;
    let since_epoch = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LAST_SECOND);
    Ok(Some(UNIX_EPOCH + since_epoch.min(LAST_SECOND)))
}

fn text<'a>(claims: &'a Claims, name: &str) -> Option<&'a String> {
    match claims.get(name)? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// Whether `aud`, one or a list, names us.
fn is_for(aud: Option<&Value>, us: &str) -> bool {
    match aud {
        Some(Value::String(one)) => one == us,
        Some(Value::Array(several)) => several.iter().any(|one| one.as_str() == Some(us)),
        _ => false,
    }
}

/// The spaces of a claim, a list or a space-separated string; `*` alone allows all of the client's.
///
/// A missing claim allows none: tokens that should narrow must say how far.
fn spaces(claim: Option<&Value>) -> Result<AllowedSpaces, AuthFailure> {
    let names: Vec<&str> = match claim {
        None => Vec::new(),
        Some(Value::String(text)) => text.split_ascii_whitespace().collect(),
        Some(Value::Array(list)) => {
            let names: Option<_> = list.iter().map(Value::as_str).collect();
            names.ok_or(AuthFailure::BadClaims)?
        }
        Some(_) => return Err(AuthFailure::BadClaims),
    };
    if names == ["*"] {
        return Ok(AllowedSpaces::All);
    }
    // Invalid space tokens name no space.
    let named = names
        .into_iter()
        .filter_map(|name| SpaceToken::new(name).ok());
    Ok(AllowedSpaces::Named(named.collect()))
}

#[cfg(test)]
mod tests;
