//! Who listens to a space: reads its log at its own pace, and is woken when there may be more.

use std::{sync::Arc, time::SystemTime};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    BadCursor, Batch, Changes, Position, Status, Wanted, cursor::Cursor, cursor_key, log::Gone,
    sharing::Opening, space::Space,
};
use crate::{
    cache::http_semantics::RequestDirectives,
    domain::PageQuery,
    service::{ClientRequest, PagesError, pages::CallTimes},
};

/// How often the first range is read at most until the feed begins with it.
const MOST_FIRST_READS: u32 = 2;

/// Where a client wants to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    Now,
    /// Every task that is watched, then what follows.
    Start,
    /// A cursor of ours.
    Cursor(Position),
}

/// Why a cursor cannot be honoured, and one to go on with.
#[derive(Clone, Debug)]
pub struct Lost {
    pub reason: Gone,
    pub cursor: String,
}

impl Changes {
    /// Reads a cursor for the space that `request` names.
    ///
    /// # Errors
    ///
    /// Returns [`BadCursor`] where none of ours for this space and credential looks so.
    pub fn read_cursor(&self, request: &ClientRequest, text: &str) -> Result<After, BadCursor> {
        Ok(match cursor_key(request).read(text)? {
            Cursor::Start => After::Start,
            Cursor::At(position) => After::Cursor(position),
        })
    }

    /// Whether a client may go on from `position`. Watches nothing, and costs nothing.
    ///
    /// # Errors
    ///
    /// Returns why not, and from where it may.
    pub fn check_cursor(&self, request: &ClientRequest, position: &Position) -> Result<(), Lost> {
        // Another replica may have given it: that is known once the feed is loaded.
        if self.pages.shared_cache().is_some() {
            return Ok(());
        }
        let Some(space) = self.space(&request.key().list.space) else {
            return Err(Lost {
                reason: match position.incarnation.process == self.process {
                    true => Gone::Expired,
                    false => Gone::Restart,
                },
                // Whatever is there by the time it is used.
                cursor: cursor_key(request).write(Cursor::Start),
            });
        };
        self.note_standing(&space);
        let state = space.lock();
        let feed = &state.seen.feed;
        feed.log.check(position).map_err(|reason| Lost {
            reason,
            cursor: space.cursors.write(match feed.watched.has_begun() {
                true => Cursor::At(feed.log.end()),
                false => Cursor::Start,
            }),
        })
    }
}

/// One who listens; the space is watched while any does.
#[derive(Debug)]
pub struct Listener {
    changes: Arc<Changes>,
    space: Arc<Space>,
    changed: watch::Receiver<()>,
}

impl Listener {
    pub(super) fn new(changes: Arc<Changes>, space: Arc<Space>, request: &ClientRequest) -> Self {
        let changed = space.changed.subscribe();
        let (epoch, _) = changes.pages.standing(&space.key, Instant::now());
        let mut state = space.lock();
        state.listeners += 1;
        state.request = request.clone();
        state.come_back(epoch);
        state.sharing.note_listener();
        drop(state);
        space.wake.notify_one();
        space.share.notify_one();
        Self {
            changes,
            space,
            changed,
        }
    }

    /// Waits until the space was read for the first time; if it never was, reads its first range as a client's request.
    ///
    /// # Errors
    ///
    /// Returns why it cannot be read.
    pub async fn ready(&self, request: &ClientRequest) -> Result<(), PagesError> {
        let until = Instant::now() + self.changes.pages.patience();
        let mut changed = self.space.changed.subscribe();
        let mut reads = 0;
        loop {
            changed.borrow_and_update();
            let opening = self.space.lock().opening();
            match (opening, reads) {
                (Opening::Open, _) | (Opening::Unread, MOST_FIRST_READS..) => return Ok(()),
                // One who follows learns so whether it may be read at all.
                (Opening::Unread, _) | (Opening::ReadElsewhere, 0) => {
                    reads += 1;
                    self.read_first(request).await?;
                }
                (Opening::ReadElsewhere | Opening::Unknown, _) => {
                    if timeout_at(until, changed.changed()).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Reads the first range as a client's request.
    async fn read_first(&self, request: &ClientRequest) -> Result<(), PagesError> {
        let size = self.changes.pages.range_size(request);
        self.space.lock().range_size = size.into();
        let query = PageQuery {
            page: 1,
            page_size: size,
        };
        let request = ClientRequest {
            directives: RequestDirectives::default(),
            ..request.for_page(query)
        };
        let served = self.changes.pages.page(&request).await?;
        if !self.space.lock().current().feed.watched.has_begun() {
            let received = served.page.received();
            let call = CallTimes {
                sent: received,
                received,
            };
            let key = request.key();
            self.changes.take(&self.space, &key, &served.page, call);
        }
        Ok(())
    }

    /// Has the space's pages asked for as `request` does from now on.
    pub fn renew(&self, request: &ClientRequest) {
        self.space.lock().request = request.clone();
    }

    /// Where a client begins that wants to begin at `after`.
    ///
    /// # Errors
    ///
    /// Returns why that cannot be, and from where it may go on.
    pub fn begin(&self, after: &After) -> Result<Position, (Gone, Position)> {
        let feed = &self.space.lock().seen.feed;
        match after {
            After::Now => Ok(feed.log.end()),
            After::Start => Ok(feed.start()),
            After::Cursor(position) => match feed.log.check(position) {
                Ok(()) => Ok(*position),
                Err(reason) => Err((reason, feed.anew())),
            },
        }
    }

    /// What comes behind `position`.
    ///
    /// # Errors
    ///
    /// Returns why nobody can tell, and from where the reader may go on.
    pub fn read(&self, position: Position, wanted: &Wanted<'_>) -> Result<Batch, (Gone, Position)> {
        let seen_at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let feed = &self.space.lock().seen.feed;
        let read = feed.read(position, wanted, &seen_at);
        read.map_err(|reason| (reason, feed.anew()))
    }

    /// The cursor that names `position`.
    #[must_use]
    pub fn cursor(&self, position: Position) -> String {
        self.space.cursors.write(Cursor::At(position))
    }

    #[must_use]
    pub fn status(&self) -> Status {
        self.space.lock().status(Instant::now())
    }

    /// Waits until there may be something new since it was called last.
    pub async fn changed(&mut self) {
        // The space lives as long as this.
        let _ = self.changed.changed().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.space.lock();
        state.listeners -= 1;
        if state.listeners == 0 {
            state.idle_since = Instant::now();
        }
        drop(state);
        self.space.wake.notify_one();
    }
}
