//! What an image's task publishes about itself: the one source of status, metrics and admin socket.

use serde::Serialize;

/// State of a mirrored image, in Ceph's words (`up+replaying` and so on).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayState {
    /// Nothing is known yet.
    Unknown,
    /// It stopped because of an error that needs somebody's attention.
    Error,
    /// Its first copy, or its resync, is under way.
    Syncing,
    /// It is being set up.
    StartingReplay,
    /// It follows its primary.
    Replaying,
    /// It is being shut down.
    StoppingReplay,
    /// It does not follow: it is primary here, or has been stopped.
    Stopped,
}

/// A mirrored image's report, published through a `watch` channel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Its state.
    pub state: ReplayState,
    /// Text, for a replaying image followed by a JSON object, as Ceph writes it: `replaying, {…}`.
    pub description: String,
    /// Name of the local image, empty while unknown.
    pub image_name: String,
}

impl Report {
    /// A report of `state`.
    pub fn new(state: ReplayState, description: impl Into<String>) -> Self {
        Report { state, description: description.into(), image_name: String::new() }
    }
}

impl Default for Report {
    fn default() -> Self {
        Report::new(ReplayState::StartingReplay, "starting replay")
    }
}
