//! An S3 server in this process, with a way to hurt it.
//!
//! The server keeps its objects as files and checks signatures. In front of it sits what hurts: outages, delays, answers that get
//! lost, and bodies that are cut, shortened or damaged on their way.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The bucket there is.
pub(crate) const BUCKET: &str = "bucket";
/// The access key that the server knows.
pub(crate) const KEY_ID: &str = "AKTESTKEYID";
/// Its secret.
pub(crate) const SECRET: &str = "s3cretOfTheTest";

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is answered with this status, and nothing is done.
    Status(u16),
    /// It is answered with this status, and nothing is done, if it writes an object or a part of one.
    RefuseWrite(u16),
    /// It is done, and the answer says that it was not.
    LoseAnswer,
    /// It is done after this time.
    Delay(Duration),
    /// It is never answered.
    Hang,
    /// The connection breaks after so many bytes of an object.
    Cut(usize),
    /// Only so many bytes of an object come, and the answer says that these are all.
    Shorten(usize),
    /// One bit of an object is another.
    Flip,
    /// It is denied in words that repeat all of its headers.
    Echo,
}

impl Fault {
    fn can_hurt(self, method: &Method) -> bool {
        match self {
            Self::RefuseWrite(_) => method == Method::PUT,
            _ => !self.is_of_a_body() || method == Method::GET,
        }
    }

    fn is_of_a_body(self) -> bool {
        matches!(self, Self::Cut(_) | Self::Shorten(_) | Self::Flip)
    }
}

/// The server. Dropping it ends it.
pub(crate) struct S3Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
    root: TempDir,
}

struct Shared {
    s3: S3Service,
    plan: Mutex<Plan>,
    /// S3 compares and writes in one step; the server looks first and writes then. One writer at a time makes it one.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Plan {
    fault: Option<(Fault, usize)>,
    seen: Vec<Method>,
}

impl S3Server {
    pub(crate) async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(root.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let (plan, writing) = Default::default();
        let shared = Arc::new(Shared { s3: builder.build(), plan, writing });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let running = Some(serve(listener, Arc::clone(&shared)));
        Self { address, shared, running, root }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The folder that holds the bucket's objects.
    pub(crate) fn bucket(&self) -> PathBuf {
        let root: &Path = self.root.path();
        root.join(BUCKET)
    }

    /// Returns how many uploads in parts were begun and neither completed nor given up.
    pub(crate) fn unfinished_uploads(&self) -> usize {
        let entries = std::fs::read_dir(self.root.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".upload")).count()
    }

    /// Hurts the next requests that this fault can hurt.
    pub(crate) fn hurt_next(&self, fault: Fault, requests: usize) {
        self.shared.plan.lock().unwrap().fault = Some((fault, requests));
    }

    /// Hurts all requests that this fault can hurt, until [`heal`](Self::heal).
    pub(crate) fn hurt(&self, fault: Fault) {
        self.hurt_next(fault, usize::MAX);
    }

    pub(crate) fn heal(&self) {
        self.shared.plan.lock().unwrap().fault = None;
    }

    /// Returns how many requests of a method there were, hurt or not.
    pub(crate) fn seen(&self, method: &Method) -> usize {
        self.shared.plan.lock().unwrap().seen.iter().filter(|seen| *seen == method).count()
    }

    /// Closes the port and all connections.
    pub(crate) async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.cancel();
        task.await.unwrap();
    }

    /// Opens the same port again.
    pub(crate) async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.running = Some(serve(listener, Arc::clone(&self.shared)));
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.running {
            task.abort();
        }
    }
}

fn serve(listener: TcpListener, shared: Arc<Shared>) -> (CancellationToken, JoinHandle<()>) {
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let router = Router::new().fallback(answer).with_state(shared);
    let task = tokio::spawn(async move {
        axum::serve(listener, router).with_graceful_shutdown(stopped).await.unwrap();
    });
    (stop, task)
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let method = request.method().clone();
    let fault = shared.plan.lock().unwrap().take(&method);
    match fault {
        Some(Fault::Status(code) | Fault::RefuseWrite(code)) => {
            return StatusCode::from_u16(code).unwrap().into_response();
        }
        Some(Fault::Echo) => return echo(request.headers()),
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        Some(Fault::Hang) => std::future::pending().await,
        _ => {}
    }
    let answer = shared.call(request).await;
    match fault {
        Some(Fault::LoseAnswer) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(fault) if fault.is_of_a_body() => hurt_body(answer, fault).await,
        _ => answer,
    }
}

impl Shared {
    async fn call(&self, request: Request) -> Response {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        // S3 says which of the two is missing; the server names the object in any case.
        if request.uri().path().split('/').nth(1) != Some(BUCKET) {
            return (StatusCode::NOT_FOUND, "<Error><Code>NoSuchBucket</Code></Error>").into_response();
        }
        let _writing = if reads { None } else { Some(self.writing.lock().await) };
        match self.s3.call(request.map(s3s::Body::http_body_unsync)).await {
            Ok(answer) => answer.map(Body::new),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")).into_response(),
        }
    }
}

impl Plan {
    fn take(&mut self, method: &Method) -> Option<Fault> {
        self.seen.push(method.clone());
        let (fault, left) = self.fault.as_mut()?;
        if *left == 0 || !fault.can_hurt(method) {
            return None;
        }
        *left -= 1;
        Some(*fault)
    }
}

async fn hurt_body(answer: Response, fault: Fault) -> Response {
    let (mut parts, body) = answer.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap();
    let body = match fault {
        Fault::Shorten(length) => {
            let short = bytes.slice(..length.min(bytes.len()));
            parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(short.len()));
            Body::from(short)
        }
        Fault::Flip => {
            let mut bytes = bytes.to_vec();
            if let Some(first) = bytes.first_mut() {
                *first ^= 1;
            }
            Body::from(bytes)
        }
        _ => cut(bytes, fault),
    };
    Response::from_parts(parts, body)
}

/// A body that fails after some bytes, upon which the server drops the connection.
fn cut(bytes: Bytes, fault: Fault) -> Body {
    let Fault::Cut(length) = fault else { return Body::from(bytes) };
    let start: Result<_, std::io::Error> = Ok(bytes.slice(..length.min(bytes.len())));
    let end = Err(std::io::ErrorKind::BrokenPipe.into());
    Body::from_stream(futures::stream::iter([start, end]))
}

/// What S3 says to a wrong signature: the request as it was signed.
fn echo(headers: &HeaderMap) -> Response {
    let signed: String =
        headers.iter().map(|(name, value)| format!("{name}:{}\n", value.to_str().unwrap())).collect();
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>{signed}</Message>\
         <CanonicalRequest>{signed}</CanonicalRequest></Error>"
    );
    (StatusCode::FORBIDDEN, body).into_response()
}
