//! Who may take a place in a run: what the spec's section `join` demands, and what a peer shows for it.
//!
//! ```text
//!  policy   shows                 is checked by                       bounds
//!  open     work, if work_bits    one hash                            how fast identities are made
//!  allow    nothing               the fold: the spec has the list     who there is
//!  invite   an owner's signature  one signature                       whom the owner let in, and for how long
//! ```
//! Candidates need none of it. What the spec and the credential tell alone is [`RunSpec::entitles`]: nobody remembers or
//! passes on the record of a peer that it refuses, so strangers fill no table. What depends on the state and on others is in
//! [`admission`](crate::peer::admission), which the leader asks before it proposes a place, and the one that wants it too.
//! ADR 0021 says what none of this can do.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::id::{Epoch, Hash, Identity, PeerId, RunId};
use crate::limits::WIRE_VERSION_FIRST;
use crate::spec::{JoinPolicy, RunSpec};
use crate::wire::encode;
use crate::wire::envelope::signed_bytes;

/// Separates hashes of work from all others.
const WORK_CONTEXT: &[u8] = b"iota/v1/work\0";

/// What a peer wants a place as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A miner of a stage.
    Miner,
    /// A validator.
    Validator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Miner => "miner",
            Self::Validator => "validator",
        })
    }
}

/// What a peer shows in its record, so that it is let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Credential {
    /// The nonce of a proof of work; see [`Puzzle`].
    Work(u64),
    /// The owner's signature.
    Invite(Invite),
}

/// The owner of a run lets one peer in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// As what.
    pub role: Role,
    /// The last epoch in which it gets a place by this, whenever the stage that is ahead has come there; for ever without
    /// one. A place that it has it keeps.
    pub until: Option<Epoch>,
    /// ed25519 over [`invite_bytes`].
    pub signature: ByteBuf,
}

/// The bytes an invite signs, in every version of the wire format:
/// `"iota/v1/invite\0" ‖ run id ‖ CBOR [peer, role, until]`.
#[must_use]
pub fn invite_bytes(run: RunId, peer: PeerId, role: Role, until: Option<Epoch>) -> Vec<u8> {
    signed_bytes(WIRE_VERSION_FIRST, "invite", run, &encode(&(peer, role, until)))
}

impl Invite {
    /// Invites `peer`.
    #[must_use]
    pub fn sign(owner: &Identity, run: RunId, peer: PeerId, role: Role, until: Option<Epoch>) -> Self {
        let signature = ByteBuf::from(owner.sign(&invite_bytes(run, peer, role, until)));
        Self { role, until, signature }
    }

    /// Whether `owner` has signed it, for this run and peer.
    #[must_use]
    pub fn verifies(&self, owner: PeerId, run: RunId, peer: PeerId) -> bool {
        owner.verifies(&invite_bytes(run, peer, self.role, self.until), &self.signature)
    }
}

/// The work of one peer for one run: `BLAKE3(BLAKE3("iota/v1/work\0" ‖ run id ‖ peer id) ‖ nonce u64 LE)` begins with
/// enough zero bits (Back 2002, Hashcash). Each identity needs its own, and it is good for one run.
#[derive(Clone, Copy, Debug)]
pub struct Puzzle {
    seed: Hash,
}

impl Puzzle {
    /// The work of `peer` for `run`.
    #[must_use]
    pub fn new(run: RunId, peer: PeerId) -> Self {
        Self { seed: Hash::of_parts(&[WORK_CONTEXT, &run.0, &peer.0]) }
    }

    /// Zero bits that the hash with `nonce` begins with, at most 64.
    #[must_use]
    pub fn bits(&self, nonce: u64) -> u8 {
        let mut input = [0; 40];
        input[..32].copy_from_slice(&self.seed.0);
        input[32..].copy_from_slice(&nonce.to_le_bytes());
        let [a, b, c, d, e, f, g, h, ..] = Hash::of(&input).0;
        // At most 64, so nothing is lost.
        u8::try_from(u64::from_be_bytes([a, b, c, d, e, f, g, h]).leading_zeros()).unwrap_or(u8::MAX)
    }

    /// The first of these nonces that gives `bits`, if one does. On average one of 2 to the power of `bits` does.
    #[must_use]
    pub fn search(&self, bits: u8, mut nonces: impl Iterator<Item = u64>) -> Option<u64> {
        nonces.find(|nonce| self.bits(*nonce) >= bits)
    }
}

/// Why a peer gets no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The spec bans it.
    #[error("expected a peer that the run does not ban, got {peer}, banned: {reason}")]
    Banned {
        /// The peer.
        peer: PeerId,
        /// What the spec says.
        reason: String,
    },
    /// The spec lists who may join, and not this one.
    #[error("expected a peer that the run's allow list names, got {peer}")]
    NotListed {
        /// The peer.
        peer: PeerId,
    },
    /// It has not done the work.
    #[error("expected a proof of work of {expected} bits, got {got}")]
    Work {
        /// Zero bits that the spec asks for.
        expected: u8,
        /// Zero bits that it shows.
        got: u8,
    },
    /// It shows no invite.
    #[error("expected an invite of {owner} to {peer}, got none")]
    Uninvited {
        /// Who invites.
        owner: PeerId,
        /// The peer.
        peer: PeerId,
    },
    /// Its invite is another peer's, another run's, or nobody's.
    #[error("expected an invite that {owner} signed for {peer} and this run, got another")]
    Forged {
        /// Who invites.
        owner: PeerId,
        /// The peer.
        peer: PeerId,
    },
    /// Its invite is one as something else.
    #[error("expected an invite as {wanted}, got one as {invited}")]
    Role {
        /// What it wants to be.
        wanted: Role,
        /// What it may be.
        invited: Role,
    },
    /// Its invite was good until an epoch that is over.
    #[error("expected an invite good in epoch {now}, got one until epoch {until}")]
    Expired {
        /// Where the run is.
        now: Epoch,
        /// What the invite says.
        until: Epoch,
    },
    /// As many as may be are at its address.
    #[error("expected fewer than {limit} members at {address}, got {got}")]
    Crowded {
        /// The spec's limit.
        limit: u32,
        /// The address, or for IPv6 the first of its /64.
        address: IpAddr,
        /// Who has a place there.
        got: usize,
    },
    /// It names no address at which it could be counted.
    #[error("expected an address of its data plane, since the run limits members of one address, got none")]
    Nowhere,
}

impl Refusal {
    /// Whether waiting is of no use.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        !matches!(self, Self::Crowded { .. } | Self::Nowhere)
    }
}

impl RunSpec {
    /// Whether the lists of the spec let `peer` in, which the fold of the log asks too.
    ///
    /// # Errors
    /// [`Refusal::Banned`] or [`Refusal::NotListed`].
    pub fn lists(&self, peer: PeerId) -> Result<(), Refusal> {
        let join = &self.join;
        if let Some(ban) = join.ban.iter().find(|ban| ban.peer == peer) {
            return Err(Refusal::Banned { peer, reason: ban.reason.clone() });
        }
        let listed = || self.candidate_index(peer).is_some() || join.allow.contains(&peer);
        match join.policy {
            JoinPolicy::Allow if !listed() => Err(Refusal::NotListed { peer }),
            JoinPolicy::Allow | JoinPolicy::Open | JoinPolicy::Invite => Ok(()),
        }
    }

    /// Whether `peer` may ask for a place in `run`, which is this spec's, as far as the spec and its credential tell alone.
    /// Costs one hash, or one signature.
    ///
    /// # Errors
    /// [`Refusal`], the first that applies.
    pub fn entitles(&self, run: RunId, peer: PeerId, credential: Option<&Credential>) -> Result<(), Refusal> {
        self.lists(peer)?;
        if self.candidate_index(peer).is_some() {
            return Ok(());
        }
        match (self.join.policy, self.join.owner) {
            (JoinPolicy::Invite, Some(owner)) => match credential {
                Some(Credential::Invite(invite)) if invite.verifies(owner, run, peer) => Ok(()),
                Some(Credential::Invite(_)) => Err(Refusal::Forged { owner, peer }),
                Some(Credential::Work(_)) | None => Err(Refusal::Uninvited { owner, peer }),
            },
            // A spec that was validated has an owner with this policy.
            (JoinPolicy::Invite, None) => Err(Refusal::NotListed { peer }),
            (JoinPolicy::Allow, _) => Ok(()),
            (JoinPolicy::Open, _) => {
                let expected = self.join.work_bits;
                let got = match credential {
                    Some(Credential::Work(nonce)) if expected > 0 => Puzzle::new(run, peer).bits(*nonce),
                    _ => 0,
                };
                if got < expected { Err(Refusal::Work { expected, got }) } else { Ok(()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Ban, Candidate, JoinSpec, OrchestratorSpec};

    fn identity(i: u8) -> Identity {
        Identity::from_secret([i; 32])
    }

    fn peer(i: u8) -> PeerId {
        identity(i).peer()
    }

    /// A run whose candidate is peer 1 and whose owner, if it has one, is peer 9.
    fn run(join: JoinSpec) -> (RunSpec, RunId) {
        let candidates = vec![Candidate { peer: peer(1), priority: 0 }];
        let spec = RunSpec { join, orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
        assert_eq!(spec.validate(), Ok(()));
        let run = spec.run_id();
        (spec, run)
    }

    fn by_invite() -> (RunSpec, RunId) {
        run(JoinSpec { policy: JoinPolicy::Invite, owner: Some(peer(9)), ..JoinSpec::default() })
    }

    fn invite(by: u8, run: RunId, of: u8) -> Credential {
        Credential::Invite(Invite::sign(&identity(by), run, peer(of), Role::Miner, Some(Epoch(7))))
    }

    #[test]
    fn an_open_run_without_work_asks_nobody_for_anything() {
        let (spec, run) = run(JoinSpec::default());
        assert_eq!(spec.entitles(run, peer(5), None), Ok(()));
        assert_eq!(spec.entitles(run, peer(5), Some(&Credential::Work(3))), Ok(()));
    }

    #[test]
    fn work_counts_for_its_peer_and_run_only() {
        let (spec, run) = run(JoinSpec { work_bits: 8, ..JoinSpec::default() });
        let shows = |run, of, nonce| spec.entitles(run, peer(of), Some(&Credential::Work(nonce)));
        let nonce = Puzzle::new(run, peer(5)).search(8, 0..).expect("one of 256");
        assert_eq!(shows(run, 5, nonce), Ok(()));
        assert_eq!(spec.entitles(run, peer(5), None), Err(Refusal::Work { expected: 8, got: 0 }));
        // Each of these is right by chance with a probability of 2 to the power of minus 8.
        for refused in [shows(run, 6, nonce), shows(RunId([3; 32]), 5, nonce)] {
            assert!(matches!(refused, Err(Refusal::Work { expected: 8, got: 0..8 })), "{refused:?}");
        }
        let puzzle = Puzzle::new(run, peer(5));
        let less = (0..).find(|nonce| puzzle.bits(*nonce) == 7).expect("one of 256");
        assert_eq!(shows(run, 5, less), Err(Refusal::Work { expected: 8, got: 7 }), "one bit is missing");
        assert_eq!(spec.entitles(run, peer(1), None), Ok(()), "candidates are named already");
    }

    #[test]
    fn bits_are_the_zeros_that_the_hash_begins_with() {
        let puzzle = Puzzle::new(RunId([1; 32]), peer(5));
        for nonce in 0..200_u64 {
            let mut bytes = puzzle.seed.0.to_vec();
            bytes.extend(nonce.to_le_bytes());
            let hash = Hash::of(&bytes);
            let zeros = hash.0.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
            let zeros = zeros.take_while(|bit| *bit == 0).count();
            assert_eq!(usize::from(puzzle.bits(nonce)), zeros, "nonce {nonce}");
        }
    }

    #[test]
    fn an_invite_is_good_for_its_peer_and_run_if_the_owner_signed_it() {
        let (spec, run) = by_invite();
        let shows = |credential: Option<Credential>| spec.entitles(run, peer(5), credential.as_ref());
        assert_eq!(shows(Some(invite(9, run, 5))), Ok(()));
        let (owner, of) = (peer(9), peer(5));
        assert_eq!(shows(None), Err(Refusal::Uninvited { owner, peer: of }));
        assert_eq!(shows(Some(Credential::Work(1))), Err(Refusal::Uninvited { owner, peer: of }));
        let forged = Err(Refusal::Forged { owner, peer: of });
        assert_eq!(shows(Some(invite(9, run, 6))), forged, "another peer's");
        assert_eq!(shows(Some(invite(9, RunId([3; 32]), 5))), forged, "another run's");
        assert_eq!(shows(Some(invite(5, run, 5))), forged, "its own");
        let Credential::Invite(good) = invite(9, run, 5) else { panic!("an invite") };
        let longer = Invite { until: None, ..good.clone() };
        let other = Invite { role: Role::Validator, ..good.clone() };
        let cut = Invite { signature: ByteBuf::from(good.signature[..63].to_vec()), ..good };
        for changed in [longer, other, cut] {
            assert_eq!(shows(Some(Credential::Invite(changed))), forged);
        }
        assert_eq!(spec.entitles(run, peer(1), None), Ok(()), "candidates are named already");
    }

    #[test]
    fn a_list_lets_in_whom_it_names_and_candidates() {
        let (spec, run) = run(JoinSpec {
            policy: JoinPolicy::Allow,
            allow: (2..=6).map(peer).collect(),
            ..JoinSpec::default()
        });
        for of in [1, 2, 6] {
            assert_eq!(spec.entitles(run, peer(of), None), Ok(()));
        }
        assert_eq!(spec.entitles(run, peer(7), None), Err(Refusal::NotListed { peer: peer(7) }));
    }

    #[test]
    fn a_ban_says_why_and_beats_an_invite() {
        let ban = vec![Ban { peer: peer(5), reason: "sent noise".to_owned() }];
        let (spec, run) =
            run(JoinSpec { ban, policy: JoinPolicy::Invite, owner: Some(peer(9)), ..JoinSpec::default() });
        let refused = spec.entitles(run, peer(5), Some(&invite(9, run, 5))).expect_err("banned");
        let text = format!("expected a peer that the run does not ban, got {}, banned: sent noise", peer(5));
        assert_eq!(refused.to_string(), text);
        assert!(refused.is_final());
    }
}
