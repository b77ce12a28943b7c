//! The `rbd-mirror` binary.

fn main() {}
