//! Tokens made by the one program and imported by the other, in both directions; and what keeps them from being imported.

use anyhow::{Context, Result, ensure};
use tests::Cluster;

use crate::world::{World, ours, run, run_ours, run_stock, run_with, stock};

pub async fn both_ways(world: &World) -> Result<()> {
    for (made_by_us, imported_by_us) in [(true, false), (false, true), (true, true)] {
        for direction in ["rx-only", "rx-tx"] {
            let pool = world.new_pool().await?;
            exchange(world, &pool, made_by_us, imported_by_us, direction).await.with_context(|| {
                format!("made by us {made_by_us}, imported by us {imported_by_us}, {direction}")
            })?;
            world.strike(&pool).await?;
        }
    }
    refusals(world).await
}

async fn exchange(
    world: &World,
    pool: &str,
    made_by_us: bool,
    imported_by_us: bool,
    direction: &str,
) -> Result<()> {
    let (a, b) = (world.a(), world.b());
    run_ours(a, &["mirror", "pool", "enable", "--site-name", a.name(), pool, "image"]).await?.ok()?;
    let create = ["mirror", "pool", "peer", "bootstrap", "create", "--site-name", a.name(), pool];
    let token = if made_by_us { run_ours(a, &create).await? } else { run_stock(a, &create).await? };
    let token = token.ok()?;
    ensure!(run_stock(a, &create).await?.ok()? == token && run_ours(a, &create).await?.ok()? == token);
    // Half of them from standard input.
    let import =
        ["mirror", "pool", "peer", "bootstrap", "import", "--site-name", b.name(), "--direction", direction];
    let done = if imported_by_us {
        run_with(ours(b, &[&import[..], &[pool, "-"]].concat()), &token).await?
    } else {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), &token)?;
        run(stock(b, &[&import[..], &["--token-path", &file.path().display().to_string(), pool]].concat()))
            .await?
    };
    ensure!(done.ok()?.is_empty());
    for (cluster, peers) in [(b, 1), (a, usize::from(direction == "rx-tx"))] {
        let info = cluster.rbd_json(&["mirror", "pool", "info", "--all", pool]).await?;
        let found = info["peers"].as_array().context("there are peers")?;
        ensure!(found.len() == peers && info["mode"] == "image", "{info}");
        ensure!(found.iter().all(|peer| peer["direction"] == direction && peer["key"].is_string()), "{info}");
    }
    reach(world, b, pool).await
}

/// Each program reaches the other site with what was imported.
async fn reach(world: &World, here: &Cluster, pool: &str) -> Result<()> {
    let spec = format!("{pool}/image");
    world.a().create_image(&spec, 1 << 20, &[]).await?;
    world.a().rbd(&["mirror", "image", "enable", &spec, "snapshot"]).await?;
    let said = run_ours(here, &["verify", pool]).await?;
    ensure!(said.code == Some(0) && said.stdout.starts_with("IMAGE"), "{said:?}");
    Ok(())
}

async fn refusals(world: &World) -> Result<()> {
    let (a, b) = (world.a(), world.b());
    let pool = world.new_pool().await?;
    let create = ["mirror", "pool", "peer", "bootstrap", "create", &pool];
    run_ours(a, &create).await?.fails_with(libc::EINVAL)?;
    world.clusters.enable_mirroring(&pool).await?;
    let token = run_ours(a, &create).await?.ok()?;
    let import = |cluster| ours(cluster, &["mirror", "pool", "peer", "bootstrap", "import", &pool, "-"]);
    // Of this very cluster; damaged; none at all; of a user whose key has changed.
    run_with(import(a), &token).await?.fails_with(libc::EINVAL)?;
    run_with(import(b), &token[..20]).await?.fails_with(libc::EINVAL)?;
    run_with(import(b), "").await?.fails_with(libc::EINVAL)?;
    run_with(import(b), &"A".repeat(1 << 20)).await?.fails_with(libc::EINVAL)?;
    let said = run_ours(b, &["mirror", "pool", "peer", "bootstrap", "import", &pool, "/absent"]).await?;
    said.fails_with(libc::ENOENT)?;
    a.ceph(&["auth", "rm", "client.rbd-mirror-peer"]).await?;
    let said = run_with(import(b), &token).await?.fails_with(libc::EACCES)?;
    ensure!(!said.contains(token.trim()), "the token is told");
    let renewed = run_ours(a, &create).await?.ok()?;
    ensure!(renewed != token);
    run_with(import(b), &renewed).await?.ok()?;
    let peers = b.rbd_json(&["mirror", "pool", "info", &pool]).await?;
    ensure!(peers["peers"].as_array().is_some_and(|peers| peers.len() == 1), "{peers}");
    world.strike(&pool).await
}
