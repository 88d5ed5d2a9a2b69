//! A body in the content codings that clients accept. Each is made at most once while it is in use; of a body that nobody asks for one
//! copy is left, from which the others are made again on demand.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::{sync::Mutex, time::Instant};

use super::{
    compression::{compress, decompress},
    http_semantics::ContentCoding,
    memory::{BodyMemory, Counted},
};
use crate::off_runtime::by_size;

mod compressing;
mod plan;

pub use self::compressing::WhenBusy;
use self::{
    compressing::on_its_threads,
    plan::{LastUsed, Plan, plan},
};

/// Compressing less saves nothing worth naming: the rest of an entry is as large.
const SMALLEST_COMPRESSED: usize = 4 << 10;

/// The plain body was copied to an allocation of its own; do not do it again.
const RELOCATED: u32 = u32::MAX;

/// How many encodings a body may have.
const ENCODINGS: usize = ContentCoding::BY_PREFERENCE.len();

/// What a body can be compressed with, best first.
const BEST_FIRST: [ContentCoding; 3] = [
    ContentCoding::Brotli,
    ContentCoding::Zstd,
    ContentCoding::Gzip,
];
/// The same where the body came in gzip, which costs nothing more.
const GZIP_FIRST: [ContentCoding; 3] = [
    ContentCoding::Gzip,
    ContentCoding::Brotli,
    ContentCoding::Zstd,
];

/// A body, plain and compressed, as far as either is available. One encoding always is.
pub struct Encodings {
    available: ArcSwap<Available>,
    /// Held by whoever makes an encoding or drops some.
    changing: Mutex<()>,
    /// Of the plain body.
    length: usize,
    since: Instant,
    /// When each was used last, in seconds since `since`.
    last_used: [AtomicU32; ENCODINGS],
    came_in_gzip: bool,
    /// Whether compression was tried and saved too little.
    incompressible: AtomicBool,
    /// Since which second the plain body has been in its present allocation; [`RELOCATED`] once it was copied.
    allocated_at: AtomicU32,
    memory: BodyMemory,
}

/// A body in one content coding.
#[derive(Clone, Debug)]
pub struct EncodedBody {
    pub bytes: Bytes,
    pub coding: ContentCoding,
    /// To be held as long as the bytes are.
    pub counted: Counted,
}

impl EncodedBody {
    fn new(bytes: Bytes, coding: ContentCoding, memory: &BodyMemory) -> Self {
        Self {
            counted: memory.count(bytes.len()),
            coding,
            bytes,
        }
    }
}

/// What [`Encodings::compress_idle`] came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdleCompression {
    /// Whether the body occupies less than before.
    pub changed: bool,
    /// When there may be more to do, if nobody asks until then.
    pub due: Option<Instant>,
}

impl IdleCompression {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            changed: self.changed || other.changed,
            due: self.due.into_iter().chain(other.due).min(),
        }
    }
}

impl Encodings {
    /// The plain `body`, as if used now. `memory` counts each encoding for as long as anybody holds it.
    #[must_use]
    pub fn new(body: Bytes, now: Instant, memory: &BodyMemory) -> Self {
        let length = body.len();
        let plain = EncodedBody::new(body, ContentCoding::Identity, memory);
        Self {
            length,
            memory: memory.clone(),
            available: ArcSwap::from_pointee(Available::default().with(plain)),
            changing: Mutex::new(()),
            since: now,
            last_used: Default::default(),
            came_in_gzip: false,
            incompressible: AtomicBool::new(false),
            allocated_at: AtomicU32::new(0),
        }
    }

    /// The same body, which came as `gzip`.
    #[must_use]
    pub(super) fn with_gzip(mut self, gzip: Bytes) -> Self {
        let gzip = EncodedBody::new(gzip, ContentCoding::Gzip, &self.memory);
        let available = self.available.load().with(gzip);
        self.available.store(Arc::new(available));
        self.came_in_gzip = true;
        self
    }

    /// What the body can be compressed with, best first.
    #[must_use]
    pub fn codings(&self) -> &'static [ContentCoding] {
        if self.came_in_gzip {
            &GZIP_FIRST
        } else {
            &BEST_FIRST
        }
    }

    /// The body in `coding`, if it is available.
    #[must_use]
    pub fn take(&self, coding: ContentCoding, now: Instant) -> Option<EncodedBody> {
        let encoded = self.available.load().get(coding)?.clone();
        self.note_use(coding, now);
        Some(encoded)
    }

    /// What counts the encodings.
    pub(super) fn memory(&self) -> &BodyMemory {
        &self.memory
    }

    /// The body in `coding`, made if need be: compressed on threads of low priority.
    ///
    /// The plain body where compression failed.
    pub async fn get(&self, coding: ContentCoding, now: Instant) -> EncodedBody {
        self.get_unless(WhenBusy::Wait, coding, now).await
    }

    /// As [`Self::get`]; `busy` says what to do where too many bodies wait to be compressed.
    pub async fn get_unless(
        &self,
        busy: WhenBusy,
        coding: ContentCoding,
        now: Instant,
    ) -> EncodedBody {
        match self.take(coding, now) {
            Some(encoded) => encoded,
            // Boxed: an inline wait would enlarge the future of every answer.
            None => Box::pin(self.make(busy, coding, now)).await,
        }
    }

    /// The plain body, for work on the page: where only a compressed one is available, it is decompressed and not kept.
    #[must_use]
    pub fn plain(&self) -> Bytes {
        let plain = self.available.load().plain(self.length);
        plain.expect("what was compressed here can be decompressed")
    }

    /// Whether the body is available in `coding`.
    #[must_use]
    pub fn is_available(&self, coding: ContentCoding) -> bool {
        self.available.load().get(coding).is_some()
    }

    /// How long the plain body is.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// How long the body is in `coding`, if that is known without making it.
    #[must_use]
    pub fn length_in(&self, coding: ContentCoding) -> Option<usize> {
        match coding {
            ContentCoding::Identity => Some(self.length),
            ContentCoding::Brotli | ContentCoding::Zstd | ContentCoding::Gzip => {
                let available = self.available.load();
                available.get(coding).map(|encoded| encoded.bytes.len())
            }
        }
    }

    /// Bytes of all that is available.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.available.load().weight()
    }

    /// Drops what nobody used for `idle_after` (whole seconds): the plain body, and all compressed ones but the one used last where none is
    /// in use either. Where there is none yet it is made first, which takes time in proportion to the body.
    pub fn compress_idle(&self, now: Instant, idle_after: Duration) -> IdleCompression {
        let idle_s = u32::try_from(idle_after.as_secs()).unwrap_or(u32::MAX);
        // An encoding being made was asked for just now.
        let Ok(_changing) = self.changing.try_lock() else {
            return IdleCompression {
                changed: false,
                due: Some(now + idle_after),
            };
        };
        if self.length < SMALLEST_COMPRESSED {
            return IdleCompression::default();
        }
        let available = self.available.load_full();
        let left = match plan(&self.last_used_of(&available), self.seconds(now), idle_s) {
            Plan::Nothing => return IdleCompression::default(),
            Plan::NotBefore(second) => {
                self.relocate(&available, self.seconds(now), idle_s);
                return IdleCompression {
                    changed: false,
                    due: Some(self.since + Duration::from_secs(second.into())),
                };
            }
            Plan::DropPlain => available.without(ContentCoding::Identity),
            Plan::DropAllBut(coding) => available.only(coding),
            Plan::Compress => match self.compressed(&available) {
                Some(left) => left,
                None => return IdleCompression::default(),
            },
        };
        let due = self.due_of(&left, idle_s);
        self.available.store(Arc::new(left));
        IdleCompression { changed: true, due }
    }

    /// Copies a plain body that has stayed in use, once. Its neighbours in memory, allocated when it was, are compressed and freed by now, and
    /// an allocator gives no memory back that holds anything: without this a tenth of the pages in use kept all of it resident.
    fn relocate(&self, available: &Available, now: u32, idle_s: u32) {
        let since = self.allocated_at.load(Ordering::Relaxed);
        if since == RELOCATED || now < since.saturating_add(idle_s) {
            return;
        }
        if let Some(plain) = available.get(ContentCoding::Identity) {
            let copy = Bytes::copy_from_slice(&plain.bytes);
            let copy = EncodedBody::new(copy, ContentCoding::Identity, &self.memory);
            self.available.store(Arc::new(available.with(copy)));
        }
        self.allocated_at.store(RELOCATED, Ordering::Relaxed);
    }

    fn due_of(&self, left: &Available, idle_s: u32) -> Option<Instant> {
        match plan(&self.last_used_of(left), 0, idle_s) {
            Plan::NotBefore(second) => Some(self.since + Duration::from_secs(second.into())),
            Plan::Nothing | Plan::DropPlain | Plan::DropAllBut(_) | Plan::Compress => None,
        }
    }

    /// A compressed body alone; `None` where it saves less than a third. Nobody waits for it: zstd is compressed and decompressed most
    /// quickly.
    fn compressed(&self, available: &Available) -> Option<Available> {
        if self.incompressible.load(Ordering::Relaxed) {
            return None;
        }
        let bytes = available.make(ContentCoding::Zstd, self.length).ok();
        let bytes = bytes.filter(|bytes| bytes.len() <= self.length / 3 * 2);
        if bytes.is_none() {
            self.incompressible.store(true, Ordering::Relaxed);
        }
        let encoded = EncodedBody::new(bytes?, ContentCoding::Zstd, &self.memory);
        Some(Available::default().with(encoded))
    }

    async fn make(&self, busy: WhenBusy, coding: ContentCoding, now: Instant) -> EncodedBody {
        let changing = self.changing.lock().await;
        if let Some(encoded) = self.take(coding, now) {
            return encoded;
        }
        let (available, length) = (self.available.load_full(), self.length);
        let work = {
            let available = available.clone();
            move || available.make(coding, length)
        };
        let made = match coding {
            // Decompressing takes a fraction of the time: an answer that needs it does not wait behind compressions.
            ContentCoding::Identity => Some(by_size(length, work).await),
            ContentCoding::Brotli | ContentCoding::Zstd | ContentCoding::Gzip => {
                on_its_threads(busy, work).await
            }
        };
        let Some(made) = made else {
            drop(changing);
            return Box::pin(self.get(ContentCoding::Identity, now)).await;
        };
        let Ok(bytes) = made else {
            return EncodedBody::new(self.plain(), ContentCoding::Identity, &self.memory);
        };
        let encoded = EncodedBody::new(bytes, coding, &self.memory);
        self.available
            .store(Arc::new(available.with(encoded.clone())));
        self.note_use(coding, now);
        if coding == ContentCoding::Identity {
            self.allocated_at
                .store(self.seconds(now), Ordering::Relaxed);
        }
        encoded
    }

    /// Written only when the second has changed, so that the cache line stays shared between cores.
    fn note_use(&self, coding: ContentCoding, now: Instant) {
        let second = self.seconds(now);
        let last_used = &self.last_used[coding as usize];
        if last_used.load(Ordering::Relaxed) < second {
            last_used.store(second, Ordering::Relaxed);
        }
    }

    fn last_used_of(&self, available: &Available) -> LastUsed {
        ContentCoding::BY_PREFERENCE.map(|coding| {
            available.get(coding)?;
            Some(self.last_used[coding as usize].load(Ordering::Relaxed))
        })
    }

    fn seconds(&self, now: Instant) -> u32 {
        let since = now.saturating_duration_since(self.since);
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    }
}

/// Without the tasks: they hold people's names, numbers and words.
impl fmt::Debug for Encodings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths = ContentCoding::BY_PREFERENCE.map(|coding| (coding, self.length_in(coding)));
        f.debug_struct("Encodings")
            .field("length", &self.length)
            .field("available", &lengths)
            .finish()
    }
}

/// The encodings that are available, by coding.
#[derive(Clone, Default)]
struct Available([Option<EncodedBody>; ENCODINGS]);

impl Available {
    fn get(&self, coding: ContentCoding) -> Option<&EncodedBody> {
        self.0[coding as usize].as_ref()
    }

    fn weight(&self) -> usize {
        let available = self.0.iter().flatten();
        available.map(|encoded| encoded.bytes.len()).sum()
    }

    fn with(&self, encoded: EncodedBody) -> Self {
        let mut available = self.clone();
        let place = encoded.coding as usize;
        available.0[place] = Some(encoded);
        available
    }

    fn without(&self, coding: ContentCoding) -> Self {
        let mut available = self.clone();
        available.0[coding as usize] = None;
        available
    }

    fn only(&self, coding: ContentCoding) -> Self {
        let encoded = self.get(coding).cloned();
        encoded.map_or_else(Self::default, |encoded| Self::default().with(encoded))
    }

    /// What the plain body is read from: itself, else what is decompressed most quickly.
    fn source(&self) -> Option<&EncodedBody> {
        let by_speed = [
            ContentCoding::Identity,
            ContentCoding::Zstd,
            ContentCoding::Gzip,
            ContentCoding::Brotli,
        ];
        by_speed.into_iter().find_map(|coding| self.get(coding))
    }

    fn plain(&self, length: usize) -> io::Result<Bytes> {
        let source = self.source().ok_or(io::ErrorKind::NotFound)?;
        decompress(source.coding, &source.bytes, length)
    }

    fn make(&self, coding: ContentCoding, length: usize) -> io::Result<Bytes> {
        let plain = self.plain(length)?;
        match coding {
            ContentCoding::Identity => Ok(plain),
            ContentCoding::Brotli | ContentCoding::Zstd | ContentCoding::Gzip => {
                compress(coding, &plain)
            }
        }
    }
}

#[cfg(test)]
mod tests;
