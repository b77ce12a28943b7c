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

tests::run_scenarios!(
    world::World,
    [
        refusals::of_images_that_are_not_mirrored,
        refusals::of_pools_in_other_modes,
        refusals::of_clones,
        refusals::of_images_in_migration,
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
