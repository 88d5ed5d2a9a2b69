//! One task of a space, wherever it is stored, else among the newest.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    ClientRequest, Pages, PagesError, Scope, Served,
    newest::{Newest, incomplete_now},
};
use crate::{
    cache::CacheStatus,
    domain::{ListPage, Row, RowKind, TaskId},
    off_runtime::by_size,
};

/// What came of looking for a task.
#[derive(Clone, Debug)]
pub enum FoundTask {
    Found(Served),
    /// It is not among the newest tasks, all of which are fresh.
    NotFound {
        scope: Scope,
        status: CacheStatus,
        calls: u32,
    },
}

impl Pages {
    /// Returns the task called `id` of the space that `request` names, in an envelope of its own: from the stored page that was read last and
    /// holds it, else from among the `newest` tasks. `None`: no task is called anything, for this client.
    ///
    /// # Errors
    ///
    /// As [`Pages::page`], and `PagesErrorKind::Incomplete` where the tasks cannot be had now.
    pub async fn task(
        self: &Arc<Self>,
        request: &ClientRequest,
        id: Option<&TaskId>,
        newest: Option<u32>,
    ) -> Result<FoundTask, PagesError> {
        let found = self.find_task(request, id, newest).await;
        match &found {
            Ok(FoundTask::Found(served)) => self.note_served(served, request),
            Ok(FoundTask::NotFound { status, .. }) => self.note_lookup(*status, request),
            Err(error) => self.note_lookup(error.status, request),
        }
        found
    }

    async fn find_task(
        self: &Arc<Self>,
        request: &ClientRequest,
        id: Option<&TaskId>,
        newest: Option<u32>,
    ) -> Result<FoundTask, PagesError> {
        if let Some(id) = id
            && let Some(served) = self.stored_task(request, id).await
        {
            return Ok(FoundTask::Found(served));
        }
        let wanted = newest.unwrap_or_else(|| self.range_size(request));
        let mut request = request.clone();
        for min_fresh in [request.directives.min_fresh, Some(Duration::ZERO)] {
            // What is stale and lacks it may be refreshed: it is waited for.
            request.directives.min_fresh = min_fresh;
            let newest = match self.newest(&request, wanted).await {
                Ok(newest) => newest,
                Err(error) => {
                    // Some of it was read all the same.
                    let found = match id {
                        Some(id) => self.stored_task(&request, id).await,
                        None => None,
                    };
                    return found.map(FoundTask::Found).ok_or(error);
                }
            };
            if let Some(served) = id.and_then(|id| self.among(&newest, id)) {
                return Ok(FoundTask::Found(served));
            }
            if newest.is_fresh() {
                return Ok(FoundTask::NotFound {
                    scope: newest.scope(),
                    status: newest.status(Instant::now()),
                    calls: newest.calls,
                });
            }
        }
        Err(incomplete_now(&request.credential))
    }

    /// From the page that was read last of those that hold it, which is read again where it may not be served as it is.
    async fn stored_task(self: &Arc<Self>, request: &ClientRequest, id: &TaskId) -> Option<Served> {
        // What a table takes, roughly.
        const BYTES_OF_A_TABLE: usize = 2048;
        let (pages, space, wanted) = (self.clone(), request.key().list.space, id.clone());
        let bytes = self.store.page_count(&space) * BYTES_OF_A_TABLE;
        let found = by_size(bytes, move || {
            pages
                .store
                .read_last(&space, RowKind::Task, wanted.as_str())
        });
        let key = found.await?.key().clone();
        let request = ClientRequest {
            list: key.list.id,
            query: key.query,
            ..request.clone()
        };
        let served = self.read(&request).await.ok()?;
        self.task_of(&served, id)
    }

    fn among(&self, newest: &Newest, id: &TaskId) -> Option<Served> {
        let parts = newest.rows_looked_at();
        let holds = |(rows, part): &(usize, &Served)| {
            let place = part.page.content.table().find(id.as_str());
            place.is_some_and(|place| place < *rows)
        };
        let (_, part) = parts.into_iter().find(holds)?;
        let served = self.task_of(part, id)?;
        Some(Served {
            calls: newest.calls,
            ..served
        })
    }

    /// The task of a page, in an envelope of its own.
    fn task_of(&self, served: &Served, id: &TaskId) -> Option<Served> {
        let content = &served.page.content;
        let place = content.table().find(id.as_str())?;
        let page = content.page();
        let Row { span } = page.rows.get(place)?;
        let task = &page.body[span.start as usize..span.end as usize];
        let body = [
            br#"{"status_code":200,"message":"Task Fetched Successfully","data":"#,
            task,
            b"}",
        ];
        let page = ListPage {
            gzip: None,
            body: Bytes::from(body.concat()),
            count: 1,
            rows: Arc::default(),
        };
        let page = self.store.alone(page, &served.page, Instant::now())?;
        Some(Served {
            page: page.into(),
            ..served.clone()
        })
    }
}
