//! Snapshot mode: plan the delta, copy it, commit it.
