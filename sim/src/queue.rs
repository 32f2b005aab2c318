//! The one event queue: ordered by time, and by order of insertion among equals.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use iota_protocol::Instant;

/// Events in the order in which they happen, and the virtual clock, which is the time of the newest one taken.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<Item<E>>>,
    inserted: u64,
    now: Instant,
}

#[derive(Debug)]
struct Item<E> {
    at: Instant,
    sequence: u64,
    event: E,
}

impl<E> PartialEq for Item<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl<E> Eq for Item<E> {}

impl<E> PartialOrd for Item<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Item<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        // Zero is "never" to some of the protocol's timers.
        Self { heap: BinaryHeap::new(), inserted: 0, now: Instant::from_nanos(1) }
    }
}

impl<E> Queue<E> {
    /// The virtual time.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// Events waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether nothing will happen any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Lets `event` happen `delay` from now.
    pub fn push(&mut self, delay: Duration, event: E) {
        self.push_at(self.now + delay, event);
    }

    /// Lets `event` happen at `at`, or now if that has passed.
    pub fn push_at(&mut self, at: Instant, event: E) {
        self.inserted += 1;
        self.heap.push(Reverse(Item { at: at.max(self.now), sequence: self.inserted, event }));
    }

    /// The next event, if it happens at `until` or before; the clock moves to it.
    pub fn pop_until(&mut self, until: Instant) -> Option<E> {
        if self.heap.peek().is_none_or(|Reverse(item)| item.at > until) {
            return None;
        }
        let Reverse(item) = self.heap.pop()?;
        self.now = item.at;
        Some(item.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_happen_by_time_and_by_insertion_among_equals() {
        let mut queue = Queue::default();
        let start = queue.now();
        for (delay, event) in [(3, 'd'), (1, 'a'), (2, 'b'), (2, 'c')] {
            queue.push(Duration::from_secs(delay), event);
        }
        let far = start + Duration::from_secs(2);
        let taken: String = std::iter::from_fn(|| queue.pop_until(far)).collect();
        assert_eq!((taken.as_str(), queue.now(), queue.len()), ("abc", far, 1));
        queue.push_at(start, 'e');
        assert_eq!(queue.pop_until(start + Duration::from_secs(9)), Some('e'), "the past happens now");
        assert_eq!(queue.now(), far);
    }
}
