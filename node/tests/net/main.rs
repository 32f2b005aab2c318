//! The control plane, the data plane and the status pages, each between real nodes on loopback.
#![expect(clippy::unwrap_used, reason = "a test that unwraps says what went wrong as well as any assertion")]

mod control;
mod data;
mod http;
mod support;
