//! What an image's task publishes about itself: the one source of status, metrics and admin socket.

use std::borrow::Cow;

use rados::text::visible;
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
    /// A report of `state`. Control characters in the description, which may come from a remote cluster, become visible;
    /// and commas of a text that is not followed by a JSON object become semicolons.
    pub fn new(state: StatusState, description: impl Into<String>) -> Self {
        let description: String = description.into();
        let description = match visible(&description) {
            Cow::Borrowed(_) => description,
            Cow::Owned(visible) => visible,
        };
        let of_ceph = description.starts_with("replaying, {");
        let description = if of_ceph { description } else { description.replace(',', ";") };
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
    fn descriptions_are_fit_for_terminals_and_parsers() {
        let of = |text: &str| Report::new(StatusState::Error, text).description;
        assert_eq!(of("cannot open 'a\x1b[2J', 'b'\n"), "cannot open 'a\\u{1b}[2J'; 'b'\\n");
        assert_eq!(of("replaying, {\"a\":1,\"b\":2}"), "replaying, {\"a\":1,\"b\":2}");
        assert_eq!(of("replaying, and so on"), "replaying; and so on");
    }
}
