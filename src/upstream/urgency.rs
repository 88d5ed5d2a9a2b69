//! How much a call matters when there are not enough for all.

/// How much a call matters; the first first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A client waits, and has nothing else: it stands in line.
    Waiting,
    /// The same after a try that failed: others have had none yet.
    Retry,
    /// A client waits, but a stale page may stand in: it takes what is there.
    CanStandIn,
    /// Nobody waits: it leaves the last calls to those who do.
    Background,
}

impl Urgency {
    pub(super) const ALL: [Self; 4] = [
        Self::Waiting,
        Self::Retry,
        Self::CanStandIn,
        Self::Background,
    ];

    /// How much a further try matters.
    #[must_use]
    pub fn of_a_retry(self) -> Self {
        match self {
            Self::Waiting | Self::Retry => Self::Retry,
            Self::CanStandIn | Self::Background => self,
        }
    }
}
