//! Field values that tell a number of seconds, as `Age` does: each made once, whoever asks.
//!
//! A page that made its own anew each second cost a hit three lines of memory more, and each copy of one two counts that cores share.

use std::sync::OnceLock;

use http::HeaderValue;

/// As many are made at a time.
const STRETCH: u64 = 64;
/// So many stretches are kept, four hours: what tells more is made for each answer.
const STRETCHES: usize = 225;

/// The values that `write` gives, from 0 up.
#[derive(Debug)]
pub struct Seconds {
    write: fn(u64) -> String,
    made: [OnceLock<Box<[HeaderValue]>>; STRETCHES],
}

impl Seconds {
    /// `write` gives visible ASCII.
    #[must_use]
    pub const fn new(write: fn(u64) -> String) -> Self {
        Self {
            write,
            made: [const { OnceLock::new() }; STRETCHES],
        }
    }

    /// The value for `seconds`.
    ///
    /// # Panics
    ///
    /// Panics where what is written is no field value.
    pub fn value(&'static self, seconds: u64) -> HeaderValue {
        let stretch = usize::try_from(seconds / STRETCH).ok();
        let Some(made) = stretch.and_then(|stretch| self.made.get(stretch)) else {
            let written = (self.write)(seconds);
            return HeaderValue::try_from(written).expect("visible ASCII is written");
        };
        let first = seconds - seconds % STRETCH;
        let made = made.get_or_init(|| (first..first + STRETCH).map(|s| self.kept(s)).collect());
        made[(seconds - first) as usize].clone()
    }

    /// Never freed, so that copies count no references: `self` is never dropped either.
    fn kept(&self, seconds: u64) -> HeaderValue {
        HeaderValue::from_static((self.write)(seconds).leak())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_told_as_itself_however_large() {
        static AGE: Seconds = Seconds::new(|seconds| seconds.to_string());
        let most = STRETCH * STRETCHES as u64;
        for seconds in [0, 1, 63, 64, 3_599, most - 1, most, u64::MAX] {
            assert_eq!(AGE.value(seconds), seconds.to_string());
        }
        assert_eq!(
            AGE.made.iter().filter(|made| made.get().is_some()).count(),
            4
        );
    }
}
