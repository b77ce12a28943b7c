//! `rbd-mirrorctl` on two real clusters, beside the stock `rbd`.
//!
//! All scenarios share the clusters, because starting them takes longer than they do; each makes pools of its own. An
//! argument that is no option picks the scenarios whose names contain it.

mod actions;
mod outputs;
mod readme;
mod relocation;
mod shells;
mod tokens;
mod verification;
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
                outputs::without_a_daemon,
                outputs::beside_our_daemon,
                outputs::beside_cephs_daemon,
                outputs::schedules,
                actions::every_action_and_every_refusal,
                actions::wrong_input,
                tokens::both_ways,
                shells::completions,
                shells::bars_on_terminals_only,
                relocation::there_and_back_under_a_writer,
                relocation::what_a_late_client_writes_is_undone,
                relocation::a_writer_with_cephs_daemon,
                relocation::killed_half_way,
                relocation::the_other_site_is_lost,
                relocation::the_other_site_of_cephs_daemon_is_lost,
                relocation::what_cannot_be_relocated,
                verification::proves_and_disproves,
                verification::under_a_writer,
                verification::copies_of_cephs_daemon,
                readme::the_three_stories,
            ]
        );
        failed
    });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
