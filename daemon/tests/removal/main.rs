//! Copies whose primaries are gone are removed; nothing else ever is: copies by hand on a real cluster, and a backend that
//! holds an image's task at a chosen operation.

mod absence;
mod delays;
mod races;
mod world;

tests::run_scenarios!(
    world::World,
    [
        races::a_promotion_between_any_two_operations_wins_or_fails,
        races::a_removal_that_was_cut_off_is_completed,
        delays::the_delay_is_that_of_image_pool_or_daemon,
        delays::a_copy_that_is_open_stays_in_the_trash,
        delays::a_copy_that_was_promoted_in_the_trash_stays,
        delays::a_copy_can_be_taken_back,
        delays::a_removal_that_is_not_to_go_on_is_undone,
        absence::copies_stay_unless_the_entry_alone_is_gone,
    ]
);
