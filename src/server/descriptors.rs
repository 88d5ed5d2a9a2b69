//! How many descriptors the process may open, and how many connections fit into them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Beside connections: listeners, logs, Redis, the runtime's own, and one for each thread that may read a file or look up a name.
const RESERVED: u64 = 128;
/// However few descriptors there are, one in so many is for a connection.
const SMALLEST_SHARE: u64 = 4;

/// Raises the soft limit of open files to the hard one, and returns the one in force; `None`: there is none.
///
/// Service managers set a soft limit of 1,024 for programs that use `select`. A refusal is no error: the limit stays as it was.
#[must_use]
pub fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}

/// How many of `wanted` connections fit into `limit` descriptors beside `others` that the process needs for more than itself.
#[must_use]
pub fn connections_within(limit: Option<u64>, others: usize, wanted: usize) -> usize {
    let Some(limit) = limit else {
        return wanted;
    };
    let others = u64::try_from(others).unwrap_or(u64::MAX);
    let left = limit.saturating_sub(RESERVED).saturating_sub(others);
    let fit = left.max(limit / SMALLEST_SHARE).max(1);
    wanted.min(usize::try_from(fit).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        let table = [
            (None, 108, 10_000, 10_000),
            (Some(1 << 20), 108, 10_000, 10_000),
            (Some(10_236), 108, 10_000, 10_000),
            (Some(10_235), 108, 10_000, 9_999),
            (Some(1_024), 108, 10_000, 788),
            (Some(1_024), 108, 50, 50),
            (Some(256), 108, 10_000, 64),
            (Some(64), 108, 10_000, 16),
            (Some(1_024), usize::MAX, 10_000, 256),
            (Some(1), 108, 10_000, 1),
            (Some(0), 0, 10_000, 1),
        ];
        for (limit, others, wanted, expected) in table {
            let fit = connections_within(limit, others, wanted);
            assert_eq!(fit, expected, "{limit:?} {others} {wanted}");
        }
    }

    #[test]
    fn the_soft_limit_ends_at_the_hard_one() {
        let raised = raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!((raised, limit.current), (limit.maximum, limit.maximum));
    }
}
