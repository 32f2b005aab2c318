//! The mirror against real stores: an S3 server in this process, a folder, and any other S3 server that is named.
//!
//! All but the tests of faults run over each of them. A second opinion on S3, from a server that is not Rust, takes a
//! few commands; the bucket is made by the last but one:
//!
//! ```sh
//! pip install 'moto[s3,server]'
//! moto_server -p 5000 &
//! curl -X PUT http://127.0.0.1:5000/iota
//! IOTA_TEST_S3_ENDPOINT=http://127.0.0.1:5000 cargo nextest run --release -p iota-node --test mirror
//! ```
//!
//! `IOTA_TEST_S3_BUCKET` names another bucket than `iota`; `IOTA_TEST_S3_ACCESS_KEY_ID` and `IOTA_TEST_S3_SECRET_ACCESS_KEY` set
//! an access key, where the server asks for one.
#![expect(clippy::unwrap_used, reason = "a test that unwraps says what went wrong as well as any assertion")]

mod checkpoints;
mod collect;
mod denied;
mod faults;
mod objects;
mod rate;
mod server;
mod support;
