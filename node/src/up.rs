//! `iota-node up`: a whole swarm of real processes on this machine, from nothing to a report.
//!
//! ```text
//! prepare   spec.toml, keys/                          plan.rs
//! start     process 0, then the others with its address   children.rs
//! follow    every events.jsonl, until all have finished   view.rs, screen.rs
//!           meanwhile kill, freeze and add processes      fault.rs
//! conclude  compare replicas, assemble, evaluate, sample  outcome.rs
//! control   the same samples in one process               outcome.rs
//! report    summary.json, epochs.jsonl, report.html       crate::report
//! ```
//!
//! **Invariant:** `up` sees only what the processes write to their folders; it takes no part in the protocol.

pub mod children;
pub mod fault;
pub mod outcome;
pub mod plan;
pub mod screen;
pub mod view;

use std::time::{Duration, Instant};

use children::{Life, Process, stop_all, wait_until_started};
use fault::When;
use plan::UpPlan;
use screen::Screen;
use view::SwarmView;

use crate::error::CliError;
use crate::events::NodeEvent;
use crate::signals::StopSignals;

/// How long the first process may take to bind its sockets.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at the event logs.
const POLL: Duration = Duration::from_millis(200);
/// Beyond the run's own linger, how long a process may take to end after the last merge.
const END_GRACE: Duration = Duration::from_secs(20);

/// What is left of a swarm whose processes have all ended.
#[derive(Debug)]
pub struct Ended {
    /// What their logs said.
    pub view: SwarmView,
    /// How each process ended, by index.
    pub lives: Vec<Life>,
    /// What went wrong on the way, as told.
    pub incidents: Vec<String>,
}

/// Runs the swarm of `plan` until it has ended. No process is left when this returns.
///
/// # Errors
/// A process could not be started, all were lost, nothing moved for too long, or a signal came.
pub async fn run_swarm(
    plan: &UpPlan,
    screen: &mut Screen,
    signals: &mut StopSignals,
) -> Result<Ended, CliError> {
    let mut swarm = Swarm::new(plan);
    let followed = tokio::select! {
        result = swarm.run(screen) => result,
        signal = signals.next() => Err(CliError::Interrupted { signal }),
    };
    screen.erase();
    if followed.is_ok() {
        swarm.tell_stragglers(screen);
    }
    stop_all(&mut swarm.processes).await;
    swarm.read_events(screen)?;
    followed?;
    let lives = swarm.processes.iter().map(|process| process.life).collect();
    Ok(Ended { view: swarm.view, lives, incidents: swarm.incidents })
}

/// A swarm while it runs.
struct Swarm<'a> {
    plan: &'a UpPlan,
    processes: Vec<Process>,
    view: SwarmView,
    incidents: Vec<String>,
    /// Where each process can be reached, once it has said so.
    addresses: Vec<Vec<String>>,
    kills: Vec<fault::Kill>,
    freezes: Vec<fault::Freeze>,
    joins: Vec<When>,
    thaws: Vec<(usize, Instant)>,
    restarts: Vec<(usize, Instant)>,
    moved: (u64, Instant),
    complete: Option<Instant>,
}

impl<'a> Swarm<'a> {
    fn new(plan: &'a UpPlan) -> Self {
        Self {
            plan,
            processes: Vec::new(),
            view: SwarmView::new(plan.spec.pipeline.stages, plan.spec.training.epochs),
            incidents: Vec::new(),
            addresses: Vec::new(),
            kills: plan.faults.kills.clone(),
            freezes: plan.faults.freezes.clone(),
            joins: plan.faults.joins.clone(),
            thaws: Vec::new(),
            restarts: Vec::new(),
            moved: (0, Instant::now()),
            complete: None,
        }
    }

    async fn run(&mut self, screen: &mut Screen) -> Result<(), CliError> {
        self.start(screen).await?;
        loop {
            self.read_events(screen)?;
            self.bury(screen)?;
            self.apply_faults(screen)?;
            self.restart(screen).await?;
            if self.is_over()? {
                return Ok(());
            }
            screen.draw(&self.view);
            tokio::time::sleep(POLL).await;
        }
    }

    /// Starts the first process, and the others once its address is known.
    async fn start(&mut self, screen: &mut Screen) -> Result<(), CliError> {
        let logs = self.plan.peers_dir();
        self.spawn()?;
        let events = wait_until_started(&mut self.processes[0], START_DEADLINE, &logs).await?;
        for timed in events {
            self.learn_addresses(0, &timed.event);
            drop(self.view.apply(0, timed));
        }
        for _ in 1..self.plan.processes() {
            self.spawn()?;
        }
        let [count, threads] = [self.processes.len(), self.plan.threads()];
        screen.tell(&format!("{count} processes started, {threads} compute threads each"));
        self.moved = (self.view.progress, Instant::now());
        Ok(())
    }

    fn spawn(&mut self) -> Result<(), CliError> {
        let index = self.processes.len();
        let arguments = self.plan.arguments(index, &self.bootstrap());
        self.processes.push(Process::start(
            self.plan.peer_dir(index),
            &arguments,
            self.plan.threads(),
            self.plan.log_max,
        )?);
        self.addresses.push(Vec::new());
        Ok(())
    }

    /// Addresses of a process that runs.
    fn bootstrap(&self) -> Vec<String> {
        let mut known = self.processes.iter().zip(&self.addresses);
        let reachable = known.find(|(process, addresses)| process.is_alive() && !addresses.is_empty());
        reachable.map(|(_, addresses)| addresses.clone()).unwrap_or_default()
    }

    fn learn_addresses(&mut self, index: usize, event: &NodeEvent) {
        if let NodeEvent::Started { multiaddrs, .. } = event {
            self.addresses[index].clone_from(multiaddrs);
        }
    }

    /// Starts those again whose time has come. Were all killed, the others follow the first once its address is known.
    async fn restart(&mut self, screen: &mut Screen) -> Result<(), CliError> {
        let now = Instant::now();
        while let Some(next) = self.restarts.iter().position(|(_, at)| *at <= now) {
            let bootstrap = self.bootstrap();
            if bootstrap.is_empty() && self.processes.iter().any(Process::is_alive) {
                break;
            }
            let (index, _) = self.restarts.remove(next);
            let arguments = self.plan.arguments(index, &bootstrap);
            self.processes[index].restart(&arguments, self.plan.threads()).await?;
            self.tell(screen, format!("process {index} started again"));
        }
        Ok(())
    }

    fn tell(&mut self, screen: &mut Screen, text: String) {
        screen.tell(&text);
        self.incidents.push(text);
    }

    fn read_events(&mut self, screen: &mut Screen) -> Result<(), CliError> {
        for index in 0..self.processes.len() {
            let process = &mut self.processes[index];
            let events = process.events().map_err(|error| CliError::file("read", &process.dir, error))?;
            for timed in events {
                self.learn_addresses(index, &timed.event);
                if let Some(notice) = self.view.apply(index, timed) {
                    screen.notice(&notice, &self.view);
                }
            }
        }
        Ok(())
    }

    /// Reports processes that died: the run goes on as long as the swarm does.
    fn bury(&mut self, screen: &mut Screen) -> Result<(), CliError> {
        for (index, process) in self.processes.iter_mut().enumerate() {
            let ended =
                process.ended().map_err(|error| CliError::Bug(format!("wait for a process: {error}")))?;
            let Some(status) = ended.filter(|status| !status.success()) else { continue };
            let text = format!("process {index} died: {status}");
            screen.tell(&format!("{text}; its last lines:\n{}", process.last_lines()));
            self.incidents.push(text);
        }
        Ok(())
    }

    fn apply_faults(&mut self, screen: &mut Screen) -> Result<(), CliError> {
        let training = self
            .view
            .opened_ms
            .map(|start| Duration::from_millis(crate::events::unix_ms().saturating_sub(start)));
        let epoch = self.view.latest_epoch();
        let due = |when: When| when.is_due(training, epoch);
        let now = Instant::now();
        let mut told = Vec::new();
        for fault in self.kills.extract_if(.., |fault| due(fault.when)) {
            let victims = self.processes.iter_mut().zip(&mut self.addresses).enumerate();
            for (index, (process, addresses)) in victims.filter(|(index, _)| fault.victims.include(*index)) {
                if !process.kill() {
                    continue;
                }
                addresses.clear();
                self.restarts.extend(fault.back.map(|back| (index, now + back)));
                told.push(format!("process {index} killed"));
            }
        }
        for fault in self.freezes.extract_if(.., |fault| due(fault.when)) {
            if let Some(process) = self.processes.get_mut(fault.peer) {
                process.freeze();
                self.thaws.push((fault.peer, now + fault.pause));
                told.push(format!("process {} frozen for {:.1}s", fault.peer, fault.pause.as_secs_f64()));
            }
        }
        for (peer, _) in self.thaws.extract_if(.., |(_, at)| *at <= now) {
            if let Some(process) = self.processes.get_mut(peer) {
                process.thaw();
                told.push(format!("process {peer} thawed"));
            }
        }
        let joins = self.joins.extract_if(.., |when| due(*when)).count();
        for _ in 0..joins {
            told.push(format!("process {} joins late", self.processes.len()));
            self.spawn()?;
        }
        told.into_iter().for_each(|text| self.tell(screen, text));
        Ok(())
    }

    /// Reports processes that should have ended by themselves.
    fn tell_stragglers(&mut self, screen: &mut Screen) {
        let alive = |index: &usize| self.processes[*index].is_alive();
        for index in (0..self.processes.len()).filter(alive).collect::<Vec<_>>() {
            self.tell(screen, format!("process {index} did not end after the last merge and was stopped"));
        }
    }

    /// Whether all that can end has ended.
    fn is_over(&mut self) -> Result<bool, CliError> {
        let alive = self.processes.iter().filter(|process| process.is_alive()).count();
        if self.view.is_complete() {
            let since = *self.complete.get_or_insert_with(Instant::now);
            let patience = self.plan.spec.timing.linger.duration() + END_GRACE;
            return Ok(alive == 0 || since.elapsed() > patience);
        }
        let failed = |reason| Err(CliError::RunFailed { reason, logs: self.plan.peers_dir() });
        if alive == 0 && self.restarts.is_empty() {
            let done = self.view.epochs.len();
            let all = self.view.stages.len() * self.plan.spec.training.epochs as usize;
            return failed(format!("expected {all} merges, got {done} before the last process ended"));
        }
        if self.view.progress != self.moved.0 {
            self.moved = (self.view.progress, Instant::now());
        }
        let limit = self.plan.stall_timeout;
        if self.moved.1.elapsed() > limit {
            return failed(format!("expected progress within {limit:?}, got none from {alive} processes"));
        }
        Ok(false)
    }
}
