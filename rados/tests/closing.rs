//! Connections close when nothing holds them any more. Alone in its program: what is asked about is the whole process.

use std::time::Duration;

use bytes::Bytes;
use rados::{ConnectOptions, WriteOp, WriteSub};
use tests::TwoClusters;

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closes_with_its_last_user_whatever_was_left_undone() {
    let clusters = TwoClusters::for_tests().await.unwrap();
    clusters.a.ceph(&["osd", "pool", "create", "rados-closing", "1"]).await.unwrap();
    let options = ConnectOptions { conf_file: Some(clusters.a.conf_path()), ..ConnectOptions::default() };
    let cluster = rados::connect(options).await.unwrap();
    let io = cluster.pool(cluster.pool_by_name("rados-closing").await.unwrap());
    drop(cluster);

    let write = |data: Vec<u8>| io.write(WriteOp::new("object").with(WriteSub::WriteFull(Bytes::from(data))));
    write(vec![1]).await.unwrap();
    let watch = io.watch("object", Duration::from_secs(30)).await.unwrap();
    // A write and a notification that nobody waits for, and a watch that nobody unregisters.
    let given_up = tokio::time::timeout(Duration::ZERO, write(vec![2; 8 << 20])).await;
    assert!(given_up.is_err());
    let notify = io.notify("object", Bytes::new(), Duration::from_secs(1));
    assert!(tokio::time::timeout(Duration::from_millis(1), notify).await.is_err());
    assert!(!rados::all_closed(Duration::ZERO).await);
    drop((watch, io));
    assert!(rados::all_closed(Duration::from_secs(30)).await);
}
