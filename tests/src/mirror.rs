//! Mirroring as an operator sees it: mirror-snapshots, whether a copy has arrived, and images' status.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::wait;

/// A mirror-snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorSnapshot {
    /// Its id in its own cluster.
    pub id: u64,
    /// `primary`, `non-primary`, `demoted` (primary) or `demoted` (non-primary), as the stock `rbd` names states.
    pub state: String,
    /// Of a non-primary one: the id of the snapshot on the primary that it is a copy of.
    pub primary_snap_id: Option<u64>,
    /// Whether it is whole. Primary ones always are.
    pub complete: bool,
    /// The whole namespace as the stock `rbd` shows it.
    pub namespace: Value,
}

impl Cluster {
    /// An image's mirror-snapshots, oldest first.
    pub async fn mirror_snapshots(&self, image: &str) -> Result<Vec<MirrorSnapshot>> {
        let list = self.rbd_json(&["snap", "ls", "--all", image]).await?;
        let all =
            list.as_array().with_context(|| format!("the list of the snapshots of {image} is no list"))?;
        let mirror = all.iter().filter(|snap| snap["namespace"]["type"] == "mirror");
        mirror
            .map(|snap| {
                let namespace = &snap["namespace"];
                Some(MirrorSnapshot {
                    id: snap["id"].as_u64()?,
                    state: namespace["state"].as_str()?.to_owned(),
                    primary_snap_id: namespace["primary_snap_id"].as_u64(),
                    complete: namespace["complete"].as_bool().unwrap_or(true),
                    namespace: namespace.clone(),
                })
            })
            .collect::<Option<_>>()
            .with_context(|| format!("cannot read the snapshots of {image}: {list}"))
    }

    /// Takes a mirror-snapshot of a primary image and gives its id.
    pub async fn mirror_snapshot(&self, image: &str) -> Result<u64> {
        let said = self.rbd(&["mirror", "image", "snapshot", image]).await?;
        let id = said.trim().strip_prefix("Snapshot ID:").and_then(|id| id.trim().parse().ok());
        id.with_context(|| format!("`rbd mirror image snapshot` said {said:?}"))
    }

    /// The newest mirror-snapshot of a primary image.
    pub async fn newest_primary_snapshot(&self, image: &str) -> Result<u64> {
        let snapshots = self.mirror_snapshots(image).await?;
        let newest = snapshots.iter().rfind(|snapshot| snapshot.primary_snap_id.is_none());
        newest.map(|snapshot| snapshot.id).with_context(|| format!("{image} has no primary mirror-snapshot"))
    }

    /// Waits until this cluster's copy of an image holds the primary's mirror-snapshot `primary_snap_id`, or a later
    /// one, whole; gives the copy's own snapshot. That the image isn't there yet is a reason to wait.
    pub async fn wait_copied(
        &self,
        image: &str,
        primary_snap_id: u64,
        limit: Duration,
    ) -> Result<MirrorSnapshot> {
        let what = format!("snapshot {primary_snap_id} of {image} to arrive whole at {}", self.name());
        wait::until(&what, limit, || async {
            let Ok(snapshots) = self.mirror_snapshots(image).await else {
                return Ok(None);
            };
            let arrived = |snapshot: &MirrorSnapshot| {
                snapshot.complete && snapshot.primary_snap_id.is_some_and(|id| id >= primary_snap_id)
            };
            Ok(snapshots.into_iter().rev().find(arrived))
        })
        .await
    }

    /// What `rbd mirror image status` tells.
    pub async fn mirror_status(&self, image: &str) -> Result<Value> {
        Ok(self.rbd_json(&["mirror", "image", "status", image]).await?)
    }

    /// Waits until the image's status is this one (`up+replaying`), and gives it.
    pub async fn wait_mirror_state(&self, image: &str, state: &str, limit: Duration) -> Result<Value> {
        let what = format!("the status of {image} at {} to be {state}", self.name());
        wait::until(&what, limit, || async {
            let status = self.mirror_status(image).await.ok();
            Ok(status.filter(|status| status["state"] == state))
        })
        .await
    }
}
