//! librados made async and safe.
//!
//! Operations are values: a [`ReadOp`] or [`WriteOp`] is a plain list of sub-operations on one object, and says
//! nothing about how it is carried out. A [`Backend`] executes operations and answers with a future. One backend is
//! librados ([`connect`]); [`fault::Faulty`] wraps another one and makes it fail, stall or crash at a chosen operation.
//!
//! Layers, from the bottom: `librados` (FFI, the only unsafe code of the workspace), [`backend`] (the seam), [`op`]
//! (operations), [`ioctx`] (a pool and namespace, what callers hold), [`cluster`] (a connection).
//!
//! Invariants:
//! * No call blocks an async worker thread.
//! * Every method is cancel-safe in memory: the buffers of an operation belong to its completion, so a dropped future
//!   frees nothing that librados still uses. Whether a *write* whose future was dropped took effect is unknown.
//! * Operations in flight are bounded per connection (see [`Limits`]).
//! * A write made through a gated [`IoCtx`] counts as under way until it was answered, whoever waits for it (see [`gate`]).

pub mod backend;
pub mod cluster;
mod describe;
pub mod encoding;
pub mod entity;
pub mod error;
pub mod fault;
pub mod gate;
pub mod ioctx;
mod librados;
pub mod lock;
pub mod op;
pub mod severable;
pub mod text;
pub mod types;

pub use backend::{Backend, Location, NotifyAnswer, NotifyReply, Pending, Watch, WatchEvent};
pub use cluster::{
    Cluster, CommandReply, CommandTarget, ConnectOptions, Limits, OptionKind, all_closed, connect,
    end_process, option_kind,
};
pub use error::{Error, ErrorClass, Result};
pub use gate::{Gate, GateGuard};
pub use ioctx::IoCtx;
pub use op::{
    ChecksumKind, Clone, CloneSet, OmapPage, ReadAnswer, ReadOp, ReadReply, ReadSub, Watcher, WriteOp,
    WriteSub,
};
pub use types::{Extent, PoolId, SnapContext, SnapId};
