//! Statuses of images.

use anyhow::{Context, Result, ensure};
use rbd::mirroring::{MirrorPeer, PeerDirection, SiteStatus, StatusState};
use rbd::types::Timestamp;

use crate::world::{FAR_UUID, LIMIT, POOL, World, spec};

pub async fn a_status_lives_with_its_watch(world: &World) -> Result<()> {
    let ours = world.mirroring().await?;
    let (_, global_id) = world.mirrored("status").await?;
    let watch = ours.watch().await?;
    let description = r#"replaying, {"replay_state":"idle"}"#;
    ours.status_set(&global_id, &SiteStatus::new("", StatusState::Replaying, description)).await?;
    ours.status_set(&global_id, &SiteStatus::new(FAR_UUID, StatusState::Syncing, "copying")).await?;

    let told = world.stock.mirror_status(&spec("status")).await?;
    ensure!(told["state"] == "up+replaying" && told["description"] == description, "{told}");
    let remote = &told["peer_sites"][0];
    // Ceph 20 corrected the name.
    let uuid = remote.get("mirror_uuid").unwrap_or(&remote["mirror_uuids"]);
    ensure!(uuid == FAR_UUID && remote["site_name"] == "far", "{told}");
    ensure!(remote["state"] == "up+syncing" && remote["description"] == "copying", "{told}");

    let status = ours.status(&global_id).await?.context("a status")?;
    let local = status.local.context("a local one")?;
    ensure!(
        local.up && local.state == StatusState::Replaying && local.description == description,
        "{local:?}"
    );
    ensure!(Timestamp::now().seconds.abs_diff(local.last_update.seconds) < 60, "{local:?}");
    ensure!(status.remotes.len() == 1 && status.remotes[0].mirror_uuid == FAR_UUID, "{:?}", status.remotes);
    let instance = ours.status_instance(&global_id).await?.context("a live daemon")?;
    ensure!(instance.name.number as u64 == world.cluster.instance_id(), "{instance:?}");
    let instances = ours.status_instances().await?;
    ensure!(instances.values().any(|found| *found == instance), "{instances:?}");

    watch.unregister().await?;
    let told = world.stock.wait_mirror_state(&spec("status"), "down+replaying", LIMIT).await?;
    ensure!(told["peer_sites"][0]["state"] == "down+syncing", "{told}");
    ensure!(ours.status_instance(&global_id).await?.is_none(), "the daemon is gone");
    ensure!(ours.status_instances().await?.is_empty(), "no daemon lives");
    ours.status_remove_down().await?;
    ensure!(ours.status(&global_id).await?.is_none(), "removed with its daemon");

    let watch = ours.watch().await?;
    ours.status_set(&global_id, &SiteStatus::new("", StatusState::Error, "split-brain")).await?;
    ours.status_remove_down().await?;
    ensure!(ours.status(&global_id).await?.is_some(), "a live one stays");
    ours.status_remove(&global_id).await?;
    ensure!(ours.status(&global_id).await?.is_none(), "removed by name");
    watch.unregister().await?;
    Ok(())
}

pub async fn statuses_are_listed_and_summed_up(world: &World) -> Result<()> {
    let ours = world.mirroring().await?;
    let before = (ours.statuses().await?.len(), ours.status_summary(&[]).await?);
    let mut watch = ours.watch().await?;
    let listener = tokio::spawn(async move { while watch.next().await.is_some() {} });
    let states = [StatusState::Replaying, StatusState::Replaying, StatusState::Error];
    for (number, state) in states.into_iter().enumerate() {
        let (_, global_id) = world.mirrored(&format!("listed{number}")).await?;
        ours.status_set(&global_id, &SiteStatus::new("", state, format!("image {number}"))).await?;
    }
    world.mirrored("without-status").await?;
    let all = ours.statuses().await?;
    ensure!(all.len() == before.0 + 4, "{} images", all.len());
    let described = all.values().filter_map(|(_, status)| status.as_ref()?.local.as_ref());
    ensure!(described.filter(|local| local.description.starts_with("image ")).count() == 3, "{all:?}");

    let summary = ours.status_summary(&[]).await?;
    let more = |state| summary.get(&state).unwrap_or(&0) - before.1.get(&state).unwrap_or(&0);
    ensure!(more(StatusState::Replaying) == 2, "{before:?}, {summary:?}");
    ensure!(more(StatusState::Error) == 1 && more(StatusState::Unknown) == 1, "{before:?}, {summary:?}");
    let told = world.stock.rbd_json(&["mirror", "pool", "status", POOL]).await?;
    ensure!(told["summary"]["states"].is_object(), "{told}");
    let peer = MirrorPeer {
        uuid: "u".into(),
        direction: PeerDirection::Tx,
        site_name: "s".into(),
        client_name: String::new(),
        mirror_uuid: "m".into(),
        last_seen: Timestamp::default(),
    };
    let summary = ours.status_summary(&[peer]).await?;
    ensure!(
        summary.keys().all(|state| *state == StatusState::Unknown),
        "that site told nothing: {summary:?}"
    );
    listener.abort();
    Ok(())
}
