//! What to do with a pair of journalled images: decided from the tags, the client and the flags of both journals alone,
//! purely and synchronously.
//!
//! Vocabulary. The newest tag of a journal tells who writes its image: [`LOCAL_MIRROR_UUID`] its own cluster (the image
//! is primary), a mirror uuid the pool that it is a copy of (it is *linked* to it), [`ORPHAN_MIRROR_UUID`] nobody (it was
//! demoted). Whenever a mirror replays the first entry of a tag of the primary it makes a tag like it in the copy's
//! journal ([`crate::local_tag`]); so the copy's newest tag tells up to where both have the same history.
//!
//! A demoted image may follow the other one when that was promoted out of the very same demotion:
//!
//! ```text
//! journal of the image demoted        journal of the other
//! tag 5 local                         tag 8 mirror uuid of the first   (replayed)
//! tag 6 orphan, after tag 5           tag 9 orphan, after tag 5 of the first (replayed)
//!                                     tag 10 local, after orphan tag 9       (promoted)
//! ```
//!
//! or the other way round, when the demotion of the other was replayed here and it was then promoted again. Anything
//! else between (a forced promotion makes a tag after one that is no orphan) is a split-brain.
//!
//! Agrees with `PrepareReplayRequest.cc`, `BootstrapRequest.cc`, `PrepareLocalImageRequest.cc` and
//! `PrepareRemoteImageRequest.cc` in `src/tools/rbd_mirror/image_replayer/`, except:
//! * A resync that was asked for is done whatever the client in the remote journal says; Ceph's daemon refuses when that
//!   is of another image.
//! * An image that was demoted before anything was written to it has no committed entry that its demotion could name.
//!   Ceph's daemon then sees a split-brain; here a replayed demotion that names none, either, is the same one.
//! * A resync waits until the remote image is primary before anything happens to the copy, or until it is demoted while the
//!   copy is linked to it: then nobody writes to it, and it cannot be brought in line with this one at the same time. Ceph's
//!   daemon waits for a primary; what was written last before the demotion then arrives only after that.

use rbd::ImageId;

use crate::types::{
    ClientState, LOCAL_MIRROR_UUID, MirrorPeer, MirrorPeerState, ORPHAN_MIRROR_UUID, TagData, TagTid,
};

/// Who may write to an image, by the newest tag of its journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// Its own cluster: it is primary.
    Primary,
    /// Nobody: it was demoted.
    Orphan,
    /// Mirroring alone: it is a copy of the image in the pool with this mirror uuid.
    CopyOf(String),
}

impl Owner {
    /// The owner that a journal's newest tag names.
    pub fn of(newest: &TagData) -> Owner {
        match newest.mirror_uuid.as_str() {
            LOCAL_MIRROR_UUID => Owner::Primary,
            ORPHAN_MIRROR_UUID => Owner::Orphan,
            other => Owner::CopyOf(other.to_string()),
        }
    }

    /// True for a copy of the image in the pool with this mirror uuid.
    pub fn is_copy_of(&self, mirror_uuid: &str) -> bool {
        matches!(self, Owner::CopyOf(uuid) if uuid == mirror_uuid)
    }
}

/// The local image, as far as its journal is concerned.
#[derive(Debug, Clone, Copy)]
pub struct LocalView<'a> {
    /// The image.
    pub image: &'a ImageId,
    /// Its journal's newest tag.
    pub tag: &'a TagData,
    /// `rbd mirror image resync` was called.
    pub resync_requested: bool,
}

/// This site's client in the remote journal.
#[derive(Debug, Clone, Copy)]
pub struct PeerView<'a> {
    /// Whether it still counts.
    pub state: ClientState,
    /// What it says; `None` when it is not what a mirror writes.
    pub peer: Option<&'a MirrorPeer>,
}

/// The remote image, as far as its journal is concerned.
#[derive(Debug, Clone, Copy)]
pub struct RemoteView<'a> {
    /// Its journal's tags, ascending; at least one.
    pub tags: &'a [(TagTid, TagData)],
    /// This site's client; `None` when it is not registered.
    pub client: Option<PeerView<'a>>,
}

/// A pair of images, of which the remote one exists.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Mirror uuid of the local pool.
    pub local_mirror_uuid: &'a str,
    /// Mirror uuid of the remote pool.
    pub remote_mirror_uuid: &'a str,
    /// The local image; `None` when it has yet to be made.
    pub local: Option<LocalView<'a>>,
    /// The remote image.
    pub remote: RemoteView<'a>,
    /// A copy that was disconnected is to be brought in line without being asked
    /// (`rbd_mirroring_resync_after_disconnect`).
    pub resync_after_disconnect: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Make the local image, then copy it.
    Create,
    /// Copy, or go on with a copy.
    FirstCopy,
    /// Bring the local image in line with the remote one, whatever it holds.
    Resync(Resync),
    /// Replay the remote journal.
    Replay(Registration),
    /// Do nothing, and look again when something changes.
    Stop(Stop),
}

/// Why a copy is to be brought in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resync {
    /// An operator asked for it.
    Requested,
    /// It was away for too long, and the entries that it lacks may be gone.
    Disconnected,
}

/// What is to be done about this site's client before entries are replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// Nothing.
    Fine,
    /// Register it, as replaying. It then begins at the least advanced client, and entries that this site lacks may have
    /// gone before: see to it that none has.
    Missing {
        /// The local image is a demoted one, and the remote one was promoted with this tag: all of its entries are
        /// needed.
        promoted_in: Option<TagTid>,
    },
    /// It says that the copy is being made, but the copy has had a history of its own since: say that it is replaying.
    NoLongerSyncing,
}

/// Why an image is not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The local image is primary.
    LocalPrimary,
    /// The remote image is not, and everything that it has was replayed.
    RemoteNotPrimary,
    /// A resync was asked for, and the remote image is none that a copy can be brought in line with.
    ResyncAwaitsPrimary,
    /// The copy was away for too long: entries that it lacks may be gone.
    Disconnected,
    /// The histories of the two images went apart.
    SplitBrain(String),
    /// This site's client in the remote journal is not one that a mirror made.
    StrangeClient,
}

/// Decides what to do.
pub fn plan(view: &View<'_>) -> Plan {
    let remote_owner = view.remote.tags.last().map(|(_, tag)| Owner::of(tag));
    let remote_is_primary = remote_owner == Some(Owner::Primary);
    let Some(local) = view.local else {
        return if remote_is_primary { Plan::Create } else { Plan::Stop(Stop::RemoteNotPrimary) };
    };
    let owner = Owner::of(local.tag);
    let linked = owner.is_copy_of(view.remote_mirror_uuid);
    if owner == Owner::Primary {
        return Plan::Stop(Stop::LocalPrimary);
    }
    let may_resync = remote_is_primary || (linked && remote_owner == Some(Owner::Orphan));
    if local.resync_requested {
        return if may_resync {
            Plan::Resync(Resync::Requested)
        } else {
            Plan::Stop(Stop::ResyncAwaitsPrimary)
        };
    }
    if !remote_is_primary && !linked {
        return Plan::Stop(Stop::RemoteNotPrimary);
    }
    let Some(client) = view.remote.client else {
        return match history(view, local.tag) {
            Ok(promoted_in) => Plan::Replay(Registration::Missing { promoted_in }),
            Err(why) => Plan::Stop(Stop::SplitBrain(why)),
        };
    };
    let Some(peer) = client.peer else { return Plan::Stop(Stop::StrangeClient) };
    if peer.image != *local.image {
        let why = format!(
            "the remote journal was replayed into image '{}', not into this one ({})",
            peer.image, local.image
        );
        return Plan::Stop(Stop::SplitBrain(why));
    }
    let syncing = peer.state == MirrorPeerState::Syncing;
    let registration = if syncing { Registration::NoLongerSyncing } else { Registration::Fine };
    let plan = if syncing && linked { Plan::FirstCopy } else { replay(view, local.tag, registration) };
    match (client.state, plan) {
        // A split-brain is told of first: a resync of its own accord would throw away what is here.
        (_, plan @ Plan::Stop(_)) | (ClientState::Connected, plan) => plan,
        (ClientState::Disconnected, _) if may_resync && view.resync_after_disconnect => {
            Plan::Resync(Resync::Disconnected)
        }
        (ClientState::Disconnected, _) => Plan::Stop(Stop::Disconnected),
    }
}

fn replay(view: &View<'_>, local: &TagData, registration: Registration) -> Plan {
    match history(view, local) {
        Ok(_) => Plan::Replay(registration),
        Err(why) => Plan::Stop(Stop::SplitBrain(why)),
    }
}

/// Whether the remote tags go on from the local one: with which promotion, where the local image was demoted; why not, if
/// they do not.
fn history(view: &View<'_>, local: &TagData) -> Result<Option<TagTid>, String> {
    // Tags before the one that the local tag came after have been replayed.
    let replayed = |tid: TagTid| match &local.predecessor.commit {
        Some(commit) if local.predecessor.mirror_uuid == view.remote_mirror_uuid => commit.tag > tid,
        _ => false,
    };
    let mut tags = view.remote.tags.iter().filter(|(tid, _)| !replayed(*tid)).peekable();
    match Owner::of(local) {
        Owner::CopyOf(uuid) if uuid == view.remote_mirror_uuid && tags.peek().is_some() => Ok(None),
        Owner::CopyOf(uuid) if uuid == view.remote_mirror_uuid => {
            Err("the remote journal has lost the epochs that this copy was made in".into())
        }
        Owner::CopyOf(uuid) => Err(format!("this image is a copy of one in another pool ({uuid})")),
        Owner::Primary => Err("this image is primary".into()),
        Owner::Orphan => match promotion_from_same_demotion(view, local, tags) {
            Some(promotion) => Ok(Some(promotion)),
            None => Err("the remote image was not promoted out of the demotion of this one".into()),
        },
    }
}

/// The local image is an orphan: a remote orphan tag must stand for the same demotion, and be followed by a promotion,
/// which is the answer.
fn promotion_from_same_demotion<'a>(
    view: &View<'_>,
    local: &TagData,
    tags: impl Iterator<Item = &'a (TagTid, TagData)>,
) -> Option<TagTid> {
    let before = local.predecessor.commit.map(|commit| commit.tag);
    let local_uuid = &local.predecessor.mirror_uuid;
    let mut demotion = None;
    for (tid, tag) in tags {
        let predecessor = &tag.predecessor;
        let after = predecessor.commit.map(|commit| commit.tag);
        let same = after == before
            // Demoted here, and replayed there; or demoted there, and replayed here.
            && ((predecessor.mirror_uuid == view.local_mirror_uuid && local_uuid == LOCAL_MIRROR_UUID)
                || (predecessor.mirror_uuid == LOCAL_MIRROR_UUID && *local_uuid == view.remote_mirror_uuid));
        match Owner::of(tag) {
            Owner::Orphan if same => demotion = Some(*tid),
            Owner::Primary
                if predecessor.mirror_uuid == ORPHAN_MIRROR_UUID && after.is_some() && after == demotion =>
            {
                return Some(*tid);
            }
            // A promotion comes right after its demotion.
            _ => demotion = None,
        }
    }
    None
}

#[cfg(test)]
mod tests;
