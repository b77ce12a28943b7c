//! Self-managed snapshots, and the history of an object.

use bytes::Bytes;
use rados::error::ResultExt;
use rados::{Extent, ReadAnswer, ReadOp, ReadSub, SnapContext, SnapId, WriteOp, WriteSub};

use super::{pool, unique};

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_read_at_every_snapshot_and_lists_its_clones() {
    let (io, name) = (pool().await, unique("snaps"));
    let write = async |snaps: &[SnapId], offset, data: &'static [u8]| {
        let sub = WriteSub::Write { offset, data: Bytes::from_static(data) };
        io.write(WriteOp::new(&name).under(SnapContext::new(snaps.to_vec())).with(sub)).await.unwrap();
    };
    let read = async |snap| io.read_extent(&name, snap, Extent::new(0, 100)).await;

    write(&[], 0, b"aaaaaaaa").await;
    let one = io.snap_create().await.unwrap();
    let two = io.snap_create().await.unwrap();
    assert!(two > one);
    write(&[one, two], 2, b"bb").await;
    let three = io.snap_create().await.unwrap();
    write(&[one, two, three], 6, b"cccc").await;

    assert_eq!(read(one).await.unwrap(), &b"aaaaaaaa"[..]);
    assert_eq!(read(two).await.unwrap(), &b"aaaaaaaa"[..]);
    assert_eq!(read(three).await.unwrap(), &b"aabbaaaa"[..]);
    assert_eq!(read(SnapId::HEAD).await.unwrap(), &b"aabbaacccc"[..]);

    let set = io.list_snaps(&name).await.unwrap();
    assert_eq!(set.seq, three.0);
    let ids: Vec<SnapId> = set.clones.iter().map(|clone| clone.id).collect();
    assert_eq!(ids, [two, three, SnapId::HEAD]);
    assert_eq!(set.clones[0].snaps, [one, two]);
    assert_eq!((set.clones[0].size, set.clones[2].size), (8, 10));
    assert_eq!(set.clones[0].overlap, [Extent::new(0, 2), Extent::new(4, 4)]);
    assert_eq!(set.clones[1].overlap, [Extent::new(0, 6)]);

    // Back to what it was, and forth; what it holds meanwhile stays for its snapshots.
    let context = SnapContext::new(vec![one, two, three]);
    for (snap, content) in [(one, &b"aaaaaaaa"[..]), (three, b"aabbaaaa")] {
        let rollback = WriteOp::new(&name).under(context.clone()).with(WriteSub::Rollback(snap));
        io.write(rollback).await.unwrap();
        assert_eq!(read(SnapId::HEAD).await.unwrap(), content);
    }
    let absent = unique("absent");
    let rollback = WriteOp::new(&absent).under(context).with(WriteSub::Rollback(one));
    io.write(rollback).await.optional().unwrap();
    assert!(io.stat(&absent).await.unwrap_err().is_not_found());

    // Without its head the object still serves its snapshots.
    let context = SnapContext::new(vec![one, two, three]);
    io.write(WriteOp::new(&name).under(context).with(WriteSub::Remove)).await.unwrap();
    assert!(read(SnapId::HEAD).await.unwrap_err().is_not_found());
    assert_eq!(read(three).await.unwrap(), &b"aabbaaaa"[..]);
    let set = io.list_snaps(&name).await.unwrap();
    assert!(set.clones.iter().all(|clone| !clone.id.is_head()), "{set:?}");
    for snap in [one, two, three] {
        io.snap_remove(snap).await.unwrap();
    }
    let error = read(SnapId(three.0 + 1000)).await.unwrap_err();
    assert!(error.is_not_found());
    assert!(error.to_string().contains(&format!("'{name}' at snapshot {}", three.0 + 1000)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_goes_back_to_a_snapshot() {
    let (io, name, late) = (pool().await, unique("rollback"), unique("rollback-late"));
    let write = |object: &str, snaps: &[SnapId], data: &'static [u8]| {
        let sub = WriteSub::Write { offset: 0, data: Bytes::from_static(data) };
        io.write(WriteOp::new(object).under(SnapContext::new(snaps.to_vec())).with(sub))
    };
    let back = |object: &str, to, snaps: &[SnapId]| {
        io.write(WriteOp::new(object).under(SnapContext::new(snaps.to_vec())).with(WriteSub::Rollback(to)))
    };
    write(&name, &[], b"first").await.unwrap();
    let (one, two) = (io.snap_create().await.unwrap(), io.snap_create().await.unwrap());
    write(&name, &[one], b"second!").await.unwrap();
    write(&late, &[one], b"late").await.unwrap();
    for object in [&name, &late] {
        back(object, one, &[one, two]).await.unwrap();
        // Again changes nothing.
        back(object, one, &[one, two]).await.unwrap();
    }
    let read = async |object: &str, snap| io.read_extent(object, snap, Extent::new(0, 100)).await;
    assert_eq!(read(&name, SnapId::HEAD).await.unwrap(), &b"first"[..]);
    assert_eq!(read(&name, two).await.unwrap(), &b"second!"[..]);
    assert!(read(&late, SnapId::HEAD).await.unwrap_err().is_not_found());
    assert_eq!(read(&late, two).await.unwrap(), &b"late"[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_read_finds_what_is_allocated_at_a_snapshot() {
    let (io, name) = (pool().await, unique("sparse"));
    let block = |byte: u8| Bytes::from(vec![byte; 64 << 10]);
    let write = |offset, byte| WriteSub::Write { offset, data: block(byte) };
    io.write(WriteOp::new(&name).with(write(0, 1)).with(write(1 << 20, 2))).await.unwrap();
    let snap = io.snap_create().await.unwrap();
    let context = SnapContext::new(vec![snap]);
    let change = WriteOp::new(&name)
        .under(context)
        .with(write(2 << 20, 3))
        .with(WriteSub::Zero(Extent::new(0, 64 << 10)));
    io.write(change).await.unwrap();

    let sparse = async |at| {
        let op = ReadOp::new(&name).at(at).with(ReadSub::SparseRead(Extent::new(0, 4 << 20)));
        match io.read(op).await.unwrap().answers.remove(0) {
            ReadAnswer::Sparse { extents, data } => (extents, data),
            other => panic!("{other:?}"),
        }
    };
    let (extents, data) = sparse(snap).await;
    assert_eq!(extents, [Extent::new(0, 64 << 10), Extent::new(1 << 20, 64 << 10)]);
    assert!(data == [block(1), block(2)].concat());
    let (extents, data) = sparse(SnapId::HEAD).await;
    assert_eq!(extents, [Extent::new(1 << 20, 64 << 10), Extent::new(2 << 20, 64 << 10)]);
    assert!(data == [block(2), block(3)].concat());

    // Reads at both, all at once: the snapshot belongs to the operation.
    let reads = (0..200).map(|i| {
        let (at, byte) = if i % 2 == 0 { (snap, 1) } else { (SnapId::HEAD, 0) };
        let read = io.read_extent(&name, at, Extent::new(0, 64 << 10));
        async move { (read.await.unwrap(), byte) }
    });
    for (data, byte) in futures::future::join_all(reads).await {
        assert!(data == block(byte));
    }
    io.remove(&name).await.unwrap();
    io.snap_remove(snap).await.unwrap();
}
