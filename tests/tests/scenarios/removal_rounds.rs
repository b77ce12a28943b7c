//! Rounds of what may go wrong about the removal of copies, drawn from a seed: the remote site stands still and goes on, the
//! daemon is killed, OSDs are restarted; meanwhile images are promoted by force and their old primaries' mirroring ends,
//! other primaries go, and one copy is open. After each round every image must be where it belongs, byte for byte, at its
//! head and at its snapshot.
//!
//! `REMOVAL_ROUNDS=200` asks for more rounds than the few of a usual run, `REMOVAL_SEED` for others.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rados::{IoCtx, WriteOp, WriteSub};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rbd::mirroring::{MIRRORING_OBJECT, MirrorImageState, Mirroring};
use rbd::watch_notify::HeaderWatch;
use rbd::{ImageHeader, ImageId, trash};
use tests::image::seeded_bytes;
use tests::{Cluster, Extents, MirrorDaemon, OsdEnd, Signal};

use crate::common::{LIMIT, MIB, Stage, scattered, until};
use crate::journal::stage::journaling;

const SIZE: u64 = 4 * MIB;
const ROUNDS: u64 = 2;
/// How long what was wrongly decided has to show.
const DECISION_TIME: Duration = Duration::from_secs(3);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// What becomes of an image in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Its copy is promoted by force while the remote site stands still, and the primary's mirroring ends.
    Promoted,
    /// Its primary's mirroring ends.
    Gone,
    /// The same, while somebody has the copy open.
    Open,
    /// Nothing.
    Kept,
}

/// An image of a round.
struct Subject {
    fate: Fate,
    name: String,
    spec: String,
    journalled: bool,
    content: Vec<u8>,
    at_snapshot: String,
    global_id: String,
    /// Id of the copy.
    copy: ImageId,
}

/// A round.
struct Round<'a> {
    stage: &'a Stage,
    random: StdRng,
    daemon: MirrorDaemon,
    a: IoCtx,
    b: IoCtx,
}

#[tokio::test(flavor = "multi_thread")]
async fn seeded_rounds_of_removals() -> Result<()> {
    let stage = Stage::set("rounds-of-removals").await?;
    let mut daemon = stage.daemon(&stage.clusters.b).await?;
    let first = number("REMOVAL_SEED", 1);
    for seed in first..first + number("REMOVAL_ROUNDS", ROUNDS) {
        let started = std::time::Instant::now();
        let random = StdRng::seed_from_u64(seed);
        let (a, b) = (stage.a.pool(&stage.pool).await?, stage.b.pool(&stage.pool).await?);
        let round = Round { stage: &stage, random, daemon, a, b };
        daemon = Box::pin(round.play(seed)).await.with_context(|| format!("REMOVAL_SEED={seed}"))?;
        println!("seed {seed}: {:.1} s", started.elapsed().as_secs_f64());
    }
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

impl Round<'_> {
    async fn play(mut self, seed: u64) -> Result<MirrorDaemon> {
        let mut subjects = Vec::new();
        for fate in [Fate::Promoted, Fate::Gone, Fate::Open, Fate::Kept] {
            subjects.push(self.create(seed, fate).await?);
        }
        for subject in &mut subjects {
            self.await_copy(subject).await.with_context(|| subject.spec.clone())?;
        }
        let [promoted, gone, open, kept] = &subjects[..] else { unreachable!("there are four fates") };
        let reader = HeaderWatch::new(&self.b, &open.copy).await?;
        for subject in [gone, open] {
            self.cluster_a().rbd(&["mirror", "image", "disable", &subject.spec]).await?;
            self.disturb().await?;
        }
        let expected = self.promote_while_silent(promoted).await?;
        self.disturb().await?;
        tokio::time::sleep(DECISION_TIME).await;

        self.expect_content(promoted, &expected).await.context("the promoted image")?;
        self.expect_gone(gone).await?;
        self.expect_in_trash(open).await?;
        reader.unregister().await?;
        self.expect_gone(open).await?;
        if !kept.journalled {
            let snap = self.cluster_a().mirror_snapshot(&kept.spec).await?;
            self.cluster_b().wait_copied(&kept.spec, snap, LIMIT).await?;
        }
        self.stage.state(self.cluster_b(), &kept.name, "up+replaying").await?;
        self.expect_content(kept, &kept.content).await.context("the image to which nothing happened")?;
        self.expect_content(promoted, &expected).await.context("the promoted image")?;
        self.cluster_b().rbd(&["mirror", "image", "disable", "--force", &promoted.spec]).await?;
        self.cluster_a().rbd(&["mirror", "image", "disable", &kept.spec]).await?;
        self.expect_gone(kept).await?;
        Ok(self.daemon)
    }

    fn cluster_a(&self) -> &'static Cluster {
        &self.stage.clusters.a
    }

    fn cluster_b(&self) -> &'static Cluster {
        &self.stage.clusters.b
    }

    /// Makes an image with a snapshot, and has it mirrored.
    async fn create(&mut self, seed: u64, fate: Fate) -> Result<Subject> {
        let a = self.cluster_a();
        let name = format!("{fate:?}-{seed}").to_lowercase();
        let spec = self.stage.spec(&name);
        let journalled = self.random.random_bool(0.5);
        let features: &[&str] = if journalled { &journaling() } else { &[] };
        a.create_image(&spec, SIZE, features).await?;
        a.apply(&spec, Extents::default().random(&scattered(seed, 40, 0..SIZE))).await?;
        a.snap_create(&format!("{spec}@user")).await?;
        a.apply(&spec, Extents::default().random(&scattered(seed + 1000, 40, 0..SIZE))).await?;
        let mode = if journalled { "journal" } else { "snapshot" };
        a.rbd(&["mirror", "image", "enable", &spec, mode]).await?;
        let info = a.rbd_json(&["info", &spec]).await?;
        let global_id = info["mirroring"]["global_id"].as_str().context("a global id")?.to_string();
        let content = a.read(&spec).await?;
        let at_snapshot = a.sha256(&format!("{spec}@user")).await?;
        let copy = ImageId(String::new());
        Ok(Subject { fate, name, spec, journalled, content, at_snapshot, global_id, copy })
    }

    async fn await_copy(&self, subject: &mut Subject) -> Result<()> {
        let (a, b) = (self.cluster_a(), self.cluster_b());
        self.stage.state(b, &subject.name, "up+replaying").await?;
        if subject.journalled {
            let arrived = async || Ok(b.read(&subject.spec).await.is_ok_and(|held| held == subject.content));
            until("the journal to be replayed", arrived).await?;
        } else {
            let snap = a.newest_primary_snapshot(&subject.spec).await?;
            b.wait_copied(&subject.spec, snap, LIMIT).await?;
        }
        subject.copy = self.stage.b.open(&subject.spec).await?.0.id().clone();
        Ok(())
    }

    /// Kills the daemon, restarts an OSD, or does nothing.
    async fn disturb(&mut self) -> Result<()> {
        let pause = self.random.random_range(0..1500);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        match self.random.random_range(0..5) {
            0 => restart_osd(self.cluster_a()).await,
            1 => restart_osd(self.cluster_b()).await,
            2 => self.kill_daemon().await,
            _ => Ok(()),
        }
    }

    async fn kill_daemon(&mut self) -> Result<()> {
        self.daemon.kill(Signal::SIGKILL);
        self.daemon.wait(LIMIT).await?;
        self.daemon = self.stage.daemon(self.cluster_b()).await?;
        Ok(())
    }

    /// The remote site stands still. A client there has ended the mirroring of the image, which takes effect when it goes on;
    /// the daemon asks for the image after that. Meanwhile the copy is promoted and written to. Answers with what is in it.
    async fn promote_while_silent(&mut self, subject: &Subject) -> Result<Vec<u8>> {
        let (a, b) = (self.cluster_a(), self.cluster_b());
        let primary = self.stage.a.open(&subject.spec).await?.0.id().clone();
        a.freeze()?;
        let silent = async {
            let keys = vec![format!("image_{primary}"), format!("global_{}", subject.global_id)];
            let end = WriteOp::new(MIRRORING_OBJECT).with(WriteSub::OmapRemove(keys));
            let ioctx = self.a.clone();
            let ended = tokio::spawn(async move { ioctx.write(end).await });
            tokio::time::sleep(Duration::from_millis(500)).await;
            if self.random.random_bool(0.8) {
                // A daemon that has just been started may not know of it yet.
                let _ = self.daemon.ask(&format!("rbd mirror restart {}", subject.spec)).await;
            }
            tokio::time::sleep(Duration::from_millis(self.random.random_range(500..4000))).await;
            b.rbd(&["mirror", "image", "promote", "--force", &subject.spec]).await?;
            b.apply(&subject.spec, Extents::default().fill(0, MIB, 77)).await?;
            if self.random.random_bool(0.2) {
                self.kill_daemon().await?;
            }
            anyhow::Ok(ended)
        }
        .await;
        a.thaw().await?;
        silent?.await??;
        let mut expected = subject.content.clone();
        expected[..MIB as usize].copy_from_slice(&seeded_bytes(77, MIB as usize));
        Ok(expected)
    }

    /// The image is at `b`, is mirrored, and holds this at its head, and at its snapshot what the primary holds there.
    async fn expect_content(&self, subject: &Subject, expected: &[u8]) -> Result<()> {
        let b = self.cluster_b();
        let held = b.read(&subject.spec).await?;
        ensure!(held == expected, "{} has other bytes than it should have", subject.spec);
        let at_snapshot = b.sha256(&format!("{}@user", subject.spec)).await?;
        ensure!(at_snapshot == subject.at_snapshot, "{}@user differs", subject.spec);
        ensure!(trash::get(&self.b, &subject.copy).await?.is_none(), "{} is in the trash", subject.spec);
        let entry = Mirroring::new(&self.b).image(&subject.copy).await?;
        let entry = entry.with_context(|| format!("{} is mirrored no more", subject.spec))?;
        ensure!(entry.state == MirrorImageState::Enabled, "{}: {}", subject.spec, entry.state);
        Ok(())
    }

    /// Nothing is left of the copy at `b`.
    async fn expect_gone(&self, subject: &Subject) -> Result<()> {
        let left = async || {
            let objects = self.b.list_objects().await?;
            Ok(!objects.iter().any(|object| object.contains(&subject.copy.0)))
        };
        until("a copy to follow its primary", left)
            .await
            .with_context(|| format!("{:?}: {}", subject.fate, subject.spec))
    }

    /// The copy left the directory, and all of it is there.
    async fn expect_in_trash(&self, subject: &Subject) -> Result<()> {
        until("a copy that is open to be in the trash", async || {
            Ok(trash::get(&self.b, &subject.copy).await?.is_some())
        })
        .await?;
        tokio::time::sleep(DECISION_TIME).await;
        let header = ImageHeader::read(&self.b, &subject.copy).await.context("a copy that is open")?;
        let objects = self.b.list_objects().await?;
        let data = objects.iter().filter(|object| object.starts_with(&header.object_prefix)).count();
        ensure!(data > 0, "the data of {} is gone while it is open", subject.spec);
        Ok(())
    }
}

async fn restart_osd(cluster: &Cluster) -> Result<()> {
    cluster.osd_stop(0, OsdEnd::Kill).await?;
    cluster.osd_start(0).await
}
