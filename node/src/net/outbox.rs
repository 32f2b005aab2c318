//! Gossip that could not be sent at once and waits for a subscriber or for room in a queue.
//!
//! Gossip is allowed to be lost, so the wait is short and the queue bounded: the oldest message goes
//! first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Messages that may wait. At one announcement a second per topic this outlasts their time limit.
const WAITING_MAX: usize = 256;
/// How long a message may wait. An announcement older than this has been overtaken by the next one.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(10);
/// Pause between attempts; a new connection takes about this long to say what it subscribes to.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// A message that waits to be published.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) topic: String,
    pub(super) bytes: Vec<u8>,
    expires: Instant,
}

/// Messages that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Waiting>,
    retry_at: Option<Instant>,
}

impl Outbox {
    /// Keeps a message for later. Returns how many older ones were dropped for it.
    pub(super) fn keep(&mut self, topic: String, bytes: Vec<u8>, now: Instant) -> u64 {
        let dropped = if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
            1
        } else {
            0
        };
        self.waiting.push_back(Waiting { topic, bytes, expires: now + WAIT_MAX });
        self.retry_at.get_or_insert(now + RETRY_EVERY);
        dropped
    }

    /// Returns the moment of the next attempt, if a message waits.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries every waiting message when an attempt is due. `publish` says whether the message is done
    /// with. Returns how many messages were given up.
    pub(super) fn retry(&mut self, now: Instant, mut publish: impl FnMut(&Waiting) -> Attempt) -> u64 {
        if self.retry_at.is_none_or(|at| at > now) {
            return 0;
        }
        let mut given_up = 0;
        self.waiting.retain(|message| match publish(message) {
            Attempt::Done => false,
            Attempt::Later if message.expires <= now => {
                given_up += 1;
                false
            }
            Attempt::Later => true,
        });
        self.retry_at = (!self.waiting.is_empty()).then_some(now + RETRY_EVERY);
        given_up
    }
}

/// What became of one attempt to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    Done,
    Later,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_waits_is_retried_and_is_given_up_in_the_end() {
        let start = Instant::now();
        let mut outbox = Outbox::default();
        assert_eq!(outbox.keep("t".to_owned(), vec![1], start), 0);
        let mut now = start;
        let mut attempts = 0;
        let mut given_up = 0;
        while let Some(due) = outbox.next_due() {
            now = due;
            given_up += outbox.retry(now, |_| {
                attempts += 1;
                Attempt::Later
            });
        }
        assert_eq!(given_up, 1);
        assert_eq!(now - start, WAIT_MAX);
        assert_eq!(attempts, 100);
    }

    #[test]
    fn a_full_outbox_drops_its_oldest_message() {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        for message in 0..WAITING_MAX {
            assert_eq!(outbox.keep("t".to_owned(), vec![u8::try_from(message).unwrap()], now), 0);
        }
        assert_eq!(outbox.keep("t".to_owned(), vec![42], now), 1);
        let mut first = None;
        outbox.retry(now + RETRY_EVERY, |message| {
            first.get_or_insert(message.bytes[0]);
            Attempt::Done
        });
        assert_eq!(first, Some(1));
        assert_eq!(outbox.next_due(), None, "nothing is left to wait for");
    }
}
