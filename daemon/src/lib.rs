//! The `rbd-mirror` daemon.
