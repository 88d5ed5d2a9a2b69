//! Which calls go first when there are too few.

/// The priority of a call, highest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A client waits, and nothing else can be served: the call queues.
    Waiting,
    /// The same after a failed try: first tries go before it.
    Retry,
    /// A client waits, but a stale page can be served instead: the call does not queue.
    HasFallback,
    /// Nobody waits: the last calls are left to others.
    Background,
}

impl Priority {
    pub(super) const ALL: [Self; 4] = [
        Self::Waiting,
        Self::Retry,
        Self::HasFallback,
        Self::Background,
    ];

    /// The priority of a retry.
    #[must_use]
    pub fn as_retry(self) -> Self {
        match self {
            Self::Waiting | Self::Retry => Self::Retry,
            Self::HasFallback | Self::Background => self,
        }
    }
}
