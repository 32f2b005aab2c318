//! The status pages over a real socket.

use std::sync::Arc;
use std::time::Duration;

use iota_node::http::{Exposure, HttpError, StatusServer};
use iota_node::metrics::NodeMetrics;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

const DEADLINE: Duration = Duration::from_secs(60);

async fn get(server: &StatusServer, path: &str) -> String {
    let ask = async {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    };
    tokio::time::timeout(DEADLINE, ask).await.unwrap()
}

#[tokio::test]
async fn health_and_metrics_show_the_present() {
    let mut registry = Registry::default();
    let metrics = NodeMetrics::register(&mut registry);
    let (health, shown) = watch::channel(json!({ "stage": null }));
    let address = "127.0.0.1:0".parse().unwrap();
    let server = StatusServer::start(address, Exposure::Loopback, shown, Arc::new(registry)).await.unwrap();
    assert!(get(&server, "/health").await.ends_with(r#"{"stage":null}"#));
    health.send_replace(json!({ "stage": 2 }));
    metrics.epochs.inc();
    assert!(get(&server, "/health").await.ends_with(r#"{"stage":2}"#));
    let page = get(&server, "/metrics").await;
    assert!(page.contains("iota_epochs_total 1") && page.contains("openmetrics-text"), "{page}");
    assert!(get(&server, "/other").await.starts_with("HTTP/1.1 404"));
    let address = server.address();
    tokio::time::timeout(DEADLINE, server.shutdown()).await.unwrap();
    TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn an_address_that_others_reach_needs_the_operators_word() {
    let (_health, shown) = watch::channel(json!(null));
    let start = |address: &str, exposure| {
        StatusServer::start(address.parse().unwrap(), exposure, shown.clone(), Arc::new(Registry::default()))
    };
    let error = start("0.0.0.0:0", Exposure::Loopback).await.unwrap_err();
    assert!(matches!(error, HttpError::NotLoopback(_)));
    let server = start("0.0.0.0:0", Exposure::Anyone).await.unwrap();
    let error =
        start(&format!("127.0.0.1:{}", server.address().port()), Exposure::Loopback).await.unwrap_err();
    assert!(error.to_string().contains("serve status on 127.0.0.1:"), "{error}");
}
