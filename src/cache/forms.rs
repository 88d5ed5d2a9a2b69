//! A body in the codings that clients take. Each is made at most once while it is in use; of a body that nobody asks for one copy is
//! left, from which the others are made again on demand.

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
    coding::{decode, encode, is_quick},
    http_semantics::Coding,
    memory::{BodyMemory, Counted},
};

mod coders;

use self::coders::Coders;
pub use self::coders::WhenBusy;

/// Less is not worth packing: what else a page costs is as much.
const SMALLEST_PACKED: usize = 4 << 10;

/// The plain form was copied to an allocation of its own; do not do it again.
const SETTLED: u32 = u32::MAX;

/// How many forms a body may have.
const FORMS: usize = Coding::BY_PREFERENCE.len();

/// A body's forms: the identity and its coded variants, as far as they are there. One always is.
pub struct Forms {
    held: ArcSwap<Held>,
    /// Who makes a form, or drops some: one at a time.
    changing: Mutex<()>,
    /// Of the identity.
    length: usize,
    since: Instant,
    /// When each was taken last, in seconds since `since`.
    taken: [AtomicU32; FORMS],
    /// Whether coding it was tried and saved too little.
    stays_plain: AtomicBool,
    /// Since which second the plain form has been in its present allocation; [`SETTLED`] once it was copied.
    lies_since: AtomicU32,
    memory: BodyMemory,
}

/// A body as it goes out.
#[derive(Clone, Debug)]
pub struct Coded {
    pub bytes: Bytes,
    pub coding: Coding,
    /// To be held as long as the bytes are.
    pub counted: Counted,
}

/// What packing came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Whether it occupies less than before.
    pub changed: bool,
    /// When there may be more to pack, if nobody asks until then.
    pub due: Option<Instant>,
}

impl Packed {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            changed: self.changed || other.changed,
            due: self.due.into_iter().chain(other.due).min(),
        }
    }
}

impl Forms {
    /// The forms of `body`, of which the identity is there, as if taken now. `memory` counts each for as long as anybody holds it.
    #[must_use]
    pub fn new(body: Bytes, now: Instant, memory: &BodyMemory) -> Self {
        let length = body.len();
        let identity = Form::new(body, memory);
        Self {
            length,
            memory: memory.clone(),
            held: ArcSwap::from_pointee(Held::default().with(Coding::Identity, identity)),
            changing: Mutex::new(()),
            since: now,
            taken: Default::default(),
            stays_plain: AtomicBool::new(false),
            lies_since: AtomicU32::new(0),
        }
    }

    /// The body in `coding`, if it is there.
    #[must_use]
    pub fn take(&self, coding: Coding, now: Instant) -> Option<Coded> {
        let coded = self.held.load().coded(coding)?;
        self.note_taken(coding, now);
        Some(coded)
    }

    /// What counts the forms.
    pub(super) fn memory(&self) -> &BodyMemory {
        &self.memory
    }

    /// The body in `coding`, made from what is there if need be; quick work is done at once, the rest on a thread for blocking work.
    ///
    /// The identity where coding failed.
    pub async fn get(&self, coding: Coding, now: Instant) -> Coded {
        self.get_unless(WhenBusy::Wait, coding, now).await
    }

    /// As [`Self::get`]; `busy` says what to do where too many wait for a coder.
    pub async fn get_unless(&self, busy: WhenBusy, coding: Coding, now: Instant) -> Coded {
        match self.take(coding, now) {
            Some(coded) => coded,
            // Boxed: what it takes to wait would be part of every answer that need not.
            None => Box::pin(self.make(busy, coding, now)).await,
        }
    }

    /// The identity, for work on the page: where it is not there, it is read back and not kept.
    #[must_use]
    pub fn plain(&self) -> Bytes {
        let plain = self.held.load().plain(self.length);
        plain.expect("what was coded here can be read back")
    }

    /// Whether the form is there.
    #[must_use]
    pub fn is_held(&self, coding: Coding) -> bool {
        self.held.load().get(coding).is_some()
    }

    /// How long the identity is.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// How long the body is in `coding`, if that is known without making it.
    #[must_use]
    pub fn length_in(&self, coding: Coding) -> Option<usize> {
        match coding {
            Coding::Identity => Some(self.length),
            Coding::Brotli | Coding::Zstd | Coding::Gzip => {
                self.held.load().get(coding).map(Bytes::len)
            }
        }
    }

    /// Bytes of all that is there.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.held.load().weight()
    }

    /// Drops what nobody took for `cold_after` (whole seconds): the identity, and all variants but the one taken last where none is
    /// taken either. Where there is none yet it is made first, which takes time in proportion to the body.
    pub fn pack(&self, now: Instant, cold_after: Duration) -> Packed {
        let cold_s = u32::try_from(cold_after.as_secs()).unwrap_or(u32::MAX);
        // Who is making another form has just been asked for it.
        let Ok(_changing) = self.changing.try_lock() else {
            return Packed {
                changed: false,
                due: Some(now + cold_after),
            };
        };
        if self.length < SMALLEST_PACKED {
            return Packed::default();
        }
        let held = self.held.load_full();
        let kept = match plan(&self.taken_of(&held), self.seconds(now), cold_s) {
            Plan::Nothing => return Packed::default(),
            Plan::NotBefore(second) => {
                self.settle(&held, self.seconds(now), cold_s);
                return Packed {
                    changed: false,
                    due: Some(self.since + Duration::from_secs(second.into())),
                };
            }
            Plan::Variants => held.without(Coding::Identity),
            Plan::Only(coding) => held.only(coding),
            Plan::Code => match self.packed(&held) {
                Some(kept) => kept,
                None => return Packed::default(),
            },
        };
        let due = self.due_of(&kept, cold_s);
        self.held.store(Arc::new(kept));
        Packed { changed: true, due }
    }

    /// Moves an identity that has stayed in use, once. It lies among others that were made when it was and that are packed by now, and an
    /// allocator gives no memory back that holds anything: without this a tenth of the pages in use kept all of it resident.
    fn settle(&self, held: &Held, now: u32, cold_s: u32) {
        let since = self.lies_since.load(Ordering::Relaxed);
        if since == SETTLED || now < since.saturating_add(cold_s) {
            return;
        }
        if let Some(plain) = held.get(Coding::Identity) {
            let copy = Form::new(Bytes::copy_from_slice(plain), &self.memory);
            let moved = held.with(Coding::Identity, copy);
            self.held.store(Arc::new(moved));
        }
        self.lies_since.store(SETTLED, Ordering::Relaxed);
    }

    fn due_of(&self, kept: &Held, cold_s: u32) -> Option<Instant> {
        match plan(&self.taken_of(kept), 0, cold_s) {
            Plan::NotBefore(second) => Some(self.since + Duration::from_secs(second.into())),
            Plan::Nothing | Plan::Variants | Plan::Only(_) | Plan::Code => None,
        }
    }

    /// A coded copy alone; `None` where it saves less than a third. Nobody waits for it: the coding is the one that is made and read back most
    /// quickly.
    fn packed(&self, held: &Held) -> Option<Held> {
        if self.stays_plain.load(Ordering::Relaxed) {
            return None;
        }
        let copy = held.make(Coding::Zstd, self.length).ok();
        let copy = copy.filter(|copy| copy.len() <= self.length / 3 * 2);
        if copy.is_none() {
            self.stays_plain.store(true, Ordering::Relaxed);
        }
        let copy = Form::new(copy?, &self.memory);
        Some(Held::default().with(Coding::Zstd, copy))
    }

    async fn make(&self, busy: WhenBusy, coding: Coding, now: Instant) -> Coded {
        let changing = self.changing.lock().await;
        if let Some(coded) = self.take(coding, now) {
            return coded;
        }
        let (held, length) = (self.held.load_full(), self.length);
        let made = if held.makes_quickly(coding, length) {
            held.make(coding, length)
        } else {
            let Some(turn) = Coders::get().turn(coding, busy).await else {
                drop(changing);
                return Box::pin(self.get(Coding::Identity, now)).await;
            };
            let held = held.clone();
            let making = tokio::task::spawn_blocking(move || {
                // Its work goes on where the client has gone.
                let _turn = turn;
                held.make(coding, length)
            });
            making
                .await
                .unwrap_or_else(|ended| Err(io::Error::other(ended)))
        };
        let Ok(bytes) = made else {
            return Form::new(self.plain(), &self.memory).coded(Coding::Identity);
        };
        let form = Form::new(bytes, &self.memory);
        self.held.store(Arc::new(held.with(coding, form.clone())));
        self.note_taken(coding, now);
        if coding == Coding::Identity {
            self.lies_since.store(self.seconds(now), Ordering::Relaxed);
        }
        form.coded(coding)
    }

    /// Written only when the second has changed: readers on other cores keep the line.
    fn note_taken(&self, coding: Coding, now: Instant) {
        let second = self.seconds(now);
        let taken = &self.taken[coding as usize];
        if taken.load(Ordering::Relaxed) < second {
            taken.store(second, Ordering::Relaxed);
        }
    }

    fn taken_of(&self, held: &Held) -> Taken {
        Coding::BY_PREFERENCE.map(|coding| {
            held.get(coding)?;
            Some(self.taken[coding as usize].load(Ordering::Relaxed))
        })
    }

    fn seconds(&self, now: Instant) -> u32 {
        let since = now.saturating_duration_since(self.since);
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    }
}

/// Without the tasks: they hold people's names, numbers and words.
impl fmt::Debug for Forms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = Coding::BY_PREFERENCE.map(|coding| (coding, self.length_in(coding)));
        f.debug_struct("Forms")
            .field("length", &self.length)
            .field("held", &held)
            .finish()
    }
}

/// One form, counted for as long as anybody holds it.
#[derive(Clone)]
struct Form {
    bytes: Bytes,
    counted: Counted,
}

impl Form {
    fn new(bytes: Bytes, memory: &BodyMemory) -> Self {
        Self {
            counted: memory.count(bytes.len()),
            bytes,
        }
    }

    fn coded(self, coding: Coding) -> Coded {
        Coded {
            bytes: self.bytes,
            coding,
            counted: self.counted,
        }
    }
}

/// The forms that are there, by coding.
#[derive(Clone, Default)]
struct Held([Option<Form>; FORMS]);

impl Held {
    fn get(&self, coding: Coding) -> Option<&Bytes> {
        let form = self.0[coding as usize].as_ref();
        form.map(|form| &form.bytes)
    }

    fn coded(&self, coding: Coding) -> Option<Coded> {
        let form = self.0[coding as usize].clone();
        form.map(|form| form.coded(coding))
    }

    fn weight(&self) -> usize {
        self.0.iter().flatten().map(|form| form.bytes.len()).sum()
    }

    fn with(&self, coding: Coding, form: Form) -> Self {
        let mut forms = self.0.clone();
        forms[coding as usize] = Some(form);
        Self(forms)
    }

    fn without(&self, coding: Coding) -> Self {
        let mut forms = self.0.clone();
        forms[coding as usize] = None;
        Self(forms)
    }

    fn only(&self, coding: Coding) -> Self {
        Self(Coding::BY_PREFERENCE.map(|other| {
            let form = self.0[other as usize].as_ref();
            form.filter(|_| other == coding).cloned()
        }))
    }

    /// What the identity is read from: itself, else what is read back most quickly.
    fn source(&self) -> Option<(Coding, &Bytes)> {
        let by_speed = [Coding::Identity, Coding::Zstd, Coding::Gzip, Coding::Brotli];
        by_speed
            .into_iter()
            .find_map(|coding| Some((coding, self.get(coding)?)))
    }

    fn plain(&self, length: usize) -> io::Result<Bytes> {
        let (coding, bytes) = self.source().ok_or(io::ErrorKind::NotFound)?;
        decode(coding, bytes, length)
    }

    fn make(&self, coding: Coding, length: usize) -> io::Result<Bytes> {
        let plain = self.plain(length)?;
        match coding {
            Coding::Identity => Ok(plain),
            Coding::Brotli | Coding::Zstd | Coding::Gzip => encode(coding, &plain),
        }
    }

    fn makes_quickly(&self, coding: Coding, length: usize) -> bool {
        let from = self.source().map(|(from, _)| from);
        coding == Coding::Identity && from.is_some_and(|from| is_quick(from, length))
    }
}

/// When each form that is there was taken last, in seconds, by coding.
type Taken = [Option<u32>; FORMS];

/// What to do about a body's forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// One is there, and it is coded.
    Nothing,
    /// All are in use; the next may be cold in that second.
    NotBefore(u32),
    /// The identity goes.
    Variants,
    /// All go but this one.
    Only(Coding),
    /// The identity goes, but there is no variant yet.
    Code,
}

/// Decides what of a body's forms is kept in the second `now`, where what nobody took for `cold_s` seconds is cold.
fn plan(taken: &Taken, now: u32, cold_s: u32) -> Plan {
    let identity = taken[Coding::Identity as usize];
    let variants = Coding::BY_PREFERENCE
        .into_iter()
        .filter(|coding| *coding != Coding::Identity);
    let mut variants = variants.filter_map(|coding| Some((taken[coding as usize]?, coding)));
    let last = variants.clone().max_by_key(|(taken, _)| *taken);
    let cold_at = |taken: u32| taken.saturating_add(cold_s);
    match (identity, last) {
        (Some(plain), _) if now < cold_at(plain) => Plan::NotBefore(cold_at(plain)),
        (Some(_), None) => Plan::Code,
        (Some(_), Some((last, _))) if now < cold_at(last) => Plan::Variants,
        (None, Some(_)) if variants.nth(1).is_none() => Plan::Nothing,
        (None, Some((last, _))) if now < cold_at(last) => Plan::NotBefore(cold_at(last)),
        (Some(_) | None, Some((_, coding))) => Plan::Only(coding),
        (None, None) => Plan::Nothing,
    }
}

#[cfg(test)]
mod tests;
