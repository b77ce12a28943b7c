//! Makes the copy's image state what the primary's was: features, metadata, snapshot limit, and of its user snapshots
//! names, protection and which of them are gone. The image's name is not part of it: names are exchanged between images,
//! and so follow the primary's directory.
//!
//! Applied when the data has been copied, and again when an image is opened, so that an interruption between the two
//! leaves nothing behind. Every step is repeatable. A part that cannot be applied (a snapshot that a local clone needs) is
//! reported and does not hold up the others, nor the data.
//!
//! Not carried over: journaling (a copy has it from the beginning, or never), and the flags of object maps.
//!
//! Reference: `src/tools/rbd_mirror/image_replayer/snapshot/ApplyImageStateRequest.cc`.

use std::collections::{BTreeMap, BTreeSet};

use rados::error::ResultExt;
use rados::{Result, SnapId};
use rbd::header_update::{self, HeaderUpdate};
use rbd::image_state::{ImageState, SnapState};
use rbd::snapshots::{self, Removal};
use rbd::{Features, ProtectionStatus, SnapshotNamespace, features};

use rbd::image::OpenImage;

/// Metadata keys that start so belong to librbd and to mirroring itself.
const INTERNAL_KEY_PREFIX: &str = ".rbd";

/// Features that follow the primary.
const FOLLOWED: Features = Features(
    Features::EXCLUSIVE_LOCK.0 | Features::OBJECT_MAP.0 | Features::FAST_DIFF.0 | Features::DEEP_FLATTEN.0,
);

/// Which snapshots of a copy stand for which of the primary's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counterparts {
    /// Local snapshot → the remote one that it is a copy of.
    pub remote_of: BTreeMap<SnapId, SnapId>,
    /// Local user snapshots before this one that stand for none of the primary's present ones are removed.
    pub remove_before: SnapId,
}

impl Counterparts {
    /// From the map that is kept with a copy: remote snapshot → local one.
    pub fn of(snap_seqs: &BTreeMap<SnapId, SnapId>, remove_before: SnapId) -> Counterparts {
        let user = snap_seqs.iter().filter(|(_, local)| !local.is_head());
        Counterparts { remote_of: user.map(|(remote, local)| (*local, *remote)).collect(), remove_before }
    }
}

/// Applies `state`. Answers with what could not be applied, as sentences. On success the header of `local` is fresh.
pub async fn apply(
    local: &mut OpenImage,
    counterparts: &Counterparts,
    state: &ImageState,
) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let mut note = |result: Result<()>| match result {
        Err(error) if error.class() == rados::ErrorClass::Permanent => {
            left.push(error.to_string());
            Ok(())
        }
        other => other,
    };
    note(update_metadata(local, state).await)?;
    note(remove_snapshots(local, counterparts, state).await)?;
    note(rename_snapshots(local, counterparts, state).await)?;
    note(protect_snapshots(local, counterparts, state).await)?;
    note(update_features(local, state.features).await)?;
    note(update_limit(local, state.snap_limit).await)?;
    Ok(left)
}

async fn update_metadata(local: &mut OpenImage, state: &ImageState) -> Result<()> {
    let public = |key: &&String| !key.starts_with(INTERNAL_KEY_PREFIX);
    let gone = local.header.metadata.keys().filter(public).filter(|key| !state.metadata.contains_key(*key));
    let gone: Vec<_> = gone.cloned().collect();
    let changed = state.metadata.iter().filter(|(key, value)| {
        !key.starts_with(INTERNAL_KEY_PREFIX) && local.header.metadata.get(*key) != Some(*value)
    });
    let changed: BTreeMap<_, _> = changed.map(|(key, value)| (key.clone(), value.clone())).collect();
    if gone.is_empty() && changed.is_empty() {
        return Ok(());
    }
    let ioctx = local.image.header_ioctx();
    if !gone.is_empty() {
        let update = gone.iter().fold(HeaderUpdate::of(local.image.id()), |u, key| u.remove_metadata(key));
        update.apply(ioctx).await?;
    }
    header_update::set_metadata(ioctx, local.image.id(), &changed).await?;
    local.refresh().await
}

/// Removes user snapshots that the primary no longer has.
async fn remove_snapshots(
    local: &mut OpenImage,
    counterparts: &Counterparts,
    state: &ImageState,
) -> Result<()> {
    let kept = |snap: SnapId| {
        counterparts.remote_of.get(&snap).is_some_and(|remote| state.snapshots.contains_key(remote))
    };
    let older = local.header.snapshots.range(..counterparts.remove_before).map(|(_, snapshot)| snapshot);
    let gone: Vec<_> = older
        .filter(|s| !kept(s.id) && s.namespace == SnapshotNamespace::User)
        .map(|s| (s.id, s.protection))
        .collect();
    let mut failed = Ok(());
    for (snap, protection) in gone {
        if protection != ProtectionStatus::Unprotected {
            match snapshots::unprotect(&local.image, &local.header, snap).await {
                Ok(()) => local.refresh().await?,
                Err(error) => {
                    failed = Err(error);
                    continue;
                }
            }
        }
        match snapshots::remove(&local.image, &local.header, snap).await {
            Ok(Removal::Gone | Removal::KeptForClones) => {}
            Err(error) => failed = Err(error),
        }
        local.refresh().await?;
    }
    failed
}

/// The local user snapshots that the primary has, with what it says of them.
fn living<'a>(
    local: &OpenImage,
    counterparts: &Counterparts,
    state: &'a ImageState,
) -> BTreeMap<SnapId, &'a SnapState> {
    let user = |snap: &SnapId| {
        local.header.snapshots.get(snap).is_some_and(|s| s.namespace == SnapshotNamespace::User)
    };
    let found = counterparts.remote_of.iter().filter(|(snap, _)| user(snap));
    found.filter_map(|(snap, remote)| Some((*snap, state.snapshots.get(remote)?))).collect()
}

async fn rename_snapshots(
    local: &mut OpenImage,
    counterparts: &Counterparts,
    state: &ImageState,
) -> Result<()> {
    let living = living(local, counterparts, state);
    let wrong: BTreeMap<_, _> =
        living.into_iter().filter(|(snap, state)| local.header.snapshots[snap].name != state.name).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    // Names may have been exchanged: those in the way of another step aside first.
    let wanted: BTreeSet<_> = wrong.values().map(|state| state.name.as_str()).collect();
    let aside = wrong.keys().filter(|snap| wanted.contains(local.header.snapshots[snap].name.as_str()));
    let aside = aside.fold(None, |update: Option<HeaderUpdate>, snap| {
        let update = update.unwrap_or_else(|| HeaderUpdate::of(local.image.id()));
        Some(update.snapshot_rename(*snap, &format!(".mirror.renamed.{snap}")))
    });
    let ioctx = local.image.header_ioctx();
    if let Some(aside) = aside {
        aside.apply(ioctx).await?;
    }
    let update = wrong.iter().fold(HeaderUpdate::of(local.image.id()), |update, (snap, state)| {
        update.snapshot_rename(*snap, &state.name)
    });
    update.apply(ioctx).await?;
    local.refresh().await
}

async fn protect_snapshots(
    local: &mut OpenImage,
    counterparts: &Counterparts,
    state: &ImageState,
) -> Result<()> {
    let mut failed = Ok(());
    let wanted: Vec<_> = living(local, counterparts, state)
        .into_iter()
        .map(|(snap, state)| (snap, state.protection))
        .collect();
    for (snap, wanted) in wanted {
        let current = local.header.snapshots.get(&snap).map(|s| s.protection);
        let changed = match (current, wanted) {
            (Some(ProtectionStatus::Protected), ProtectionStatus::Unprotected) => {
                snapshots::unprotect(&local.image, &local.header, snap).await
            }
            (Some(current), ProtectionStatus::Protected) if current != ProtectionStatus::Protected => {
                snapshots::protect(&local.image, &local.header, snap).await
            }
            _ => continue,
        };
        failed = failed.and(changed);
        local.refresh().await?;
    }
    failed
}

async fn update_features(local: &mut OpenImage, stored: Features) -> Result<()> {
    // What follows from other features is not stored in the image state.
    let implied = if stored.has(Features::OBJECT_MAP) { Features::FAST_DIFF } else { Features(0) };
    let remote = stored.with(implied);
    let (have, want) = (Features(local.header.features.0 & FOLLOWED.0), Features(remote.0 & FOLLOWED.0));
    let (disable, enable) = (have.without(want), want.without(have));
    if disable == Features(0) && enable.without(Features::DEEP_FLATTEN) == Features(0) {
        return Ok(());
    }
    let enable = enable.without(Features::DEEP_FLATTEN);
    features::update(&local.image, &local.header, disable, enable).await?;
    local.refresh().await
}

async fn update_limit(local: &mut OpenImage, wanted: Option<u64>) -> Result<()> {
    if local.header.snapshot_limit == wanted {
        return Ok(());
    }
    let update = HeaderUpdate::of(local.image.id()).set_snapshot_limit(wanted);
    update.apply(local.image.header_ioctx()).await.context("cannot set the snapshot limit")?;
    local.refresh().await
}
