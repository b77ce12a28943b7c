//! The `rbd-mirror` daemon.

pub mod admin_socket;
pub mod conf_file;
pub mod connect;
pub mod control;
pub mod flush;
pub mod image;
pub mod leader;
pub mod logging;
pub mod namespace;
pub mod options;
pub mod peer_ping;
pub mod pool_replayer;
pub mod pools;
pub mod private_file;
pub mod process;
pub mod report;
pub mod reports;
pub mod retry;
pub mod service;
pub mod settings;
pub mod space;
pub mod status;
pub mod supervisor;
