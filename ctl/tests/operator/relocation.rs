//! Failover and failback: under a running writer, killed at many instants, with the other site lost, and refused.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::image::RandomWrites;
use tests::{Cluster, DaemonKind, Extents, MirrorDaemon, compare};

use crate::world::{LIMIT, MIB, World, Writer, our_daemon, ours, run_ours, until};

const SIZE: u64 = 16 * MIB;

/// A pool with some images, primary at the first site and copied to the second, and a daemon at each.
struct Stage<'a> {
    world: &'a World,
    pool: String,
    images: Vec<String>,
    daemons: [MirrorDaemon; 2],
}

impl Stage<'_> {
    async fn set<'a>(world: &'a World, images: usize, kind: &DaemonKind) -> Result<Stage<'a>> {
        let pool = world.mirrored_pool().await?;
        let daemons = [world.daemon(kind, world.a()).await?, world.daemon(kind, world.b()).await?];
        let images: Vec<String> = (0..images).map(|index| format!("{pool}/image-{index}")).collect();
        for (seed, image) in (0..).zip(&images) {
            world.mirrored_image(image, SIZE, seed).await?;
        }
        for image in &images {
            world.arrived(world.a(), world.b(), image).await?;
            world.b().wait_mirror_state(image, "up+replaying", LIMIT).await?;
        }
        Ok(Stage { world, pool, images, daemons })
    }

    /// Writes something to every image of a site.
    async fn scribble(&self, cluster: &Cluster, seed: u64) -> Result<()> {
        for (index, image) in (0..).zip(&self.images) {
            let writes = RandomWrites { seed: seed + index, count: 30, block_bytes: 8192, within: 0..SIZE };
            cluster.write_random(image, &writes).await?;
        }
        Ok(())
    }

    /// All images are primary at `at` alone, and hold there what they hold at the other site.
    async fn expect_relocated(&self, at: &Cluster, from: &Cluster) -> Result<()> {
        for image in &self.images {
            ensure!(is_primary(at, image).await?, "{image} is not primary at {}", at.name());
            ensure!(!is_primary(from, image).await?, "{image} is still primary at {}", from.name());
            compare(from, image, at, image).await?.expect_equal(image)?;
        }
        Ok(())
    }

    async fn strike(mut self) -> Result<()> {
        for daemon in &mut self.daemons {
            daemon.kill(tests::Signal::SIGKILL);
            daemon.wait(LIMIT).await?;
        }
        self.world.strike(&self.pool).await
    }
}

async fn is_primary(cluster: &Cluster, image: &str) -> Result<bool> {
    let info = cluster.rbd_json(&["info", image]).await?;
    info["mirroring"]["primary"].as_bool().context("the image is mirrored")
}

fn read_report(path: &std::path::Path) -> Result<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

/// Over and back, with somebody writing until the demotion stops him: nothing that was written is lost, and nothing is
/// copied anew.
pub async fn there_and_back_under_a_writer(world: &World) -> Result<()> {
    for kind in [our_daemon(), DaemonKind::Ceph] {
        let stage = Stage::set(world, 2, &kind).await?;
        let (a, b) = (world.a(), world.b());
        let folder = tempfile::tempdir()?;
        let report = folder.path().join("report.json");
        let report_option = format!("--report={}", report.display());
        let writer = Writer::start(a, &stage.images[0])?;

        let planned = run_ours(b, &["failover", &stage.pool, "--dry-run", &report_option]).await?.ok()?;
        ensure!(planned.contains("would demote there"), "{planned}");
        ensure!(read_report(&report)?["outcome"] == "planned" && is_primary(a, &stage.images[0]).await?);

        let said = run_ours(b, &["failover", &stage.pool, &report_option]).await?;
        let (warned, told) = (said.stderr.clone(), said.ok().context("failover")?);
        writer.stop().await?;
        ensure!(warned.contains("is in use at site"), "{warned}");
        ensure!(told.contains("What to do now") && told.contains("Stop the clients"), "{told}");
        stage.expect_relocated(b, a).await?;
        let filed = read_report(&report)?;
        ensure!(
            filed["outcome"] == "done" && filed["details"]["images"].as_array().is_some_and(|i| i.len() == 2),
            "{filed}"
        );

        // Again: there is nothing to do.
        let again = run_ours(b, &["failover", &stage.pool, "--format", "json"]).await?.ok()?;
        let again: Value = serde_json::from_str(&again)?;
        ensure!(
            again["outcome"] == "done" && again["details"]["images"][0]["done"] == serde_json::json!([]),
            "{again}"
        );

        stage.scribble(b, 100).await?;
        let writer = Writer::start(b, &stage.images[1])?;
        let told = run_ours(a, &["failback", &stage.pool, "--verify"]).await?.ok().context("failback")?;
        writer.stop().await?;
        ensure!(told.matches("verified").count() == 2, "{told}");
        stage.expect_relocated(a, b).await?;

        // One image alone, and at once back again, before anything was copied back.
        stage.scribble(a, 200).await?;
        run_ours(b, &["failover", &stage.images[0]]).await?.ok().context("one image")?;
        ensure!(is_primary(b, &stage.images[0]).await? && !is_primary(b, &stage.images[1]).await?);
        run_ours(a, &["failback", &stage.images[0]]).await?.ok().context("one image, back")?;
        stage.scribble(a, 300).await?;
        ensure!(is_primary(a, &stage.images[0]).await? && !is_primary(b, &stage.images[0]).await?);
        stage.strike().await?;
    }
    Ok(())
}

/// Killed at many instants and run again, over and back: it goes on where it was, and nothing is lost.
pub async fn killed_half_way(world: &World) -> Result<()> {
    let stage = Stage::set(world, 3, &our_daemon()).await?;
    let sites = [world.a(), world.b()];
    let folder = tempfile::tempdir()?;
    let mut stages_seen: BTreeSet<usize> = BTreeSet::new();
    for turn in 0..6_usize {
        let (from, to) = (sites[turn % 2], sites[(turn + 1) % 2]);
        stage.scribble(from, 1000 * turn as u64).await?;
        let report = folder.path().join(format!("report-{turn}.json"));
        let command = if turn % 2 == 0 { "failover" } else { "failback" };
        let report_option = format!("--report={}", report.display());
        for attempt in 0_u64.. {
            // Later and later, so that every stage gets its turn to be cut off.
            let killed_after = Duration::from_millis(150 + 37 * turn as u64 + 250 * attempt);
            let mut child = ours(to, &[command, &stage.pool, &report_option]).spawn()?;
            let ended = tokio::time::timeout(killed_after, child.wait()).await;
            if let Ok(status) = ended {
                ensure!(status?.success(), "turn {turn}, attempt {attempt}: it failed");
                break;
            }
            child.kill().await?;
            stages_seen.extend(
                read_report(&report).ok().and_then(|r| Some(r["details"]["steps"].as_array()?.len())),
            );
            ensure!(attempt < 60, "turn {turn}: it never ends");
        }
        stage.expect_relocated(to, from).await.with_context(|| format!("turn {turn}"))?;
    }
    ensure!(stages_seen.len() >= 3, "it was always cut off at the same stage: {stages_seen:?}");
    stage.strike().await
}

/// The other site is frozen: a planned failover gives up in time and changes nothing; an emergency brings up what had
/// arrived whole, tells from when that is, and the site gets its role back when it returns.
pub async fn the_other_site_is_lost(world: &World) -> Result<()> {
    for kind in [our_daemon(), DaemonKind::Ceph] {
        let mut stage = Stage::set(world, 2, &kind).await?;
        let (a, b) = (world.a(), world.b());
        stage.scribble(a, 7).await?;
        let mut arrived = Vec::new();
        for image in &stage.images {
            let snap = a.mirror_snapshot(image).await?;
            b.wait_copied(image, snap, LIMIT).await?;
            arrived.push(primary_time(a, image, snap).await?);
        }
        let mut expected = Vec::new();
        for image in &stage.images {
            expected.push(a.sha256(image).await?);
        }
        stage.scribble(a, 8).await?;

        freeze(a, true)?;
        let outcome = in_an_emergency(&stage, &expected, &arrived, kind == our_daemon()).await;
        freeze(a, false)?;
        outcome.with_context(|| format!("with {kind:?}"))?;
        until("the frozen site to be back", async || Ok(a.rbd(&["ls", &stage.pool]).await.is_ok())).await?;

        // Both are primary now: nothing goes on by itself, and nothing is given up unasked.
        stage.scribble(b, 9).await?;
        let refused = run_ours(a, &["failback", &stage.pool]).await?;
        ensure!(refused.stdout.contains("split-brain"), "{refused:?}");
        refused.fails_with(libc::EBUSY)?;
        if kind == DaemonKind::Ceph {
            // It waits for half a minute and more before it looks again at a cluster that was away.
            for (daemon, cluster) in stage.daemons.iter_mut().zip([a, b]) {
                daemon.kill(tests::Signal::SIGKILL);
                daemon.wait(LIMIT).await?;
                *daemon = world.daemon(&kind, cluster).await?;
            }
        }
        run_ours(a, &["failback", "--discard-local", &stage.pool]).await?.ok().context("failback")?;
        stage.expect_relocated(a, b).await?;
        stage.strike().await?;
    }
    Ok(())
}

async fn in_an_emergency(
    stage: &Stage<'_>,
    expected: &[String],
    arrived: &[String],
    exact: bool,
) -> Result<()> {
    let b = stage.world.b();
    let began = Instant::now();
    let said =
        run_ours(b, &["failover", &stage.pool, "--peer-timeout", "3"]).await?.fails_with(libc::ETIMEDOUT)?;
    ensure!(
        began.elapsed() < Duration::from_secs(30),
        "it waited for {} s: {said}",
        began.elapsed().as_secs()
    );
    ensure!(!is_primary(b, &stage.images[0]).await?);

    let rehearsed = run_ours(b, &["failover", "--emergency", "--dry-run", &stage.pool]).await?.ok()?;
    ensure!(
        rehearsed.contains("would promote by force") && !is_primary(b, &stage.images[0]).await?,
        "{rehearsed}"
    );
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report.json");
    let report_option = format!("--report={}", report.display());
    let began = Instant::now();
    let told = run_ours(b, &["failover", "--emergency", &stage.pool, &report_option]).await?.ok()?;
    ensure!(began.elapsed() < Duration::from_secs(60), "it took {} s", began.elapsed().as_secs());
    ensure!(told.contains("failback --discard-local"), "{told}");
    let filed = read_report(&report)?;
    for (index, image) in stage.images.iter().enumerate() {
        ensure!(b.sha256(image).await? == expected[index], "{image} is not what had arrived");
        let images = filed["details"]["images"].as_array().context("images are told")?;
        let one = images.iter().find(|one| one["image"] == image.as_str()).context("all images are told")?;
        let moment = &one["continues_from"];
        if exact {
            ensure!(
                moment["primary_time"] == arrived[index].as_str(),
                "{one}, but it was {}",
                arrived[index]
            );
            ensure!(one["lost"]["written_after"] == arrived[index].as_str(), "{one}");
        } else {
            let bound = |name: &str| moment[name].as_str().map(str::to_string);
            ensure!(
                bound("not_after").is_some_and(|bound| bound >= arrived[index]),
                "{one}, {}",
                arrived[index]
            );
            // To the second, and rounded down.
            ensure!(
                bound("not_before").is_none_or(|bound| bound <= arrived[index]),
                "{one}, {}",
                arrived[index]
            );
        }
    }
    // Again: there is nothing to do.
    let again = run_ours(b, &["failover", "--emergency", &stage.pool]).await?.ok()?;
    ensure!(again.matches("nothing to do").count() == stage.images.len(), "{again}");
    Ok(())
}

/// When a primary's mirror-snapshot was made, as reports tell it.
async fn primary_time(cluster: &Cluster, image: &str, snap: u64) -> Result<String> {
    let options = rados::ConnectOptions {
        client_name: "client.admin".into(),
        conf_file: Some(cluster.conf_path()),
        ..rados::ConnectOptions::default()
    };
    let connection = rados::connect(options).await?;
    let (pool, name) = image.split_once('/').context("POOL/IMAGE")?;
    let ioctx = connection.pool(connection.pool_by_name(pool).await?);
    let (_, header) = rbd::Image::open_by_name(&ioctx, name).await?;
    let snapshot = header.snapshots.get(&rados::SnapId(snap)).context("the snapshot is there")?;
    ctl::relocation::report::universal(snapshot.timestamp).context("it has a time")
}

/// Stops all of a cluster's daemons where they are, or lets them go on.
fn freeze(cluster: &Cluster, frozen: bool) -> Result<()> {
    let signal = if frozen { tests::Signal::SIGSTOP } else { tests::Signal::SIGCONT };
    for (name, identity, _) in cluster.daemons()? {
        ensure!(identity.signal(signal), "{name} does not run");
    }
    Ok(())
}

/// Everything that keeps a failover from beginning; nothing is changed then.
pub async fn what_cannot_be_relocated(world: &World) -> Result<()> {
    let mut stage = Stage::set(world, 1, &our_daemon()).await?;
    let (a, b) = (world.a(), world.b());
    let report_to_nowhere = ["failover", &stage.pool, "--report", "/absent/report.json"];
    run_ours(b, &report_to_nowhere).await?.fails_with(libc::ENOENT)?;
    ensure!(is_primary(a, &stage.images[0]).await?, "it was relocated without its report");

    // An image that is not there yet.
    stage.daemons[1].stop(LIMIT).await?;
    let new = format!("{}/new", stage.pool);
    world.mirrored_image(&new, MIB, 3).await?;
    let said = run_ours(b, &["failover", &stage.pool]).await?;
    ensure!(said.stdout.contains("has not been copied to this site yet"), "{said:?}");
    said.fails_with(libc::EBUSY)?;
    a.rbd(&["mirror", "image", "disable", &new]).await?;

    // Nobody would copy the last changes.
    let said = run_ours(b, &["failover", &stage.pool]).await?.fails_with(libc::ENOTCONN)?;
    ensure!(said.contains("is not running") && said.contains("nothing was changed"), "{said}");
    ensure!(is_primary(a, &stage.images[0]).await?);

    // Demoted by hand meanwhile, with the last changes not here: it waits for them, but not for ever.
    a.apply(&stage.images[0], Extents::default().fill(0, MIB, 99)).await?;
    a.rbd(&["mirror", "image", "demote", &stage.images[0]]).await?;
    let args = ["failover", &stage.pool, "--timeout", "3"];
    let said = run_ours(b, &args).await?.fails_with(libc::ETIMEDOUT)?;
    ensure!(said.contains("nothing is primary now"), "{said}");
    ensure!(!is_primary(b, &stage.images[0]).await?);
    stage.daemons[1] = world.daemon(&our_daemon(), b).await?;
    run_ours(b, &["failover", &stage.pool]).await?.ok().context("with the daemon back")?;
    stage.expect_relocated(b, a).await?;

    // A site that was never introduced.
    let lonely = world.new_pool().await?;
    world.clusters.enable_mirroring(&lonely).await?;
    let said = run_ours(a, &["failover", &lonely]).await?.fails_with(libc::EINVAL)?;
    ensure!(said.contains("has no peer"), "{said}");
    world.strike(&lonely).await?;
    stage.strike().await
}
