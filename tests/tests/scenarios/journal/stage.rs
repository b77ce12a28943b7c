//! What the scenarios of journal mode have in common.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use rados::SnapId;
use rbd::header::ImageHeader;
use rbd::{Features, Snapshot, SnapshotNamespace};
use serde_json::Value;
use tests::{Cluster, MirrorDaemon, Signal, wait};

use crate::common::{LIMIT, Stage, until};
use crate::content::{self, Reader};

/// Features of a journalled image.
pub const FEATURES: &str = "layering,exclusive-lock,object-map,fast-diff,deep-flatten,journaling";

/// Arguments that make an image a journalled one.
pub fn journaling() -> [&'static str; 2] {
    ["--image-feature", FEATURES]
}

impl Stage {
    /// Makes a journalled image at `a`, with more arguments for `rbd create`.
    pub async fn create_journalled(&self, image: &str, size: u64, args: &[&str]) -> Result<()> {
        let args = [&journaling()[..], args].concat();
        Ok(self.clusters.a.create_image(&self.spec(image), size, &args).await?)
    }

    /// Enables journal mirroring of an image of `a`.
    pub async fn enable_journal(&self, image: &str) -> Result<()> {
        self.clusters.a.rbd(&["mirror", "image", "enable", &self.spec(image), "journal"]).await?;
        Ok(())
    }

    /// Kills the daemon at `b` in the midst of the first copy of a full image: some of its objects are there, others not.
    pub async fn kill_amid_copy(&self, mut daemon: MirrorDaemon, image: &str, size: u64) -> Result<()> {
        let spec = self.spec(image);
        let under_way = async || -> Result<bool> {
            let Ok(versions) = self.b.versions(&spec, 0..size).await else { return Ok(false) };
            Ok(versions.iter().any(Option::is_some) && versions.iter().any(Option::is_none))
        };
        until("a first copy to be under way", &under_way).await?;
        daemon.kill(Signal::SIGKILL);
        daemon.wait(LIMIT).await?;
        ensure!(under_way().await?, "the first copy of {spec} was over before the daemon was killed");
        Ok(())
    }

    /// Whether the status at `b` says that an image is replayed: its first copy is over.
    pub async fn replays(&self, image: &str) -> bool {
        let status = self.clusters.b.mirror_status(&self.spec(image)).await;
        status.is_ok_and(|status| status["state"] == "up+replaying")
    }

    /// Waits until `b` has replayed everything that `a` has committed, and compares.
    pub async fn replayed(&self, image: &str) -> Result<()> {
        let spec = self.spec(image);
        wait_replayed(&self.clusters.a, &self.clusters.b, &spec).await?;
        expect_same(&self.a, &self.b, &spec).await
    }
}

/// An entry's place in the order of a journal: tag and number.
pub type Position = (u64, u64);

/// The newest committed entry of a client, as `rbd journal status` tells it.
pub fn newest(client: &Value) -> Option<Position> {
    let newest = client["commit_position"]["object_positions"].get(0)?;
    Some((newest["tag_tid"].as_u64()?, newest["entry_tid"].as_u64()?))
}

/// The clients of an image's journal: its own, and the first other one.
pub async fn clients(cluster: &Cluster, spec: &str) -> Result<(Value, Option<Value>)> {
    let (pool, image) = spec.rsplit_once('/').context("images are called POOL/IMAGE")?;
    let status = cluster.rbd_json(&["journal", "status", "--pool", pool, "--image", image]).await?;
    let clients = status["registered_clients"].as_array().context("a journal has clients")?.clone();
    let (own, others): (Vec<_>, Vec<_>) = clients.into_iter().partition(|client| client["id"] == "");
    Ok((own.into_iter().next().context("an image is a client of its journal")?, others.into_iter().next()))
}

/// Waits until the copy at `to` has replayed everything that the primary at `from` has committed until now, and its sync
/// points are gone.
pub async fn wait_replayed(from: &Cluster, to: &Cluster, spec: &str) -> Result<Option<Position>> {
    let wanted = newest(&clients(from, spec).await?.0);
    let what = format!("{} to replay entry {wanted:?} of {spec}", to.name());
    wait::until(&what, LIMIT, || async {
        let Some(mirror) = clients(from, spec).await?.1 else { return Ok(None) };
        let state = to.mirror_status(spec).await.ok();
        let replaying = state.is_some_and(|status| status["state"] == "up+replaying");
        Ok((replaying && newest(&mirror) >= wanted).then_some(()))
    })
    .await?;
    Ok(wanted)
}

/// Whether an image has a sync point.
pub async fn has_sync_point(site: &Reader, spec: &str) -> Result<bool> {
    let (_, header) = site.open(spec).await?;
    Ok(header.snapshots.values().any(is_sync_point))
}

/// Waits until neither image has a sync point any more.
pub async fn wait_pruned(stage: &Stage, spec: &str) -> Result<()> {
    for (site, name) in [(&stage.a, stage.clusters.a.name()), (&stage.b, stage.clusters.b.name())] {
        let what = format!("the sync points of {spec} at {name} to be removed");
        until(&what, async || Ok(!has_sync_point(site, spec).await?)).await?;
    }
    Ok(())
}

fn is_sync_point(snapshot: &Snapshot) -> bool {
    snapshot.name.starts_with(".rbd-mirror.")
}

/// The user snapshots of an image, sync points not counted.
fn user_snapshots(header: &ImageHeader) -> impl Iterator<Item = &Snapshot> {
    let all = header.snapshots.values();
    all.filter(|s| s.namespace == SnapshotNamespace::User && !is_sync_point(s))
}

/// Two images have the same content at their heads and at each user snapshot, and the same user snapshots.
pub async fn expect_same(from: &Reader, to: &Reader, spec: &str) -> Result<()> {
    let (primary, primary_header) = from.open(spec).await?;
    let (copy, copy_header) = to.open(spec).await?;
    let names = |header| user_snapshots(header).map(|s| (s.name.clone(), s.protection)).collect::<Vec<_>>();
    let (theirs, ours) = (names(&primary_header), names(&copy_header));
    ensure!(theirs == ours, "{spec} has user snapshots {theirs:?}, its copy {ours:?}");
    let head = SnapId::HEAD;
    content::expect_equal((&primary, &primary_header, head), (&copy, &copy_header, head))
        .await
        .with_context(|| format!("{spec} at its head"))?;
    for theirs in user_snapshots(&primary_header) {
        let ours = copy_header.user_snapshot(&theirs.name).context("the names were compared")?;
        content::expect_equal((&primary, &primary_header, theirs.id), (&copy, &copy_header, ours.id))
            .await
            .with_context(|| format!("{spec} at user snapshot '{}'", theirs.name))?;
    }
    let metadata = |header: &ImageHeader| {
        let public = header.metadata.iter().filter(|(key, _)| !key.starts_with(".rbd"));
        public.map(|(key, value)| (key.clone(), value.clone())).collect::<BTreeSet<_>>()
    };
    ensure!(metadata(&primary_header) == metadata(&copy_header), "{spec} has other metadata than its copy");
    let limits = (primary_header.snapshot_limit, copy_header.snapshot_limit);
    ensure!(limits.0 == limits.1, "{spec} and its copy have the snapshot limits {limits:?}");
    ensure!(
        (primary_header.features.without(Features::INTERNAL), primary_header.parent.is_some())
            == (copy_header.features.without(Features::INTERNAL), copy_header.parent.is_some()),
        "{spec} has features {}, its copy {}; or one of them is a clone",
        primary_header.features,
        copy_header.features
    );
    Ok(())
}
