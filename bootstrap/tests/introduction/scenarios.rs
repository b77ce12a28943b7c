//! The scenarios.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bootstrap::{ImportDirection, Secret, Token, attributes, create_token, set_site_name, site_name};
use rados::fault::{Fault, FaultPlan, Faulty, Matcher};
use rados::{Backend, Cluster};
use tests::World as _;

use crate::world::{Site, World, expect_same_refusal};

const DIRECTIONS: [(&str, ImportDirection); 2] =
    [("rx-only", ImportDirection::RxOnly), ("rx-tx", ImportDirection::RxTx)];

async fn token(site: &Site, pool: &str) -> Result<Token> {
    Ok(create_token(&site.cluster, site.pool(pool).await?).await?)
}

async fn stock_token(site: &Site, pool: &str) -> Result<String> {
    Ok(site.rbd(&["peer", "bootstrap", "create", pool]).await?.trim().to_string())
}

/// Both make the same token, byte for byte, and the user with the same capabilities.
pub async fn tokens_are_stocks(world: &World) -> Result<()> {
    let pool = world.pool().await?;
    world.a.stock.ceph(&["auth", "rm", "client.rbd-mirror-peer"]).await?;
    world.a.stock.ceph(&["config-key", "rm", "rbd/mirror/peer_client_id"]).await?;
    let ours = token(&world.a, &pool).await?;
    let user = world.a.stock.ceph(&["auth", "get", "client.rbd-mirror-peer"]).await?;
    ensure!(ours.encode() == stock_token(&world.a, &pool).await?, "another token");
    world.a.stock.ceph(&["auth", "rm", "client.rbd-mirror-peer"]).await?;
    let anew = Token::decode(&stock_token(&world.a, &pool).await?)?;
    let stock_user = world.a.stock.ceph(&["auth", "get", "client.rbd-mirror-peer"]).await?;
    let without_key = |user: &str, key: &Secret| user.replace(key.expose(), "");
    ensure!(without_key(&user, &ours.key) == without_key(&stock_user, &anew.key), "{user} {stock_user}");
    ensure!(token(&world.a, &pool).await? == anew, "the user of the stock tool was not found");

    world.a.stock.ceph(&["auth", "caps", "client.rbd-mirror-peer", "mon", "allow r"]).await?;
    let refused =
        create_token(&world.a.cluster, world.a.pool(&pool).await?).await.err().context("other caps")?;
    ensure!(refused.is(libc::EEXIST) && refused.to_string().contains("ceph auth caps"), "{refused}");
    world.a.stock.ceph(&["auth", "rm", "client.rbd-mirror-peer"]).await?;
    let disabled = world.b.pool(&pool).await?;
    let refused = create_token(&world.b.cluster, disabled).await;
    expect_same_refusal(&anew, world.b.rbd(&["peer", "bootstrap", "create", &pool]).await, refused)
}

/// A token of ours, imported by the stock tool in both directions.
pub async fn stock_takes_our_token(world: &World) -> Result<()> {
    for (direction, _) in DIRECTIONS {
        let pool = world.pool().await?;
        let token = token(&world.a, &pool).await?;
        world.b.stock_import(&pool, &token.encode(), direction).await?;
        let peers = world.b.peers(&pool).await?;
        ensure!(peers.len() == 1 && peers[0]["key"] == token.key.expose(), "{peers:?}");
    }
    Ok(())
}

/// A token of the stock tool, imported by us in both directions: the peers connect to each other.
pub async fn we_take_a_stock_token(world: &World) -> Result<()> {
    for (name, direction) in DIRECTIONS {
        let pool = world.pool().await?;
        let token = Token::decode(&stock_token(&world.a, &pool).await?)?;
        let imported = world.b.import(&pool, &token, direction).await?;
        ensure!(imported.remote_site_name == world.a.stock.name(), "{imported:?}");
        let peers = world.b.peers(&pool).await?;
        ensure!(peers.len() == 1 && peers[0]["direction"] == name, "{peers:?}");
        let there = world.a.peers(&pool).await?;
        ensure!(there.len() == usize::from(direction == ImportDirection::RxTx), "{there:?}");
        let known =
            attributes::read(&world.b.cluster, world.b.pool(&pool).await?, &imported.peer_uuid).await?;
        let known = known.context("attributes")?;
        let again = Token { key: known.key(), mon_host: known.mon_host().to_string(), ..token };
        let connected = bootstrap::PeerConnector::default().connect_by_token(&again).await?;
        ensure!(connected.fsid() == world.a.cluster.fsid(), "another cluster");
    }
    Ok(())
}

/// What is stored on both sites is the same, whoever imports.
pub async fn both_store_the_same(world: &World) -> Result<()> {
    for (name, direction) in DIRECTIONS {
        let (stock, ours) = (world.pool().await?, world.pool().await?);
        world.b.stock_import(&stock, &stock_token(&world.a, &stock).await?, name).await?;
        world.b.import(&ours, &token(&world.a, &ours).await?, direction).await?;
        for site in [&world.a, &world.b] {
            let (of_stock, of_ours) = (site.peers(&stock).await?, site.peers(&ours).await?);
            ensure!(of_stock == of_ours, "stock {of_stock:?}, ours {of_ours:?}");
            let values = async |pool: &str| {
                let dump = site.stock.ceph(&["config-key", "dump", "rbd/mirror/peer/"]).await?;
                let dump: serde_json::Value = serde_json::from_str(&dump)?;
                let own = format!("rbd/mirror/peer/{}/", site.pool(pool).await?);
                let own = dump.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with(&own));
                Ok::<_, anyhow::Error>(own.map(|(_, value)| value.clone()).collect::<Vec<_>>())
            };
            ensure!(values(&stock).await? == values(&ours).await?, "the config-keys differ");
        }
    }
    Ok(())
}

/// Everything that may be wrong with a token, or with where it is imported.
pub async fn both_refuse_the_same(world: &World) -> Result<()> {
    let pool = world.pool().await?;
    let right = token(&world.a, &pool).await?;
    let refused = async |site: &Site, pool: &str, token: &Token| {
        let stock = site.stock_import(pool, &token.encode(), "rx-tx").await;
        expect_same_refusal(token, stock, site.import(pool, token, ImportDirection::RxTx).await)
    };
    refused(&world.a, &pool, &right).await.context("its own cluster")?;
    let other = Token { fsid: "00000000-0000-4000-8000-000000000000".into(), ..right.clone() };
    refused(&world.b, &pool, &other).await.context("another fsid")?;
    let own = Token { mon_host: token_of(&world.b, &pool).await?.mon_host, ..right.clone() };
    refused(&world.b, &pool, &own).await.context("monitors of its own cluster")?;
    let nobody = Token { client_id: "nobody".into(), ..right.clone() };
    refused(&world.b, &pool, &nobody).await.context("an unknown user")?;
    let wrong_key = Token { key: Secret::new("AQCCPABrHQOBBhAADJXeSre/Z0CQbY2X4rXZQA=="), ..right.clone() };
    refused(&world.b, &pool, &wrong_key).await.context("a wrong key")?;
    let no_key = Token { key: Secret::new("#"), ..right.clone() };
    refused(&world.b, &pool, &no_key).await.context("what is no key")?;
    for text in ["", "hello!!", "aGVsbG8=", "eyJmc2lkIjogMX0="] {
        let stock = world.b.stock_import(&pool, text, "rx-tx").await;
        expect_same_refusal(&right, stock, Token::decode(text)).with_context(|| format!("'{text}'"))?;
    }

    let only_here = format!("{pool}-only-here");
    world.b.stock.create_pool(&only_here).await?;
    refused(&world.b, &only_here, &right).await.context("no such pool there")?;
    world.a.stock.create_pool(&only_here).await?;
    refused(&world.b, &only_here, &right).await.context("not enabled there")?;

    set_site_name(&world.b.cluster, world.a.stock.name()).await?;
    refused(&world.b, &pool, &right).await.context("both have one name")?;
    set_site_name(&world.b.cluster, world.b.stock.name()).await?;

    world.b.rbd(&["enable", &pool, "image"]).await?;
    world.b.rbd(&["peer", "add", "--remote-mon-host", "10.0.0.1", &pool, "client.x@another"]).await?;
    refused(&world.b, &pool, &right).await.context("another peer is there")?;
    ensure!(world.b.peers(&pool).await?.len() == 1, "a refused import left something");
    Ok(())
}

/// A token of a pool that is mirrored for this alone.
async fn token_of(site: &Site, pool: &str) -> Result<Token> {
    site.rbd(&["enable", pool, "image"]).await?;
    let made = token(site, pool).await;
    site.rbd(&["disable", pool]).await?;
    made
}

/// One whose user has got another key since.
pub async fn a_token_that_is_no_longer_valid(world: &World) -> Result<()> {
    let pool = world.pool().await?;
    let old = token(&world.a, &pool).await?;
    world.a.stock.ceph(&["auth", "rm", "client.rbd-mirror-peer"]).await?;
    let stock = world.b.stock_import(&pool, &old.encode(), "rx-only").await;
    let ours = world.b.import(&pool, &old, ImportDirection::RxOnly).await;
    ensure!(ours.as_ref().is_err_and(|e| e.to_string().contains("no longer valid")), "{ours:?}");
    expect_same_refusal(&old, stock, ours)?;
    let new = token(&world.a, &pool).await?;
    ensure!(new.key != old.key, "the user has the old key");
    world.b.import(&pool, &new, ImportDirection::RxOnly).await?;
    Ok(())
}

/// A peer that was imported before, that goes by its fsid, or that only pulls from here.
pub async fn a_peer_that_is_there_is_updated(world: &World) -> Result<()> {
    let pool = world.pool().await?;
    let right = token(&world.a, &pool).await?;
    let first = world.b.import(&pool, &right, ImportDirection::RxTx).await?;
    world.b.rbd(&["peer", "set", &pool, &first.peer_uuid, "mon-host", "10.0.0.1"]).await?;
    let again = world.b.import(&pool, &right, ImportDirection::RxOnly).await?;
    ensure!(again.peer_uuid == first.peer_uuid, "{again:?}, first {first:?}");
    let peers = world.b.peers(&pool).await?;
    ensure!(peers[0]["mon_host"] == right.mon_host.as_str() && peers[0]["direction"] == "rx-tx", "{peers:?}");

    world.b.rbd(&["peer", "set", &pool, &first.peer_uuid, "site-name", &right.fsid]).await?;
    world.b.import(&pool, &right, ImportDirection::RxTx).await?;
    ensure!(world.b.peers(&pool).await?[0]["site_name"] == world.a.stock.name(), "it goes by its fsid");

    world.b.rbd(&["peer", "set", &pool, &first.peer_uuid, "direction", "tx-only"]).await?;
    world.b.import(&pool, &right, ImportDirection::RxTx).await?;
    let peers = world.b.peers(&pool).await?;
    ensure!(peers.len() == 1 && peers[0]["direction"] == "rx-tx", "{peers:?}");
    Ok(())
}

/// Names of sites.
pub async fn site_names(world: &World) -> Result<()> {
    let pool = world.pool().await?;
    let told = async || {
        let info = world.a.stock.rbd_json(&["mirror", "pool", "info", &pool]).await?;
        Ok::<_, anyhow::Error>(info["site_name"].as_str().unwrap_or_default().to_string())
    };
    for name in ["elsewhere", "with \"quotes\" and ü"] {
        set_site_name(&world.a.cluster, &format!(" {name} ")).await?;
        ensure!(
            site_name(&world.a.cluster).await? == name && told().await? == name,
            "it is not called {name}"
        );
    }
    set_site_name(&world.a.cluster, "").await?;
    set_site_name(&world.a.cluster, "").await?;
    let fsid = world.a.cluster.fsid();
    ensure!(site_name(&world.a.cluster).await? == fsid && told().await? == fsid, "the name without a name");
    Ok(())
}

/// An import that is cut off behind any of its requests, and repeated.
pub async fn cut_off_and_repeated(world: &World) -> Result<()> {
    for nth in 1.. {
        let pool = world.pool().await?;
        let right = token(&world.a, &pool).await?;
        let plan = FaultPlan::none().at(nth, Matcher::default(), Fault::CrashAfter);
        let faulty = Faulty::new(world.b.cluster.backend().clone(), plan, &[]);
        let backend: Arc<dyn Backend> = faulty.clone();
        let site =
            Site { stock: tests::Cluster::attach(world.b.stock.folder())?, cluster: Cluster::new(backend) };
        tokio::select! {
            done = site.import(&pool, &right, ImportDirection::RxTx) => drop(done?),
            () = faulty.crashed() => {}
        }
        let imported = world.b.import(&pool, &right, ImportDirection::RxTx).await?;
        for (site, direction) in [(&world.a, "rx-tx"), (&world.b, "rx-tx")] {
            let peers = site.peers(&pool).await?;
            ensure!(peers.len() == 1 && peers[0]["direction"] == direction, "cut off at {nth}: {peers:?}");
            ensure!(
                peers[0]["key"].is_string() && peers[0]["mon_host"].is_string(),
                "cut off at {nth}: {peers:?}"
            );
        }
        ensure!(imported.remote_peer_uuid.is_some(), "{imported:?}");
        world.tidy().await?;
        if faulty.requests() < nth {
            ensure!(nth > 8, "only {nth} requests were cut off");
            return Ok(());
        }
    }
    Ok(())
}
