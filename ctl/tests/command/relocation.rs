//! Failover and failback: under a running writer, killed at many instants, with the other site lost, and refused.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::image::RandomWrites;
use tests::{Cluster, DaemonKind, Extents, LibrbdImage, MirrorDaemon, compare};
use tokio::process::Child;

use crate::world::{LIMIT, MIB, World, Writer, our_daemon, ours, run_ours, until};

const SIZE: u64 = 16 * MIB;

const SNAPSHOT: &str = "snapshot";
const JOURNAL: &str = "journal";

/// A pool with some images, primary at the first site and copied to the second, and a daemon at each.
struct Stage<'a> {
    world: &'a World,
    pool: String,
    images: Vec<String>,
    daemons: [MirrorDaemon; 2],
}

impl Stage<'_> {
    /// One image for each of `modes`.
    async fn set<'a>(world: &'a World, modes: &[&str], kind: &DaemonKind) -> Result<Stage<'a>> {
        let pool = world.mirrored_pool().await?;
        let daemons = [world.daemon(kind, world.a()).await?, world.daemon(kind, world.b()).await?];
        let images: Vec<String> = (0..modes.len()).map(|index| format!("{pool}/image-{index}")).collect();
        for (seed, (image, mode)) in (0..).zip(images.iter().zip(modes)) {
            world.mirrored_image_in(image, mode, SIZE, seed).await?;
        }
        for (image, mode) in images.iter().zip(modes) {
            world.b().wait_mirror_state(image, "up+replaying", LIMIT).await?;
            if *mode == SNAPSHOT {
                world.arrived(world.a(), world.b(), image).await?;
            }
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

fn read_report(path: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

/// Over and back, with somebody writing until the demotion stops him: nothing that was written is lost, and nothing is
/// copied anew.
pub async fn there_and_back_under_a_writer(world: &World) -> Result<()> {
    let stage = Stage::set(world, &[SNAPSHOT, JOURNAL], &our_daemon()).await?;
    let (a, b) = (world.a(), world.b());
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report.json");
    let report_option = format!("--report={}", report.display());
    let writers = [Writer::start(a, &stage.images[0]).await?, Writer::start(a, &stage.images[1]).await?];

    let planned = run_ours(b, &["failover", &stage.pool, "--dry-run", &report_option]).await?.ok()?;
    ensure!(planned.contains("would demote there"), "{planned}");
    ensure!(read_report(&report)?["outcome"] == "planned" && is_primary(a, &stage.images[0]).await?);

    let said = run_ours(b, &["failover", &stage.pool, &report_option]).await?;
    let (warned, told) = (said.stderr.clone(), said.ok().context("failover")?);
    for writer in writers {
        writer.fails().await?;
    }
    ensure!(warned.contains("is in use at site"), "{warned}");
    ensure!(told.contains("What to do now") && told.contains("Stop the clients"), "{told}");
    stage.expect_relocated(b, a).await.context("failover")?;
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
    let writer = Writer::start(b, &stage.images[0]).await?;
    run_ours(a, &["failback", &stage.pool]).await?.ok().context("failback")?;
    writer.fails().await?;
    stage.expect_relocated(a, b).await.context("failback")?;
    stage.strike().await
}

/// Somebody has an image open and does not write while it is demoted. His librbd lets his first write through, on top of
/// the demoted snapshot. What he wrote is in no copy; so it must not be in the image either, when it is the copy.
pub async fn what_a_late_client_writes_is_undone(world: &World) -> Result<()> {
    let stage = Stage::set(world, &[SNAPSHOT], &our_daemon()).await?;
    let (a, b, image) = (world.a(), world.b(), &stage.images[0]);
    let mut late = LibrbdImage::open(a, image).await?;
    let write = |offset: u64, byte: &str| format!("write {offset} {}", byte.repeat(4096));
    ensure!(late.run(&write(0, "01")).await? == 4096, "the first write failed");
    run_ours(b, &["failover", image]).await?.ok().context("failover")?;
    let demoted = a.sha256(image).await?;
    ensure!(b.sha256(image).await? == demoted, "the images differ behind the failover");
    late.run(&write(4 * MIB, "02")).await?;
    ensure!(a.sha256(image).await? != demoted, "the late write was refused");
    ensure!(late.run(&write(0, "03")).await? == -i64::from(libc::EROFS), "later writes are refused");

    // Elsewhere in the image: no delta holds what he wrote to.
    b.apply(image, Extents::default().fill(8 * MIB, 4096, 7)).await?;
    run_ours(a, &["failback", image]).await?.ok().context("failback")?;
    stage.expect_relocated(a, b).await?;
    stage.strike().await
}

/// With Ceph's daemon at both sites, which undoes nothing: a writer's queue is in the demoted snapshot.
pub async fn a_writer_with_cephs_daemon(world: &World) -> Result<()> {
    let stage = Stage::set(world, &[SNAPSHOT, JOURNAL], &DaemonKind::Ceph).await?;
    let (a, b) = (world.a(), world.b());
    let writers = [Writer::start(a, &stage.images[0]).await?, Writer::start(a, &stage.images[1]).await?];
    run_ours(b, &["failover", &stage.pool]).await?.ok().context("failover")?;
    for writer in writers {
        writer.fails().await?;
    }
    stage.expect_relocated(b, a).await?;
    stage.strike().await
}

/// Killed behind every stage and run again, over and back: it goes on where it was, and nothing is lost. (What is left of
/// single actions that are cut off is what control's scenarios of crashes are about.)
pub async fn killed_half_way(world: &World) -> Result<()> {
    let stage = Stage::set(world, &[SNAPSHOT, JOURNAL], &our_daemon()).await?;
    let sites = [world.a(), world.b()];
    let folder = tempfile::tempdir()?;
    let mut kills = Vec::new();
    for (turn, command) in (0_usize..).zip(["failover", "failback"]) {
        let (from, to) = (sites[turn % 2], sites[(turn + 1) % 2]);
        stage.scribble(from, 1000 * turn as u64).await?;
        for step in ["looked", "caught up", "demoted", "promoted"] {
            let report = folder.path().join(format!("{command}-{step}.json"));
            let report_option = format!("--report={}", report.display());
            let mut child = ours(to, &[command, &stage.pool, &report_option]).spawn()?;
            if killed_behind(&mut child, &report, step).await? {
                kills.push(step);
            }
        }
        run_ours(to, &[command, &stage.pool]).await?.ok().with_context(|| format!("the last {command}"))?;
        stage.expect_relocated(to, from).await.context(command)?;
    }
    let seen: BTreeSet<_> = kills.iter().collect();
    ensure!(seen.len() == 4, "it was killed behind {kills:?} alone");
    stage.strike().await
}

/// Kills a relocation as soon as its report tells of a step; false when it came to its end before.
async fn killed_behind(child: &mut Child, report: &Path, step: &str) -> Result<bool> {
    let began = Instant::now();
    loop {
        let steps =
            read_report(report).ok().and_then(|told| Some(told["details"]["steps"].as_array()?.clone()));
        if steps.unwrap_or_default().iter().any(|told| told["step"] == step) {
            child.kill().await?;
            return Ok(true);
        }
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "it failed before it {step}");
            return Ok(false);
        }
        ensure!(began.elapsed() < LIMIT, "it never {step}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The other site is frozen: a planned failover gives up in time and changes nothing; an emergency brings up what had
/// arrived whole, tells from when that is, and the site gets its role back when it returns.
pub async fn the_other_site_is_lost(world: &World) -> Result<()> {
    let stage = Stage::set(world, &[SNAPSHOT, JOURNAL], &our_daemon()).await?;
    lose_the_other_site(&stage, true).await?;
    win_it_back(stage).await
}

/// Both sites are primary: nothing goes on by itself, and nothing is given up unasked. What was written since at the site
/// that went on is kept, and nothing else.
async fn win_it_back(stage: Stage<'_>) -> Result<()> {
    let (a, b) = (stage.world.a(), stage.world.b());
    stage.scribble(b, 9).await?;
    let mut expected = Vec::new();
    for image in &stage.images {
        expected.push(b.sha256(image).await?);
    }
    let refused = run_ours(a, &["failback", &stage.pool]).await?;
    ensure!(refused.stdout.contains("split-brain"), "{refused:?}");
    refused.fails_with(libc::EBUSY)?;
    run_ours(a, &["failback", "--discard-local", &stage.pool]).await?.ok().context("failback")?;
    stage.expect_relocated(a, b).await?;
    for (image, expected) in stage.images.iter().zip(expected) {
        ensure!(a.sha256(image).await? == expected, "{image} is not what it was at the site that went on");
    }
    stage.strike().await
}

/// A journalled image whose first copy is half done was never what the copy holds: an emergency leaves it alone, says so, and
/// promotes the others.
pub async fn half_a_copy_is_not_promoted(world: &World) -> Result<()> {
    let mut stage = Stage::set(world, &[JOURNAL], &our_daemon()).await?;
    let (a, b) = (world.a(), world.b());
    let half = format!("{}/half", stage.pool);
    let features = ["--image-feature", "layering,exclusive-lock,journaling", "--object-size", "64K"];
    a.create_image(&half, 4 * SIZE, &features).await?;
    a.apply(&half, Extents::default().fill(0, 4 * SIZE, 5)).await?;
    a.rbd(&["mirror", "image", "enable", &half, "journal"]).await?;
    b.wait_mirror_state(&half, "up+syncing", LIMIT).await?;
    let daemon = &mut stage.daemons[1];
    daemon.kill(tests::Signal::SIGKILL);
    daemon.wait(LIMIT).await?;

    let emergency = ["failover", "--emergency", &stage.pool];
    let said = run_ours(b, &emergency).await?;
    let told = format!("{}{}", said.stdout, said.stderr);
    ensure!(told.contains("its copy is half done"), "{told}");
    said.fails_with(libc::EINVAL)?;
    ensure!(is_primary(b, &stage.images[0]).await?, "the image beside it was not promoted: {told}");
    ensure!(!is_primary(b, &half).await?, "half a copy was promoted: {told}");

    stage.daemons[1] = world.daemon(&our_daemon(), b).await?;
    b.wait_mirror_state(&half, "up+replaying", LIMIT).await?;
    run_ours(b, &emergency).await?.ok()?;
    ensure!(is_primary(b, &half).await?, "a whole copy was not promoted");
    compare(a, &half, b, &half).await?.expect_equal(&half)?;
    stage.strike().await
}

/// The same with Ceph's daemons: what is told is true, but less is known. They delete what is to be made equal, and copy it
/// anew.
pub async fn the_other_site_of_cephs_daemon_is_lost(world: &World) -> Result<()> {
    let stage = Stage::set(world, &[SNAPSHOT, JOURNAL], &DaemonKind::Ceph).await?;
    lose_the_other_site(&stage, false).await?;
    win_it_back(stage).await
}

/// `exact`: the time of what had arrived is known to the point.
async fn lose_the_other_site(stage: &Stage<'_>, exact: bool) -> Result<()> {
    let (a, b) = (stage.world.a(), stage.world.b());
    stage.scribble(a, 7).await?;
    let (mut arrived, mut expected) = (Vec::new(), Vec::new());
    for image in &stage.images {
        let content = a.sha256(image).await?;
        arrived.push(match a.newest_primary_snapshot(image).await {
            Ok(_) => {
                let snap = a.mirror_snapshot(image).await?;
                b.wait_copied(image, snap, LIMIT).await?;
                a.apply(image, Extents::default().fill(0, 4096, 8)).await?;
                Some(primary_time(a, image, snap).await?)
            }
            // In journal mode, where no moment has a name.
            Err(_) => {
                until("the journal to be replayed", async || Ok(b.sha256(image).await? == content)).await?;
                None
            }
        });
        expected.push(content);
    }
    a.freeze()?;
    let outcome = in_an_emergency(stage, &expected, &arrived, exact).await;
    a.thaw().await?;
    outcome?;
    a.wait_healthy(LIMIT).await
}

async fn in_an_emergency(
    stage: &Stage<'_>,
    expected: &[String],
    arrived: &[Option<String>],
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
        ensure!(one["lost"]["nothing"] == false, "{one}, but the other site is only silent");
        let Some(arrived) = &arrived[index] else { continue };
        let moment = &one["continues_from"];
        let bound = |name: &str| moment[name].as_str();
        // Bounds are to the second, and rounded down.
        let told = match exact {
            true => {
                bound("primary_time") == Some(arrived) && one["lost"]["written_after"] == arrived.as_str()
            }
            false => {
                bound("not_after").is_some_and(|bound| bound >= arrived.as_str())
                    && bound("not_before").is_none_or(|bound| bound <= arrived.as_str())
            }
        };
        ensure!(told, "{one}, but it was {arrived}");
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

/// Everything that keeps a failover from beginning; nothing is changed then.
pub async fn what_cannot_be_relocated(world: &World) -> Result<()> {
    let mut stage = Stage::set(world, &[SNAPSHOT], &our_daemon()).await?;
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
