//! `rbd-mirrorctl` on two real clusters, beside the stock `rbd`.
//!
//! All scenarios share the clusters, because starting them takes longer than they do; each makes pools of its own.

mod actions;
mod outputs;
mod readme;
mod relocation;
mod shells;
mod tokens;
mod verification;
mod world;

tests::run_scenarios!(
    world::World,
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
        relocation::half_a_copy_is_not_promoted,
        relocation::the_other_site_is_lost,
        relocation::the_other_site_of_cephs_daemon_is_lost,
        relocation::what_cannot_be_relocated,
        verification::proves_and_disproves,
        verification::under_a_writer,
        verification::copies_of_cephs_daemon,
        readme::the_three_stories,
    ]
);
