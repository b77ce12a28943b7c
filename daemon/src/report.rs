//! What an image's task publishes about itself: the one source of status, metrics and admin socket.

use rbd::mirroring::StatusState;

/// A mirrored image's report, published through a `watch` channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Its state, in Ceph's words (`up+replaying` and so on).
    pub state: StatusState,
    /// Text, for a replaying image followed by a JSON object, as Ceph writes it: `replaying, {…}`.
    pub description: String,
    /// Name of the local image, empty while unknown.
    pub image_name: String,
}

impl Report {
    /// A report of `state`.
    pub fn new(state: StatusState, description: impl Into<String>) -> Self {
        Report { state, description: description.into(), image_name: String::new() }
    }
}

impl Default for Report {
    fn default() -> Self {
        Report::new(StatusState::StartingReplay, "starting replay")
    }
}
