//! Proves the harness on real clusters: what it starts works, what it compares is told apart, what it ends is gone, and
//! Ceph's own daemon mirrors through it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::image::RandomWrites;
use tests::process::Identity;
use tests::stamped::{Pattern, Writing, stamps_of};
use tests::two_clusters::Direction;
use tests::{
    Cluster, ClusterOptions, Comparison, DaemonKind, Extents, MirrorDaemon, MirrorDaemonOptions, OsdEnd,
    StampedWriter, TwoClusters, compare, compare_sparse,
};
use tokio::io::{AsyncBufReadExt, BufReader};

const MIB: u64 = 1 << 20;

/// One pair of clusters for all steps: most of the time goes into starting them.
#[tokio::test(flavor = "multi_thread")]
async fn the_harness_holds_what_it_promises() -> Result<()> {
    let started = Instant::now();
    let clusters = TwoClusters::start_temporary(&ClusterOptions::default()).await?;
    println!("both clusters are up after {:.1} s", started.elapsed().as_secs_f64());
    report_memory(&clusters)?;

    clusters.create_pool("rbd").await?;
    step("compare", images_are_told_apart(&clusters)).await?;
    step("workloads", workloads_do_what_they_say(&clusters.a)).await?;
    step("namespaces and striping", odd_images_compare(&clusters)).await?;
    step("stamped writes", a_stamped_writer_writes_what_its_seed_says(&clusters.a)).await?;
    step("osd", an_osd_goes_and_comes_back(&clusters.a)).await?;
    step("freeze, restart, blocklist", the_cluster_can_be_disturbed(&clusters.b)).await?;
    step("Ceph's rbd-mirror", cephs_daemon_mirrors(&clusters)).await?;
    report_memory(&clusters)?;

    step("attach, stop", attaching_and_ending(&clusters)).await?;
    let folder = clusters.folder().to_owned();
    drop(clusters);
    assert!(!folder.exists(), "{} is still there", folder.display());
    Ok(())
}

/// However a test run ends, nothing that it has started goes on: not the clusters, not a daemon that was started again
/// through another handle and from a thread that has ended since, not a tool. The folder goes, too.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_a_killed_test_run() -> Result<()> {
    let mut run = tokio::process::Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "--nocapture", "a_test_run_that_waits_to_be_killed"])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(run.stdout.take().context("its output is a pipe")?).lines();
    let told = async {
        loop {
            let line = lines.next_line().await?.context("the run ended by itself")?;
            if let Some((_, told)) = line.split_once(READY) {
                break anyhow::Ok(serde_json::from_str::<(PathBuf, Identity)>(told)?);
            }
        }
    };
    let (folder, tool) = tokio::time::timeout(Duration::from_secs(120), told).await??;
    let mut processes = vec![("the tool".to_owned(), tool)];
    for cluster in TwoClusters::attach(&folder)?.both() {
        processes.extend(cluster.daemons()?.into_iter().map(|(name, identity, _)| (name, identity)));
    }
    assert_eq!(processes.len(), 7);
    for (name, identity) in &processes {
        assert!(identity.alive(), "{name} doesn't run");
    }
    run.kill().await?;
    for (name, identity) in &processes {
        assert!(identity.ended_within(Duration::from_secs(20)).await, "{name} still runs");
    }
    tests::wait::until("the folder to go", Duration::from_secs(20), || async {
        Ok((!folder.exists()).then_some(()))
    })
    .await
}

/// What the run that is killed says when everything is in place; the rest of the line tells what.
const READY: &str = "ready to be killed: ";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test that kills it"]
async fn a_test_run_that_waits_to_be_killed() -> Result<()> {
    let clusters = TwoClusters::start_temporary(&ClusterOptions::default()).await?;
    let folder = clusters.folder().to_owned();
    let restart = |folder: PathBuf| {
        tokio::runtime::Runtime::new()?.block_on(async {
            let attached = TwoClusters::attach(&folder)?;
            attached.b.osd_stop(0, OsdEnd::Kill).await?;
            attached.b.osd_start(0).await
        })
    };
    let attached = folder.clone();
    let restarted = std::thread::spawn(move || restart(attached)).join();
    restarted.expect("the thread that starts an OSD again ends in order")?;
    let tool = clusters.a.tool("ceph").arg("--watch").start()?;
    let pid = tool.id().context("the tool runs")?.cast_signed();
    let tool = Identity::of_running(pid, "--watch")?;
    println!("{READY}{}", serde_json::to_string(&(folder, tool))?);
    std::future::pending().await
}

async fn step(name: &str, doing: impl Future<Output = Result<()>>) -> Result<()> {
    let started = Instant::now();
    Box::pin(doing).await.with_context(|| format!("in the step `{name}`"))?;
    println!("{name}: {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn report_memory(clusters: &TwoClusters) -> Result<()> {
    let mut sum = 0;
    for cluster in clusters.both() {
        for (name, _, usage) in cluster.daemons()? {
            let usage = usage.with_context(|| format!("{name} doesn't run"))?;
            println!(
                "  {} {name}: {} MiB, at most {}",
                cluster.name(),
                usage.rss_bytes >> 20,
                usage.rss_peak_bytes >> 20
            );
            sum += usage.rss_bytes >> 20;
        }
    }
    println!("  together {sum} MiB");
    assert!(sum < 1536, "the clusters take {sum} MiB");
    Ok(())
}

async fn images_are_told_apart(clusters: &TwoClusters) -> Result<()> {
    let (a, b) = (&clusters.a, &clusters.b);
    // Neither a multiple of the object size nor of the comparison's chunk.
    let bytes = tests::image::seeded_bytes(1, 9 * MIB as usize + 700);
    a.import("rbd/same", &bytes, &[]).await?;
    b.import("rbd/same", &bytes, &[]).await?;
    let equal = Comparison::Equal { length: bytes.len() as u64 };
    assert_eq!(compare(a, "rbd/same", b, "rbd/same").await?, equal);
    assert_eq!(compare_sparse(a, "rbd/same", b, "rbd/same").await?, equal);
    assert_eq!(a.sha256("rbd/same").await?, b.sha256("rbd/same").await?);
    assert_eq!(a.read("rbd/same").await?, bytes);

    a.snap_create("rbd/same@before").await?;
    let offset = 5 * MIB + 12_345;
    a.apply("rbd/same", Extents::default().write(offset, &[!bytes[offset as usize]])).await?;
    let differ = Comparison::Differ { offset, a: !bytes[offset as usize], b: bytes[offset as usize] };
    assert_eq!(compare(a, "rbd/same", b, "rbd/same").await?, differ);
    assert_eq!(compare_sparse(a, "rbd/same", b, "rbd/same").await?, differ);
    assert_ne!(a.sha256("rbd/same").await?, b.sha256("rbd/same").await?);
    assert_eq!(compare(a, "rbd/same@before", b, "rbd/same").await?, equal);
    assert_eq!(compare_sparse(a, "rbd/same@before", b, "rbd/same").await?, equal);

    b.resize("rbd/same", 9 * MIB).await?;
    let lengths = Comparison::Lengths { a: 9 * MIB + 700, b: 9 * MIB };
    assert_eq!(compare(a, "rbd/same@before", b, "rbd/same").await?, lengths);
    assert_eq!(compare_sparse(a, "rbd/same@before", b, "rbd/same").await?, lengths);

    let missing = compare(a, "rbd/no-such-image", b, "rbd/same").await.unwrap_err();
    assert!(format!("{missing:#}").contains("No such file"), "{missing:#}");
    let missing = compare_sparse(a, "rbd/no-such-image", b, "rbd/same").await.unwrap_err();
    assert!(format!("{missing:#}").contains("No such file"), "{missing:#}");
    Ok(())
}

/// What workloads write is checked against the same changes made to bytes in memory.
async fn workloads_do_what_they_say(a: &Cluster) -> Result<()> {
    let size = 32 * MIB as usize;
    let mut expected = vec![0; size];
    a.create_image("rbd/work", size as u64, &[]).await?;

    let filling = tests::image::seeded_bytes(2, size - 4096);
    a.apply("rbd/work", Extents::default().fill(4096, filling.len() as u64, 2)).await?;
    expected[4096..].copy_from_slice(&filling);
    assert!(a.read("rbd/work").await? == expected, "after filling");

    // The second overlaps the first: the order must hold.
    let overlapping = Extents::default().write(100, &[1; 1000]).write(600, &[2; 1000]).zeroes(700, 50);
    a.apply("rbd/work", overlapping).await?;
    expected[100..1100].fill(1);
    expected[600..1600].fill(2);
    expected[700..750].fill(0);
    assert!(a.read("rbd/work").await? == expected, "after overlapping writes");

    a.discard("rbd/work", 8 * MIB + 512, 4 * MIB).await?;
    expected[(8 * MIB + 512) as usize..][..(4 * MIB) as usize].fill(0);
    assert!(a.read("rbd/work").await? == expected, "after a discard");

    a.write_zeroes("rbd/work", 16 * MIB, 4 * MIB + 10).await?;
    expected[16 * MIB as usize..][..4 * MIB as usize + 10].fill(0);
    assert!(a.read("rbd/work").await? == expected, "after write-zeroes");

    a.resize("rbd/work", 10 * MIB + 1).await?;
    a.resize("rbd/work", size as u64).await?;
    expected[10 * MIB as usize + 1..].fill(0);
    assert!(a.read("rbd/work").await? == expected, "after shrinking and growing");

    let started = Instant::now();
    let writes = RandomWrites { seed: 3, count: 4000, block_bytes: 4096, within: 0..size as u64 };
    a.write_random("rbd/work", &writes).await?;
    println!("  4000 random writes: {:.2} s", started.elapsed().as_secs_f64());
    assert!(a.read("rbd/work").await? != expected, "after random writes");

    a.snap_create("rbd/work@one").await?;
    a.snap_rename("rbd/work@one", "rbd/work@two").await?;
    a.snap_protect("rbd/work@two").await?;
    a.clone_image("rbd/work@two", "rbd/child", 1).await?;
    assert_eq!(compare(a, "rbd/work@two", a, "rbd/child").await?, Comparison::Equal { length: size as u64 });
    assert_eq!(
        compare_sparse(a, "rbd/work@two", a, "rbd/child").await?,
        Comparison::Equal { length: size as u64 }
    );
    a.flatten("rbd/child").await?;
    a.snap_unprotect("rbd/work@two").await?;
    a.clone_image("rbd/work@two", "rbd/second", 2).await?;
    assert!(a.rbd_json(&["info", "rbd/second"]).await?["parent"].is_object());
    assert!(a.rbd_json(&["info", "rbd/child"]).await?["parent"].is_null());
    a.rbd(&["rm", "--no-progress", "rbd/second"]).await?;
    a.snap_remove("rbd/work@two").await.map_err(Into::into)
}

async fn a_stamped_writer_writes_what_its_seed_says(a: &Cluster) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(60);
    let pattern = Pattern { seed: 3, blocks: 1024, batch_min: 1, batch_max: 40, discards: 2 };
    let writing = Writing { pattern, depth: 8, snap_every: 10, batches: 0, pause: Duration::ZERO };
    a.create_image("rbd/stamped", 4 * MIB, &[]).await?;
    let mut writer = StampedWriter::start(a, "rbd/stamped", &writing)?;
    writer.reach(25, LIMIT).await?;
    let batch = writer.stop(LIMIT).await?;
    let image = stamps_of(&a.read("rbd/stamped").await?)?;
    assert!(image == pattern.stamps_after(batch), "the image is not in the state behind batch {batch}");
    assert!([batch, batch + 1].contains(&pattern.batch_of(&image, batch + 1)?));
    let snapshot = stamps_of(&a.read("rbd/stamped@batch-20").await?)?;
    assert!(snapshot == pattern.stamps_after(20), "the snapshot is not of batch 20");
    Ok(())
}

async fn odd_images_compare(clusters: &TwoClusters) -> Result<()> {
    let bytes = tests::image::seeded_bytes(7, 3 * MIB as usize);
    let fancy = ["--object-size", "1M", "--stripe-unit", "64K", "--stripe-count", "3"];
    for cluster in clusters.both() {
        cluster.rbd(&["namespace", "create", "rbd/space"]).await?;
        cluster.create_image("rbd/space/image", 64 * MIB, &[]).await?;
        cluster.apply("rbd/space/image", Extents::default().write(40 * MIB, &bytes)).await?;
        cluster.create_image("rbd/fancy", 5 * MIB + 99, &fancy).await?;
        cluster.apply("rbd/fancy", Extents::default().write(MIB + 17, &bytes)).await?;
    }
    let (a, b) = (&clusters.a, &clusters.b);
    assert!(compare_sparse(a, "rbd/space/image", b, "rbd/space/image").await?.is_equal());
    assert!(compare_sparse(a, "rbd/fancy", b, "rbd/fancy").await?.is_equal());
    b.apply("rbd/fancy", Extents::default().zeroes(2 * MIB, 1)).await?;
    let different = compare_sparse(a, "rbd/fancy", b, "rbd/fancy").await?;
    assert!(
        matches!(different, Comparison::Differ { offset, b: 0, .. } if offset == 2 * MIB),
        "{different:?}"
    );

    for cluster in clusters.both() {
        cluster.create_image("rbd/huge", 100 << 30, &[]).await?;
        cluster.apply("rbd/huge", Extents::default().write(77 << 30, b"needle")).await?;
    }
    let started = Instant::now();
    assert!(compare_sparse(a, "rbd/huge", b, "rbd/huge").await?.is_equal());
    println!("  100 GiB that are almost empty compared in {:.2} s", started.elapsed().as_secs_f64());
    Ok(())
}

async fn an_osd_goes_and_comes_back(a: &Cluster) -> Result<()> {
    let before = a.sha256("rbd/same").await?;
    a.osd_stop(0, OsdEnd::Graceful).await?;
    let map = a.ceph_json(&["osd", "dump"]).await?;
    assert_eq!(map["osds"][0]["up"], 0, "the monitor was told");
    let refused = a.tool("rbd").args(["info", "rbd/same"]).limit(Duration::from_secs(2)).run().await;
    refused.expect_err("without its only OSD the cluster cannot read");
    a.osd_start(0).await?;
    a.osd_stop(0, OsdEnd::Kill).await?;
    a.osd_start(0).await?;
    a.wait_healthy(Duration::from_secs(60)).await?;
    assert_eq!(a.sha256("rbd/same").await?, before);
    Ok(())
}

async fn the_cluster_can_be_disturbed(b: &Cluster) -> Result<()> {
    b.freeze()?;
    let hung = b.tool("ceph").arg("status").limit(Duration::from_secs(2)).run().await;
    hung.expect_err("a frozen cluster doesn't answer");
    b.thaw().await?;
    b.wait_healthy(Duration::from_secs(60)).await?;
    b.mon_restart().await?;
    b.ceph(&["status"]).await?;

    assert_eq!(b.blocklist().await?, []);
    b.blocklist_add("127.0.0.1:0/4711").await?;
    assert_eq!(b.blocklist().await?[0].addr, "127.0.0.1:0/4711");
    b.blocklist_rm("127.0.0.1:0/4711").await?;
    assert_eq!(b.blocklist().await?, []);

    let health = b.ceph_json(&["health", "detail"]).await?;
    assert_eq!(health["status"], "HEALTH_OK", "{health}");
    Ok(())
}

async fn cephs_daemon_mirrors(clusters: &TwoClusters) -> Result<()> {
    let (a, b) = (&clusters.a, &clusters.b);
    clusters.create_pool("mirrored").await?;
    clusters.connect_peers("mirrored", Direction::AToB).await?;
    let mut daemon = MirrorDaemon::spawn(&DaemonKind::Ceph, b, &MirrorDaemonOptions::default()).await?;
    a.create_image("mirrored/disk", 64 * MIB, &[]).await?;
    a.apply("mirrored/disk", Extents::default().fill(3 * MIB, 20 * MIB, 5)).await?;
    a.rbd(&["mirror", "image", "enable", "mirrored/disk", "snapshot"]).await?;
    let limit = Duration::from_secs(120);
    let first = a.newest_primary_snapshot("mirrored/disk").await?;
    b.wait_copied("mirrored/disk", first, limit).await.with_context(|| daemon.log_tail(30))?;
    compare(a, "mirrored/disk", b, "mirrored/disk").await?.expect_equal("the first copy")?;

    // Only data: what a delta zeroes, 16.2.15's daemon leaves as it was in the copy.
    a.apply("mirrored/disk", Extents::default().fill(40 * MIB, MIB, 6).fill(4 * MIB, 5 * MIB, 7)).await?;
    assert!(!compare(a, "mirrored/disk", b, "mirrored/disk").await?.is_equal());
    let second = a.mirror_snapshot("mirrored/disk").await?;
    b.wait_copied("mirrored/disk", second, limit).await.with_context(|| daemon.log_tail(30))?;
    compare(a, "mirrored/disk", b, "mirrored/disk").await?.expect_equal("the delta")?;
    b.wait_mirror_state("mirrored/disk", "up+replaying", limit).await?;

    let status = daemon.ask("rbd mirror status").await?;
    assert!(status["pool_replayers"].is_array(), "{status}");
    let ended = daemon.stop(Duration::from_secs(30)).await?;
    // 16.2.15's daemon says 1 even when it ends in order; what matters is that no signal ended it.
    assert!(ended.code().is_some(), "{ended}; {}", daemon.log_tail(20));
    let usage = daemon.usage().context("the daemon was seen running")?;
    println!("  Ceph's daemon: {:.1} s of CPU, at most {} MiB", usage.cpu_s, usage.rss_peak_bytes >> 20);
    assert!(!daemon.alive());
    Ok(())
}

async fn attaching_and_ending(clusters: &TwoClusters) -> Result<()> {
    {
        let attached = TwoClusters::attach(clusters.folder())?;
        assert_eq!(attached.a.fsid(), clusters.a.fsid());
        assert_eq!(attached.a.read("rbd/same").await?, clusters.a.read("rbd/same").await?);
        attached.a.osd_stop(0, OsdEnd::Kill).await?;
        attached.a.osd_start(0).await?;
    }
    assert!(clusters.a.daemons()?.iter().all(|(_, _, usage)| usage.is_some()), "detaching must end nothing");

    let processes: Vec<_> =
        clusters.both().iter().map(|cluster| cluster.daemons()).collect::<Result<Vec<_>>>()?.concat();
    assert_eq!(processes.len(), 6);
    clusters.stop().await?;
    for (name, identity, _) in processes {
        assert!(!identity.alive(), "{name} still runs");
        assert!(!std::fs::exists(format!("/proc/{}", identity.pid))?, "{name} was not waited for");
    }
    Ok(())
}
