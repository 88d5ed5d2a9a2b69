//! What handlers take out of a request, each with the error of its own.

use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts, Path, path::ErrorKind, rejection::PathRejection};
use http::{HeaderValue, Method, request::Parts};
use serde::Deserialize;

use super::{
    ApiError, Client, Policy,
    context::{RequestContext, SharedRecord},
    query::{self, ListQuery, Parameters},
};
use crate::{
    cache::{freshness::permitted, http_semantics::RequestDirectives},
    domain::{Collection, ListId, PageQuery, RunId, SpaceToken, TaskId},
    service::ClientRequest,
    telemetry::traces::TraceContext,
    upstream::Credential,
};

/// That the method is `GET` or `HEAD`. First among a handler's arguments: a method is judged before path and query.
#[derive(Clone, Copy, Debug)]
pub struct Reading;

impl<S: Send + Sync> FromRequestParts<S> for Reading {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match parts.method {
            Method::GET | Method::HEAD => Ok(Self),
            _ => Err(ApiError::MethodNotAllowed { allow: "GET, HEAD" }),
        }
    }
}

/// That the method is `GET`, where a `HEAD` would say nothing. As [`Reading`].
#[derive(Clone, Copy, Debug)]
pub struct Getting;

impl<S: Send + Sync> FromRequestParts<S> for Getting {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match parts.method {
            Method::GET => Ok(Self),
            _ => Err(ApiError::MethodNotAllowed { allow: "GET" }),
        }
    }
}

/// The space that the path names.
#[derive(Clone, Debug)]
pub struct InSpace(pub SpaceToken);

impl<S: Send + Sync> FromRequestParts<S> for InSpace {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        struct Named {
            space_token: String,
        }
        let named = Path::<Named>::from_request_parts(parts, state).await;
        let Path(Named { space_token }) = named.map_err(unreadable)?;
        let space = SpaceToken::new(&space_token);
        space.map(Self).map_err(|_| ApiError::InvalidSpaceToken)
    }
}

/// The space and the list that the path names.
#[derive(Clone, Debug)]
pub struct List {
    pub space: SpaceToken,
    pub id: ListId,
}

impl<S> FromRequestParts<S> for List
where
    S: Send + Sync,
    Collection: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        struct Named {
            space_token: String,
            #[serde(default)]
            run_id: Option<String>,
        }
        let named = Path::<Named>::from_request_parts(parts, state).await;
        let Path(Named {
            space_token,
            run_id,
        }) = named.map_err(unreadable)?;
        let space = SpaceToken::new(&space_token).map_err(|_| ApiError::InvalidSpaceToken)?;
        let run = run_id.as_deref().map(RunId::new).transpose();
        let run = run.map_err(|_| ApiError::InvalidRunId)?;
        let id = ListId::new(Collection::from_ref(state), run).ok_or(ApiError::InvalidRunId)?;
        Ok(Self { space, id })
    }
}

/// Of a path whose parameters are not all there, or no UTF-8.
fn unreadable(rejection: PathRejection) -> ApiError {
    match rejection {
        PathRejection::FailedToDeserializePathParams(error) => match error.kind() {
            ErrorKind::InvalidUtf8InPathParam { key } if key == "run_id" => ApiError::InvalidRunId,
            ErrorKind::InvalidUtf8InPathParam { key } if key == "task_id" => {
                ApiError::InvalidTaskId
            }
            _ => ApiError::InvalidSpaceToken,
        },
        _ => ApiError::InvalidSpaceToken,
    }
}

/// The space and the task that the path names.
#[derive(Clone, Debug)]
pub struct Task {
    pub space: SpaceToken,
    pub id: TaskId,
}

impl<S: Send + Sync> FromRequestParts<S> for Task {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        struct Named {
            space_token: String,
            task_id: String,
        }
        let named = Path::<Named>::from_request_parts(parts, state).await;
        let Path(named) = named.map_err(unreadable)?;
        let space = SpaceToken::new(&named.space_token).map_err(|_| ApiError::InvalidSpaceToken)?;
        let id = TaskId::new(&named.task_id).map_err(|_| ApiError::InvalidTaskId)?;
        Ok(Self { space, id })
    }
}

impl<S> FromRequestParts<S> for ListQuery
where
    S: Send + Sync,
    Parameters: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let config = &RequestContext::of(&parts.extensions).policy.route;
        let query = parts.uri.query().unwrap_or_default();
        query::parse(query, Parameters::from_ref(state), config)
    }
}

/// Who asks, and the policy that let them in.
#[derive(Clone, Debug)]
pub struct Caller {
    pub client: Arc<Client>,
    pub policy: Arc<Policy>,
    pub request_id: HeaderValue,
    pub trace: TraceContext,
    pub record: SharedRecord,
}

impl Caller {
    /// What is asked on its behalf, and the policy to answer by.
    #[must_use]
    pub fn into_request(
        self,
        credential: Arc<Credential>,
        space: SpaceToken,
        list: ListId,
        query: PageQuery,
        directives: RequestDirectives,
    ) -> (ClientRequest, Arc<Policy>) {
        let request = ClientRequest {
            credential,
            upstream: self.policy.upstream.clone(),
            space,
            list,
            query,
            directives: permitted(directives, self.client.may_refresh),
            account: self.client.account.clone(),
            request_id: self.request_id,
            trace: self.trace,
        };
        (request, self.policy)
    }
}

/// Takes the context out of the request: last among a handler's arguments that read it.
///
/// Panics where [`super::layers::internal_auth`] has not let the request through.
impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let RequestContext {
            id,
            trace,
            policy,
            client,
            record,
            client_address: _,
        } = RequestContext::take(&mut parts.extensions);
        Ok(Self {
            client: client.expect("authentication lets nobody through without a name"),
            policy,
            request_id: id,
            trace,
            record,
        })
    }
}
