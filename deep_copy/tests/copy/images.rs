//! Images made and written by the stock `rbd` on one cluster, copied to another, compared byte for byte at every
//! snapshot; the object maps left behind judged by `rbd object-map check`.

use std::collections::BTreeSet;
use std::sync::Arc;

use deep_copy::budget::Budget;
use deep_copy::checksum::Comparison;
use deep_copy::copier::{Copier, Options, Progress};
use deep_copy::diff::{Chain, Scope, Visits, changes};
use deep_copy::map_trust::{History, Trust};
use deep_copy::object_copy::{Method, ObjectCopier, Side};
use deep_copy::object_map_sync::MapSync;
use deep_copy::steps::CopySteps;
use futures::FutureExt;
use rados::SnapId;
use rbd::image::Image;
use rbd::{Features, ImageFlags, Snapshot};
use tests::image::RandomWrites;
use tests::{Extents, TwoClusters, compare};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{POOL, clusters, pool, run};

const SIZE: u64 = (37 << 20) + 4096;

/// An image on both sides.
struct Mirrored {
    clusters: &'static TwoClusters,
    spec: String,
    name: &'static str,
    /// Names of snapshots that have been copied.
    copied: Vec<String>,
}

impl Mirrored {
    async fn new(name: &'static str) -> Mirrored {
        let clusters = clusters().await;
        Mirrored { clusters, spec: format!("{POOL}/{name}"), name, copied: Vec::new() }
    }

    async fn create(&self, args: &[&str]) {
        for cluster in self.clusters.both() {
            cluster.create_image(&self.spec, SIZE, args).await.expect("an image");
        }
    }

    /// The same snapshot on both sides: there with what is, here to be filled.
    async fn snapshot(&self, name: &str) {
        for cluster in self.clusters.both() {
            cluster.snap_create(&format!("{}@{name}", self.spec)).await.expect("a snapshot");
        }
    }

    async fn write(&self, extents: Extents) {
        self.clusters.a.apply(&self.spec, extents).await.expect("writes");
    }

    /// Copies the snapshots `names`, all that are behind the copied ones; answers with the objects looked at.
    async fn copy(&mut self, names: &[&str]) -> (Visits, Progress) {
        let (remote, remote_header) =
            Image::open_by_name(&pool(&self.clusters.a).await, self.name).await.expect("the image");
        let (local, local_header) =
            Image::open_by_name(&pool(&self.clusters.b).await, self.name).await.expect("the copy");
        let remote_id = |name: &str| remote_header.user_snapshot(name).expect("a remote snapshot").id;
        let local_id = |name: &str| local_header.user_snapshot(name).expect("a local snapshot").id;
        let pairs: Vec<_> = names.iter().map(|name| (remote_id(name), local_id(name))).collect();
        let existing: Vec<SnapId> = local_header.snapshots.keys().copied().collect();
        let start = self.copied.last().map(|name| remote_id(name));
        let steps = CopySteps::new(start, &pairs, &existing).expect("steps");
        let snapshots: Vec<Snapshot> = remote_header.snapshots.values().cloned().collect();
        let history = History { settled: true, users_at_start: Some(BTreeSet::new()), ..History::default() };
        let chain = Chain {
            header: remote.header_ioctx(),
            image: remote.id(),
            features: remote_header.features,
            layout: remote.layout(),
            snapshots: &snapshots,
            start,
            end: pairs[pairs.len() - 1].0,
            trust: Trust::Auto,
            history: &history,
        };
        let visits = changes(&chain, Scope::Changed).await.expect("visits").visits;
        let maps = match local_header.features.has(Features::OBJECT_MAP) {
            true => {
                let filled = steps.steps().iter().map(|step| local.object_map(step.local)).collect();
                let fast_diff = local_header.features.has(Features::FAST_DIFF);
                Some(MapSync::load(local.object_map(SnapId::HEAD), filled, fast_diff).await.expect("maps"))
            }
            false => None,
        };
        let side = |image: &Image| Side {
            data: image.data_ioctx().clone(),
            object_prefix: image.object_prefix().into(),
        };
        let copier = Copier {
            objects: ObjectCopier {
                remote: side(&remote),
                local: side(&local),
                steps: Arc::new(steps),
                object_size: remote.layout().object_size(),
                method: Method::Replay,
                comparison: Comparison::default(),
                resumed: false,
                has_parent: local_header.parent.is_some(),
                copy_up_at: Vec::new(),
                parents: None,
                budget: Budget::new(32 << 20).part(),
                cancel: CancellationToken::new(),
            },
            visits: visits.clone(),
            object_count: local_header.object_count(),
            maps,
            progress: watch::Sender::new(Progress::default()),
            checkpoint: Box::new(|_| async { Ok(()) }.boxed()),
            options: Options::default(),
        };
        let progress = copier.run().await.expect("a copy");
        self.copied.extend(names.iter().map(|name| name.to_string()));
        (visits, progress)
    }

    /// Every snapshot is the same on both sides, and the copy's head is its newest one.
    async fn check(&self) {
        let (a, b) = (&self.clusters.a, &self.clusters.b);
        for name in &self.copied {
            let spec = format!("{}@{name}", self.spec);
            compare(a, &spec, b, &spec).await.and_then(|c| c.expect_equal(&spec)).expect("equal snapshots");
        }
        let newest = format!("{}@{}", self.spec, self.copied[self.copied.len() - 1]);
        compare(a, &newest, b, &self.spec)
            .await
            .and_then(|c| c.expect_equal("the head"))
            .expect("an equal head");
    }

    /// `rbd object-map check` finds nothing in the copy's maps (it flags a map when it does).
    async fn check_maps(&self) {
        let specs = self.copied.iter().map(|name| format!("{}@{name}", self.spec));
        for spec in std::iter::once(self.spec.clone()).chain(specs) {
            self.clusters.b.rbd(&["object-map", "check", &spec]).await.expect("a check");
        }
        let (_, header) =
            Image::open_by_name(&pool(&self.clusters.b).await, self.name).await.expect("the copy");
        for snap in header.snapshots.keys().copied().chain([SnapId::HEAD]) {
            assert_eq!(
                header.flags_at(snap),
                Some(ImageFlags::default()),
                "flags of {} at {snap}",
                self.spec
            );
        }
    }
}

fn writes(seed: u64, count: u64, block_bytes: u64) -> Extents {
    Extents::default().random(&RandomWrites { seed, count, block_bytes, within: 0..SIZE })
}

async fn rounds(name: &'static str, args: &[&str], mapped: bool) {
    let mut image = Mirrored::new(name).await;
    image.create(args).await;
    image.write(writes(1, 20, 200_000).zeroes(8 << 20, 3 << 20)).await;
    image.snapshot("m1").await;
    image.copy(&["m1"]).await;
    image.check().await;

    image.write(writes(2, 30, 4096)).await;
    image.snapshot("u1").await;
    image.write(writes(3, 30, 4096).zeroes(0, 5 << 20).zeroes((20 << 20) + 5000, 700_000)).await;
    image.snapshot("u2").await;
    image.write(writes(4, 5, 300_000)).await;
    image.snapshot("m2").await;
    image.write(writes(5, 30, 4096)).await;
    image.copy(&["u1", "u2", "m2"]).await;
    image.check().await;

    image.write(Extents::default().fill(12345, 4096, 6)).await;
    image.snapshot("m3").await;
    let (visits, progress) = image.copy(&["m3"]).await;
    // What was written behind m2 is part of it.
    assert!(!mapped || visits.len() < 32, "{} objects", visits.len());
    assert!(progress.written_bytes < 40 * 4096, "{progress:?}");
    image.check().await;
    if mapped {
        image.check_maps().await;
    }
}

#[test]
fn images_with_object_maps_arrive_with_their_maps() {
    run(async {
        rounds("mapped", &["--object-size", "256K"], true).await;
    });
}

#[test]
fn images_without_object_maps_arrive() {
    run(async {
        rounds("unmapped", &["--object-size", "256K", "--image-feature", "layering"], false).await;
    });
}

#[test]
fn striped_images_arrive() {
    run(async {
        let args = ["--object-size", "1M", "--stripe-unit", "64K", "--stripe-count", "5"];
        rounds("striped", &args, false).await;
    });
}

/// A clone's object is copied up on the primary after the first round: the copy must get the parent's bytes, too.
#[test]
fn clones_keep_what_the_parent_has() {
    run(async {
        let parent = Mirrored::new("parent").await;
        parent.create(&["--object-size", "256K"]).await;
        for cluster in parent.clusters.both() {
            cluster.apply(&parent.spec, writes(1, 100, 300_000)).await.expect("writes");
            cluster.snap_create(&format!("{}@base", parent.spec)).await.expect("a snapshot");
        }
        let mut clone = Mirrored::new("clone").await;
        for cluster in clone.clusters.both() {
            cluster.clone_image(&format!("{}@base", parent.spec), &clone.spec, 2).await.expect("a clone");
        }
        clone.snapshot("m1").await;
        clone.copy(&["m1"]).await;
        clone.write(writes(2, 20, 4096)).await;
        clone.snapshot("u1").await;
        clone.write(writes(3, 20, 4096).zeroes(4 << 20, 2 << 20)).await;
        clone.snapshot("m2").await;
        clone.copy(&["u1", "m2"]).await;
        clone.check().await;
        clone.write(writes(4, 40, 4096)).await;
        clone.snapshot("m3").await;
        clone.copy(&["m3"]).await;
        clone.check().await;
        clone.check_maps().await;
    });
}
