//! Counts the bytes of bodies in memory: stored ones, and those that only answers in flight still hold.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// How many bytes of bodies are in memory. A clone counts the same.
#[derive(Clone, Debug, Default)]
pub struct BodyMemory(Arc<AtomicUsize>);

impl BodyMemory {
    /// Counts a body of so many bytes.
    #[must_use]
    pub fn count(&self, bytes: usize) -> Counted {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Counted {
            _body: Arc::new(Body {
                bytes,
                memory: self.clone(),
            }),
        }
    }

    /// All that are counted now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Held by whatever holds a body, which counts until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Counted {
    _body: Arc<Body>,
}

#[derive(Debug)]
struct Body {
    bytes: usize,
    memory: BodyMemory,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.memory.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_counts_once_until_nobody_holds_it() {
        let memory = BodyMemory::default();
        let stored = memory.count(1000);
        let other = memory.count(10);
        let answers = [stored.clone(), stored.clone()];
        assert_eq!(memory.bytes(), 1010);
        drop((stored, other));
        assert_eq!(memory.bytes(), 1000);
        drop(answers);
        assert_eq!(memory.bytes(), 0);
    }
}
