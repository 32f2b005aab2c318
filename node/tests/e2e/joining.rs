//! A run that admits by invite, and who comes to it.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Output, Stdio};

use crate::support::stranger::{Stranger, Target};
use crate::support::{STEP_DEADLINE, Swarm, program, tiny, wait_for};
use iota_node::cli::create_key;
use iota_node::events::{EventTail, NodeEvent};
use iota_protocol::limits::GOSSIP_BYTES_MAX;
use iota_protocol::spec::{JoinPolicy, TrainingMode};
use iota_protocol::wire::message::{PeerRecord, Topic};
use iota_protocol::wire::seal;
use iota_protocol::{Identity, PeerId};

/// The secret of who joins.
const SECRET: [u8; 32] = [0x21; 32];
/// More epochs than any machine merges while a test looks on.
const ENDLESS: u32 = 100_000;
/// Exit code of a peer that gets no place, as `--help` documents it.
const NOT_ADMITTED: i32 = 13;

/// A process of the test's own, which is gone with it.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The command line of a process that joins with the key in `folder`.
fn join(folder: &Path, swarm: &Swarm, bootstrap: &str, further: &[&str]) -> std::process::Command {
    let mut command = program();
    command
        .args(["join", "--miner", "--device", "cpu", "--data-bind", "127.0.0.1:0"])
        .args(["--listen", "/ip4/127.0.0.1/tcp/0", "--bootstrap", bootstrap, "--spec"])
        .arg(swarm.folder().join("spec.toml"))
        .arg("--key")
        .arg(folder.join("peer.key"))
        .arg("--data-dir")
        .arg(folder.join("data"))
        .args(further);
    command
}

fn invite(swarm: &Swarm, key: &Path, peer: PeerId, to: &Path) -> Output {
    let mut command = program();
    command.arg("invite").arg("--spec").arg(swarm.folder().join("spec.toml")).arg("--key").arg(key);
    command.args(["--peer", &peer.to_string(), "--to"]).arg(to).output().expect("the binary runs")
}

#[test]
fn a_stranger_is_refused_and_an_invited_process_contributes() {
    let mut spec = tiny(TrainingMode::Local, 1, 4, ENDLESS);
    spec.join.policy = JoinPolicy::Invite;
    // The fourth process is no candidate, so `up` has to invite it.
    let mut swarm = Swarm::start(&spec, &[]);
    swarm.until_epoch(0, 1);
    let target = Target::of(&swarm.events()[0]).expect("it has started");
    let bootstrap = target.multiaddrs[0].to_string();
    let folder = tempfile::tempdir().expect("a scratch folder");
    create_key(&folder.path().join("peer.key"), &SECRET).expect("a key");
    let peer = Identity::from_secret(SECRET).peer();
    let owner = swarm.spec().join.owner.expect("an owner");

    let refused = join(folder.path(), &swarm, &bootstrap, &[]).output().expect("the binary runs");
    let told = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(NOT_ADMITTED), "{told}");
    assert!(told.contains(&format!("expected an invite of {owner} to {peer}, got none")), "{told}");
    assert!(told.contains(&format!("--peer {peer}`; pass its file with --invite")), "{told}");
    a_record_without_an_invite_is_rejected(&swarm, &target);

    let file = folder.path().join("guest.invite");
    let forged = invite(&swarm, &folder.path().join("peer.key"), peer, &file);
    assert!(!forged.status.success() && !file.exists(), "only the owner invites");
    let made = invite(&swarm, &swarm.folder().join("keys/owner.key"), peer, &file);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let log = File::create(folder.path().join("log.txt")).expect("a file in the scratch folder");
    let file = file.to_str().expect("a temporary folder has an ASCII name");
    let guest = join(folder.path(), &swarm, &bootstrap, &["--invite", file])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map(Guest)
        .expect("the binary runs");
    let mut tail = EventTail::new(&folder.path().join("data"));
    wait_for("a first contribution of the guest", STEP_DEADLINE, || {
        let events = tail.poll().expect("an event log can be read");
        events.iter().any(|timed| matches!(timed.event, NodeEvent::Joined { .. })).then_some(())
    });
    drop(guest);
    swarm.interrupt().agreed_weights();
}

/// One that leaves its own check out, and asks for a place all the same.
fn a_record_without_an_invite_is_rejected(swarm: &Swarm, target: &Target) {
    let run = swarm.spec().run_id();
    let runtime = tokio::runtime::Runtime::new().expect("the system allows it");
    let stranger =
        runtime.block_on(Stranger::connect(0x22, run, std::slice::from_ref(target), GOSSIP_BYTES_MAX));
    let mut sequence = 0;
    wait_for("the rejection of its record", STEP_DEADLINE, || {
        sequence += 1;
        let record = PeerRecord { miner: true, ..PeerRecord::new(sequence) };
        stranger.net.publish(Topic::Records.name(), seal(&stranger.identity, run, &record));
        let name = "iota_gossip_messages_total{verdict=\"rejected\",reason=\"not_admitted\"}";
        (target.metric(name) > 0).then_some(())
    });
    runtime.block_on(stranger.stop());
}
