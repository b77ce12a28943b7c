//! `verify`: equal copies of every shape are proved equal, and whatever is altered in one is found, where it is.

use std::cell::Cell;
use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::image::RandomWrites;
use tests::{Cluster, DaemonKind, Extents, LibrbdImage, Tool};

use crate::world::{LIMIT, MIB, World, Writer, ctl, our_daemon, run_ours, until};

/// What is proved of a pool, image by image.
async fn verified(cluster: &Cluster, args: &[&str], code: i32) -> Result<BTreeMap<String, Value>> {
    let said = run_ours(cluster, &[&["verify", "--format", "json"], args].concat()).await?;
    ensure!(said.code == Some(code) && (code != 0 || said.stderr.is_empty()), "{said:?}");
    let record: Value = serde_json::from_str(&said.stdout)?;
    let images = record["details"].as_array().context("images are told")?;
    let name = |image: &Value| image["image"].as_str().unwrap_or_default().to_string();
    Ok(images.iter().map(|image| (name(image), image.clone())).collect())
}

fn expect_equal(found: &BTreeMap<String, Value>, images: &[String]) -> Result<()> {
    for image in images {
        let one = found.get(image).with_context(|| format!("{image} is not told"))?;
        ensure!(one["report"]["equal"] == true, "{one:#}");
    }
    Ok(())
}

/// Writes straight to an object of a copy.
async fn spoil(cluster: &Cluster, pool: &str, object: &str, offset: u64, data: &[u8]) -> Result<()> {
    let put = cluster.tool("rados").args(["-p", pool, "put", object, "-", "--offset", &offset.to_string()]);
    put.stdin(data.to_vec()).run().await?;
    Ok(())
}

async fn object_prefix(cluster: &Cluster, image: &str) -> Result<String> {
    let info = cluster.rbd_json(&["info", image]).await?;
    info["block_name_prefix"].as_str().map(str::to_string).context("an image has a prefix")
}

/// Images of many shapes, a clone among them, in a pool and a namespace.
async fn shapes(world: &World, pool: &str) -> Result<Vec<String>> {
    let a = world.a();
    for cluster in world.clusters.both() {
        cluster.rbd(&["namespace", "create", &format!("{pool}/n")]).await?;
    }
    world.clusters.enable_mirroring(&format!("{pool}/n")).await?;
    let shapes: [(&str, u64, &[&str]); 6] = [
        ("plain", 12 * MIB, &[]),
        ("odd", 9 * MIB + 12_345, &[]),
        ("small-objects", 3 * MIB, &["--object-size", "64K"]),
        ("striped", 16 * MIB, &["--stripe-unit", "64K", "--stripe-count", "3"]),
        ("bare", 8 * MIB, &["--image-feature", "layering"]),
        ("n/named", 8 * MIB, &[]),
    ];
    let mut images = Vec::new();
    for (seed, (name, size, args)) in (1..).zip(shapes) {
        let image = format!("{pool}/{name}");
        a.create_image(&image, size, args).await?;
        let writes = RandomWrites { seed, count: 20, block_bytes: 20_000, within: 0..size };
        a.write_random(&image, &writes).await?;
        images.push(image);
    }
    a.apply(&format!("{pool}/plain"), Extents::default().zeroes(5 * MIB, 2 * MIB)).await?;
    a.create_image(&format!("{pool}/empty"), 64 * MIB, &[]).await?;
    images.push(format!("{pool}/empty"));
    a.snap_create(&format!("{pool}/plain@base")).await?;
    a.clone_image(&format!("{pool}/plain@base"), &format!("{pool}/clone"), 2).await?;
    a.apply(&format!("{pool}/clone"), Extents::default().fill(MIB, 8192, 77)).await?;
    images.push(format!("{pool}/clone"));
    for image in &images {
        a.rbd(&["mirror", "image", "enable", image, "snapshot"]).await?;
    }
    for image in &images {
        world.arrived(a, world.b(), image).await?;
    }
    Ok(images)
}

pub async fn proves_and_disproves(world: &World) -> Result<()> {
    let pool = world.mirrored_pool().await?;
    let (a, b) = (world.a(), world.b());
    let mut daemon = world.daemon(&our_daemon(), b).await?;
    let images = shapes(world, &pool).await?;
    let (named, rest): (Vec<_>, Vec<_>) = images.iter().cloned().partition(|image| image.contains("/n/"));
    let namespace = format!("{pool}/n/");
    for cluster in [a, b] {
        expect_equal(&verified(cluster, &[&pool], 0).await?, &rest)?;
        expect_equal(&verified(cluster, &[&namespace], 0).await?, &named)?;
    }
    daemon.stop(LIMIT).await?;
    let line = format!(
        "{} -c {} verify {pool}/empty --max-objects-per-second 20",
        ctl().display(),
        b.conf_path().display()
    );
    let shown = Tool::new("script").args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").run().await?;
    ensure!(shown.contains("comparing [") && shown.contains("/16 objects"), "{shown:?}");

    // What a reader cannot see is no difference: zeros where there is no object, and bytes behind the image's end.
    let prefix = object_prefix(b, &format!("{pool}/empty")).await?;
    spoil(b, &pool, &format!("{prefix}.0000000000000003"), 0, &[0; 5000]).await?;
    let prefix = object_prefix(b, &format!("{pool}/odd")).await?;
    spoil(b, &pool, &format!("{prefix}.0000000000000002"), MIB + 12_345, b"behind the end").await?;
    expect_equal(&verified(b, &[&pool], 0).await?, &rest)?;

    // Everything else is. In the image that is cloned it shows through in the clone.
    let spoilt = [
        ("plain", "0000000000000002", 70_000, 8 * MIB + 69_632),
        ("empty", "0000000000000005", 4096, 20 * MIB + 4096),
        ("small-objects", "0000000000000007", 100, 7 * 65_536),
        // The second stripe unit of the second of three objects.
        ("striped", "0000000000000001", 65_536, 4 * 65_536),
        ("odd", "0000000000000002", MIB + 12_000, 9 * MIB + 8192),
        ("bare", "0000000000000001", 0, 4 * MIB),
    ];
    for (name, object, offset, _) in spoilt {
        let prefix = object_prefix(b, &format!("{pool}/{name}")).await?;
        spoil(b, &pool, &format!("{prefix}.{object}"), offset, b"astray").await?;
    }
    let found = verified(b, &[&pool], libc::EIO).await?;
    let expected = spoilt.iter().map(|(name, object, _, at)| (*name, *object, *at)).chain([(
        "clone",
        "0000000000000002",
        8 * MIB + 69_632,
    )]);
    for (name, object, at) in expected {
        let one = &found[&format!("{pool}/{name}")];
        let differences = one["report"]["differences"].as_array().context("differences are told")?;
        ensure!(one["report"]["equal"] == false && differences.len() == 1, "{one:#}");
        let range = &differences[0]["ranges"][0];
        ensure!(differences[0]["copy_object"].as_str().is_some_and(|name| name.ends_with(object)), "{one:#}");
        ensure!(
            range["offset"] == at && range["length"].as_u64().is_some_and(|length| length <= 4096),
            "{one:#}"
        );
    }
    let told = run_ours(b, &["verify", &pool]).await?;
    ensure!(told.stdout.contains("DIFFERENT in 1 objects") && told.stdout.contains("differs at"), "{told:?}");

    // An object that is lost.
    let one = format!("{pool}/plain");
    let prefix = object_prefix(b, &one).await?;
    b.rados(&["-p", &pool, "rm", &format!("{prefix}.0000000000000000")]).await?;
    let found = verified(b, &[&one], libc::EIO).await?;
    ensure!(found[&one]["report"]["objects_different"] == 2, "{found:?}");
    nothing_is_proved(world, &pool).await?;
    world.strike(&pool).await
}

/// Where there is nothing to compare with, that is said, and never taken for equality.
async fn nothing_is_proved(world: &World, pool: &str) -> Result<()> {
    let (a, b) = (world.a(), world.b());
    let late = format!("{pool}/late");
    world.mirrored_image(&late, 4 * MIB, 9).await?;
    let found = verified(a, &[&late], libc::ENOENT).await?;
    ensure!(
        found[&late]["report"].is_null()
            && found[&late]["error"].as_str().is_some_and(|e| e.contains("site-b"))
    );
    let both = format!("{pool}/bare");
    b.rbd(&["mirror", "image", "promote", "--force", &both]).await?;
    let found = verified(b, &[&both], libc::EINVAL).await?;
    ensure!(found[&both]["error"].as_str().is_some_and(|error| error.contains("split-brain")), "{found:?}");
    let (empty, absent) = (format!("{pool}/empty"), format!("{pool}/absent"));
    for (args, code) in [
        (vec![empty.as_str(), "--new-point", "--timeout", "1"], libc::ETIMEDOUT),
        (vec![late.as_str(), "--max-bytes-per-second", "0"], libc::EINVAL),
        (vec!["absent-pool"], libc::ENOENT),
        (vec![absent.as_str()], libc::ENOENT),
    ] {
        let said = run_ours(b, &[&["verify"], &args[..]].concat()).await?;
        ensure!(said.code == Some(code) && !said.stderr.is_empty(), "{args:?}: {said:?}");
    }
    a.freeze()?;
    let said = run_ours(b, &["verify", &empty, "--peer-timeout", "2"]).await;
    a.thaw().await?;
    said?.fails_with(libc::ETIMEDOUT).map(drop)
}

/// While somebody writes, and mirror-snapshots come and go faster than the comparison ends: it moves along with them. In
/// journal mode a common point is made between the writes, and removed.
pub async fn under_a_writer(world: &World) -> Result<()> {
    let pool = world.mirrored_pool().await?;
    let (a, b) = (world.a(), world.b());
    let _daemon = world.daemon(&our_daemon(), b).await?;
    let (image, journalled) = (format!("{pool}/image"), format!("{pool}/journalled"));
    a.create_image(&image, 24 * MIB, &["--object-size", "64K"]).await?;
    a.apply(&image, Extents::default().fill(0, 12 * MIB, 1)).await?;
    a.rbd(&["mirror", "image", "enable", &image, "snapshot"]).await?;
    journalled_image(a, &journalled).await?;
    world.arrived(a, b, &image).await?;
    b.wait_mirror_state(&journalled, "up+replaying", LIMIT).await?;

    // Some objects change in every round, not all: otherwise there were no end.
    let done = Cell::new(false);
    let writer = async {
        for seed in (0_u64..).take_while(|_| !done.get()) {
            let writes = RandomWrites { seed, count: 5, block_bytes: 4096, within: 0..24 * MIB };
            a.write_random(&image, &writes).await?;
        }
        anyhow::Ok(())
    };
    let rounds = async {
        while !done.get() {
            let snap = a.mirror_snapshot(&image).await?;
            b.wait_copied(&image, snap, LIMIT).await?;
        }
        anyhow::Ok(())
    };
    // 384 objects: enough for several rounds.
    let slowly = [&image, "--max-objects-per-second", "80"];
    let verify = async {
        let found = verified(b, &slowly, 0).await;
        done.set(true);
        found
    };
    let (found, _, _) = tokio::try_join!(verify, writer, rounds)?;
    expect_equal(&found, std::slice::from_ref(&image))?;
    let report = &found[&image]["report"];
    ensure!(report["moves"].as_u64() >= Some(1), "its pair never went away: {report}");
    ensure!(report["objects"].as_u64() >= Some(384) && report["seconds"].as_f64() > Some(4.5), "{report}");

    let fresh = verified(b, &[&image, "--new-point"], 0).await?;
    let newer = |found: &BTreeMap<String, Value>| found[&image]["report"]["pair"]["primary_snap"].as_u64();
    ensure!(newer(&fresh) > newer(&found), "no new point was made");

    // From either site, and from both at once.
    at_points_of_their_own(world, &[a], &journalled, true).await?;
    at_points_of_their_own(world, &[b], &journalled, false).await?;
    for busy in [true, false] {
        at_points_of_their_own(world, &[a, b], &journalled, busy).await?;
    }
    // What another verification has made, and may remove at any moment, is no point to go by.
    let others = format!("{journalled}@.rbd-mirrorctl.verify.others");
    a.snap_create(&others).await?;
    until("that snapshot to be copied", async || Ok(b.rbd(&["info", &others]).await.is_ok())).await?;
    let found = verified(b, &[&journalled], 0).await?;
    let name = found[&journalled]["report"]["pair"]["name"].as_str().context("a pair has a name")?;
    ensure!(!others.ends_with(name), "{found:?}");
    a.rbd(&["snap", "rm", &others]).await?;
    until("that snapshot to be removed", async || Ok(b.rbd(&["info", &others]).await.is_err())).await?;
    when_the_lock_is_not_given_up(world, &journalled).await?;
    world.strike(&pool).await
}

/// A client that keeps the lock to itself keeps it: nothing is proved, nothing is changed, and what is advised then helps.
async fn when_the_lock_is_not_given_up(world: &World, image: &String) -> Result<()> {
    let (a, b) = (world.a(), world.b());
    let mut owner = LibrbdImage::open(a, image).await?;
    ensure!(owner.run("lock").await? == 0, "it does not get the lock");
    owner.write(0, &[1; 4096]).await?;
    let state =
        async || anyhow::Ok((a.rbd(&["snap", "ls", image]).await?, a.rbd(&["lock", "ls", image]).await?));
    let before = state().await?;
    for cluster in [a, b] {
        let found = verified(cluster, &[image], libc::EROFS).await?;
        let error = found[image]["error"].as_str().unwrap_or_default();
        ensure!(found[image]["report"].is_null(), "{found:?}");
        ensure!(error.contains("does not give it up") && error.contains("rbd snap create"), "{error}");
    }
    ensure!(state().await? == before, "something was changed");
    owner.write(4096, &[2; 4096]).await?;

    let advised = format!("{image}@advised");
    a.snap_create(&advised).await?;
    until("the snapshot to be copied", async || Ok(b.rbd(&["info", &advised]).await.is_ok())).await?;
    let found = verified(b, &[image], 0).await?;
    ensure!(found[image]["report"]["pair"]["name"] == "advised", "{found:?}");
    owner.close().await
}

/// A small image with something in it that is mirrored by its journal.
async fn journalled_image(a: &Cluster, image: &str) -> Result<()> {
    a.create_image(image, 8 * MIB, &["--image-feature", "exclusive-lock,journaling"]).await?;
    a.apply(image, Extents::default().fill(0, 4 * MIB, 6)).await?;
    a.rbd(&["mirror", "image", "enable", image, "journal"]).await?;
    Ok(())
}

/// Verifies an image in journal mode at each of `clusters` at once, with nobody at it or with somebody who writes; each
/// proves it by itself, and nothing is left behind.
async fn at_points_of_their_own(
    world: &World,
    clusters: &[&Cluster],
    image: &String,
    busy: bool,
) -> Result<()> {
    let writer = if busy { Some(Writer::start(world.a(), image).await?) } else { None };
    let args = [image.as_str()];
    let all = clusters.iter().map(|cluster| verified(cluster, &args, 0));
    for found in futures::future::try_join_all(all).await? {
        expect_equal(&found, std::slice::from_ref(image))?;
        ensure!(found[image]["report"]["bytes"].as_u64() >= Some(4 * MIB), "{found:?}");
    }
    if let Some(writer) = writer {
        writer.finish().await?;
    }
    let left = world.a().rbd(&["snap", "ls", image]).await?;
    ensure!(!left.contains("verify"), "a snapshot is left behind: {left}");
    let left = world.a().rbd(&["lock", "ls", image]).await?;
    ensure!(left.is_empty(), "a lock is left behind: {left}");
    until("the snapshots to be removed from the copy", async || {
        Ok(!world.b().rbd(&["snap", "ls", image]).await?.contains("verify"))
    })
    .await
}

/// Copies that Ceph's daemon made: in snapshot mode, where it leaves the newest delta outside the snapshot, and in journal
/// mode, where a common point must be made.
pub async fn copies_of_cephs_daemon(world: &World) -> Result<()> {
    let pool = world.mirrored_pool().await?;
    let (a, b) = (world.a(), world.b());
    let _daemon = world.daemon(&DaemonKind::Ceph, b).await?;
    let (image, journalled) = (format!("{pool}/image"), format!("{pool}/journalled"));
    world.mirrored_image(&image, 16 * MIB, 5).await?;
    journalled_image(a, &journalled).await?;
    world.arrived(a, b, &image).await?;
    for round in 0..2 {
        a.write_random(
            &image,
            &RandomWrites { seed: round, count: 10, block_bytes: 4096, within: 0..16 * MIB },
        )
        .await?;
        let snap = a.mirror_snapshot(&image).await?;
        b.wait_copied(&image, snap, LIMIT).await?;
        expect_equal(&verified(a, &[&image], 0).await?, std::slice::from_ref(&image))?;
    }
    b.wait_mirror_state(&journalled, "up+replaying", LIMIT).await?;
    at_points_of_their_own(world, &[b], &journalled, true).await?;
    // A snapshot that a user made will do.
    a.snap_create(&format!("{journalled}@theirs")).await?;
    let copied = format!("{journalled}@theirs");
    until("the user's snapshot to be copied", async || Ok(b.rbd(&["info", &copied]).await.is_ok())).await?;
    let found = verified(a, &[&journalled], 0).await?;
    ensure!(found[&journalled]["report"]["pair"]["name"] == "theirs", "{found:?}");
    world.strike(&pool).await
}
