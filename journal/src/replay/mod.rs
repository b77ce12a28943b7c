//! Applying a journal to the copy (in the making).
mod delta;
mod error;
mod objects;
mod plan;
mod queue;
mod shape;
