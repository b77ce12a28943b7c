//! Modes, peers, images, daemons, and being told of changes.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use rbd::ImageId;
use rbd::mirroring::{
    GlobalImageId, ImageMapEntry, MirrorDaemons, MirrorImage, MirrorImageMode, MirrorImageState, MirrorMode,
    MirrorPeer, Mirroring, MirroringEvent, MirroringNotification, PeerDirection,
};
use rbd::types::Timestamp;
use rbd::watch_notify::NOTIFY_TIMEOUT;
use tokio::sync::mpsc;

use crate::world::{LIMIT, OTHER_POOL, POOL, World, spec};

pub async fn modes_and_peers_agree_with_stock(world: &World) -> Result<()> {
    let other = Mirroring::new(&world.cluster.pool(world.cluster.pool_by_name(OTHER_POOL).await?));
    ensure!(other.mode().await? == MirrorMode::Disabled && other.uuid().await?.is_none(), "never enabled");
    ensure!(other.peers().await?.is_empty() && other.images().await?.is_empty(), "never enabled");
    ensure!(other.image_ids().await?.is_empty() && other.statuses().await?.is_empty(), "never enabled");
    ensure!(other.status_summary(&[]).await?.is_empty(), "never enabled");
    other.status_remove_down().await?;

    let ours = world.mirroring().await?;
    for peer in ours.peers().await? {
        ours.peer_remove(&peer.uuid).await?;
    }
    ensure!(ours.mode().await? == MirrorMode::Image && ours.uuid().await?.is_some(), "enabled");
    ensure!(ours.remote_namespace().await?.is_empty(), "the namespace of the same name");

    let uuid = world.stock.rbd(&["mirror", "pool", "peer", "add", POOL, "client.there@there"]).await?;
    let expected = MirrorPeer {
        uuid: uuid.trim().to_string(),
        direction: PeerDirection::RxTx,
        site_name: "there".into(),
        client_name: "client.there".into(),
        mirror_uuid: String::new(),
        last_seen: Timestamp::default(),
    };
    let peers = ours.peers().await?;
    ensure!(peers == [expected.clone()], "{peers:?}");

    ours.peer_ping("there", "uuid-of-there").await?;
    ours.peer_set_client(&expected.uuid, "client.renamed").await?;
    ours.peer_set_site_name(&expected.uuid, "elsewhere").await?;
    ours.peer_set_direction(&expected.uuid, PeerDirection::Rx).await?;
    let info = world.stock.rbd_json(&["mirror", "pool", "info", POOL]).await?;
    let peer = &info["peers"][0];
    ensure!(peer["uuid"] == expected.uuid.as_str() && peer["client_name"] == "client.renamed", "{info}");
    ensure!(peer["site_name"] == "elsewhere" && peer["direction"] == "rx-only", "{info}");
    ensure!(peer["mirror_uuid"] == "uuid-of-there", "{info}");
    let seen = ours.peers().await?[0].last_seen;
    ensure!(Timestamp::now().seconds.abs_diff(seen.seconds) < 60, "last seen at {seen:?}");

    ours.peer_remove(&expected.uuid).await?;
    ours.peer_remove(&expected.uuid).await?;
    let added = MirrorPeer { uuid: "9a7b1c5e-0000-4000-8000-000000000001".into(), ..expected };
    ours.peer_add(&added).await?;
    let again = ours.peer_add(&added).await.expect_err("a peer is added once");
    ensure!(again.is(libc::ESTALE), "{again}");
    ensure!(ours.peers().await? == [added.clone()], "what was added");
    ours.peer_ping("a new site", "uuid-of-a-new-site").await?;
    let peers = ours.peers().await?;
    let new = peers.iter().find(|peer| peer.site_name == "a new site").context("a ping makes a peer")?;
    ensure!(new.direction == PeerDirection::Tx && new.client_name.is_empty(), "{new:?}");
    for peer in &peers {
        ours.peer_remove(&peer.uuid).await?;
    }
    let refused = ours.set_uuid("anything").await.expect_err("the uuid is fixed while mirroring is enabled");
    ensure!(refused.is(libc::EINVAL), "{refused}");
    Ok(())
}

pub async fn images_agree_with_stock(world: &World) -> Result<()> {
    let ours = world.mirroring().await?;
    let (mirrored, by_id) = world.mirrored("mirrored").await?;
    let plain = world.image("plain").await?;
    let info = world.stock.rbd_json(&["info", &spec("mirrored")]).await?;
    let global_id =
        GlobalImageId(info["mirroring"]["global_id"].as_str().context("a global id")?.to_string());
    ensure!(global_id == by_id, "{global_id}, {by_id}");

    let expected = MirrorImage {
        mode: MirrorImageMode::Snapshot,
        global_id: global_id.clone(),
        state: MirrorImageState::Enabled,
    };
    ensure!(ours.image(&mirrored).await? == Some(expected.clone()), "{:?}", ours.image(&mirrored).await?);
    ensure!(ours.image(&plain).await?.is_none(), "an image that is not mirrored");
    ensure!(ours.image_id(&global_id).await? == Some(mirrored.clone()), "found by global id");
    ensure!(ours.image_ids().await?.get(&mirrored) == Some(&global_id), "listed");
    ensure!(ours.images().await?.get(&mirrored) == Some(&expected), "listed with metadata");

    let unknown = GlobalImageId("unknown".into());
    ensure!(ours.image_id(&unknown).await?.is_none(), "an unknown global id");
    let taken = ours.image_set(&plain, &expected).await.expect_err("a global id is unique");
    ensure!(taken.is(libc::EEXIST), "{taken}");
    let new = MirrorImage { global_id: GlobalImageId("by-us".into()), ..expected };
    ours.image_set(&plain, &new).await?;
    let info = world.stock.rbd_json(&["info", &spec("plain")]).await?;
    ensure!(info["mirroring"]["state"] == "enabled" && info["mirroring"]["global_id"] == "by-us", "{info}");
    let enabled = ours.image_remove(&plain).await.expect_err("an enabled image stays");
    ensure!(enabled.is(libc::EBUSY), "{enabled}");
    ours.image_set(&plain, &MirrorImage { state: MirrorImageState::Disabling, ..new }).await?;
    ours.image_remove(&plain).await?;
    ensure!(ours.image(&plain).await?.is_none(), "removed");
    Ok(())
}

pub async fn changes_are_told_of(world: &World) -> Result<()> {
    let ours = world.mirroring().await?;
    let mut watch = ours.watch().await?;
    let (tell, mut told) = mpsc::unbounded_channel();
    let listener = tokio::spawn(async move {
        while let Some(event) = watch.next().await {
            if tell.send(event).is_err() {
                break;
            }
        }
    });
    let mut next = async || -> Result<MirroringNotification> {
        match tokio::time::timeout(LIMIT, told.recv()).await.context("nothing is told")? {
            Some(MirroringEvent::Changed(notification)) => Ok(notification),
            other => anyhow::bail!("{other:?}"),
        }
    };
    let start = Instant::now();
    let (image, global_id) = world.mirrored("announced").await?;
    let enabled = MirroringNotification::ImageUpdated {
        state: MirrorImageState::Enabled,
        image: image.clone(),
        global_id: global_id.clone(),
    };
    ensure!(next().await? == enabled, "enabling is told of");

    ours.notify_image(MirrorImageState::Creating, &image, &global_id).await?;
    let creating =
        MirroringNotification::ImageUpdated { state: MirrorImageState::Creating, image, global_id };
    ensure!(next().await? == creating, "what we tell ourselves");
    ours.notify_mode(MirrorMode::Pool).await?;
    ensure!(next().await? == MirroringNotification::ModeUpdated(MirrorMode::Pool), "mode");
    ensure!(start.elapsed() < NOTIFY_TIMEOUT, "nobody waits for answers: {:?}", start.elapsed());
    listener.abort();
    Ok(())
}

pub async fn daemons_keep_their_books(world: &World) -> Result<()> {
    const IMAGES: u32 = 1500;
    let books = MirrorDaemons::new(&world.pool);
    books.create().await?;
    books.create().await?;
    for id in ["4123", "4124", "4124"] {
        books.instance_add(id).await?;
    }
    ensure!(books.instances().await? == ["4123", "4124"], "{:?}", books.instances().await?);
    for id in ["4123", "4123", "4124"] {
        books.instance_remove(id).await?;
    }
    ensure!(books.instances().await?.is_empty(), "struck out");

    let entry = |number| ImageMapEntry {
        instance_id: format!("{number}"),
        mapped: Timestamp { seconds: number, nanoseconds: 5 },
        data: Bytes::from_static(b"policy"),
    };
    let set = async |number| {
        books.image_map_set(&GlobalImageId(format!("global{number:05}")), &entry(number)).await
    };
    stream::iter(0..IMAGES).map(set).buffer_unordered(64).try_collect::<()>().await?;
    let map = books.image_map().await?;
    ensure!(map.len() == IMAGES as usize, "{} entries", map.len());
    ensure!(map.values().zip(0..).all(|(found, number)| *found == entry(number)), "entries in order");
    let remove = async |global_id| books.image_map_remove(global_id).await;
    stream::iter(map.keys()).map(remove).buffer_unordered(64).try_collect::<()>().await?;
    ensure!(books.image_map().await?.is_empty(), "struck out");
    ensure!(Mirroring::new(&world.pool).image(&ImageId("none".into())).await?.is_none(), "no such image");
    Ok(())
}
