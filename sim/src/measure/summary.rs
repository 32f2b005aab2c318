//! What was remembered, as a report.

use std::time::Duration;

use iota_protocol::{Epoch, Instant, PeerId, StageIndex};

use super::epochs::{EpochTimes, Span, seconds, union};
use super::recorder::Recorder;
use super::roofline::{Binds, Roofline};
use super::statistics::{Distribution, mean, ratio, real, rounded};
use super::validation::validation;
use crate::report::{
    Churn, EpochReport, HostTraffic, LeaderLoad, Merges, RatePoint, Report, Throughput, TimelineEvent, Work,
};
use crate::world::{Ending, World};

/// Parts into which throughput over time is cut.
const RATE_PARTS: u32 = 60;
/// Share of training time from which on what is lost to stragglers or vacancies is what binds.
const BINDING_SHARE: f64 = 0.1;

pub(super) fn report(recorder: &Recorder, world: &World, ending: &Ending) -> Report {
    let end = recorder.epochs.values().filter_map(last).max().unwrap_or(world.now());
    let epochs: Vec<EpochReport> = recorder.epochs.iter().map(epoch).collect();
    let traffic: Vec<HostTraffic> =
        world.hosts().iter().enumerate().map(|(host, _)| moved(recorder, world, host)).collect();
    Report {
        seed: recorder.seed,
        hosts: world.hosts().len() as u64,
        stages: u64::from(recorder.spec.pipeline.stages),
        ending: match ending {
            Ending::Finished(_) => "finished".to_owned(),
            Ending::TimeUp => "time up".to_owned(),
            Ending::Violated(violation) => violation.to_string(),
        },
        virtual_seconds: since_start(world.now()),
        events: world.events(),
        validation: validation(world).unwrap_or_else(|error| panic!("the model cannot be measured: {error}")),
        throughput: throughput(recorder, end),
        work: Work {
            useful_seconds: rounded(recorder.work.useful),
            passes_seconds: rounded(recorder.work.passes),
            other_seconds: rounded(recorder.work.other),
            eta_work: ratio(recorder.work.useful, recorder.work.passes),
        },
        merges: merges(recorder),
        epochs,
        leader: leader(recorder, &traffic),
        traffic,
        churn: churn(recorder),
        rate: rate(recorder, end),
        timeline: recorder
            .timeline
            .iter()
            .map(|(at, kind, what)| TimelineEvent {
                at_ms: at.as_nanos() / 1_000_000,
                kind: *kind,
                what: what.clone(),
            })
            .collect(),
        timeline_left_out: recorder.untold,
    }
}

fn since_start(at: Instant) -> f64 {
    rounded(at.since(Instant::ZERO).as_secs_f64())
}

/// When an epoch was over, as far as it got.
fn last(times: &EpochTimes) -> Option<Instant> {
    times.applied.max(times.merged)
}

fn epoch(((stage, epoch), times): (&(StageIndex, Epoch), &EpochTimes)) -> EpochReport {
    EpochReport {
        stage: u64::from(stage.0),
        epoch: u64::from(epoch.0),
        opened_seconds: since_start(times.opened),
        planned_seconds: times.planned.map(since_start),
        merged_seconds: times.merged.map(since_start),
        applied_seconds: times.applied.map(since_start),
        members: times.members as u64,
        submitters: times.submitters.len() as u64,
        samples: times.samples,
        samples_per_second: times.training_seconds().map(|seconds| ratio(real(times.samples), seconds)),
        merge_seconds: times.merge_seconds().map(rounded),
        bound_seconds: times.bound.planned_seconds,
        all_reduce_bound_seconds: times.bound.all_reduce_seconds,
        aborts: u64::from(times.aborts),
    }
}

/// The bounds that held at a time.
fn bounds_at(recorder: &Recorder, at: Instant) -> Roofline {
    let until = recorder.capacity.partition_point(|(from, _)| *from <= at);
    recorder.capacity[..until].last().map(|(_, roofline)| *roofline).unwrap_or_default()
}

/// The bound integrated over these spans, in samples.
fn possible(recorder: &Recorder, spans: &[Span]) -> f64 {
    let over = |(from, to): &Span| {
        let changes = recorder.capacity.iter().map(|(at, _)| *at).filter(|at| at > from && at < to);
        let starts: Vec<Instant> = std::iter::once(*from).chain(changes).collect();
        let ends = starts.iter().skip(1).copied().chain(std::iter::once(*to));
        starts
            .iter()
            .zip(ends)
            .map(|(from, to)| bounds_at(recorder, *from).bound * to.since(*from).as_secs_f64())
            .sum::<f64>()
    };
    spans.iter().map(over).sum()
}

fn throughput(recorder: &Recorder, end: Instant) -> Throughput {
    let spec = &recorder.spec;
    let tail = StageIndex(spec.pipeline.stages - 1);
    let samples_merged: u64 =
        recorder.epochs.iter().filter(|((stage, _), _)| *stage == tail).map(|(_, times)| times.samples).sum();
    let trained = recorder.epochs.values().map(|times| (times.opened, times.planned.unwrap_or(end)));
    let spans = union(trained.collect());
    let first = spans.first().map_or(end, |(from, _)| *from);
    let whole = [(first, end)];
    let (training_seconds, all_seconds) = (seconds(&spans), seconds(&whole));
    let roofline = recorder
        .capacity
        .iter()
        .map(|(_, roofline)| *roofline)
        .max_by(|a, b| a.bound.total_cmp(&b.bound))
        .unwrap_or_default();
    let x = ratio(real(samples_merged), training_seconds);
    let bound = ratio(possible(recorder, &spans), training_seconds);
    let straggling: f64 = recorder.epochs.values().map(EpochTimes::straggling_seconds).sum();
    let trained_seconds: f64 = recorder.epochs.values().filter_map(EpochTimes::training_seconds).sum();
    let straggler_share = ratio(straggling, trained_seconds);
    let vacancy_share = ratio(seconds(&union(recorder.churn.vacancies(end))), all_seconds);
    Throughput {
        samples_merged,
        tokens_per_sample: u64::from(spec.training.sequences_per_sample) * u64::from(spec.model.context),
        training_seconds: rounded(training_seconds),
        samples_per_second: x,
        goodput_samples_per_second: ratio(real(samples_merged), all_seconds),
        roofline,
        bound_samples_per_second: bound,
        eta_pipe: ratio(x, bound),
        live_capacity: ratio(possible(recorder, &whole), all_seconds * roofline.bound),
        straggler_share,
        vacancy_share,
        binds: if vacancy_share >= BINDING_SHARE {
            Binds::Churn
        } else if straggler_share >= BINDING_SHARE {
            Binds::Straggler
        } else {
            roofline.binds()
        },
    }
}

fn merges(recorder: &Recorder) -> Merges {
    let all = || recorder.epochs.values().filter(|times| times.applied.is_some());
    let measured: Vec<f64> = all().filter_map(EpochTimes::merge_seconds).collect();
    let reduced: Vec<f64> = all().filter_map(EpochTimes::reduce_seconds).collect();
    let against = |bound: fn(&EpochTimes) -> f64| {
        // A lone submitter moves nothing.
        let shared = all().filter(|times| times.submitters.len() > 1);
        let shares: Vec<f64> =
            shared.filter_map(|times| Some(ratio(bound(times), times.merge_seconds()?))).collect();
        mean(&shares)
    };
    Merges {
        merge_seconds: Distribution::of(&measured),
        reduce_seconds: Distribution::of(&reduced),
        eta_net: against(|times| times.bound.planned_seconds),
        eta_all_reduce: against(|times| times.bound.all_reduce_seconds),
        aborts: recorder.epochs.values().map(|times| u64::from(times.aborts)).sum(),
    }
}

fn moved(recorder: &Recorder, world: &World, host: usize) -> HostTraffic {
    let (peer, traffic): (PeerId, _) = (world.hosts()[host].identity.peer(), world.hosts()[host].traffic);
    HostTraffic {
        host: host as u64,
        stage: recorder.members.get(&peer).map(|stage| u64::from(stage.0)),
        gossip_bytes: traffic.gossip,
        merge_gossip_bytes: traffic.merge_gossip,
        messages: traffic.messages,
        request_bytes: traffic.requests,
        pushed_bytes: traffic.pushed,
        fetched_bytes: traffic.fetched,
        served_bytes: traffic.served,
        actions: traffic.actions,
        sent_messages: traffic.sent_messages,
    }
}

fn leader(recorder: &Recorder, traffic: &[HostTraffic]) -> Option<LeaderLoad> {
    let host = *recorder.peers.get(&recorder.leader?)?;
    let load = traffic.get(host)?;
    let median = |value: fn(&HostTraffic) -> u64| {
        let mut others: Vec<u64> =
            traffic.iter().filter(|other| other.host != load.host).map(value).collect();
        others.sort_unstable();
        others.get(others.len().saturating_sub(1) / 2).copied().unwrap_or(0)
    };
    Some(LeaderLoad {
        host: load.host,
        actions: load.actions,
        median_actions: median(|other| other.actions),
        sent_messages: load.sent_messages,
        median_sent_messages: median(|other| other.sent_messages),
        bytes: load.bytes(),
        median_bytes: median(HostTraffic::bytes),
    })
}

fn churn(recorder: &Recorder) -> Churn {
    let churn = &recorder.churn;
    let between = |from: Instant, to: Instant| to.since(from).as_secs_f64();
    let of = |values: Vec<f64>| Distribution::of(&values);
    let opened = recorder.epochs.values().map(|times| times.opened).min();
    let late = churn.joins.iter().filter(|(_, since, _)| opened.is_some_and(|opened| *since > opened));
    let losses = &churn.losses;
    Churn {
        losses: losses.len() as u64,
        detect_seconds: of(losses.iter().filter_map(|loss| Some(between(loss.at, loss.evicted?))).collect()),
        reroute_seconds: of(losses
            .iter()
            .filter_map(|loss| Some(between(loss.at, loss.rerouted?)))
            .collect()),
        election_seconds: of(churn
            .elections
            .iter()
            .filter_map(|election| Some(between(election.at, election.elected?)))
            .collect()),
        join_seconds: of(late.map(|(_, since, counted)| between(*since, *counted)).collect()),
    }
}

/// Throughput in equal parts of the run.
fn rate(recorder: &Recorder, end: Instant) -> Vec<RatePoint> {
    let part: Duration = end.since(Instant::ZERO) / RATE_PARTS;
    let point = |index: u32| {
        let (from, to) = (Instant::ZERO + part * index, Instant::ZERO + part * (index + 1));
        let before = |at: Instant| recorder.finished.partition_point(|finished| *finished < at);
        let middle = Instant::ZERO + part * index + part / 2;
        RatePoint {
            at_seconds: since_start(middle),
            samples_per_second: ratio(real((before(to) - before(from)) as u64), part.as_secs_f64()),
            bound_samples_per_second: bounds_at(recorder, middle).bound,
        }
    };
    (0..RATE_PARTS).map(point).collect()
}
