//! Validator that says of every contribution it evaluates that it does harm, so that its miner has nothing.

use iota_protocol::gauntlet::evaluation::{Evaluation, Measured, Said};
use iota_protocol::miner::Action;
use iota_protocol::wire::message::{EvaluationAnnounce, MergeMessage, Topic};

use super::forgery::{own_merge_message, publish, signed};
use super::{Behaviour, Emission, Means};

pub(super) struct FalseEvaluator;

/// The contrary.
const fn reversed(said: Said) -> Said {
    match said {
        Said::Measured(Measured { own, own_error, random, random_error }) => {
            let (own, random) = (own.saturating_neg(), random.saturating_neg());
            Said::Measured(Measured { own, own_error, random, random_error })
        }
        Said::Copy | Said::Invalid | Said::Unseen => said,
    }
}

impl Behaviour for FalseEvaluator {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        let Some(MergeMessage::Evaluation(EvaluationAnnounce { sequence, evaluation })) =
            own_merge_message(means, &action)
        else {
            return vec![Emission::Act(action)];
        };
        let Evaluation { epoch, plan, said, .. } = evaluation;
        let said = said.into_iter().map(|(peer, said)| (peer, reversed(said))).collect();
        let evaluation = Evaluation::sign(means.identity, means.spec.run_id(), epoch, plan, said);
        let message = MergeMessage::Evaluation(EvaluationAnnounce { sequence, evaluation });
        vec![publish(Topic::Merge(message.stage()), signed(means, &message))]
    }
}
