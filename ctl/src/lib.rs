//! `rbd-mirrorctl`: what operators do with the mirroring of RBD images.
//!
//! [`grammar`] reads the command line, [`connection`] connects, [`commands`] carries out what `rbd mirror` does, and
//! [`output`] prints as `rbd` prints, byte for byte.
//!
//! Data goes to standard output; everything else (errors, progress, warnings) to standard error.
#![forbid(unsafe_code)]

pub mod commands;
pub mod connection;
pub mod failure;
pub mod grammar;
pub mod other_site;
pub mod output;
pub mod overview;
pub mod record;
pub mod relocation;
pub mod spec;
pub mod targets;

pub use failure::Failure;
