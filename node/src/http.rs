//! The local status pages: `/health` as JSON and `/metrics` as OpenMetrics text.
//!
//! For the operator of this machine. It answers reads only, and listens on a loopback address unless
//! the operator says otherwise.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long shutdown waits for open connections. They are one machine's own scrapes.
const DRAIN: Duration = Duration::from_secs(2);
/// The media type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Who may reach the status pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// Only this machine; an address of another interface is refused.
    Loopback,
    /// Whoever can reach the address. The operator asked for it.
    Anyone,
}

/// Why the status pages are not served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is reachable from outside, and the operator did not ask for that.
    #[error("serve status on {0}: not a loopback address")]
    NotLoopback(SocketAddr),
    /// The address cannot be bound.
    #[error("serve status on {address}: {source}")]
    Bind {
        /// The address as configured.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The running server.
#[derive(Debug)]
pub struct StatusServer {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Pages {
    health: watch::Receiver<serde_json::Value>,
    registry: Arc<Registry>,
}

impl StatusServer {
    /// Serves the current value of `health` and the contents of `registry`; port 0 picks a free port.
    ///
    /// # Errors
    /// An address that is taken, or not on loopback without [`Exposure::Anyone`].
    pub async fn start(
        address: SocketAddr,
        exposure: Exposure,
        health: watch::Receiver<serde_json::Value>,
        registry: Arc<Registry>,
    ) -> Result<Self, HttpError> {
        if exposure == Exposure::Loopback && !address.ip().is_loopback() {
            return Err(HttpError::NotLoopback(address));
        }
        let bind = |source| HttpError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let bound = listener.local_addr().map_err(bind)?;
        let pages = Router::new()
            .route("/health", get(show_health))
            .route("/metrics", get(show_metrics))
            .with_state(Pages { health, registry });
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let task = tokio::spawn(async move {
            let serving = axum::serve(listener, pages).with_graceful_shutdown(stopped);
            if let Err(error) = serving.await {
                tracing::warn!(%error, "status pages stopped");
            }
        });
        Ok(Self { address: bound, stop, task })
    }

    /// Returns the address in use, with the port that was picked.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening, waits shortly for open connections, and closes them.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(DRAIN, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

async fn show_health(State(pages): State<Pages>) -> Json<serde_json::Value> {
    Json(pages.health.borrow().clone())
}

async fn show_metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &pages.registry) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, OPEN_METRICS)], text),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string())
        }
    }
}
