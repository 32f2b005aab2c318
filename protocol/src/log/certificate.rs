//! Votes of candidates on what was decided, and the certificates they add up to.
//!
//! A chain hash names a log position and everything before it:
//! `chain[-1] = run id`, `chain[i] = BLAKE3(chain[i-1] ‖ BLAKE3(entry[i]))`. A candidate votes for (index, chain)
//! only after its consensus decided that entry, so a certificate proves that at least one honest
//! candidate of a majority saw the decision. Crash faults of a minority are tolerated by consensus. A
//! lying minority cannot make a certificate alone, but a lying leader can have two made: two majorities
//! need not share anybody but the liar.
//!
//! The chain runs over the entries' hashes, so that a certificate proves any range before it: whoever has the range
//! needs no more than the hashes of what lies between.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::id::{Hash, Identity, LogIndex, PeerId, RunId};
use crate::limits::{ENTRY_BYTES_MAX, VOTES_AHEAD_MAX, WIRE_VERSION_FIRST};
use crate::spec::RunSpec;
use crate::wire::envelope::signed_bytes;
use crate::wire::message::ControlUpdate;
use crate::wire::{RejectReason, encode};

/// What signatures under votes name their kind.
pub const VOTE_KIND: &str = "vote";

/// A candidate's signature under "this is decided".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vote {
    /// Position of the voter among the spec's candidates.
    pub candidate: u16,
    /// Index of the entry.
    pub index: LogIndex,
    /// Chain hash up to and with the entry.
    pub chain: Hash,
    /// ed25519 over [`vote_bytes`].
    pub signature: ByteBuf,
}

impl Vote {
    /// Whether this peer signed it in this run.
    #[must_use]
    pub fn is_of(&self, run: RunId, peer: PeerId) -> bool {
        peer.verifies(&vote_bytes(run, self.index, self.chain), &self.signature)
    }
}

/// Signatures of a majority of the candidates under one log position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Index of the last entry it covers.
    pub index: LogIndex,
    /// Chain hash up to and with that entry.
    pub chain: Hash,
    /// Candidates, ascending, with their signatures.
    pub signatures: Vec<(u16, ByteBuf)>,
}

impl Certificate {
    /// The votes that it is made of.
    pub fn votes(&self) -> impl Iterator<Item = Vote> + '_ {
        let (index, chain) = (self.index, self.chain);
        self.signatures.iter().map(move |(candidate, signature)| Vote {
            candidate: *candidate,
            index,
            chain,
            signature: signature.clone(),
        })
    }
}

/// The chain hash after the entry of this hash.
#[must_use]
pub fn chain_hash(previous: Hash, entry: Hash) -> Hash {
    Hash::of_parts(&[&previous.0, &entry.0])
}

/// The chain hash of the empty log.
#[must_use]
pub const fn chain_start(run: RunId) -> Hash {
    Hash(run.0)
}

/// The bytes a vote signs, in every version of the wire format: `"iota/v1/vote\0" ‖ run id ‖ CBOR [index, chain]`.
#[must_use]
pub fn vote_bytes(run: RunId, index: LogIndex, chain: Hash) -> Vec<u8> {
    signed_bytes(WIRE_VERSION_FIRST, VOTE_KIND, run, &encode(&(index, chain)))
}

/// Who may sign, and how many must.
#[derive(Clone, Debug)]
pub struct Electorate {
    run: RunId,
    candidates: Vec<PeerId>,
    quorum: usize,
}

impl Electorate {
    /// The candidates of a spec.
    #[must_use]
    pub fn new(spec: &RunSpec) -> Self {
        Self {
            run: spec.run_id(),
            candidates: spec.orchestrator.candidates.iter().map(|candidate| candidate.peer).collect(),
            quorum: spec.certificate_quorum(),
        }
    }

    /// Whether `vote` was signed by the candidate it names.
    fn holds(&self, vote: &Vote) -> bool {
        self.candidate(vote.candidate).is_some_and(|peer| vote.is_of(self.run, peer))
    }

    /// The candidate of this number.
    #[must_use]
    pub fn candidate(&self, number: u16) -> Option<PeerId> {
        self.candidates.get(usize::from(number)).copied()
    }

    /// The run it votes in.
    #[must_use]
    pub const fn run(&self) -> RunId {
        self.run
    }

    /// Checks the signatures of an update, which needs no log and no state.
    ///
    /// # Errors
    /// [`RejectReason::Certificate`], or [`RejectReason::Inconsistent`] if the certificate cannot be about the entries.
    pub fn certify(&self, update: ControlUpdate) -> Result<Certified, RejectReason> {
        let reached = update.next().and_then(|next| next.0.checked_add(update.beyond.len() as u64));
        if update.entries.is_empty() || update.certificate.index.0.checked_add(1) != reached {
            return Err(RejectReason::Inconsistent("certificate index"));
        }
        if update.entries.iter().any(|entry| entry.len() > ENTRY_BYTES_MAX) {
            return Err(RejectReason::Inconsistent("entry length"));
        }
        self.check(&update.certificate)?;
        Ok(Certified(update))
    }

    /// Checks a certificate: ascending distinct candidates, valid signatures, a majority.
    ///
    /// # Errors
    /// [`RejectReason::Certificate`].
    pub fn check(&self, certificate: &Certificate) -> Result<(), RejectReason> {
        let ascending = certificate.signatures.windows(2).all(|pair| matches!(pair, [a, b] if a.0 < b.0));
        let valid = certificate.votes().all(|vote| self.holds(&vote));
        if ascending && valid && certificate.signatures.len() >= self.quorum {
            Ok(())
        } else {
            Err(RejectReason::Certificate)
        }
    }
}

/// Votes for one chain hash.
type Ballots = BTreeMap<u16, ByteBuf>;

/// Entries whose certificate carries valid signatures of a majority. That it fits the entries, only a log can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified(ControlUpdate);

impl Certified {
    /// The entries and their certificate.
    #[must_use]
    pub const fn update(&self) -> &ControlUpdate {
        &self.0
    }
}

/// Turns votes into certificates, at a candidate.
#[derive(Debug)]
pub struct Certifier {
    electorate: Electorate,
    me: u16,
    /// Votes for positions above the latest certificate.
    votes: BTreeMap<(LogIndex, Hash), Ballots>,
    latest: Option<Certificate>,
}

impl Certifier {
    /// A certifier of candidate number `me`.
    #[must_use]
    pub fn new(electorate: Electorate, me: u16) -> Self {
        Self { electorate, me, votes: BTreeMap::new(), latest: None }
    }

    /// Who may sign.
    #[must_use]
    pub const fn electorate(&self) -> &Electorate {
        &self.electorate
    }

    /// The certificate of the highest index so far.
    #[must_use]
    pub const fn latest(&self) -> Option<&Certificate> {
        self.latest.as_ref()
    }

    /// Votes, as this candidate, for a position that its consensus decided.
    pub fn vote(&mut self, identity: &Identity, index: LogIndex, chain: Hash) -> Vote {
        let signature = identity.sign(&vote_bytes(self.electorate.run, index, chain));
        let vote = Vote { candidate: self.me, index, chain, signature: ByteBuf::from(signature) };
        self.count(vote.clone());
        vote
    }

    /// Takes another candidate's vote.
    ///
    /// # Errors
    /// [`RejectReason::Signature`] if it is forged, [`RejectReason::Full`] if too many of this candidate are pending.
    pub fn handle(&mut self, from: PeerId, vote: Vote) -> Result<(), RejectReason> {
        if self.electorate.candidate(vote.candidate) != Some(from) {
            return Err(RejectReason::NotEntitled);
        }
        // One that comes too late to count may still contradict another.
        if !self.electorate.holds(&vote) {
            return Err(RejectReason::Signature);
        }
        if self.latest.as_ref().is_some_and(|latest| vote.index <= latest.index) {
            return Ok(());
        }
        let of_it = self.votes.values().filter(|ballots| ballots.contains_key(&vote.candidate));
        if self.votes.len() >= VOTES_AHEAD_MAX && of_it.count() >= VOTES_AHEAD_MAX {
            return Err(RejectReason::Full("votes"));
        }
        self.count(vote);
        Ok(())
    }

    /// Adopts a certificate made elsewhere, if it is newer.
    pub fn adopt(&mut self, certified: &Certified) {
        let certificate = &certified.0.certificate;
        if self.latest.as_ref().is_none_or(|latest| certificate.index > latest.index) {
            self.close(certificate.clone());
        }
    }

    fn count(&mut self, vote: Vote) {
        let ballots = self.votes.entry((vote.index, vote.chain)).or_default();
        ballots.insert(vote.candidate, vote.signature);
        // A certificate is only of use to us once we decided the entry ourselves, so our own vote must be in it.
        if ballots.len() >= self.electorate.quorum && ballots.contains_key(&self.me) {
            let signatures =
                ballots.iter().map(|(candidate, signature)| (*candidate, signature.clone())).collect();
            self.close(Certificate { index: vote.index, chain: vote.chain, signatures });
        }
    }

    fn close(&mut self, certificate: Certificate) {
        self.votes.retain(|(index, _), _| *index > certificate.index);
        self.latest = Some(certificate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn electorate(n: u8) -> (Vec<Identity>, Electorate) {
        let identities: Vec<_> = (1..=n).map(|i| Identity::from_secret([i; 32])).collect();
        let candidates: Vec<_> = identities.iter().map(Identity::peer).collect();
        let quorum = candidates.len() / 2 + 1;
        (identities, Electorate { run: RunId([7; 32]), candidates, quorum })
    }

    #[test]
    fn a_majority_makes_a_certificate_and_a_minority_does_not() {
        let (ids, electorate) = electorate(3);
        let mut certifiers: Vec<_> = (0..3).map(|me| Certifier::new(electorate.clone(), me)).collect();
        let chain = Hash::of(b"entry");
        let vote = certifiers[0].vote(&ids[0], LogIndex(0), chain);
        assert_eq!(certifiers[0].latest(), None, "one of three is no majority");
        certifiers[1].vote(&ids[1], LogIndex(0), chain);
        certifiers[1].handle(ids[0].peer(), vote).expect("valid vote");
        let certificate = certifiers[1].latest().expect("two of three").clone();
        assert_eq!(electorate.check(&certificate), Ok(()));
        let update = ControlUpdate {
            first: LogIndex(0),
            entries: vec![ByteBuf::from(b"entry")],
            beyond: Vec::new(),
            certificate: certificate.clone(),
        };
        certifiers[2].adopt(&electorate.certify(update).expect("a valid certificate"));
        assert_eq!(certifiers[2].latest(), Some(&certificate));
    }

    #[test]
    fn votes_for_different_histories_do_not_add_up() {
        let (ids, electorate) = electorate(3);
        let mut certifier = Certifier::new(electorate.clone(), 0);
        let mut liar = Certifier::new(electorate, 1);
        certifier.vote(&ids[0], LogIndex(0), Hash::of(b"a"));
        let other = liar.vote(&ids[1], LogIndex(0), Hash::of(b"b"));
        certifier.handle(ids[1].peer(), other).expect("well formed");
        assert_eq!(certifier.latest(), None);
    }

    #[test]
    fn a_candidate_that_votes_far_ahead_takes_no_room_from_others() {
        let (ids, electorate) = electorate(3);
        let mut certifier = Certifier::new(electorate.clone(), 0);
        let mut vote = |i: u8, index: u64, says: u64| {
            let chain = Hash::of(&says.to_le_bytes());
            let other = Certifier::new(electorate.clone(), u16::from(i)).vote(
                &ids[usize::from(i)],
                LogIndex(index),
                chain,
            );
            certifier.handle(ids[usize::from(i)].peer(), other)
        };
        for says in 0..VOTES_AHEAD_MAX as u64 {
            assert_eq!(vote(1, u64::MAX, says), Ok(()));
        }
        assert_eq!(vote(1, u64::MAX, u64::MAX), Err(RejectReason::Full("votes")));
        assert_eq!(vote(2, 0, 0), Ok(()));
    }

    #[test]
    fn forged_repeated_and_borrowed_signatures_are_refused() {
        let (ids, electorate) = electorate(3);
        let mut certifier = Certifier::new(electorate.clone(), 1);
        let vote = certifier.vote(&ids[1], LogIndex(4), Hash::of(b"x"));
        let one = (1_u16, vote.signature.clone());
        let twice =
            Certificate { index: LogIndex(4), chain: vote.chain, signatures: vec![one.clone(), one.clone()] };
        assert_eq!(electorate.check(&twice), Err(RejectReason::Certificate), "one signature counted twice");
        let borrowed = Certificate {
            index: LogIndex(4),
            chain: vote.chain,
            signatures: vec![(0, vote.signature.clone()), one],
        };
        assert_eq!(electorate.check(&borrowed), Err(RejectReason::Certificate), "another's signature");
        let mut other = Certifier::new(electorate, 0);
        assert_eq!(
            other.handle(ids[2].peer(), vote),
            Err(RejectReason::NotEntitled),
            "vote sent by someone else"
        );
    }
}
