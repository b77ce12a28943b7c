//! Copies whose primaries are gone are removed; nothing else ever is: copies by hand on a real cluster, and a backend that
//! holds an image's task at a chosen operation.

mod absence;
mod races;
mod world;

tests::run_scenarios!(
    world::World,
    [
        races::a_promotion_between_any_two_operations_wins_or_fails,
        races::a_removal_that_was_cut_off_is_completed,
        absence::copies_stay_unless_the_entry_alone_is_gone,
    ]
);
