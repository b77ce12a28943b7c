//! Two sites that are introduced to each other, natively and by the stock `rbd`, on two real clusters: what one makes
//! the other takes, both store the same, and refuse the same.
//!
//! All scenarios share the clusters, because starting them takes longer than they do; each makes a pool of its own.

mod scenarios;
mod world;

tests::run_scenarios!(
    world::World,
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
