//! Every scenario keeps its promise, twice in the same way.

use iota_protocol::Instant;
use iota_sim::scenario::{ALL, Request};
use iota_sim::trainer::Compute;
use iota_sim::world::{Ending, World};

#[test]
fn probe() {
    for scenario in ALL.iter().filter(|s| s.nodes < 500) {
        for seed in 0..3 {
            let request = Request { nodes: None, seed, compute: Compute::Cost, epochs: None };
            let setup = scenario.setup(&request);
            let mut world = World::new(setup.clone());
            iota_sim::checker::all(&iota_sim::checker::Options::of(&setup))
                .into_iter()
                .for_each(|c| world.watch(c));
            let ending = world.run(scenario.limit(&setup));
            println!(
                "{} {seed}: {ending:?} events {} hosts {}",
                scenario.name,
                world.events(),
                world.hosts().len()
            );
            if !matches!(ending, Ending::Finished(_)) {
                let p = world.best_informed().unwrap();
                for (i, s) in p.state().stages().iter().enumerate() {
                    println!(
                        "   stage {i} {:?} replicas {} {}",
                        s.version,
                        p.state().replicas(iota_protocol::StageIndex(i as u16)).count(),
                        format!("{:?}", s.phase).chars().take(150).collect::<String>()
                    );
                }
            }
        }
    }
    let _ = Instant::ZERO;
}
