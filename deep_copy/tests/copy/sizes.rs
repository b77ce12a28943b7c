//! Snapshot records are corrected on the header that they were read from.

use deep_copy::sizes::{SnapshotSize, set_sizes};
use rados::fault::{Fault, FaultPlan, Faulty, Matcher, OperationKind};
use rados::{IoCtx, Location};
use rbd::ProtectionStatus;
use rbd::image::Image;

use crate::{POOL, clusters, pool, run};

/// The stock tool protects the snapshot after its record was read and before it is written: both changes last.
#[test]
fn a_change_of_the_same_record_is_kept() {
    run(async {
        let (cluster, spec) = (&clusters().await.a, format!("{POOL}/resized"));
        cluster.create_image(&spec, 8 << 20, &[]).await.expect("an image");
        cluster.snap_create(&format!("{spec}@user")).await.expect("a snapshot");
        let ioctx = pool(cluster).await;
        let (_, header) = Image::open_by_name(&ioctx, "resized").await.expect("the image");
        let snap = header.user_snapshot("user").expect("the snapshot").id;

        let write = Matcher { kind: Some(OperationKind::Write), ..Matcher::default() };
        let faulty = Faulty::new(ioctx.backend().clone(), FaultPlan::none().at(1, write, Fault::Hold), &[]);
        let held = IoCtx::new(faulty.clone(), Location { pool: ioctx.pool_id(), namespace: "".into() });
        let (image, _) = Image::open_by_name(&held, "resized").await.expect("the image");
        let size = SnapshotSize { snap, image_size: 4 << 20, parent_overlap: None };
        let resized = tokio::spawn(async move { set_sizes(&image, 12 << 20, &[size]).await });
        faulty.held().await;
        cluster.snap_protect(&format!("{spec}@user")).await.expect("a protected snapshot");
        faulty.release();
        resized.await.expect("no panic").expect("sizes");

        let (_, header) = Image::open_by_name(&ioctx, "resized").await.expect("the image");
        let user = header.user_snapshot("user").expect("the snapshot");
        assert_eq!((header.size, user.image_size), (12 << 20, 4 << 20));
        assert_eq!(user.protection, ProtectionStatus::Protected);
    });
}
