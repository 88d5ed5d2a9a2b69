//! One task of a space: `GET /spaces/{space_token}/tasks/{task_id}`.

use axum::{
    extract::{FromRef, Request, State},
    response::{IntoResponse, Response},
};

use super::{
    answer::{Shown, respond},
    list::{admit, note_served, refuse},
};
use crate::{
    api::{
        ApiError, Data,
        extract::{Caller, Reading, Task},
        query::{ListQuery, Parameters, Selection},
        rate_limit,
    },
    cache::http_semantics::RequestDirectives,
    domain::{Collection, ListId, View},
    service::FoundTask,
};

/// What the route serves from.
#[derive(Clone, Debug)]
pub struct TaskState(pub Data);

impl FromRef<TaskState> for Parameters {
    fn from_ref(_: &TaskState) -> Self {
        Self::Task
    }
}

/// Answers with the task that the path names. Checked in the order of [`super::list::page`].
pub async fn task(
    State(TaskState(data)): State<TaskState>,
    _: Reading,
    Task { space, id }: Task,
    ListQuery { page, selection }: ListQuery,
    caller: Caller,
    request: Request,
) -> Response {
    let (request, _) = request.into_parts();
    let record = caller.record.clone();
    let (right, limits) = match admit(&caller.client, &space, Collection::TASKS).await {
        Ok(admitted) => admitted,
        Err(error) => {
            record.note(|record| record.space = Some(space.fingerprint()));
            return error.into_response();
        }
    };
    let directives = RequestDirectives::parse(&request.headers);
    let (ask, policy) =
        caller.into_request(right.credential, space, ListId::TASKS, page, directives);
    let (newest, fields) = selection.map_or((None, None), |selection| {
        let Selection { newest, fields, .. } = *selection;
        (newest, fields.map(|fields| fields.view))
    });
    let shows_ids = |view: &View| view.shows_text(Collection::TASKS.id_member);
    let id = Some(&id).filter(|_| right.view.as_deref().is_none_or(shows_ids));
    let mut response = match data.pages.task(&ask, id, newest).await {
        Ok(FoundTask::Found(served)) => {
            note_served(&record, &served);
            let shown = Shown::of(right.view, fields);
            respond(&data, &policy, shown, &served, &request).await
        }
        Ok(FoundTask::NotFound {
            scope,
            status,
            calls,
        }) => {
            record.note(|record| {
                record.space = Some(ask.space.fingerprint());
                record.cache = Some(status.outcome());
                record.upstream_calls = calls;
            });
            ApiError::TaskNotFound { scope, status }.into_response()
        }
        Err(error) => refuse(error, &ask, &record),
    };
    rate_limit::write(&limits, response.headers_mut());
    response
}
