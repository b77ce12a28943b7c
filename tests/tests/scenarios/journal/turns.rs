//! Ceph's own `rbd-mirror` and ours take turns on the same images, in the middle of first copies and of replay, without
//! a resync.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Cluster, DaemonKind, Extents};

use crate::common::{LIMIT, MIB, Stage, ours, scattered};
use crate::failover::image_id;

const SIZE: u64 = 96 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn daemons_take_turns() -> Result<()> {
    let stage = Stage::set("j-turns").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let names = ["ours-first", "theirs-first"];
    for (seed, name) in names.iter().enumerate() {
        let spec = stage.spec(name);
        stage.create_journalled(name, SIZE, &[]).await?;
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
        let mut first = stage.daemon_of(&kinds[0], b).await?;
        crate::common::until("a first copy to be under way", async || {
            let status = b.mirror_status(&spec).await.ok();
            let state = status.and_then(|status| status["state"].as_str().map(str::to_string));
            Ok(state.is_some_and(|state| ["up+syncing", "up+replaying"].contains(&&*state)))
        })
        .await
        .with_context(|| name.to_string())?;
        first.kill(tests::Signal::SIGKILL);
        first.wait(LIMIT).await?;
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

/// The names of what the status of a copy tells that is current, each with the names of what is in it.
async fn fields_told(cluster: &Cluster, spec: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut told = None;
    crate::common::until("a status that tells how far the copy is", async || {
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
