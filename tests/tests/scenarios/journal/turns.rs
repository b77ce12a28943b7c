//! Ceph's own `rbd-mirror` and ours take turns on the same images, in the middle of first copies and of replay, without
//! a resync.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Cluster, DaemonKind, Extents};

use super::failover;
use super::stage::{clients, expect_same, wait_replayed};
use crate::common::{LIMIT, MIB, Stage, ours, scattered, until};
use crate::failover::image_id;

const SIZE: u64 = 96 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn daemons_take_turns() -> Result<()> {
    let stage = Stage::set("j-turns").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let names = ["ours-first", "theirs-first"];
    for (seed, name) in names.iter().enumerate() {
        let spec = stage.spec(name);
        stage.create_journalled(name, SIZE, &["--object-size", "256K"]).await?;
        a.apply(&spec, Extents::default().fill(0, SIZE, seed as u64)).await?;
        a.snap_create(&format!("{spec}@first")).await?;
        let changes = Extents::default().random(&scattered(2, 300, 0..SIZE));
        // Ceph's daemon loses what is zeroed between two snapshots; where it does the copying, there is nothing to lose.
        let changes = if *name == "ours-first" { changes.zeroes(9 * MIB, 5 * MIB) } else { changes };
        a.apply(&spec, changes).await?;
        a.snap_create(&format!("{spec}@second")).await?;
        a.apply(&spec, Extents::default().random(&scattered(3, 300, 0..SIZE))).await?;
    }
    // First copies: begun by one, ended by the other.
    for (name, kinds) in
        [("ours-first", [ours(), DaemonKind::Ceph]), ("theirs-first", [DaemonKind::Ceph, ours()])]
    {
        stage.enable_journal(name).await?;
        let spec = stage.spec(name);
        let first = stage.daemon_of(&kinds[0], b).await?;
        stage.kill_amid_copy(first, name, SIZE).await?;
        a.apply(&spec, Extents::default().random(&scattered(4, 300, 0..SIZE))).await?;
        let mut second = stage.daemon_of(&kinds[1], b).await?;
        stage.state(b, name, "up+replaying").await.with_context(|| name.to_string())?;
        stage.replayed(name).await.with_context(|| name.to_string())?;
        second.stop(LIMIT).await?;
    }
    let ids = [image_id(b, &stage.spec(names[0])).await?, image_id(b, &stage.spec(names[1])).await?];

    let mut told = Vec::new();
    for turn in 0..2_u64 {
        for kind in [DaemonKind::Ceph, ours()] {
            let mut daemon = stage.daemon_of(&kind, b).await?;
            for name in names {
                let spec = stage.spec(name);
                let seed = 10 * turn + u64::from(matches!(kind, DaemonKind::Ceph));
                let changes = Extents::default().random(&scattered(seed, 300, 0..SIZE));
                a.apply(&spec, changes.zeroes((turn * 7) * MIB, 2 * MIB)).await?;
                if !matches!(kind, DaemonKind::Ceph) {
                    a.snap_create(&format!("{spec}@turn-{turn}")).await?;
                }
                a.apply(&spec, Extents::default().random(&scattered(100 + seed, 300, 0..SIZE))).await?;
            }
            if turn == 1 {
                for name in names {
                    stage.state(b, name, "up+replaying").await?;
                    stage.replayed(name).await.with_context(|| format!("turn {turn} of {kind:?}"))?;
                }
                told.push(fields_told(b, &stage.spec(names[0])).await?);
            } else {
                tokio::time::sleep(Duration::from_millis(300 + 400 * turn)).await;
            }
            daemon.kill(tests::Signal::SIGKILL);
            daemon.wait(LIMIT).await?;
        }
    }
    ensure!(told[0] == told[1], "Ceph's status has fields {:?}, ours {:?}", told[0], told[1]);
    let mut daemon = stage.daemon_of(&ours(), b).await?;
    for (name, id) in names.into_iter().zip(ids) {
        stage.state(b, name, "up+replaying").await?;
        stage.replayed(name).await.with_context(|| format!("in the end, {name}"))?;
        ensure!(image_id(b, &stage.spec(name)).await? == id, "the copy was made anew");
    }
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// Ceph's daemon works at one side and ours at the other: promotions in order, and by force with the split-brain that
/// follows, which each of them finds and mends in its own way.
#[tokio::test(flavor = "multi_thread")]
async fn ours_and_cephs_at_either_side() -> Result<()> {
    let stage = Stage::set("j-mixed").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    stage.create_journalled("image", failover::SIZE, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, failover::SIZE, 1)).await?;
    let (mut theirs, mut ours) =
        (stage.daemon_of(&DaemonKind::Ceph, a).await?, stage.daemon_of(&ours(), b).await?);
    stage.enable_journal("image").await?;
    stage.state(b, "image", "up+replaying").await?;
    stage.replayed("image").await?;
    // Ceph's daemon only gets to that when it next looks at an image that is primary at its side: every 30 s, unless told
    // otherwise. Until then the journal here may forget the tags by which a failback is known from a split-brain.
    until("Ceph's daemon to register for a failback", async || Ok(clients(b, &spec).await?.1.is_some()))
        .await?;
    failover::there_and_back(&stage, &spec, 2).await?;

    let sides = [(a, &stage.a), (b, &stage.b)];
    for ((lost, lost_reader), (kept, kept_reader)) in [(sides[0], sides[1]), (sides[1], sides[0])] {
        let to = kept.name();
        kept.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
        for (seed, side) in [(5, lost), (6, kept)] {
            side.apply(&spec, Extents::default().random(&scattered(seed, 30, 0..failover::SIZE))).await?;
        }
        lost.rbd(&["mirror", "image", "demote", &spec]).await?;
        until("the split-brain to be found", async || {
            let status = lost.mirror_status(&spec).await?;
            Ok(status["description"].as_str().is_some_and(|told| told.contains("split-brain")))
        })
        .await
        .with_context(|| format!("after a promotion at {to}"))?;
        lost.rbd(&["mirror", "image", "resync", &spec]).await?;
        let expected = kept.sha256(&spec).await?;
        // Ceph's daemon removes it meanwhile.
        until("the image to be in line", async || {
            Ok(lost.sha256(&spec).await.is_ok_and(|is| is == expected))
        })
        .await
        .with_context(|| format!("after a promotion at {to}"))?;
        lost.wait_mirror_state(&spec, "up+replaying", LIMIT).await?;
        // Ceph's daemon made the image and its journal anew.
        until("the other site to be registered for a failback", async || {
            Ok(clients(lost, &spec).await?.1.is_some())
        })
        .await?;
        kept.apply(&spec, Extents::default().random(&scattered(7, 30, 0..failover::SIZE))).await?;
        wait_replayed(kept, lost, &spec).await?;
        expect_same(kept_reader, lost_reader, &spec).await.with_context(|| format!("primary at {to}"))?;
    }
    theirs.stop(LIMIT).await?;
    ours.stop(LIMIT).await?;
    stage.strike().await
}

/// The names of what the status of a copy tells that is current, each with the names of what is in it.
async fn fields_told(cluster: &Cluster, spec: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut told = None;
    until("a status that tells how far the copy is", async || {
        let status = cluster.mirror_status(spec).await?;
        let fields = status["description"].as_str().and_then(|text| text.strip_prefix("replaying, "));
        let fields: Option<serde_json::Value> = fields.and_then(|fields| serde_json::from_str(fields).ok());
        told = fields.filter(|fields| fields["entries_behind_primary"] == 0);
        Ok(told.is_some())
    })
    .await?;
    let names = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let fields = told.as_ref().and_then(serde_json::Value::as_object).context("fields were told")?;
    Ok(fields.iter().map(|(name, value)| (name.clone(), names(value))).collect())
}
