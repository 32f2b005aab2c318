//! Peers that break the rules. Each is a [`Behaviour`] between an honest protocol machine and the world: it may change
//! what the engine returns and what leaves the host.

use std::str::FromStr;

use iota_protocol::miner::{Action, Job, JobDone};
use iota_protocol::wire::message::Topic;
use iota_protocol::{Identity, Instant, RunSpec};

use crate::blobs::BlobStore;
use crate::random::Random;

/// What an adversary can use: its host's own things.
pub struct Means<'a> {
    /// Virtual time.
    pub now: Instant,
    /// Its key.
    pub identity: &'a Identity,
    /// The run.
    pub spec: &'a RunSpec,
    /// Its disk.
    pub store: &'a mut BlobStore,
    /// Its dice.
    pub random: &'a mut Random,
    /// The honest machine it hides behind.
    pub peer: &'a crate::host::VirtualPeer,
}

/// What leaves the host.
#[derive(Clone, Debug)]
pub enum Emission {
    /// What the protocol asked for, or something else.
    Act(Action),
    /// A gossiped message that only every second host hears: those with an even number, or an odd one.
    PublishToHalf {
        /// The topic.
        topic: Topic,
        /// The message.
        bytes: Vec<u8>,
        /// Which half.
        odd: bool,
    },
}

/// A way to deviate. Every method's default is what an honest host does.
pub trait Behaviour {
    /// The engine is asked for a job: a result here is taken instead of its work.
    fn shirks(&mut self, means: &mut Means<'_>, job: &Job) -> Option<JobDone> {
        let _ = (means, job);
        None
    }

    /// The engine has done a job: what the protocol machine hears.
    fn computed(&mut self, means: &mut Means<'_>, job: &Job, done: JobDone) -> JobDone {
        let _ = (means, job);
        done
    }

    /// The protocol machine wants something done: what is done.
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        let _ = means;
        vec![Emission::Act(action)]
    }
}

/// The adversaries there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 0] = [];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {}
    }

    /// One of this kind.
    #[must_use]
    pub fn behaviour(self, seed: u64) -> Box<dyn Behaviour> {
        let _ = seed;
        match self {}
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("expected one of {}, got `{name}`", names()))
    }
}
