/// What the upstream said no to for good, as far as it can be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    SpaceNotFound,
    SpaceAccessDenied,
    /// This page was refused.
    Rejected,
    /// An inner service fails on this page: one bad task does it until it is mended.
    Failed,
    /// The answer for this page was too large, or no page: it is not asked for again at once.
    Invalid,
}
