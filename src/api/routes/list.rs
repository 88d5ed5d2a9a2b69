//! A page of a list: `GET /spaces/{space_token}/tasks` and whatever other route [`Collection`] has.

use axum::{
    extract::{FromRef, Request, State},
    response::{IntoResponse, Response},
};
use http::header;

use super::answer::{Shown, respond};
use crate::{
    api::{
        ApiError, Client, Data, Right,
        context::SharedRecord,
        extract::{Caller, List, Reading},
        list_scope,
        query::{ListQuery, Parameters, Selection},
        rate_limit::{self, RateLimit},
    },
    cache::http_semantics::RequestDirectives,
    domain::{Collection, SpaceToken, View},
    service::{ClientRequest, FilterRequest, PagesError, Scope, Served},
};

/// Which lists a route serves, and what from.
#[derive(Clone, Debug)]
pub struct ListState {
    pub data: Data,
    pub collection: Collection,
    /// Which parameters it takes.
    pub parameters: Parameters,
}

impl FromRef<ListState> for Collection {
    fn from_ref(state: &ListState) -> Self {
        state.collection
    }
}

impl FromRef<ListState> for Parameters {
    fn from_ref(state: &ListState) -> Self {
        state.parameters
    }
}

/// Answers with the page that path and query name.
///
/// Checked in the order in which things may be told: method, path and query, then whether the client may read the space, then how often
/// it may ask, then the cache.
pub async fn page(
    State(ListState {
        data, collection, ..
    }): State<ListState>,
    _: Reading,
    List { space, id: list }: List,
    ListQuery {
        page: query,
        selection,
    }: ListQuery,
    caller: Caller,
    request: Request,
) -> Response {
    // Nothing waits for the body, and it would keep its connection's window.
    let (request, _) = request.into_parts();
    let record = caller.record.clone();
    record.note(|record| record.query = Some(query));
    let (right, limits) = match admit(&caller.client, &space, collection).await {
        Ok(admitted) => admitted,
        Err(error) => {
            record.note(|record| record.space = Some(space.fingerprint()));
            return error.into_response();
        }
    };
    let directives = RequestDirectives::parse(&request.headers);
    let (ask, policy) = caller.into_request(right.credential, space, list, query, directives);
    let view = right.view;
    let (outcome, fields) = match &selection {
        None => (data.pages.page(&ask).await.map(without_scope), None),
        // Boxed: few ask for it.
        Some(selection) => Box::pin(selected(&data, &ask, view.as_deref(), selection)).await,
    };
    let mut response = match outcome {
        Ok((served, scope)) => {
            note_served(&record, &served);
            let shown = Shown::of(view, fields);
            let mut response = respond(&data, &policy, shown, &served, &request).await;
            let headers = response.headers_mut();
            if let Some(selection) = &selection {
                let link = served.page.link_by(&selection.canonical, query);
                headers.insert(header::LINK, link);
            }
            if let Some(scope) = scope {
                list_scope::write(scope, headers);
            }
            response
        }
        Err(error) => refuse(error, &ask, &record),
    };
    rate_limit::write(&limits, response.headers_mut());
    response
}

/// A page, and how far its list was looked through for it.
type Outcome = Result<(Served, Option<Scope>), PagesError>;

fn without_scope(served: Served) -> (Served, Option<Scope>) {
    (served, None)
}

/// What a selection of the rows that `view` shows comes to, and which members are asked for.
async fn selected(
    data: &Data,
    ask: &ClientRequest,
    view: Option<&View>,
    selection: &Selection,
) -> (Outcome, Option<View>) {
    let outcome = match (&selection.filter, selection.newest) {
        (Some(filter), Some(newest)) => {
            let is_shown = view.is_none_or(|view| filter.goes_by_what_is_shown(view));
            let wanted = FilterRequest {
                filter: is_shown.then(|| filter.clone()),
                newest,
            };
            let filtered = data.pages.filtered(ask, wanted).await;
            filtered.map(|(served, scope)| (served, Some(scope)))
        }
        _ => data.pages.page(ask).await.map(without_scope),
    };
    let fields = selection.fields.as_ref();
    (outcome, fields.map(|fields| fields.view.clone()))
}

/// Notes what a request is answered with.
pub(super) fn note_served(record: &SharedRecord, served: &Served) {
    record.note(|record| {
        record.space = Some(served.page.space_fingerprint().clone());
        record.cache = Some(served.status.outcome());
        record.age_s = Some(served.age().as_secs());
        record.upstream_calls = served.calls;
    });
}

/// The answer where there is no page.
pub(super) fn refuse(error: PagesError, ask: &ClientRequest, record: &SharedRecord) -> Response {
    record.note(|record| {
        record.space = Some(ask.space.fingerprint());
        record.cache = Some(error.status.outcome());
        record.upstream_calls = error.calls;
    });
    ApiError::from(error).into_response()
}

/// What the client may do with such a list of `space`, and what is left of its limits. A request that may not draws on no limit.
pub(super) async fn admit(
    client: &Client,
    space: &SpaceToken,
    collection: Collection,
) -> Result<(Right, Vec<RateLimit>), ApiError> {
    let right = client.right(space, collection.rows);
    let right = right.ok_or(ApiError::SpaceNotAllowed)?;
    let limits = client.take_request().await;
    Ok((right, limits.map_err(ApiError::RateLimited)?))
}
