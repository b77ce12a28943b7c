//! Moving the role of primary from one site to the other: `failover` and `failback`.
//!
//! "Here" is the site whose configuration the command was given, which is to become primary; "there" is the other one.
//!
//! ```text
//! failover             check ── catch up ── demote there ── await the last changes ── promote here ── check
//! failback    (mend) ──┘   mend: where both went on by themselves, demote here and resync, if that may be
//! failover --emergency     promote here by force, and tell from which moment each image continues
//! ```
//!
//! **Nothing is remembered between runs.** What is to be done next follows from what the two clusters tell ([`facts`],
//! [`plan`]), so a run that was cut off, wherever, is taken up by the next one.
//!
//! **All or nothing, where that can be.** Nothing is changed anywhere as long as one image cannot be relocated; nothing is
//! promoted as long as the last changes of one image have not arrived.
//!
//! **Nothing waits for ever.** Each request to the other site has `--peer-timeout`, each stage that waits for data
//! `--timeout`.

pub mod emergency;
pub mod facts;
pub mod plan;
pub mod planned;
pub mod report;

/// Called with what was done so far, whenever something was done.
pub type Record<'a> = Box<dyn FnMut(&report::Details) -> Result<(), crate::failure::Failure> + Send + 'a>;
