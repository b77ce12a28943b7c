//! Journals on a real cluster: written by stock librbd and read here, read and changed by the stock `rbd` after we
//! changed them.
//!
//! All scenarios share one cluster, because starting one takes longer than most of them do.

mod damage;
mod epochs;
mod following;
mod metadata;
mod reading;
mod world;

tests::run_scenarios!(
    world::World,
    [
        reading::every_entry_is_as_exported,
        reading::padded_objects_are_read,
        reading::journals_in_other_pools_are_read,
        reading::a_killed_writer_leaves_nothing_that_others_do_not_see,
        following::a_live_writer_is_followed,
        following::committed_sets_are_trimmed_and_the_copy_is_whole,
        following::a_failed_request_loses_nothing,
        following::dropped_calls_lose_nothing,
        metadata::clients_are_as_the_stock_tool_shows_them,
        metadata::long_lists_are_read_whole,
        metadata::an_open_image_trims_what_we_commit,
        metadata::changes_are_heard,
        metadata::there_need_not_be_a_journal,
        damage::spoiled_objects_are_told,
        damage::missing_objects_are_told,
        damage::clients_too_far_behind_are_told,
        damage::struck_out_clients_are_told,
        epochs::journals_are_made_as_librbd_makes_them,
        epochs::forced_promotion_leaves_what_librbd_leaves,
        epochs::what_a_forced_promotion_names_is_not_missed,
        epochs::stock_tools_use_images_that_we_promoted,
        epochs::unapplied_entries_keep_an_image_from_being_demoted,
        epochs::full_sets_are_left,
        epochs::removal_leaves_nothing,
    ]
);
