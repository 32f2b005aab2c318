//! Peers that break the rules. Each is a [`Behaviour`] between an honest protocol machine and the world: it may change
//! what the engine returns, what the machine hears and what leaves the host.

mod forgery;
mod numbers;

mod garbage;
mod huge;
mod nan;
mod scaled;
mod sign_flip;

mod copycat;
mod free_rider_noise;
mod free_rider_replay;
mod lazy;
mod sybil;

mod equivocator;
mod loss_liar;
mod receipt_forger;
mod speed_liar;

mod colluding_owners;
mod framers;
mod lying_owner;

mod fabricator;
mod flooder;
mod two_faced;
mod withholding;

mod colluding_accusers;
mod false_accuser;
mod false_evaluator;
mod lazy_approver;

mod censor;
mod forking_leader;
mod malicious_minority;
mod usurper;

use std::collections::BTreeMap;
use std::str::FromStr;

use iota_protocol::miner::{Action, Job, JobDone};
use iota_protocol::wire::Gossip;
use iota_protocol::wire::frame::{PushAck, PushHeader};
use iota_protocol::wire::message::Topic;
use iota_protocol::{Identity, Instant, PeerId, RunSpec, StageIndex};

use crate::blobs::BlobStore;
use crate::costs::Costs;
use crate::random::Random;
use crate::trainer::Compute;

/// What an adversary can use: its host's own things, and its own kind.
pub struct Means<'a> {
    /// Virtual time.
    pub now: Instant,
    /// Its key.
    pub identity: &'a Identity,
    /// The run.
    pub spec: &'a RunSpec,
    /// How large things are.
    pub costs: &'a Costs,
    /// What engines compute.
    pub compute: Compute,
    /// All adversaries, by kind: those of one kind know each other.
    pub accomplices: &'a BTreeMap<Kind, Vec<PeerId>>,
    /// Its disk.
    pub store: &'a mut BlobStore,
    /// Its dice.
    pub random: &'a mut Random,
    /// The honest machine it hides behind.
    pub peer: &'a crate::host::VirtualPeer,
}

impl Means<'_> {
    /// The stage it is a miner of; the head if it is none.
    #[must_use]
    pub fn stage(&self) -> StageIndex {
        self.peer.state().stage_of(self.peer.id()).unwrap_or_default()
    }

    /// Elements of the flat vector of its stage.
    #[must_use]
    pub fn parameters(&self) -> usize {
        let stages = self.compute.parameters(self.spec, self.costs);
        stages.get(self.stage().as_usize()).copied().unwrap_or_default()
    }

    /// Whether `peer` is an adversary of this kind.
    #[must_use]
    pub fn is_accomplice(&self, kind: Kind, peer: PeerId) -> bool {
        self.accomplices.get(&kind).is_some_and(|peers| peers.contains(&peer))
    }
}

/// What leaves the host.
#[derive(Clone, Debug, PartialEq)]
pub enum Emission {
    /// What the protocol asked for, or something else.
    Act(Action),
    /// A gossiped message that only every second host is told: those with an even number, or an odd one. The others hear it
    /// from them.
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

    /// A gossiped message has come: whether the protocol machine hears it.
    fn hears(&mut self, means: &mut Means<'_>, gossip: &Gossip) -> bool {
        let _ = (means, gossip);
        true
    }

    /// A tensor was pushed here: an answer is given instead of the protocol machine's, which does not hear of it.
    fn is_pushed(&mut self, means: &mut Means<'_>, from: PeerId, header: &PushHeader) -> Option<PushAck> {
        let _ = (means, from, header);
        None
    }

    /// The protocol machine was woken by its own deadline, at least once per heartbeat: what is done besides.
    fn wakes(&mut self, means: &mut Means<'_>) -> Vec<Emission> {
        let _ = means;
        Vec::new()
    }
}

/// Declares the adversaries: name of the variant, on the command line, sentence, and how one is made from its seed.
macro_rules! kinds {
    ($($variant:ident $name:literal $about:literal $make:expr;)*) => {
        /// The adversaries there are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = $about] $variant,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What it does, as a sentence.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self { $(Self::$variant => $about),* }
            }

            /// One of this kind.
            #[must_use]
            pub fn behaviour(self, seed: u64) -> Box<dyn Behaviour> {
                let make: fn(u64) -> Box<dyn Behaviour> = match self { $(Self::$variant => $make),* };
                make(seed)
            }
        }
    };
}

kinds! {
    Garbage "garbage" "Contributes bytes that are no partition." |_| Box::new(garbage::Garbage);
    Nan "nan" "Contributes not-a-numbers." |_| Box::new(nan::Nan);
    Huge "huge" "Contributes finite numbers of absurd size." |_| Box::new(huge::Huge);
    Scaled "scaled" "Contributes a hundred times what it computed." |_| Box::new(scaled::Scaled);
    SignFlip "sign-flip" "Contributes the negative of what it computed." |_| Box::new(sign_flip::SignFlip);
    Copycat "copycat" "Does no work and contributes another miner's partitions."
        |_| Box::new(copycat::Copycat::default());
    FreeRiderReplay "free-rider-replay" "Works for one epoch, then contributes the same again."
        |_| Box::new(free_rider_replay::FreeRiderReplay::default());
    FreeRiderNoise "free-rider-noise" "Does no work and contributes small noise."
        |_| Box::new(free_rider_noise::FreeRiderNoise);
    Lazy "lazy" "Skips backward passes and contributes zeros." |_| Box::new(lazy::Lazy);
    Sybil "sybil" "One of many identities of one idle host: they contribute the same noise."
        |_| Box::new(sybil::Sybil);
    ReceiptForger "receipt-forger" "Commits to receipts of work that was never done."
        receipt_forger::ReceiptForger::boxed;
    Equivocator "equivocator" "Tells one half of the swarm something else than the other."
        |_| Box::new(equivocator::Equivocator);
    LossLiar "loss-liar" "Reports a loss near zero at the tail." |_| Box::new(loss_liar::LossLiar);
    SpeedLiar "speed-liar" "Claims to be the fastest by far." |_| Box::new(speed_liar::SpeedLiar);
    LyingOwner "lying-owner" "Reduces its partitions wrongly." |_| Box::new(lying_owner::LyingOwner);
    ColludingOwners "colluding-owners" "Reports the same wrong result as its accomplice where only they own a partition."
        |_| Box::new(colluding_owners::ColludingOwners);
    Framers "framers" "Reduces as wrongly as its accomplice in the same stage, so that honest owners lose disputes."
        |_| Box::new(framers::Framers);
    TwoFaced "two-faced" "Sends on other activations than those it computed and commits to." |_| Box::new(two_faced::TwoFaced);
    Fabricator "fabricator" "Computes from gradients of its own making, as if they had come from its neighbours."
        |_| Box::new(fabricator::Fabricator);
    Withholding "withholding" "Takes activations and never sends anything on." |_| Box::new(withholding::Withholding);
    Flooder "flooder" "Publishes a stream of valid messages and garbage." |_| Box::new(flooder::Flooder::default());
    FalseAccuser "false-accuser" "As a validator, says that honest work differs." |_| Box::<false_accuser::FalseAccuser>::default();
    ColludingAccusers "colluding-accusers" "As a validator, accuses the same miners as its accomplices."
        |_| Box::<colluding_accusers::ColludingAccusers>::default();
    LazyApprover "lazy-approver" "As a validator, approves all work without a replay."
        |_| Box::<lazy_approver::LazyApprover>::default();
    FalseEvaluator "false-evaluator" "As a validator, says that contributions do harm that do good."
        |_| Box::new(false_evaluator::FalseEvaluator);
    MaliciousMinority "malicious-minority" "As a candidate, votes for another history and sends garbage."
        |_| Box::new(malicious_minority::MaliciousMinority);
    Usurper "usurper" "As a candidate, claims to lead and does not." |_| Box::new(usurper::Usurper);
    Censor "censor" "As leader, is deaf to every third peer." |_| Box::new(censor::Censor);
    ForkingLeader "forking-leader" "As leader, has other entries decided by one half of the candidates."
        |_| Box::<forking_leader::ForkingLeader>::default();
}

impl Kind {
    /// Whether it does harm only as a candidate.
    #[must_use]
    pub const fn is_candidate(self) -> bool {
        matches!(self, Self::MaliciousMinority | Self::Usurper | Self::Censor | Self::ForkingLeader)
    }

    /// Whether it does harm only as a validator.
    #[must_use]
    pub const fn is_validator(self) -> bool {
        matches!(
            self,
            Self::FalseAccuser | Self::ColludingAccusers | Self::LazyApprover | Self::FalseEvaluator
        )
    }

    /// Whether it does harm only where scores are by the loss.
    #[must_use]
    pub const fn is_evaluator(self) -> bool {
        matches!(self, Self::FalseEvaluator)
    }

    /// Whether what it does can be proved to somebody who was not there. Delays, deafness, floods and leading nowhere cannot: whoever
    /// sees one sees its own connection, too.
    #[must_use]
    pub const fn is_provable(self) -> bool {
        !matches!(self, Self::Withholding | Self::Flooder | Self::Censor | Self::Usurper)
    }

    /// Adversaries without which it is right by chance.
    #[must_use]
    pub const fn company(self) -> Option<Self> {
        match self {
            Self::LazyApprover => Some(Self::FreeRiderNoise),
            _ => None,
        }
    }

    /// Whether it does harm only while it leads.
    #[must_use]
    pub const fn leads(self) -> bool {
        matches!(self, Self::Censor | Self::ForkingLeader)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let names = || Self::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
        Self::ALL
            .iter()
            .copied()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("expected one of {}, got `{name}`", names()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_back_and_differ() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(*kind));
        }
        assert!("honest".parse::<Kind>().is_err_and(|error| error.contains("lying-owner")));
    }
}
