//! What this crate shares with others on one real cluster: locks, notifications and mirroring metadata, each side played
//! by the stock `rbd` as well.
//!
//! All scenarios share one cluster, because starting one takes longer than they do.

mod asking;
mod image_states;
mod locks;
mod managed;
mod metadata;
mod statuses;
mod world;

tests::run_scenarios!(
    world::World,
    [
        metadata::modes_and_peers_agree_with_stock,
        metadata::images_agree_with_stock,
        metadata::changes_are_told_of,
        metadata::daemons_keep_their_books,
        statuses::a_status_lives_with_its_watch,
        statuses::statuses_are_listed_and_summed_up,
        image_states::states_are_those_of_stock,
        image_states::large_states_span_objects,
        image_states::resyncs_are_requested,
        locks::stock_takes_the_lock_over_and_gives_it_back,
        locks::a_refused_peer_is_told_so,
        locks::a_frozen_owner_keeps_the_lock,
        locks::a_killed_owner_is_fenced,
        locks::two_of_ours_take_turns,
        locks::a_wish_dropped_leaves_nothing,
        locks::a_lock_outlives_a_restarted_osd,
        locks::a_blocklisted_owner_learns_of_it,
        locks::a_persons_lock_is_respected,
        locks::a_lock_stays_until_what_was_written_under_it_is_answered,
        asking::stock_operations_get_the_lock,
        asking::refused_operations_fail,
        asking::a_stock_owner_does_what_we_ask,
        asking::what_stock_clients_say_is_understood,
        managed::leaders_take_turns,
        managed::a_live_leader_is_only_broken_by_force,
    ]
);
