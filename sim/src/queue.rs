//! The one event queue: ordered by time, and by order of insertion among equals.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use iota_protocol::Instant;

/// Events in the order in which they happen, and the virtual clock, which is the time of the newest one taken.
///
/// Events stay where they were put; what is sorted are the small entries that point to them.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry>>,
    /// Entries that came in their order already: deadlines of one length, most of which outlive what they were set for.
    lane: VecDeque<Entry>,
    events: Vec<Option<E>>,
    /// Places in `events` without one.
    free: Vec<usize>,
    inserted: u64,
    now: Instant,
}

/// When an event happens, how many were inserted before it, and its place.
type Entry = (Instant, u64, usize);

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            lane: VecDeque::new(),
            events: Vec::new(),
            free: Vec::new(),
            inserted: 0,
            // Zero is "never" to some of the protocol's timers.
            now: Instant::from_nanos(1),
        }
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
        self.heap.len() + self.lane.len()
    }

    /// Whether nothing will happen any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets `event` happen `delay` from now.
    pub fn push(&mut self, delay: Duration, event: E) {
        self.push_at(self.now + delay, event);
    }

    /// Lets `event` happen at `at`, or now if that has passed.
    pub fn push_at(&mut self, at: Instant, event: E) {
        let entry = self.place(at, event);
        self.heap.push(Reverse(entry));
    }

    /// Lets `event` happen at `at`, as [`push_at`](Self::push_at) does; cheap if it is the last of those inserted so.
    pub fn push_deadline(&mut self, at: Instant, event: E) {
        let entry = self.place(at, event);
        if self.lane.back().is_none_or(|last| *last < entry) {
            self.lane.push_back(entry);
        } else {
            self.heap.push(Reverse(entry));
        }
    }

    fn place(&mut self, at: Instant, event: E) -> Entry {
        self.inserted += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        (at.max(self.now), self.inserted, place)
    }

    /// The next event, if it happens at `until` or before; the clock moves to it.
    pub fn pop_until(&mut self, until: Instant) -> Option<E> {
        let (first, waiting) = (self.heap.peek().map(|Reverse(entry)| entry), self.lane.front());
        let from_lane = first.is_none_or(|first| waiting.is_some_and(|waiting| waiting < first));
        if (if from_lane { waiting } else { first }).is_none_or(|(at, ..)| *at > until) {
            return None;
        }
        let (at, _, place) =
            if from_lane { self.lane.pop_front()? } else { self.heap.pop().map(|Reverse(entry)| entry)? };
        self.now = at;
        self.free.push(place);
        self.events[place].take()
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

    #[test]
    fn deadlines_are_in_the_same_order_as_everything_else() {
        let mut queue = Queue::default();
        let at = |seconds| Instant::ZERO + Duration::from_secs(seconds);
        queue.push_deadline(at(2), 'b');
        queue.push_at(at(2), 'c');
        queue.push_deadline(at(3), 'e');
        queue.push_deadline(at(1), 'a');
        queue.push_at(at(2), 'd');
        assert_eq!(queue.len(), 5);
        let taken: String = std::iter::from_fn(|| queue.pop_until(at(2))).collect();
        assert_eq!((taken.as_str(), queue.len()), ("abcd", 1));
        assert_eq!(queue.pop_until(at(3)), Some('e'));
        assert!(queue.is_empty());
    }
}
