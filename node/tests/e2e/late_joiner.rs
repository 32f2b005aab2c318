//! A process that joins late gets the state of its stage from all who have it.

use std::time::Duration;

use crate::support::{Swarm, tiny};
use iota_node::events::NodeEvent;
use iota_protocol::RunSpec;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;

/// What each process may serve in a second: the uplink of a home. The computer is much faster than that.
const UPLINK: &str = "2MiB";
/// How much faster a download from three has to be than one from one. With nothing lost it would be three times as fast.
const SPEEDUP_MIN: f64 = 1.5;
/// Samples of an epoch for each replica: so many that the download is over before the next merge, which takes uplinks too.
const SAMPLES: u32 = 400;
/// More epochs than any machine merges while a test looks on.
const ENDLESS: u32 = 100_000;

/// A stage of three million parameters in three parts: six seconds over one uplink.
fn spec(replicas: u16) -> RunSpec {
    let mut spec = tiny(TrainingMode::Local, 1, replicas, ENDLESS);
    (spec.model.width, spec.model.hidden, spec.model.heads, spec.model.kv_heads) = (288, 768, 4, 4);
    spec.training.samples_per_epoch = SAMPLES * u32::from(replicas);
    (spec.timing.epoch_deadline, spec.timing.merge_deadline) =
        (Millis::from_secs(600), Millis::from_secs(60));
    spec
}

/// How long a process that joins late takes from the weights that anybody can build to those of its stage.
fn download(replicas: u16) -> Duration {
    let late = usize::from(replicas);
    let mut swarm = Swarm::start(&spec(replicas), &["--upload-rate", UPLINK, "--join-after", "e1"]);
    let mut ready = |what: &str, right: &dyn Fn(u32) -> bool| {
        swarm.until(what, late, |timed| match timed.event {
            NodeEvent::WeightsReady { version, .. } if right(version) => Some(timed.t_ms),
            _ => None,
        })
    };
    let built = ready("its first weights", &|version| version == 0);
    let loaded = ready("its stage's weights", &|version| version > 0);
    swarm.interrupt().agreed_weights();
    Duration::from_millis(loaded - built)
}

#[test]
fn a_late_process_downloads_its_state_faster_from_three_than_from_one() {
    let (one, three) = (download(1), download(3));
    let speedup = one.as_secs_f64() / three.as_secs_f64();
    println!("{one:?} from one, {three:?} from three: {speedup:.2} times as fast");
    assert!(speedup >= SPEEDUP_MIN, "{one:?} from one, {three:?} from three");
}
