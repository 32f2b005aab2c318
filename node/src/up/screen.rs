//! Progress on stderr: one block that is redrawn on a terminal, plain lines elsewhere.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

use super::view::{Notice, StagePhase, StageView, SwarmView};

/// Between two redraws on a terminal.
const REDRAW: Duration = Duration::from_millis(250);
/// Between two status lines elsewhere.
const STATUS: Duration = Duration::from_secs(10);

/// Draws the state of a swarm.
#[derive(Debug)]
pub struct Screen {
    kind: Kind,
    start: Instant,
    drawn: Option<Instant>,
}

#[derive(Debug)]
enum Kind {
    /// The block drawn last had so many lines.
    Terminal {
        lines: usize,
    },
    Plain,
}

impl Screen {
    /// A screen on stderr.
    #[must_use]
    pub fn new() -> Self {
        let kind = if io::stderr().is_terminal() { Kind::Terminal { lines: 0 } } else { Kind::Plain };
        Self { kind, start: Instant::now(), drawn: None }
    }

    /// Tells something once.
    pub fn tell(&mut self, text: &str) {
        let elapsed = self.start.elapsed().as_secs_f64();
        self.erase();
        let _ = writeln!(io::stderr().lock(), "[{elapsed:6.1}s] {text}");
    }

    /// Tells a notice; merges only elsewhere than on a terminal, where the block shows them.
    pub fn notice(&mut self, notice: &Notice, view: &SwarmView) {
        match notice {
            Notice::Text(text) => self.tell(text),
            Notice::Merged { stage, epoch } if matches!(self.kind, Kind::Plain) => {
                if let Some(text) = merged_line(view, *stage, *epoch) {
                    self.tell(&text);
                }
            }
            Notice::Merged { .. } => {}
        }
    }

    /// Redraws when it is time to.
    pub fn draw(&mut self, view: &SwarmView) {
        let pause = if matches!(self.kind, Kind::Plain) { STATUS } else { REDRAW };
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < pause) {
            return;
        }
        self.drawn = Some(Instant::now());
        match self.kind {
            Kind::Plain => {
                let stages = view.stages.iter().enumerate().map(|(index, stage)| short_status(index, stage));
                let text = stages.collect::<Vec<_>>().join(", ");
                self.tell(&text);
            }
            Kind::Terminal { .. } => {
                let text = block(view, self.start.elapsed());
                self.erase();
                let _ = io::stderr().lock().write_all(text.as_bytes());
                self.kind = Kind::Terminal { lines: text.lines().count() };
            }
        }
    }

    /// Takes the block off the terminal.
    pub fn erase(&mut self) {
        if let Kind::Terminal { lines } = &mut self.kind
            && *lines > 0
        {
            let _ = write!(io::stderr().lock(), "\x1b[{lines}A\x1b[J");
            *lines = 0;
        }
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

/// What a merge brought, in one line.
fn merged_line(view: &SwarmView, stage: u16, epoch: u32) -> Option<String> {
    let record = view.epochs.get(&(epoch, stage))?;
    let loss = record.loss.map(|loss| format!(", loss {loss:.4}")).unwrap_or_default();
    let rate = view.stages.get(usize::from(stage)).map_or(0.0, StageView::tokens_per_second);
    let rate = if rate > 0.0 { format!(", {rate:.0} tokens/s") } else { String::new() };
    Some(format!(
        "stage {stage} merged epoch {}/{}: {} of {} replicas, {} samples, {:.1}s{loss}{rate}",
        epoch + 1,
        view.epochs_total,
        record.submitters,
        record.members,
        record.samples,
        record.merge_seconds,
    ))
}

fn short_status(index: usize, stage: &StageView) -> String {
    format!("stage {index}: {} {}", phase_word(stage), stage.epoch + 1)
}

fn phase_word(stage: &StageView) -> &'static str {
    match stage.phase {
        StagePhase::Waiting => "waits before epoch",
        StagePhase::Training => "trains epoch",
        StagePhase::Merging => "merges epoch",
        StagePhase::Finished => "finished epoch",
    }
}

/// The block of lines that a terminal shows.
fn block(view: &SwarmView, elapsed: Duration) -> String {
    let mut text = String::new();
    let running = view.peers.iter().filter(|peer| peer.peer.is_some()).count();
    let leader = view.leader.map_or_else(|| "none".to_owned(), |leader| leader.short());
    let _ = writeln!(text, "{:.0}s, {running} processes, orchestrator {leader}", elapsed.as_secs_f64());
    for (index, stage) in view.stages.iter().enumerate() {
        let peers = view.peers.iter().filter(|peer| peer.stage.is_some_and(|own| usize::from(own) == index));
        let (mut done, mut assigned) = (0, 0);
        for peer in peers {
            done += peer.samples.0;
            assigned += peer.samples.1;
        }
        let loss = stage.loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
        let _ = writeln!(
            text,
            "  stage {index}  epoch {:>3}/{:<3} {:<9} samples {done:>4}/{assigned:<4} replicas {:>2}  loss {loss:>7}  {:>7.0} tokens/s",
            (stage.epoch + 1).min(view.epochs_total),
            view.epochs_total,
            match stage.phase {
                StagePhase::Waiting => "waiting",
                StagePhase::Training => "training",
                StagePhase::Merging if stage.attempt > 0 => "merging+",
                StagePhase::Merging => "merging",
                StagePhase::Finished => "finished",
            },
            stage.members,
            stage.tokens_per_second(),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{NodeEvent, TimedEvent};

    #[test]
    fn a_merge_is_told_once_with_its_numbers() {
        let mut view = SwarmView::new(1, 4);
        let at = |t_ms, event| TimedEvent { t_ms, event };
        view.apply(0, at(1000, NodeEvent::EpochOpened { stage: 0, epoch: 0, members: 2, samples: 8 }));
        view.apply(0, at(3000, NodeEvent::MergePlanned { stage: 0, epoch: 0, attempt: 0, submitters: 2 }));
        let closed = NodeEvent::MergeClosed {
            stage: 0,
            epoch: 0,
            seconds: 0.5,
            bytes_fetched: 10,
            loss: Some(5.0),
            samples: 8,
        };
        let notice = view.apply(0, at(3500, closed.clone()));
        assert_eq!(notice, Some(Notice::Merged { stage: 0, epoch: 0 }));
        assert_eq!(view.apply(1, at(3600, closed)), None, "the other replica says the same");
        assert_eq!(
            merged_line(&view, 0, 0).unwrap(),
            "stage 0 merged epoch 1/4: 2 of 2 replicas, 8 samples, 0.5s, loss 5.0000"
        );
        assert_eq!(view.epochs[&(0, 0)].bytes_fetched, 20);
    }
}
