//! Removing mirror-snapshots of a copy that newer ones have superseded.
//!
//! Whoever promotes a copy by force chooses the snapshot to roll back to first, makes an orphan snapshot then, and rolls
//! back at the end. So nothing may be removed from behind a promotion: a snapshot leaves the namespace of mirroring in a
//! write that holds only for the header in which its successor is still the newest one, but for those of later rounds. And
//! the last one to be superseded may have been chosen just before its successor was complete: whoever calls this leaves it
//! alone for a while.

use rados::{Error, Result, SnapId};
use rbd::header::ImageHeader;
use rbd::header_update::HeaderUpdate;
use rbd::image::Image;
use rbd::{Snapshot, snapshots};

use crate::begin::{ATTEMPTS_MAX, is_changed, unless_changed};

/// Removes mirror-snapshots, one after the other, as long as the image follows its primary from `newest` on. All of them are
/// older than that, and no round fills or needs them: a round may be under way. Repeatable after a failure.
pub async fn prune(image: &Image, newest: SnapId, snaps: &[SnapId]) -> Result<()> {
    for snap in snaps {
        if !disown(image, newest, *snap).await? {
            return Ok(());
        }
        let header = image.read_header().await?;
        snapshots::remove(image, &header, *snap).await?;
    }
    Ok(())
}

/// True while all mirror-snapshots since `newest`, which is complete, were made by rounds that go on from it. A promotion
/// by force makes an orphan, any other one a primary snapshot.
fn follows_from(header: &ImageHeader, newest: SnapId) -> bool {
    let primary_of = |snapshot: &Snapshot| Some(snapshot.mirror()?.primary_mirror_uuid.clone());
    let Some(primary) = header.snapshots.get(&newest).and_then(primary_of) else { return false };
    header.snapshots.range(newest..).filter_map(|(_, snapshot)| snapshot.mirror()).all(|mirror| {
        mirror.state.is_non_primary() && !mirror.is_orphan() && mirror.primary_mirror_uuid == primary
    })
}

/// Takes a snapshot out of the namespace of mirroring; false when the image follows its primary no longer.
async fn disown(image: &Image, newest: SnapId, snap: SnapId) -> Result<bool> {
    for _ in 0..ATTEMPTS_MAX {
        let header = image.read_header().await?;
        if !follows_from(&header, newest) {
            return Ok(false);
        }
        if header.snapshots.get(&snap).is_none_or(|snapshot| snapshot.mirror().is_none()) {
            return Ok(true);
        }
        let op = HeaderUpdate::of(image.id()).snapshot_trash_add(snap).into_op();
        match image.header_ioctx().write(unless_changed(op, &header)).await {
            Ok(_) => return Ok(true),
            Err(error) if is_changed(&error) => {}
            Err(error) => {
                let what = format!("cannot remove mirror-snapshot {snap} of image {}", image.id());
                return Err(error.context(what));
            }
        }
    }
    let what =
        format!("cannot remove mirror-snapshot {snap} of image {}: others keep changing it", image.id());
    Err(Error::new(libc::EAGAIN, what))
}
