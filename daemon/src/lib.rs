//! The `rbd-mirror` daemon.

pub mod admin_socket;
pub mod conf_file;
pub mod connect;
pub mod control;
pub mod image;
pub mod logging;
pub mod options;
pub mod process;
pub mod report;
pub mod reports;
pub mod retry;
pub mod service;
pub mod settings;
