//! Signals that ask a process to stop.

use std::future::pending;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM from the moment this is made: one that comes while nobody waits is not lost.
#[derive(Debug)]
pub struct StopSignals {
    streams: Option<(Signal, Signal)>,
}

impl StopSignals {
    /// Starts to listen. If the system refuses, the default action of a signal ends the process as ever.
    ///
    /// # Panics
    /// Outside an async runtime.
    #[must_use]
    pub fn listen() -> Self {
        let streams = signal(SignalKind::interrupt()).and_then(|interrupt| {
            let terminate = signal(SignalKind::terminate())?;
            Ok((interrupt, terminate))
        });
        Self { streams: streams.ok() }
    }

    /// Waits for the next signal and returns its name. Cancel-safe.
    pub async fn next(&mut self) -> &'static str {
        let Some((interrupt, terminate)) = &mut self.streams else { return pending().await };
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        }
    }
}
