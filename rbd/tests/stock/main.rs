//! Images made and changed by this crate, and by the stock `rbd`, on one real cluster: each must read what the other
//! wrote, and both must leave the same bytes behind.
//!
//! All scenarios share one cluster, because starting one takes longer than they do.

mod clones;
mod crashes;
mod creation;
mod headers;
mod object_maps;
mod removal;
mod rollback;
mod snapshots;
mod world;

tests::run_scenarios!(
    world::World,
    [
        creation::native_and_stock_leave_the_same,
        creation::stock_tools_use_native_images,
        creation::creation_can_be_repeated_and_is_undone,
        creation::images_are_renamed,
        headers::headers_tell_what_stock_tools_tell,
        headers::large_headers_are_read_whole,
        headers::headers_are_consistent_under_changes,
        headers::updates_take_effect,
        headers::mirror_snapshots_are_updated,
        clones::clones_leave_the_same,
        clones::clones_are_known_on_both_sides,
        clones::snapshots_stay_clones,
        snapshots::snapshots_leave_the_same,
        snapshots::snapshots_hold_their_content,
        snapshots::making_can_be_repeated,
        snapshots::protection_sees_clones,
        object_maps::maps_agree_with_the_class_methods,
        object_maps::fast_diff_agrees_with_stock,
        object_maps::a_lock_guards_the_map,
        crashes::creation,
        crashes::cloning,
        crashes::making_snapshots,
        crashes::removing_snapshots,
        crashes::renaming,
        crashes::removing,
        crashes::trashing,
        rollback::rollbacks_leave_the_same,
        rollback::later_writes_are_undone,
        rollback::a_clone_sees_its_parent_again,
        rollback::removing_many_leaves_the_same,
        removal::nothing_is_left,
        removal::images_in_use_stay,
        removal::trash_is_shared_with_stock_tools,
    ]
);
