//! What a run's measurements say: as data, as JSON, as a table for a terminal, and as one HTML file.
//!
//! All of it is a function of the run, and the run of its seed: the same seed gives the same bytes.

pub(crate) mod chart;
mod html;
pub(crate) mod page;
mod text;

use serde::{Deserialize, Serialize};

use crate::host::Messages;
use crate::measure::roofline::{Binds, Roofline};
use crate::measure::statistics::Distribution;

/// A measured run. Every number has its unit in its name; shares and η are without unit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hosts, whatever they do.
    pub hosts: u64,
    /// Stages of the pipeline.
    pub stages: u64,
    /// How the run ended.
    pub ending: String,
    /// Virtual time from the start to the end of the measurement.
    pub virtual_seconds: f64,
    /// Events of the simulation.
    pub events: u64,
    /// What it learned; none unless engines train the model.
    pub validation: Option<Validation>,
    /// How fast it trained.
    pub throughput: Throughput,
    /// What engines did.
    pub work: Work,
    /// How long merges took.
    pub merges: Merges,
    /// Every epoch of every stage.
    pub epochs: Vec<EpochReport>,
    /// What each host moved.
    pub traffic: Vec<HostTraffic>,
    /// What leading costs; none if nobody leads at the end.
    pub leader: Option<LeaderLoad>,
    /// What happened to those who went and came.
    pub churn: Churn,
    /// Throughput over time.
    pub rate: Vec<RatePoint>,
    /// What happened when.
    pub timeline: Vec<TimelineEvent>,
    /// Events that the timeline has no room for.
    pub timeline_left_out: u64,
}

/// What a run learned: mean loss on text that nobody trained on, in nats per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Of the initial weights.
    pub initial_nats: f64,
    /// Of the last merges' weights, all stages together.
    pub final_nats: f64,
    /// Epochs that are in them.
    pub epochs: u64,
    /// BLAKE3 hash of these weights, stage after stage.
    pub weights: String,
}

/// How fast a run trained. One sample is counted once, at the tail.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Samples in merges that were decided.
    pub samples_merged: u64,
    /// Tokens of one sample.
    pub tokens_per_sample: u64,
    /// Time in which some stage trained.
    pub training_seconds: f64,
    /// Samples merged ÷ training time: *X*.
    pub samples_per_second: f64,
    /// Samples merged ÷ time from the first epoch's opening to the last merge's end.
    pub goodput_samples_per_second: f64,
    /// The bounds when most was possible.
    pub roofline: Roofline,
    /// The bound of those who were there, in the mean over training time: *X\**.
    pub bound_samples_per_second: f64,
    /// *X / X\**.
    pub eta_pipe: f64,
    /// Mean bound over time ÷ greatest bound: what goodput under churn can reach.
    pub live_capacity: f64,
    /// Share of training time by which the last replica finished after the median one.
    pub straggler_share: f64,
    /// Share of the time in which a member was gone and had its place still.
    pub vacancy_share: f64,
    /// What binds.
    pub binds: Binds,
}

/// What engines did, in seconds of a host of speed 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Passes over samples that were merged.
    pub useful_seconds: f64,
    /// All passes.
    pub passes_seconds: f64,
    /// Steps, contributions, reductions, loading.
    pub other_seconds: f64,
    /// Useful passes ÷ passes.
    pub eta_work: f64,
}

/// How long merges took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Merges {
    /// From plan to the last submitter's new weights.
    pub merge_seconds: Distribution,
    /// From plan to the decision alone.
    pub reduce_seconds: Distribution,
    /// Mean of (least time for the plan's bytes ÷ measured).
    pub eta_net: f64,
    /// Mean of (least time of an all-reduce without redundancy ÷ measured).
    pub eta_all_reduce: f64,
    /// Plans given up.
    pub aborts: u64,
}

/// One epoch of one stage. Times are since the start; those that did not happen are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// The stage.
    pub stage: u64,
    /// The epoch.
    pub epoch: u64,
    /// When it opened.
    pub opened_seconds: f64,
    /// When the merge was planned that was carried out.
    pub planned_seconds: Option<f64>,
    /// When the merge was decided.
    pub merged_seconds: Option<f64>,
    /// When the last submitter held the new weights.
    pub applied_seconds: Option<f64>,
    /// Members at the opening.
    pub members: u64,
    /// Contributions merged.
    pub submitters: u64,
    /// Samples merged.
    pub samples: u64,
    /// Samples merged ÷ time from opening to plan.
    pub samples_per_second: Option<f64>,
    /// From plan to the last submitter's new weights.
    pub merge_seconds: Option<f64>,
    /// Least time for the plan's bytes.
    pub bound_seconds: f64,
    /// Least time of an all-reduce without redundancy.
    pub all_reduce_bound_seconds: f64,
    /// Plans given up.
    pub aborts: u64,
}

/// What a host moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTraffic {
    /// The host.
    pub host: u64,
    /// The stage it is a member of at the end.
    pub stage: Option<u64>,
    /// Gossip, all copies, both directions.
    pub gossip_bytes: u64,
    /// Of which merges.
    pub merge_gossip_bytes: u64,
    /// How many messages, by kind.
    pub messages: Messages,
    /// Requests and responses, both directions.
    pub request_bytes: u64,
    /// Activations and gradients sent.
    pub pushed_bytes: u64,
    /// Blobs fetched.
    pub fetched_bytes: u64,
    /// Blobs served.
    pub served_bytes: u64,
    /// Things its peer wanted done.
    pub actions: u64,
    /// Messages it sent.
    pub sent_messages: u64,
}

impl HostTraffic {
    /// Bytes of all kinds.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.gossip_bytes + self.request_bytes + self.pushed_bytes + self.fetched_bytes + self.served_bytes
    }
}

/// What the leader does, beside the median of the other hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LeaderLoad {
    /// Who leads at the end.
    pub host: u64,
    /// Things its peer wanted done.
    pub actions: u64,
    /// Of the median host.
    pub median_actions: u64,
    /// Messages it sent.
    pub sent_messages: u64,
    /// Of the median host.
    pub median_sent_messages: u64,
    /// Bytes it moved.
    pub bytes: u64,
    /// Of the median host.
    pub median_bytes: u64,
}

/// What happened to those who went and came, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Churn {
    /// Members whose processes ended without having left.
    pub losses: u64,
    /// From the end of such a process to its eviction, where it did not return before.
    pub detect_seconds: Distribution,
    /// From there to the first of its samples that another replica finished.
    pub reroute_seconds: Distribution,
    /// From the end of a leader's process to another candidate that leads.
    pub election_seconds: Distribution,
    /// From the start of a process to the decision of the first merge it is in, of those who came after the first epoch opened.
    pub join_seconds: Distribution,
}

/// Throughput in one part of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RatePoint {
    /// Middle of the part.
    pub at_seconds: f64,
    /// Samples finished at the tail.
    pub samples_per_second: f64,
    /// The bound of those who were there.
    pub bound_samples_per_second: f64,
}

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEvent {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// What kind.
    pub kind: EventKind,
    /// What.
    pub what: String,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// Something was done to the swarm.
    #[default]
    Fault,
    /// Somebody lost a place.
    Membership,
    /// A merge was decided or given up.
    Merge,
    /// Somebody leads.
    Leader,
}

impl EventKind {
    /// All of them, as drawn from top to bottom.
    pub const ALL: [Self; 4] = [Self::Fault, Self::Membership, Self::Merge, Self::Leader];

    /// As people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fault => "faults",
            Self::Membership => "evictions",
            Self::Merge => "merges",
            Self::Leader => "leaders",
        }
    }
}

impl Report {
    /// The report as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        #[expect(clippy::expect_used, reason = "every field of a report has a JSON form")]
        serde_json::to_string_pretty(self).expect("a report has a JSON form")
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_json(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    /// The report in a few lines for a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        text::render(self)
    }

    /// The report as one HTML file that needs nothing else.
    #[must_use]
    pub fn to_html(&self) -> String {
        html::render(self)
    }

    /// Goodput ÷ goodput of the same run undisturbed.
    #[must_use]
    pub fn goodput_against(&self, clean: &Self) -> f64 {
        let goodput = |report: &Self| report.throughput.goodput_samples_per_second;
        crate::measure::statistics::ratio(goodput(self), goodput(clean))
    }
}
