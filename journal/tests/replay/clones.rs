//! Clones: objects that exist nowhere but in a parent, which may lie elsewhere, be cut otherwise, and be a clone itself.

use anyhow::{Result, ensure};
use rados::{Extent, SnapId};
use rbd::image::Image;
use rbd::read::Reader;
use serde_json::{Value, json};
use tests::Extents;
use tests::image::RandomWrites;

use crate::run;
use crate::world::{Copy, OTHER_POOL, POOL, Primary, clusters, pool};

const MB: u64 = 1 << 20;
const SIZE: u64 = 12 * MB + 8192;

fn random(seed: u64, count: u64, block_bytes: u64) -> Extents {
    Extents::default().random(&RandomWrites { seed, count, block_bytes, within: 0..SIZE - MB })
}

/// A clone of a striped clone in a namespace of another pool, the same on both sides.
async fn cloned(name: &str, args: &[&str]) -> Result<Primary> {
    let grandparent = format!("{POOL}/{name}-grandparent");
    let parent = format!("{OTHER_POOL}/ns/{name}-parent");
    for cluster in clusters().await?.both() {
        cluster.create_image(&grandparent, SIZE - MB, &["--object-size", "512K"]).await?;
        cluster.apply(&grandparent, random(1, 60, 100_000)).await?;
        cluster.snap_create(&format!("{grandparent}@base")).await?;
        let striping = ["--object-size", "1M", "--stripe-unit", "64K", "--stripe-count", "3"];
        let clone = ["clone", "--rbd-default-clone-format", "2", &format!("{grandparent}@base"), &parent];
        cluster.rbd(&[&clone[..], &striping].concat()).await?;
        cluster.apply(&parent, random(2, 20, 50_000).zeroes(2 * MB, MB)).await?;
        cluster.resize(&parent, SIZE).await?;
        cluster.snap_create(&format!("{parent}@base")).await?;
        let child = format!("{POOL}/{name}");
        let clone = ["clone", "--rbd-default-clone-format", "2", &format!("{parent}@base"), &child];
        cluster.rbd(&[&clone[..], args].concat()).await?;
    }
    Primary::of(name).await
}

fn changes() -> Vec<Value> {
    vec![
        json!(["burst", 40, 4096, 5, SIZE]),
        json!(["discard", MB, MB]),
        json!(["discard", 3 * MB + 4096, 8192]),
        json!(["compare_and_write", 5 * MB, 512, 9, 10]),
        json!(["flush"]),
        json!(["snap_create", "one"]),
        json!(["burst", 40, 4096, 6, SIZE]),
        json!(["discard", 0, 4 * MB]),
        json!(["write", 6 * MB, 2 * MB, 7]),
        json!(["write_same", 8 * MB, MB, 512, 0]),
        json!(["snap_create", "two"]),
        json!(["resize", 5 * MB + 100 * 1024]),
        json!(["burst", 20, 4096, 8, 5 * MB]),
        json!(["snap_create", "three"]),
        json!(["resize", SIZE]),
        json!(["burst", 20, 4096, 9, SIZE]),
        json!(["snap_rollback", "two"]),
        json!(["discard", 9 * MB, SIZE - 9 * MB]),
    ]
}

async fn replayed(name: &str, args: &[&str], changes: &[Value]) -> Result<()> {
    let primary = cloned(name, args).await?;
    primary.carry_out(changes).await?;
    let copy = Copy::open(name).await?;
    copy.replay_all(&primary.entries().await?).await?;
    copy.compare(&primary, name).await
}

#[test]
fn what_is_copied_up_arrives() {
    run(async { replayed("clone", &["--object-size", "1M"], &changes()).await });
}

#[test]
fn striped_clones_arrive() {
    run(async {
        let args = ["--object-size", "512K", "--stripe-unit", "32K", "--stripe-count", "4"];
        replayed("striped-clone", &args, &changes()).await
    });
}

#[test]
fn clones_are_flattened_with_their_snapshots() {
    run(async {
        let flatten = [changes(), vec![json!(["flatten"]), json!(["burst", 40, 4096, 11, SIZE])]].concat();
        replayed("flattened", &["--object-size", "1M"], &flatten).await
    });
}

/// Without deep-flatten, snapshots stay clones when the head is flattened.
#[test]
fn snapshots_may_stay_clones() {
    run(async {
        let flatten = [changes(), vec![json!(["flatten"]), json!(["burst", 40, 4096, 11, SIZE])]].concat();
        let features = "layering,striping,exclusive-lock,object-map,fast-diff";
        replayed("shallow", &["--object-size", "1M", "--image-feature", features], &flatten).await
    });
}

/// Ranges are read as stock tools read them, through all parents.
#[test]
fn ranges_are_read_through_parents() {
    run(async {
        let primary = cloned("read", &["--object-size", "256K"]).await?;
        primary.carry_out(&[json!(["burst", 20, 4096, 5, SIZE]), json!(["snap_create", "one"])]).await?;
        primary.carry_out(&[json!(["burst", 20, 4096, 6, SIZE]), json!(["discard", MB, 3 * MB])]).await?;
        let ioctx = pool(primary.cluster, POOL).await?;
        let (image, header) = Image::open_by_name(&ioctx, "read").await?;
        for snap in header.snapshots.keys().copied().chain([SnapId::HEAD]) {
            let name = header.snapshots.get(&snap).map(|snap| format!("@{}", snap.name)).unwrap_or_default();
            let expected = primary.cluster.read(&format!("{}{name}", primary.spec())).await?;
            let reader = Reader::open(&image, &header, snap).await?;
            for range in [Extent::new(0, SIZE + MB), Extent::new(3 * MB - 700, 1400), Extent::new(SIZE, 5)] {
                let mut found = vec![0; range.length as usize];
                for run in reader.read(&[range]).await? {
                    let at = (run.offset - range.offset) as usize;
                    found[at..at + run.data.len()].copy_from_slice(&run.data);
                }
                let expected = (range.offset..range.end()).map(|at| expected.get(at as usize).copied());
                ensure!(expected.map(|byte| byte.unwrap_or(0)).eq(found), "{range:?} at {snap}");
            }
        }
        Ok(())
    });
}
