//! Whole pools, namespaces, peers and tokens.

use anyhow::{Context, Result, ensure};
use bootstrap::peers::NewPeer;
use bootstrap::{ImportDirection, PeerAttributes, PeerConnector, Secret, Token};
use control::{Done, Options, Pool};
use rbd::mirroring::{MirrorImageMode, MirrorMode, PeerDirection};
use serde_json::Value;

use crate::world::{World, expect_same_refusal};

/// Demoting and promoting all at once does with each image what it should.
pub async fn all_at_once(world: &World) -> Result<()> {
    let name = world.mirrored_pool().await?;
    let pool = world.a.pool(&name).await?;
    let images: Vec<String> = (0..24).map(|number| format!("image-{number:02}")).collect();
    for (number, image) in images.iter().enumerate() {
        world.a.stock.create_image(&format!("{name}/{image}"), 4 << 20, &[]).await?;
        match number % 4 {
            0 => {}
            1 => pool.enable(image, MirrorImageMode::Journal).await?,
            _ => pool.enable(image, MirrorImageMode::Snapshot).await?,
        }
    }
    pool.demote(&images[2]).await?;
    let mut told = Vec::new();
    let demoted = pool
        .demote_all(|progress| {
            assert_eq!(progress.finished, told.len() + 1);
            told.push((progress.image.to_string(), progress.result.ok(), progress.total));
        })
        .await?;
    ensure!(demoted.changed.len() == 17 && demoted.passed_over.len() == 7, "{demoted:?}");
    ensure!(demoted.first_error().is_none() && told.len() == 24, "{demoted:?}, told {told:?}");
    ensure!(
        told.iter().filter(|(_, done, total)| *done == Some(Done::Changed) && *total == 24).count() == 17
    );
    let again = pool.demote_all(|_| {}).await?;
    ensure!(again.changed.is_empty() && again.passed_over.len() == 24, "{again:?}");
    let said = world.a.stock.rbd(&["mirror", "pool", "demote", &name]).await?;
    ensure!(said.contains("Demoted 0 mirrored images"), "{said}");

    let promoted = pool.promote_all(false, |_| {}).await?;
    ensure!(promoted.changed.len() == 18 && promoted.failed.is_empty(), "{promoted:?}");
    let said = world.a.stock.rbd(&["mirror", "pool", "promote", &name]).await?;
    ensure!(said.contains("Promoted 0 mirrored images"), "{said}");
    // One that is gone, and one that somebody has locked.
    world.a.stock.rbd(&["lock", "add", &format!("{name}/{}", images[3]), "person"]).await?;
    let some = [images[3].clone(), images[2].clone(), "gone".to_string()];
    let outcome = pool.demote_images(&some, |_| {}).await;
    ensure!(outcome.changed == [images[2].clone()] && outcome.passed_over == ["gone"], "{outcome:?}");
    ensure!(outcome.failed.len() == 1 && outcome.failed[0].0 == images[3], "{outcome:?}");
    Ok(())
}

/// A namespace is mirrored with the pool's peers.
pub async fn a_namespace(world: &World) -> Result<()> {
    let name = world.new_pool().await?;
    for site in [&world.a, &world.b] {
        site.stock.rbd(&["namespace", "create", &format!("{name}/ns")]).await?;
    }
    let inner = Pool::open(&world.a.cluster, &name, "ns", Options::default()).await?;
    inner.set_mode(MirrorMode::Image, None).await?;
    let spec = format!("{name}/ns/image");
    world.a.image(&spec, &[]).await?;
    world.clusters.connect_peers(&name, tests::two_clusters::Direction::Both).await?;
    inner.enable("image", MirrorImageMode::Snapshot).await?;
    let outer = world.a.pool(&name).await?;
    let peer = outer.peers().list().await?.pop().context("a peer")?;
    let status = inner.image_status("image").await?;
    ensure!(
        status.snapshots.len() == 1 && status.snapshots[0].mirror_peer_uuids == [peer.uuid.clone()],
        "{status:?}"
    );
    let info = inner.info(true).await?;
    ensure!(
        info.peers.is_empty() && info.mode == MirrorMode::Image && info.remote_namespace == "ns",
        "{info:?}"
    );
    inner.snapshot("image", None).await?;

    // Removing the peer unlinks it in the namespace, too: the older snapshot waits for nobody any more.
    outer.remove_peer(&peer.uuid).await?;
    let status = inner.image_status("image").await?;
    ensure!(status.snapshots.len() == 1 && status.snapshots[0].mirror_peer_uuids.is_empty(), "{status:?}");
    let stock = world.a.stock.rbd(&["mirror", "image", "snapshot", &spec]).await;
    expect_same_refusal(stock, inner.snapshot("image", None).await)?;
    outer.remove_peer(&peer.uuid).await?;
    inner.disable("image", false).await?;
    inner.set_mode(MirrorMode::Disabled, None).await?;
    let stock = world.a.stock.rbd_json(&["mirror", "pool", "info", &format!("{name}/ns")]).await?;
    ensure!(stock["mode"] == "disabled", "{stock}");
    Ok(())
}

/// Peers by hand: added, changed, shown, refused as by the stock tool.
pub async fn peers_by_hand(world: &World) -> Result<()> {
    let (name, twin) = (world.new_pool().await?, world.new_pool().await?);
    let (stock, pool) = (&world.a.stock, world.a.pool(&name).await?);
    for mode in [MirrorMode::Image, MirrorMode::Disabled, MirrorMode::Image] {
        pool.set_mode(mode, None).await?;
        world.a.pool(&twin).await?.set_mode(mode, None).await?;
    }
    let key = "AQBmfGBnAAAAABAAz3pGQXc0WOkS6nGAJCwa+A==";
    let key_file = tempfile::NamedTempFile::new()?;
    std::fs::write(key_file.path(), key)?;
    let key_path = key_file.path().to_str().context("a path")?;
    let args = ["--remote-mon-host", "10.0.0.1", "--remote-key-file", key_path, "client.x@there"];
    let of_stock = stock.rbd(&[&["mirror", "pool", "peer", "add", &twin][..], &args].concat()).await?;
    let of_stock = of_stock.trim();
    let new = NewPeer {
        direction: PeerDirection::RxTx,
        site_name: "there".into(),
        client_name: "client.x".into(),
        attributes: PeerAttributes::new("10.0.0.1", Secret::new(key)),
    };
    let ours = pool.peers().add(&new).await?;
    expect_same_peers(world, &twin, of_stock, &name, &ours).await?;

    let again = stock.rbd(&["mirror", "pool", "peer", "add", &twin, "client.x@elsewhere"]).await;
    let other = NewPeer { site_name: "elsewhere".into(), ..new.clone() };
    expect_same_refusal(again, pool.peers().add(&other).await)?;
    let set = async |key: &str, value: &str| {
        stock.rbd(&["mirror", "pool", "peer", "set", &twin, of_stock, key, value]).await
    };
    let peers = pool.peers();
    set("site-name", "yonder").await?;
    peers.set_site_name(&ours, "yonder").await?;
    set("client", "client.y").await?;
    peers.set_client(&ours, "client.y").await?;
    set("mon-host", "10.0.0.2,10.0.0.3").await?;
    peers.set_mon_host(&ours, "10.0.0.2,10.0.0.3").await?;
    expect_same_peers(world, &twin, of_stock, &name, &ours).await?;
    for (stock_direction, direction) in [("rx-only", PeerDirection::Rx), ("tx-only", PeerDirection::Tx)] {
        set("direction", stock_direction).await?;
        peers.set_direction(&ours, direction).await?;
        expect_same_peers(world, &twin, of_stock, &name, &ours).await?;
    }
    let unknown = uuid::Uuid::new_v4().to_string();
    let of_unknown = async |key: &str| {
        stock.rbd(&["mirror", "pool", "peer", "set", &twin, &unknown, key, "rx-only"]).await
    };
    expect_same_refusal(of_unknown("client").await, peers.set_client(&unknown, "rx-only").await)?;
    expect_same_refusal(of_unknown("mon-host").await, peers.set_mon_host(&unknown, "rx-only").await)?;
    let stock_disable = stock.rbd(&["mirror", "pool", "disable", &twin]).await;
    expect_same_refusal(stock_disable, pool.set_mode(MirrorMode::Disabled, None).await)?;
    peers.set_key(&ours, Secret::default()).await?;
    ensure!(
        !peers.attributes(&ours).await?.context("attributes")?.exposed().contains_key("key"),
        "the key stays"
    );

    stock.rbd(&["mirror", "pool", "peer", "remove", &twin, of_stock]).await?;
    pool.remove_peer(&ours).await?;
    ensure!(peers.list().await?.is_empty() && peers.attributes(&ours).await?.is_none(), "the peer stays");
    pool.set_mode(MirrorMode::Disabled, None).await?;
    ensure!(Pool::check_peer_uuid(&unknown).is_ok() && Pool::check_peer_uuid("x").is_err(), "forms of uuids");
    Ok(())
}

async fn expect_same_peers(world: &World, twin: &str, of_stock: &str, name: &str, ours: &str) -> Result<()> {
    let shown = async |pool: &str, uuid: &str| {
        let mut info = world.a.stock.rbd_json(&["mirror", "pool", "info", "--all", pool]).await?;
        // Ceph 20 tells that of the pool.
        info.as_object_mut().context("an object")?.remove("mirror_uuid");
        Ok::<_, anyhow::Error>(info.to_string().replace(uuid, "<uuid>"))
    };
    let (stock, natively) = (shown(twin, of_stock).await?, shown(name, ours).await?);
    ensure!(stock == natively, "stock {stock}, ours {natively}");
    let info = world.a.pool(name).await?.info(true).await?;
    let peer = info.peers.first().context("a peer")?;
    let told: Value = serde_json::from_str(&natively)?;
    let told = &told["peers"][0];
    let direction = control::report::direction_name(peer.direction);
    ensure!(told["direction"] == direction && told["site_name"] == peer.site_name.as_str(), "{told}");
    let attributes = peer.attributes.as_ref().context("attributes")?;
    ensure!(told["mon_host"] == attributes.mon_host() && told["key"] == attributes.key().expose(), "{told}");
    ensure!(
        !format!("{info:?}{}", serde_json::to_string(&info)?).contains(attributes.key().expose()),
        "{info:?}"
    );
    Ok(())
}

/// The whole of `rbd mirror pool peer bootstrap import`, from a token of ours.
pub async fn a_token_is_imported(world: &World) -> Result<()> {
    let name = world.new_pool().await?;
    let (a, b) = (world.a.pool(&name).await?, world.b.pool(&name).await?);
    a.set_mode(MirrorMode::Image, None).await?;
    bootstrap::set_site_name(&world.a.cluster, world.a.stock.name()).await?;
    bootstrap::set_site_name(&world.b.cluster, world.b.stock.name()).await?;
    let token = bootstrap::create_token(&world.a.cluster, a.id()).await?;
    let token = Token::decode(&token.encode())?;
    let connector = PeerConnector::default();
    let imported = b.import_token(&token, ImportDirection::RxTx, &connector).await?;
    ensure!(b.info(false).await?.mode == MirrorMode::Image, "the mode was not copied");
    let again = b.import_token(&token, ImportDirection::RxTx, &connector).await?;
    ensure!(again == imported, "{again:?}, first {imported:?}");
    for (pool, uuid) in [(&b, Some(imported.peer_uuid)), (&a, imported.remote_peer_uuid)] {
        let peers = pool.info(true).await?.peers;
        ensure!(peers.len() == 1 && Some(&peers[0].uuid) == uuid.as_ref(), "{peers:?}");
    }
    Ok(())
}
