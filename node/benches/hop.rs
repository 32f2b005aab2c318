//! Latency of one hop: from handing a payload to `push` until the receiver holds verified bytes.
//!
//! The control is a bare iroh stream on the same transport settings: it copies the same bytes and is
//! answered with one byte. Pushes and copies alternate in one process, so load on the machine meets both
//! alike. Prints a table, then one line of JSON.
//!
//! Run it with `cargo bench -p iota-node --bench hop [-- <iterations>]`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use iota_node::blobs::{DataConfig, DataPlane, Storage, transport};
use iota_node::metrics::DataMetrics;
use iota_node::push::{self, PushLimits};
use iota_node::traffic::Traffic;
use iroh::endpoint::{Connection, presets};
use iroh::protocol::{AcceptError, ProtocolHandler, Router};
use iroh::{Endpoint, EndpointAddr, RelayMode, TransportAddr};
use tokio::sync::mpsc;

const ALPN: &[u8] = b"bench/copy";
const SIZES: [(&str, usize); 2] = [("64 KiB", 64 * 1024), ("1 MiB", 1024 * 1024)];
const ITERATIONS: usize = 300;
const WARM_UP: usize = 50;
const DEADLINE: Duration = Duration::from_secs(60);
/// About what a signed activation header takes.
const HEADER_BYTES: usize = 512;

/// Copies a stream into memory, notes when it is complete, and answers with one byte.
#[derive(Debug, Clone)]
struct Copy(mpsc::Sender<Instant>);

impl ProtocolHandler for Copy {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            let bytes = receive.read_to_end(16 * 1024 * 1024).await.map_err(AcceptError::from_err)?;
            let complete = Instant::now();
            std::hint::black_box(&bytes);
            self.0.send(complete).await.map_err(AcceptError::from_err)?;
            send.write_all(&[1]).await.map_err(AcceptError::from_err)?;
            let _closed = send.finish();
        }
        Ok(())
    }
}

struct Control {
    connection: Connection,
    complete: mpsc::Receiver<Instant>,
    _ends: (Endpoint, Router),
}

impl Control {
    async fn start() -> Self {
        let (completed, complete) = mpsc::channel(1);
        let server = Router::builder(endpoint().await).accept(ALPN, Copy(completed)).spawn();
        let client = endpoint().await;
        let addresses = server.endpoint().bound_sockets().into_iter().map(TransportAddr::Ip);
        let address = EndpointAddr::from_parts(server.endpoint().id(), addresses);
        let connection = client.connect(address, ALPN).await.expect("loopback");
        Self { connection, complete, _ends: (client, server) }
    }

    async fn copy(&mut self, payload: Bytes) -> Duration {
        let begin = Instant::now();
        let (mut send, mut receive) = self.connection.open_bi().await.expect("open");
        send.write_chunk(payload).await.expect("write");
        send.finish().expect("finish");
        let complete = self.complete.recv().await.expect("served");
        receive.read_to_end(1).await.expect("answer");
        complete - begin
    }
}

async fn endpoint() -> Endpoint {
    Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::Disabled)
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")
        .expect("an address")
        .transport_config(transport())
        .bind()
        .await
        .expect("bind")
}

struct Pushes {
    sender: DataPlane,
    receiver: DataPlane,
    complete: mpsc::Receiver<Instant>,
}

impl Pushes {
    async fn start() -> Self {
        let (sender, _unused) = plane(1).await;
        let (receiver, mut incoming) = plane(2).await;
        sender.set_addresses(receiver.id(), receiver.addresses());
        let (completed, complete) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(frame) = incoming.recv().await {
                let promised: &[u8; 32] = frame.header.first_chunk().expect("a hash");
                assert_eq!(frame.hash, *promised, "the payload is what the header promised");
                let complete = Instant::now();
                std::hint::black_box(&frame.payload);
                if completed.send(complete).await.is_err() || frame.reply.send(vec![1]).is_err() {
                    break;
                }
            }
        });
        Self { sender, receiver, complete }
    }

    /// The sender hashes too: a header promises a hash.
    async fn push(&mut self, payload: Bytes) -> Duration {
        let begin = Instant::now();
        let mut header = vec![0; HEADER_BYTES];
        header[..32].copy_from_slice(&push::hash(&payload));
        let push = self.sender.push(self.receiver.id(), header, payload, DEADLINE);
        let (answer, complete) = tokio::join!(push, self.complete.recv());
        assert_eq!(answer.expect("acknowledged"), [1]);
        complete.expect("served") - begin
    }
}

async fn plane(secret: u8) -> (DataPlane, mpsc::Receiver<push::IncomingPush>) {
    let bind: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let config = DataConfig {
        secret: [secret; 32],
        bind,
        storage: Storage::Memory,
        gc_interval: Duration::from_secs(3600),
        upload_rate: None,
        push: PushLimits::default(),
        traffic: Traffic::default(),
        metrics: DataMetrics::default(),
    };
    DataPlane::start(config).await.expect("start")
}

fn median_us(samples: &mut [Duration]) -> f64 {
    samples.sort_unstable();
    samples[samples.len() / 2].as_secs_f64() * 1e6
}

#[expect(clippy::print_stdout, reason = "the numbers are what a benchmark is for")]
#[tokio::main]
async fn main() {
    // `cargo bench` says `--bench`; a test runner that lists or runs every target finds no test here.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let iterations = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(ITERATIONS);
    let mut control = Control::start().await;
    let mut pushes = Pushes::start().await;
    let mut rows = Vec::new();
    println!(
        "{:>8} {:>12} {:>12} {:>7}   {iterations} iterations, medians",
        "payload", "push", "bare copy", "ratio"
    );
    for (name, length) in SIZES {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let payload = Bytes::from(bytes);
        let (mut pushed, mut copied) = (Vec::new(), Vec::new());
        for iteration in 0..WARM_UP + iterations {
            let push = pushes.push(payload.clone()).await;
            let copy = control.copy(payload.clone()).await;
            if iteration >= WARM_UP {
                pushed.push(push);
                copied.push(copy);
            }
        }
        let (push, copy) = (median_us(&mut pushed), median_us(&mut copied));
        let ratio = push / copy;
        println!("{name:>8} {push:>9.0} µs {copy:>9.0} µs {ratio:>7.2}");
        rows.push(serde_json::json!({
            "payload_bytes": length, "push_us_median": push, "copy_us_median": copy, "ratio": ratio,
        }));
    }
    println!("{}", serde_json::json!({ "bench": "hop", "iterations": iterations, "rows": rows }));
}
