//! Two sites that are introduced to each other, natively and by the stock `rbd`, on two real clusters: what one makes
//! the other takes, both store the same, and refuse the same.
//!
//! All scenarios share the clusters, because starting them takes longer than they do; each makes a pool of its own.

mod scenarios;
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
                scenarios::tokens_are_stocks,
                scenarios::stock_takes_our_token,
                scenarios::we_take_a_stock_token,
                scenarios::both_store_the_same,
                scenarios::both_refuse_the_same,
                scenarios::a_token_that_is_no_longer_valid,
                scenarios::a_peer_that_is_there_is_updated,
                scenarios::site_names,
                scenarios::cut_off_and_repeated,
            ]
        );
        failed
    });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
