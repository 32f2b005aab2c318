//! What the swarm has learned: the merged stages put together and measured on text that nobody trained on.

use iota_model::{Device, EngineError, StageSelect, build_engine, weights_hash};
use iota_protocol::{Epoch, Hash};
use iota_worker::bridge::engine_config;
use iota_worker::validation::{mean_loss, validation_batches};

use super::statistics::rounded;
use crate::report::Validation;
use crate::trainer::Weights;
use crate::world::World;

/// The whole model as the last merges left it.
struct Merged {
    /// Epochs that every stage has in it.
    version: Epoch,
    flat: Vec<f32>,
}

/// The loss of the merged model beside that of the initial one; nothing unless engines are real, every stage has a
/// holder, and the loss is a number.
///
/// # Errors
/// What the engine said. It computes what hosts' engines computed before, so an error is a bug.
pub(super) fn validation(world: &World) -> Result<Option<Validation>, EngineError> {
    let (Some(corpus), Some(merged)) = (world.engines().corpus(), merged(world)) else { return Ok(None) };
    let batches = validation_batches(world.spec(), corpus);
    let mut engine = build_engine(&engine_config(world.spec(), StageSelect::Whole), &Device::Cpu)?;
    let initial = mean_loss(engine.as_mut(), &batches)?;
    engine.load_weights(&merged.flat)?;
    let last = mean_loss(engine.as_mut(), &batches)?;
    Ok(last.is_finite().then(|| Validation {
        initial_nats: rounded(initial),
        final_nats: rounded(last),
        epochs: u64::from(merged.version.0),
        weights: Hash(weights_hash(&merged.flat)).to_string(),
    }))
}

/// The loss of the merged model in nats per token; nothing where [`validation`] has none, or the engine refuses weights that
/// adversaries have made no numbers.
pub(crate) fn merged_loss(world: &World) -> Option<f64> {
    validation(world).ok().flatten().map(|validation| validation.final_nats)
}

/// Of each stage the newest weights that an honest host holds. Checkers see that holders of the same version agree.
fn merged(world: &World) -> Option<Merged> {
    let held: Vec<Weights<'_>> =
        world.running().filter_map(|host| holder(world, host)?.trainer().weights()).collect();
    let newest = |stage| held.iter().filter(|held| held.stage == stage).max_by_key(|held| held.version);
    let stages = world.spec().stages().map(newest).collect::<Option<Vec<_>>>()?;
    Some(Merged {
        version: stages.iter().map(|stage| stage.version).min()?,
        flat: stages.iter().flat_map(|stage| stage.flat).copied().collect(),
    })
}

fn holder(world: &World, host: usize) -> Option<&crate::host::Host> {
    world.hosts().get(host).filter(|host| host.is_honest())
}
