//! The end of a round: what makes a filled snapshot the one that a promotion continues from.
//!
//! All that must change together changes in one atomic write of the local header: the names of the round's user
//! snapshots, the completeness of its mirror-snapshot, the link to the parent, the resync flag, and what tells that the copy
//! was made anew. Before it a forced promotion rolls back to the snapshot before; after it, it continues from this one.
//!
//! A user snapshot that the primary began to remove while the round filled its counterpart is not whole
//! ([`deep_copy::steps::not_whole`]). Its counterpart keeps the pending name, and leaves the stored image state before the
//! atomic write, so that whoever applies that state removes it.

use std::collections::{BTreeMap, BTreeSet};

use rados::{Error, Result, SnapId, WriteOp};
use rbd::header::ImageHeader;
use rbd::header_update::HeaderUpdate;
use rbd::image::OpenImage;
use rbd::image_state::write_image_state;
use rbd::made_anew::made_anew;
use rbd::watch_notify::notify_header_update;
use rbd::{Snapshot, SnapshotNamespace, children};

use deep_copy::local_maps::cut_head_map;
use deep_copy::steps::not_whole;

use crate::begin::{
    ATTEMPTS_MAX, Begun, is_changed, is_pending, newest_mirror_snapshot, unless_changed, write_marker,
};
use crate::history::{NotedHistory, write_history};
use crate::plan::Marker;
use crate::point::{Point, write_point};

/// How a user snapshot is called while one with its name takes its place; its id follows.
const REPLACED_PREFIX: &str = ".mirror.replaced.";

/// Commits a round whose objects have all been copied. The header of `remote` must have been read after the last of them
/// was. `resync_key` is the metadata key of a resync that it fulfils; `history` is noted beside the mirror-snapshot that it
/// completes. Repeatable after a failure. On success the header of `local` is fresh.
pub async fn commit(
    local: &mut OpenImage,
    remote: &OpenImage,
    mut begun: Begun,
    objects: u64,
    resync_key: Option<&str>,
    history: &NotedHistory,
) -> Result<()> {
    let ioctx = local.image.header_ioctx().clone();
    leave_out_half_filled(local, remote, &mut begun).await?;
    let begun = &begun;
    make_room_for_names(local, &begun.names).await?;
    cut_head_map(local).await?;

    let before = complete(local, remote, begun, objects, resync_key, history).await?;
    if before.parent.is_some() && !has_parent(&local.header) {
        children::detach_child(&local.image, &before).await?;
    }
    // Nobody is waited for: a client that misses it reads the header anew when it opens the image.
    let id = local.image.id().clone();
    tokio::spawn(async move {
        if let Err(error) = notify_header_update(&ioctx, &id).await {
            tracing::debug!(image = %id, "cannot tell others of a new mirror-snapshot: {error}");
        }
    });
    Ok(())
}

/// Takes user snapshots that are not whole out of the names that are given, and out of the stored image state.
async fn leave_out_half_filled(local: &OpenImage, remote: &OpenImage, begun: &mut Begun) -> Result<()> {
    let link = local.header.snapshots.get(&begun.local_end).and_then(Snapshot::mirror);
    let seqs = link.map(|link| link.snap_seqs.clone()).unwrap_or_default();
    let in_steps = |snap: &SnapId| begun.steps.steps().iter().any(|step| step.local == *snap);
    // One that went before this attempt began is in no step of it, but has the name that the first attempt gave it.
    let filled = seqs
        .into_iter()
        .filter(|(_, snap)| in_steps(snap) || local.header.snapshots.get(snap).is_some_and(is_pending));
    let filled: BTreeMap<_, _> = filled.collect();
    let half_filled = not_whole(&filled, &remote.header.snapshots);
    if half_filled.is_empty() {
        return Ok(());
    }
    let snaps = half_filled.iter().map(SnapId::to_string).collect::<Vec<_>>().join(", ");
    tracing::info!(
        image = %local.image.id(),
        "leaving out user snapshots {snaps}: the primary removed theirs while they were copied"
    );
    begun.names.retain(|snap, _| !half_filled.contains(snap));
    for (remote_snap, _) in filled.iter().filter(|(_, snap)| half_filled.contains(snap)) {
        begun.image_state.snapshots.remove(remote_snap);
    }
    let (ioctx, id) = (local.image.header_ioctx(), local.image.id());
    write_image_state(ioctx, id, begun.local_end, &begun.image_state).await
}

/// The atomic write. Made only on the header that was looked at: a promotion that came before it makes it fail with
/// EAGAIN. Answers with the header as it was before.
async fn complete(
    local: &mut OpenImage,
    remote: &OpenImage,
    begun: &Begun,
    objects: u64,
    resync_key: Option<&str>,
    history: &NotedHistory,
) -> Result<ImageHeader> {
    let what = format!("cannot complete mirror-snapshot {}", begun.local_end);
    for _ in 0..ATTEMPTS_MAX {
        local.refresh().await?;
        if newest_mirror_snapshot(&local.header) != Some(begun.local_end) {
            return Err(Error::new(libc::EAGAIN, format!("{what}: the role of its image changed meanwhile")));
        }
        let op = completion(local, remote, begun, objects, resync_key).with(write_history(history));
        let before = local.header.clone();
        match local.image.header_ioctx().write(unless_changed(op, &before)).await {
            Ok(_) => {
                local.refresh().await?;
                return Ok(before);
            }
            Err(error) if is_changed(&error) => {}
            Err(error) => return Err(error.context(what)),
        }
    }
    Err(Error::new(libc::EAGAIN, format!("{what}: others keep changing its image")))
}

fn completion(
    local: &OpenImage,
    remote: &OpenImage,
    begun: &Begun,
    objects: u64,
    resync_key: Option<&str>,
) -> WriteOp {
    let mut update = HeaderUpdate::of(local.image.id()).set_copy_progress(begun.local_end, true, objects);
    for (snap, name) in &begun.names {
        update = update.snapshot_rename(*snap, name);
    }
    let end = begun.steps.remote_ends().last().copied().unwrap_or(SnapId::HEAD);
    match (&local.header.parent, remote.header.parent_at(end)) {
        (Some(_), None) => update = update.parent_detach(),
        (Some(mine), Some(theirs)) if mine.overlap != theirs.overlap && theirs.overlap > 0 => {
            update = update.parent_attach(&mine.spec(), theirs.overlap, true);
        }
        _ => {}
    }
    if let Some(key) = resync_key {
        update = made_anew(update.remove_metadata(key), &local.header, Some(key));
    }
    let op = update.into_op().with(write_marker(Marker { snap: begun.local_end, repair: false }));
    match remote.header.snapshots.get(&end) {
        Some(end) => op.with(write_point(Point { snap: begun.local_end, primary_timestamp: end.timestamp })),
        None => op,
    }
}

fn has_parent(header: &ImageHeader) -> bool {
    header.parent.is_some() || header.snapshots.values().any(|s| s.parent.is_some())
}

/// Renames user snapshots whose names others are about to get: those that were removed on the primary, and those that
/// get another name in the same write, which the class method would not see.
async fn make_room_for_names(local: &mut OpenImage, names: &BTreeMap<SnapId, String>) -> Result<()> {
    let wanted: BTreeSet<_> = names.values().collect();
    let in_the_way = local.header.snapshots.values().filter(|s| {
        s.namespace == SnapshotNamespace::User
            && wanted.contains(&s.name)
            && names.get(&s.id) != Some(&s.name)
    });
    let in_the_way: Vec<_> = in_the_way.map(|s| s.id).collect();
    if in_the_way.is_empty() {
        return Ok(());
    }
    let update = in_the_way.iter().fold(HeaderUpdate::of(local.image.id()), |update, snap| {
        update.snapshot_rename(*snap, &format!("{REPLACED_PREFIX}{snap}"))
    });
    update.apply(local.image.header_ioctx()).await?;
    local.refresh().await
}
