//! Who listens to a space: reads its log at its own pace, and is woken when there may be more.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    BadCursor, Changes, Event, Projection, Status, TaskEvents,
    cursor::{Cursor, Position},
    cursor_key,
    feed::Wanted,
    log::Gone,
    sharing::Opening,
    space::Space,
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
    Cursor(Place),
}

/// What a cursor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(Position);

/// Why a cursor cannot be honoured, and one to go on with.
#[derive(Clone, Debug)]
pub struct Lost {
    pub reason: Gone,
    pub cursor: String,
}

/// What a reader gets at once.
#[derive(Clone, Debug)]
pub struct Events {
    pub events: Vec<Event>,
    pub place: Place,
    pub has_more: bool,
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
            Cursor::At(position) => After::Cursor(Place(position)),
        })
    }

    /// Whether a client may go on from `place`. Watches nothing, and costs nothing.
    ///
    /// # Errors
    ///
    /// Returns why not, and from where it may.
    pub fn check_cursor(&self, request: &ClientRequest, place: &Place) -> Result<(), Lost> {
        // Another replica may have given it: that is known once the feed is loaded.
        if self.pages.shared_cache().is_some() {
            return Ok(());
        }
        let Some(space) = self.known(request) else {
            let is_ours = place.0.incarnation.process == self.process;
            return Err(Lost {
                reason: if is_ours {
                    Gone::Expired
                } else {
                    Gone::Restart
                },
                // Whatever is there by the time it is used.
                cursor: cursor_key(request).write(Cursor::Start),
            });
        };
        self.note_standing(&space);
        let state = space.lock();
        let feed = &state.seen.feed;
        feed.check(&place.0).map_err(|reason| Lost {
            reason,
            cursor: space.cursors.write(match feed.watched().has_begun() {
                true => Cursor::At(feed.end()),
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
    changed: watch::Receiver<u64>,
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
            query,
            directives: RequestDirectives::default(),
            ..request.clone()
        };
        let served = self.changes.pages.page(&request).await?;
        if !self.space.lock().current().feed.watched().has_begun() {
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
    pub fn begin(&self, after: &After) -> Result<Place, (Gone, Place)> {
        let feed = &self.space.lock().seen.feed;
        match after {
            After::Now => Ok(Place(feed.end())),
            After::Start => Ok(Place(feed.start())),
            After::Cursor(place) => match feed.check(&place.0) {
                Ok(()) => Ok(*place),
                Err(reason) => Err((reason, Place(feed.anew()))),
            },
        }
    }

    /// At most `limit` events behind `place`.
    ///
    /// # Errors
    ///
    /// Returns why nobody can tell, and from where the reader may go on.
    pub fn read(
        &self,
        place: Place,
        projection: &Projection,
        kinds: TaskEvents,
        limit: usize,
    ) -> Result<Events, (Gone, Place)> {
        let wanted = Wanted {
            projection,
            kinds,
            limit,
        };
        let seen_at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let feed = &self.space.lock().seen.feed;
        match feed.read(place.0, &wanted, &seen_at) {
            Ok(batch) => Ok(Events {
                events: batch.events,
                place: Place(batch.position),
                has_more: batch.has_more,
            }),
            Err(reason) => Err((reason, Place(feed.anew()))),
        }
    }

    /// The cursor that names `place`.
    #[must_use]
    pub fn cursor(&self, place: Place) -> String {
        self.space.cursors.write(Cursor::At(place.0))
    }

    /// The cursor behind `event`.
    #[must_use]
    pub fn cursor_behind(&self, event: &Event) -> String {
        self.cursor(Place(event.position))
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

    /// How long a client that reads nothing in between may wait.
    #[must_use]
    pub fn next_poll(&self) -> Duration {
        self.status().next_poll
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
