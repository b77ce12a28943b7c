//! What is printed is what the stock `rbd` prints, byte for byte, in whatever state mirroring is.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tests::{Cluster, DaemonKind};

use crate::world::{LIMIT, MIB, World, our_daemon, run_ours, run_stock, until};

/// Every format, however it is asked for.
const FORMATS: [&[&str]; 6] = [
    &[],
    &["--format", "json"],
    &["--pretty-format", "--format", "xml"],
    &["--format", "plain"],
    &["--format=json", "--pretty-format"],
    &["--format", "xml"],
];
/// One of each kind.
const FEW_FORMATS: &[&[&str]] = FORMATS.split_at(3).0;

/// Fails unless both print the same, and end with the same code. They are run again for a while when they do not:
/// statuses may change between the two runs.
async fn expect_same(cluster: &Cluster, args: &[&str]) -> Result<()> {
    let started = Instant::now();
    loop {
        let (stock, ours) = tokio::try_join!(run_stock(cluster, args), run_ours(cluster, args))?;
        if (stock.code, &stock.stdout) == (ours.code, &ours.stdout) {
            ensure!(ours.stderr.is_empty() == (ours.code == Some(0)), "{args:?}: {}", ours.stderr);
            return Ok(());
        }
        ensure!(
            started.elapsed() < LIMIT,
            "`{}` at {}: stock {:?}:\n{}\nours {:?} ({}):\n{}",
            args.join(" "),
            cluster.name(),
            stock.code,
            stock.stdout,
            ours.code,
            ours.stderr.trim(),
            ours.stdout
        );
    }
}

/// The first release whose `rbd` counts in a namespace what is told of its images elsewhere, as it does in a pool.
const COUNTS_COPIES_IN_NAMESPACES: u32 = 18;

/// Compares every query about a pool, a namespace in it and some images, on both clusters.
async fn expect_same_queries(world: &World, pool: &str, images: &[&str], formats: &[&[&str]]) -> Result<()> {
    expect_same_but(world, pool, images, formats, |_, _| false).await
}

/// The same, but for queries that are to be passed over.
async fn expect_same_but(
    world: &World,
    pool: &str,
    images: &[&str],
    formats: &[&[&str]],
    passed_over: impl Fn(&Cluster, &[&str]) -> bool,
) -> Result<()> {
    let namespace = format!("{pool}/n");
    let mut queries: Vec<Vec<&str>> = Vec::new();
    for place in [pool, &namespace] {
        queries.push(vec!["mirror", "pool", "info", place]);
        queries.push(vec!["mirror", "pool", "info", "--all", place]);
        queries.push(vec!["mirror", "pool", "status", place]);
        queries.push(vec!["mirror", "pool", "status", "--verbose", place]);
    }
    queries.push(vec!["mirror", "pool", "status", "--pool", pool, "--namespace", "n", "--verbose"]);
    queries.extend(images.iter().map(|image| vec!["mirror", "image", "status", *image]));
    for cluster in world.clusters.both() {
        for query in queries.iter().filter(|query| !passed_over(cluster, query)) {
            for format in formats {
                expect_same(cluster, &[query.as_slice(), format].concat()).await?;
            }
        }
    }
    Ok(())
}

/// A pool with a namespace on both clusters, mirrored both ways, and images in both.
async fn furnished_pool(world: &World) -> Result<(String, Vec<String>)> {
    let pool = world.mirrored_pool().await?;
    let namespace = format!("{pool}/n");
    for cluster in world.clusters.both() {
        cluster.rbd(&["namespace", "create", &namespace]).await?;
    }
    world.clusters.enable_mirroring(&namespace).await?;
    let images = ["one", "two", "n/three"].map(|name| format!("{pool}/{name}"));
    for (seed, image) in (1..).zip(&images) {
        world.mirrored_image(image, 8 * MIB, seed).await?;
    }
    world.a().create_image(&format!("{pool}/alone"), MIB, &[]).await?;
    Ok((pool, images.to_vec()))
}

/// Mirroring disabled, enabled without a peer, with a peer; images that nobody copies.
pub async fn without_a_daemon(world: &World) -> Result<()> {
    let pool = world.new_pool().await?;
    for cluster in world.clusters.both() {
        cluster.rbd(&["namespace", "create", &format!("{pool}/n")]).await?;
    }
    expect_same_queries(world, &pool, &[], FEW_FORMATS).await.context("disabled")?;
    world.clusters.enable_mirroring(&pool).await?;
    expect_same_queries(world, &pool, &[], FEW_FORMATS).await.context("enabled")?;
    world.strike(&pool).await?;

    let (pool, images) = furnished_pool(world).await?;
    let absent = format!("{pool}/absent");
    let alone = format!("{pool}/alone");
    let mut names: Vec<&str> = images.iter().map(String::as_str).collect();
    names.extend([alone.as_str(), absent.as_str()]);
    world.a().snap_create(&format!("{}@user", images[0])).await?;
    world.a().mirror_snapshot(&images[0]).await?;
    expect_same_queries(world, &pool, &names, FEW_FORMATS).await.context("with images")?;
    world.a().rbd(&["mirror", "image", "demote", &images[1]]).await?;
    expect_same_queries(world, &pool, &names, FEW_FORMATS).await.context("with a demoted image")?;
    world.strike(&pool).await
}

/// The daemon of this project mirrors in both directions, then is killed.
pub async fn beside_our_daemon(world: &World) -> Result<()> {
    beside_a_daemon(world, &our_daemon(), false).await
}

/// Ceph's daemon mirrors in both directions and both modes, then is killed.
pub async fn beside_cephs_daemon(world: &World) -> Result<()> {
    beside_a_daemon(world, &DaemonKind::Ceph, true).await
}

async fn beside_a_daemon(world: &World, kind: &DaemonKind, journal: bool) -> Result<()> {
    let (pool, mut images) = furnished_pool(world).await?;
    if journal {
        let image = format!("{pool}/journalled");
        world.a().create_image(&image, 8 * MIB, &["--image-feature", "exclusive-lock,journaling"]).await?;
        world.a().rbd(&["mirror", "image", "enable", &image, "journal"]).await?;
        images.push(image);
    }
    let (mut at_a, mut at_b) = (world.daemon(kind, world.a()).await?, world.daemon(kind, world.b()).await?);
    for image in &images {
        world.b().wait_mirror_state(image, "up+replaying", LIMIT).await?;
    }
    world.arrived(world.a(), world.b(), &images[0]).await?;
    let names: Vec<&str> = images.iter().map(String::as_str).collect();
    // Of the primary's namespace an older `rbd` counts what the daemon there tells, and we what the copy's does.
    let release = world.a().release().await?;
    let namespace = format!("{pool}/n");
    let differs = |cluster: &Cluster, query: &[&str]| {
        let of_namespace = query.contains(&"--namespace") || query.contains(&namespace.as_str());
        let at_primary = cluster.name() == world.a().name();
        release < COUNTS_COPIES_IN_NAMESPACES && at_primary && of_namespace && query.contains(&"status")
    };
    // Each site tells the other; of a namespace that counts at both, whatever an older `rbd` makes of it.
    if matches!(kind, DaemonKind::Ours(_)) {
        for cluster in world.clusters.both() {
            until("the namespace's image being told of by both sites", async || {
                let status = run_ours(cluster, &["mirror", "pool", "status", &namespace]).await?;
                Ok(status.stdout.contains("    1 replaying\n"))
            })
            .await?;
        }
    }
    expect_same_but(world, &pool, &names, &FORMATS, differs).await.context("with a daemon")?;
    for daemon in [&mut at_a, &mut at_b] {
        daemon.kill(tests::Signal::SIGKILL);
        daemon.wait(LIMIT).await?;
    }
    expect_same_but(world, &pool, &names, FEW_FORMATS, differs).await.context("with a daemon killed")?;
    world.strike(&pool).await
}

/// Schedules of every level.
pub async fn schedules(world: &World) -> Result<()> {
    let (pool, _) = furnished_pool(world).await?;
    let a = world.a();
    let levels: [&[&str]; 6] = [
        &[],
        &["--pool", &pool],
        &["--pool", &pool, "--namespace", "n"],
        &["--pool", &pool, "--image", "one"],
        &["--image", &format!("{pool}/n/three")],
        &["--pool", &pool, "--image", "absent"],
    ];
    let compare = async || {
        for level in levels {
            for query in [&["ls"][..], &["list", "-R"], &["status"]] {
                for format in FEW_FORMATS {
                    let args = [&["mirror", "snapshot", "schedule"], query, level, *format].concat();
                    // Where the stock tool fails to ask, it goes on to misread the answer that it does not have.
                    if query == ["status"] && level.contains(&"absent") {
                        run_ours(a, &args).await?.fails_with(libc::EINVAL)?;
                        continue;
                    }
                    expect_same(a, &args).await?;
                }
            }
        }
        anyhow::Ok(())
    };
    compare().await.context("no schedule")?;
    let changes: [&[&str]; 6] = [
        &["add", "1d"],
        &["add", "--pool", &pool, "2h", "14:00:00-05:00"],
        &["add", "--pool", &pool, "--namespace", "n", "3h"],
        &["add", "--pool", &pool, "--image", "one", "1m"],
        &["add", "--pool", &pool, "--image", "one", "6h", "2026-01-01T00:00"],
        &["add", "--image", &format!("{pool}/n/three"), "4h"],
    ];
    for (index, change) in changes.iter().enumerate() {
        // The two programs take turns.
        let args = [&["mirror", "snapshot", "schedule"], *change].concat();
        let done = if index % 2 == 0 { run_ours(a, &args).await? } else { run_stock(a, &args).await? };
        ensure!(done.ok()?.is_empty());
    }
    compare().await.context("schedules of every level")?;
    for (index, change) in changes.iter().enumerate() {
        let words: Vec<&str> = change.iter().skip(1).copied().collect();
        let args = [&["mirror", "snapshot", "schedule", "rm"], words.as_slice()].concat();
        let done = if index % 2 == 1 { run_ours(a, &args).await? } else { run_stock(a, &args).await? };
        ensure!(done.ok()?.is_empty());
    }
    compare().await.context("schedules removed")?;
    world.strike(&pool).await
}
