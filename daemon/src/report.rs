//! What an image's task publishes about itself: the one source of status, metrics and admin socket.

use rbd::mirroring::StatusState;

/// A mirrored image's report, published through a `watch` channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Its state, in Ceph's words (`up+replaying` and so on).
    pub state: StatusState,
    /// Text, for a replaying image followed by a JSON object, as Ceph writes it: `replaying, {…}`. No other text has a
    /// comma: ceph-csi takes what follows the first one for JSON.
    pub description: String,
    /// Name of the local image, empty while unknown.
    pub image_name: String,
}

impl Report {
    /// A report of `state`. Commas of a text that is not followed by a JSON object become semicolons.
    pub fn new(state: StatusState, description: impl Into<String>) -> Self {
        let mut description = description.into();
        if !description.starts_with("replaying, {") {
            description = description.replace(',', ";");
        }
        Report { state, description, image_name: String::new() }
    }
}

impl Default for Report {
    fn default() -> Self {
        Report::new(StatusState::StartingReplay, "starting replay")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_has_a_comma_but_that_of_a_replaying_image() {
        let described = |text: &str| Report::new(StatusState::Error, text).description;
        assert_eq!(described("cannot read a, b: c"), "cannot read a; b: c");
        assert_eq!(described("replaying, {\"a\":1,\"b\":2}"), "replaying, {\"a\":1,\"b\":2}");
        assert_eq!(described("replaying, and so on"), "replaying; and so on");
    }
}
