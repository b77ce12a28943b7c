//! A pool that has reached its quota: what needs room is refused, and nothing waits.

use std::time::Duration;

use bytes::Bytes;
use rados::{ErrorClass, Extent, IoCtx, Result, WriteOp, WriteSub};

use super::{LIMIT, ceph, connect, soon, unique};

/// Sets the quota of a pool (0: none), and waits until the monitors have found out what follows from it.
async fn set_quota(pool: &str, objects: u32) {
    let cluster = ceph().await;
    cluster.ceph(&["osd", "pool", "set-quota", pool, "max_objects", &objects.to_string()]).await.unwrap();
    let (started, full) = (std::time::Instant::now(), objects > 0);
    loop {
        let pools = cluster.ceph_json(&["osd", "pool", "ls", "detail"]).await.unwrap();
        let pools = pools.as_array().cloned().unwrap_or_default();
        let flags = pools.iter().find(|found| found["pool_name"] == pool).map(|found| &found["flags_names"]);
        let flags = flags.and_then(|names| names.as_str()).unwrap_or_default();
        if flags.contains("full_quota") == full {
            return;
        }
        assert!(started.elapsed() < 2 * LIMIT, "the pool's flags are {flags}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn write(io: &IoCtx, op: WriteOp) -> Result<()> {
    soon("a write", io.write(op)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_refuses_what_needs_room_and_lets_all_else_through() {
    let pool = unique("full");
    ceph().await.ceph(&["osd", "pool", "create", &pool, "1"]).await.unwrap();
    let cluster = connect().await;
    let io = cluster.pool(cluster.pool_by_name(&pool).await.unwrap());
    let data = Bytes::from(vec![7; 1 << 20]);
    for name in ["kept", "removed"] {
        write(&io, WriteOp::new(name).with(WriteSub::WriteFull(data.clone()))).await.unwrap();
    }
    set_quota(&pool, 1).await;
    cluster.wait_for_latest_osdmap().await.unwrap();

    let grow = WriteOp::new("new").with(WriteSub::WriteFull(data.clone()));
    let refused = write(&io, grow.clone()).await.unwrap_err();
    assert_eq!((refused.errno(), refused.class()), (libc::EDQUOT, ErrorClass::Transient), "{refused}");
    let changes = [
        WriteSub::Write { offset: 0, data: data.slice(..4096) },
        WriteSub::OmapSet(vec![("key".into(), Bytes::from_static(b"value"))]),
        WriteSub::SetXattr("name".into(), Bytes::from_static(b"value")),
        WriteSub::Zero(Extent::new(0, 8192)),
    ];
    for change in changes {
        write(&io, WriteOp::new("kept").with(change)).await.unwrap();
    }
    let watch = soon("a watch", io.watch("kept", Duration::from_secs(30))).await.unwrap();
    soon("the end of the watch", watch.unregister()).await.unwrap();
    let forced = WriteOp::new("forced").with(WriteSub::Create { exclusive: true }).despite_full();
    write(&io, forced).await.unwrap();
    write(&io, WriteOp::new("removed").with(WriteSub::Remove)).await.unwrap();

    set_quota(&pool, 0).await;
    cluster.wait_for_latest_osdmap().await.unwrap();
    write(&io, grow).await.unwrap();
    ceph().await.delete_pool(&pool).await.unwrap();
}
