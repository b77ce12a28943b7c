//! Two real Ceph clusters on one machine, and what tests, benchmarks and the demo do with them.
//!
//! A [`Cluster`] is one monitor, one manager and some BlueStore OSDs on 127.0.0.1, with cephx, whose whole state is
//! one private folder: nothing in `/etc`, no systemd, no root needed. [`TwoClusters`] is a pair of them, ready to be
//! peers. Everything an operator would do is done with the stock `rbd`, `ceph` and `rados`; images are written by
//! [`image`], compared by [`mod@compare`], and mirrored by a [`MirrorDaemon`], which may be ours or Ceph's.
//!
//! The harness is asynchronous (tokio), as the tests are: a scenario waits for several tools, daemons and conditions at
//! once. Only the ending of a cluster in `Drop` is synchronous.
//!
//! Ceph's daemons outlive whoever starts them unless [`ClusterOptions::die_with_parent`] is set: the demo wants the
//! first, tests the second.
#![forbid(unsafe_code)]

pub mod admin_socket;
pub mod cluster;
pub mod compare;
mod conf;
pub mod diff;
pub mod image;
pub mod librbd;
pub mod many;
pub mod mirror;
pub mod mirror_daemon;
pub mod network;
mod operator;
pub mod options;
pub mod process;
pub mod runner;
pub mod stamped;
mod state;
pub mod tool;
pub mod two_clusters;
pub mod wait;

pub use cluster::{Cluster, OsdEnd};
pub use compare::{Comparison, compare, compare_sparse};
pub use image::Extents;
pub use librbd::LibrbdImage;
pub use many::ManyImages;
pub use mirror_daemon::{DaemonKind, MirrorDaemon, MirrorDaemonOptions};
pub use nix::sys::signal::Signal;
pub use options::ClusterOptions;
pub use runner::World;
pub use stamped::StampedWriter;
pub use tool::{Tool, ToolError};
pub use two_clusters::TwoClusters;
