//! Why a replay stopped.

use rados::ErrorClass;
use thiserror::Error;

use crate::types::EntryPosition;

/// Why a replay stopped. The copy is at a point in the primary's history all the same.
#[derive(Debug, Clone, Error)]
pub enum ReplayError {
    /// The local cluster failed.
    #[error("cannot apply the journal to the copy: {0}")]
    Local(#[source] rados::Error),
    /// The exclusive lock of the copy is not ours any more.
    #[error("cannot apply the journal to the copy: its exclusive lock was taken away: {0}")]
    LockLost(#[source] rados::Error),
    /// An operation cannot be carried out here.
    #[error("cannot carry out {op} of {position} on the copy: {source}")]
    Operation {
        /// The operation.
        op: String,
        /// Where it stands in the journal.
        position: EntryPosition,
        /// Why.
        source: rados::Error,
    },
    /// An operation failed on the primary and may have changed part of its data.
    #[error(
        "{op} of {position} failed on the primary with {result} and may have changed part of its data: the copy can \
         only be made equal by a resync"
    )]
    HalfDone {
        /// The operation.
        op: String,
        /// Where it stands in the journal.
        position: EntryPosition,
        /// Its result: a negated errno.
        result: i32,
    },
    /// An event may have changed anything.
    #[error(
        "cannot apply {position} to the copy: events of type {kind} are not known to this version, and may change data; \
         run a version that knows them, or have the copy brought in line by a resync when the primary makes none any more"
    )]
    UnknownEvent {
        /// Where it stands in the journal.
        position: EntryPosition,
        /// Its type.
        kind: u32,
    },
    /// The replay was told to stop.
    #[error("the replay was stopped")]
    Stopped,
}

impl ReplayError {
    /// How to meet it.
    pub fn class(&self) -> ErrorClass {
        match self {
            ReplayError::Local(source) | ReplayError::Operation { source, .. } => source.class(),
            ReplayError::LockLost(source) if source.class() == ErrorClass::Fenced => ErrorClass::Fenced,
            ReplayError::LockLost(_) | ReplayError::Stopped => ErrorClass::Transient,
            ReplayError::HalfDone { .. } | ReplayError::UnknownEvent { .. } => ErrorClass::Permanent,
        }
    }

    /// The cluster's error behind it, if there is one.
    pub fn rados(&self) -> Option<&rados::Error> {
        match self {
            ReplayError::Local(source)
            | ReplayError::LockLost(source)
            | ReplayError::Operation { source, .. } => Some(source),
            ReplayError::HalfDone { .. } | ReplayError::UnknownEvent { .. } | ReplayError::Stopped => None,
        }
    }
}

impl From<rados::Error> for ReplayError {
    fn from(error: rados::Error) -> ReplayError {
        ReplayError::Local(error)
    }
}
