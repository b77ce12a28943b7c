//! What an operator asks for, done natively and by the stock `rbd`, on two real clusters.
//!
//! All scenarios share the clusters, because starting them takes longer than they do; each makes pools of its own.

mod copies;
mod crashes;
mod locks;
mod picture;
mod pools;
mod refusals;
mod twins;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use world::World;

/// Runs a scenario and tells how it went.
macro_rules! run {
    ($world:ident, $failed:ident, $filter:ident, [$($scenario:path),* $(,)?]) => {$(
        let name = stringify!($scenario);
        if $filter.as_ref().is_none_or(|filter| name.contains(filter.as_str())) {
            let start = Instant::now();
            match Box::pin($scenario(&$world)).await {
                Ok(()) => println!("ok      {name} ({:.1} s)", start.elapsed().as_secs_f64()),
                Err(error) => {
                    println!("FAILED  {name}: {error:#}");
                    $failed += 1;
                }
            }
            $world.remove_pools().await.expect("pools can be removed");
        }
    )*};
}

fn main() -> ExitCode {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let failed = runtime.block_on(async {
        let world = World::start().await.expect("two clusters");
        let mut failed = 0;
        run!(
            world,
            failed,
            filter,
            [
                refusals::of_images_that_are_not_mirrored,
                refusals::of_pools_in_other_modes,
                refusals::of_clones,
                refusals::of_whole_pools_with_clones,
                pools::all_at_once,
                pools::a_namespace,
                pools::peers_by_hand,
                pools::a_token_is_imported,
                twins::a_life_in_snapshot_mode,
                twins::a_life_in_journal_mode,
                copies::a_planned_failover,
                copies::a_forced_failover,
                copies::a_half_copied_delta_is_undone,
                locks::the_owner_makes_and_removes_snapshots,
                locks::a_demotion_stops_a_writer,
                locks::a_dead_writer_is_fenced,
                locks::a_writer_gains_and_loses_a_journal,
                locks::who_does_not_give_up_is_left_alone,
                locks::what_was_only_journalled_is_written,
                crashes::of_primaries,
                crashes::of_copies,
                crashes::of_modes,
            ]
        );
        failed
    });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
