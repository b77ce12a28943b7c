//! Reads and writes of single objects.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rados::{ChecksumKind, Extent, ReadAnswer, ReadOp, ReadSub, SnapId, WriteOp, WriteSub};

use super::{pattern, pool, soon, unique};

fn write_sub(offset: u64, data: impl Into<Bytes>) -> WriteSub {
    WriteSub::Write { offset, data: data.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_written_appended_zeroed_truncated_and_removed() {
    let (io, name) = (pool().await, unique("data"));
    let read = async || io.read_extent(&name, SnapId::HEAD, Extent::new(0, 1 << 20)).await.unwrap();

    io.write(WriteOp::new(&name).with(write_sub(4, &b"abcd"[..]))).await.unwrap();
    assert_eq!(read().await, &b"\0\0\0\0abcd"[..]);
    io.write(WriteOp::new(&name).with(WriteSub::Append(Bytes::from_static(b"ef")))).await.unwrap();
    io.write(WriteOp::new(&name).with(WriteSub::Zero(Extent::new(5, 2)))).await.unwrap();
    assert_eq!(read().await, &b"\0\0\0\0a\0\0def"[..]);
    assert_eq!(io.stat(&name).await.unwrap(), 10);
    io.write(WriteOp::new(&name).with(WriteSub::Truncate(5))).await.unwrap();
    assert_eq!(read().await, &b"\0\0\0\0a"[..]);
    io.write(WriteOp::new(&name).with(WriteSub::WriteFull(Bytes::from_static(b"xyz")))).await.unwrap();
    assert_eq!(read().await, &b"xyz"[..]);
    assert_eq!(io.read_extent(&name, SnapId::HEAD, Extent::new(1, 1)).await.unwrap(), &b"y"[..]);
    assert_eq!(io.read_extent(&name, SnapId::HEAD, Extent::new(3, 10)).await.unwrap(), Bytes::new());

    io.remove(&name).await.unwrap();
    let error = io.stat(&name).await.unwrap_err();
    assert!(error.is_not_found());
    let sentence = format!("cannot learn the size of object '{name}' in pool {}: no such file", io.pool_id());
    assert!(error.to_string().starts_with(&sentence), "{error}");
    assert!(io.remove(&name).await.unwrap_err().is_not_found());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_data_arrives_as_it_was_sent() {
    let (io, name) = (pool().await, unique("large"));
    let data = Bytes::from(pattern(1, (8 << 20) + 12345));
    let (head, tail) = (data.slice(..5 << 20), data.slice(5 << 20..));
    // The second part first, lent from the middle of a buffer.
    io.write(WriteOp::new(&name).with(write_sub(5 << 20, tail)).with(write_sub(0, head))).await.unwrap();
    let whole = io.read_extent(&name, SnapId::HEAD, Extent::new(0, 16 << 20)).await.unwrap();
    assert!(whole == data);
    let part = io.read_extent(&name, SnapId::HEAD, Extent::new(4097, 1 << 20)).await.unwrap();
    assert!(part == data.slice(4097..4097 + (1 << 20)));
    io.remove(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compound_write_takes_effect_whole_or_not_at_all() {
    let (io, name) = (pool().await, unique("compound"));
    let value = Bytes::from_static(b"one");
    let all = WriteOp::new(&name)
        .with(WriteSub::Create { exclusive: true })
        .with(WriteSub::AllocHint { object_size: 4 << 20, write_size: 4096 })
        .with(write_sub(0, &b"data"[..]))
        .with(WriteSub::SetXattr("a".into(), value.clone()))
        .with(WriteSub::OmapSet(vec![("k".into(), value.clone())]));
    io.write(all.clone()).await.unwrap();
    let again = io.write(all).await.unwrap_err();
    assert!(again.is(libc::EEXIST), "{again}");
    assert!(again.to_string().contains("(create it if it does not exist, hint its size, write, "), "{again}");

    let refused = WriteOp::new(&name)
        .with(write_sub(0, &b"DATA"[..]))
        .with(WriteSub::OmapClear)
        .with(WriteSub::CompareXattr("a".into(), Bytes::from_static(b"two")));
    let error = io.write(refused).await.unwrap_err();
    assert!(error.is(libc::ECANCELED), "{error}");

    let everything = ReadOp::new(&name)
        .with(ReadSub::AssertExists)
        .with(ReadSub::Read(Extent::new(0, 100)))
        .with(ReadSub::Stat)
        .with(ReadSub::GetXattr("a".into()))
        .with(ReadSub::OmapGetByKeys(vec!["k".into(), "absent".into()]));
    let reply = io.read(everything).await.unwrap();
    assert_eq!(reply.answers[0], ReadAnswer::Done);
    assert_eq!(reply.answers[1], ReadAnswer::Data(Bytes::from_static(b"data")));
    assert!(
        matches!(reply.answers[2], ReadAnswer::Stat { size: 4, mtime_seconds } if mtime_seconds > 1_600_000_000)
    );
    assert_eq!(reply.answers[3], ReadAnswer::Data(value.clone()));
    let ReadAnswer::Omap(page) = &reply.answers[4] else { panic!("{:?}", reply.answers[4]) };
    assert_eq!(page.entries, [("k".to_string(), value.clone())]);

    let change = WriteOp::new(&name)
        .with(WriteSub::CompareXattr("a".into(), value))
        .with(WriteSub::RemoveXattr("a".into()))
        .with(WriteSub::OmapRemove(vec!["k".into()]));
    io.write(change).await.unwrap();
    let gone = io.read_one(&name, SnapId::HEAD, ReadSub::GetXattr("a".into())).await.unwrap_err();
    assert!(gone.is(libc::ENODATA), "{gone}");
    assert!(io.omap_all(&name, "").await.unwrap().is_empty());
    io.remove(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn assertions_on_existence_and_version_hold_for_reads_and_writes() {
    let (io, name) = (pool().await, unique("assert"));
    let must_exist = WriteOp::new(&name).with(WriteSub::AssertExists).with(write_sub(0, &b"x"[..]));
    assert!(io.write(must_exist.clone()).await.unwrap_err().is_not_found());
    let first = io.write(WriteOp::new(&name).with(write_sub(0, &b"x"[..]))).await.unwrap();
    let second = io.write(must_exist).await.unwrap();
    assert!(second > first, "{second} after {first}");

    let read_at = |version| ReadOp::new(&name).with(ReadSub::AssertVersion(version)).with(ReadSub::Stat);
    assert_eq!(io.read(read_at(second)).await.unwrap().version, second);
    assert!(io.read(read_at(first)).await.unwrap_err().is(libc::ERANGE));
    assert!(io.read(read_at(second + 100)).await.unwrap_err().is(libc::EOVERFLOW));
    let write_at =
        |version| WriteOp::new(&name).with(WriteSub::AssertVersion(version)).with(WriteSub::Truncate(0));
    assert!(io.write(write_at(first)).await.unwrap_err().is(libc::ERANGE));
    io.write(write_at(second)).await.unwrap();

    assert!(io.write(WriteOp::new(&name)).await.unwrap_err().is(libc::EINVAL));
    assert!(io.read(ReadOp::new(&name)).await.unwrap_err().is(libc::EINVAL));
    io.remove(&name).await.unwrap();
}

/// An OSD that is sent a zero without a byte aborts, so none is: within a compound operation, too.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_no_bytes_are_refused() {
    let (io, name) = (pool().await, unique("empty-range"));
    io.write(WriteOp::new(&name).with(WriteSub::WriteFull(Bytes::from_static(b"0123456789")))).await.unwrap();
    for empty in [WriteSub::Zero(Extent::new(10, 0)), WriteSub::Write { offset: 20, data: Bytes::new() }] {
        let op = WriteOp::new(&name).with(WriteSub::Truncate(5)).with(empty);
        let error = io.write(op).await.unwrap_err();
        assert!(error.is(libc::EINVAL) && error.to_string().contains("no bytes"), "{error}");
    }
    assert_eq!(io.stat(&name).await.unwrap(), 10, "nothing of it was done");
    io.remove(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn class_methods_are_called_and_their_failure_names_them() {
    let (io, name) = (pool().await, unique("class"));
    // rbd.dir_add_image: a name and an id.
    let entry = rados::encoding::Encoder::new().string("image").string("10aa").finish();
    io.exec_write(&name, "rbd", "dir_add_image", entry).await.unwrap();
    let wanted = rados::encoding::Encoder::new().string("image").finish();
    let id = io.exec(&name, "rbd", "dir_get_id", wanted).await.unwrap();
    assert_eq!(id, &b"\x04\0\0\x0010aa"[..]);

    let unknown = rados::encoding::Encoder::new().string("nobody").finish();
    let compound = ReadOp::new(&name).with(ReadSub::Stat).exec("rbd", "dir_get_id", unknown);
    let error = io.read(compound).await.unwrap_err();
    assert!(error.is_not_found());
    assert!(error.to_string().contains("cannot call rbd.dir_get_id on object"), "{error}");
    let error = io.exec(&name, "rbd", "no_such_method", Bytes::new()).await.unwrap_err();
    assert!(error.is(libc::EOPNOTSUPP), "{error}");
    io.remove(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn checksums_are_those_of_the_data() {
    let (io, name, twin) = (pool().await, unique("sum"), unique("sum"));
    let data = pattern(7, 64 << 10);
    for object in [&name, &twin] {
        io.write(WriteOp::new(object).with(write_sub(0, data.clone()))).await.unwrap();
    }
    let sums = async |object: &str, kind, chunk| {
        let sub = ReadSub::Checksum { kind, extent: Extent::new(0, 64 << 10), chunk };
        match io.read_one(object, SnapId::HEAD, sub).await.unwrap() {
            ReadAnswer::Checksums(sums) => sums,
            other => panic!("{other:?}"),
        }
    };
    // Ceph leaves out the final inversion.
    let crc = |bytes: &[u8]| u64::from(!crc32c::crc32c(bytes));
    assert_eq!(sums(&name, ChecksumKind::Crc32c, 0).await, [crc(&data)]);
    let chunks: Vec<u64> = data.chunks(4096).map(crc).collect();
    assert_eq!(sums(&name, ChecksumKind::Crc32c, 4096).await, chunks);

    io.write(WriteOp::new(&twin).with(write_sub(5000, &b"!"[..]))).await.unwrap();
    for kind in [ChecksumKind::XxHash32, ChecksumKind::XxHash64, ChecksumKind::Crc32c] {
        let (ours, theirs) = (sums(&name, kind, 4096).await, sums(&twin, kind, 4096).await);
        let different: Vec<usize> = (0..16).filter(|i| ours[*i] != theirs[*i]).collect();
        assert_eq!((ours.len(), theirs.len(), different), (16, 16, vec![1]), "{kind:?}");
    }
    for object in [&name, &twin] {
        io.remove(object).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_omap_is_read_in_pages_and_by_prefix() {
    let (io, name) = (pool().await, unique("omap"));
    let entries: Vec<(String, Bytes)> = (0..2500)
        .map(|i| (format!("{}{i:05}", if i < 1500 { "a" } else { "b" }), Bytes::from(vec![i as u8; 3])))
        .collect();
    for part in entries.chunks(500) {
        io.write(WriteOp::new(&name).with(WriteSub::OmapSet(part.to_vec()))).await.unwrap();
    }
    assert_eq!(io.omap_all(&name, "").await.unwrap(), entries);
    assert_eq!(io.omap_all(&name, "b").await.unwrap(), entries[1500..]);
    let page = io.omap_page(&name, "a00009", "a", 5).await.unwrap();
    assert_eq!((page.entries.as_slice(), page.more), (&entries[10..15], true));
    let last = io.omap_page(&name, "b02497", "", 5).await.unwrap();
    assert_eq!((last.entries.as_slice(), last.more), (&entries[2498..], false));
    io.write(WriteOp::new(&name).with(WriteSub::OmapClear)).await.unwrap();
    assert!(io.omap_all(&name, "").await.unwrap().is_empty());
    io.remove(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_listed_by_itself() {
    let outside = pool().await;
    let (space, other) = (unique("space"), unique("space"));
    let inside = outside.with_namespace(&space);
    let mut names: Vec<String> = (0..300).map(|i| format!("object-{i:03}")).collect();
    for name in &names {
        inside.write(WriteOp::new(name).with(WriteSub::Create { exclusive: true })).await.unwrap();
    }
    let mut listed = inside.list_objects().await.unwrap();
    listed.sort();
    assert_eq!(listed, names);
    assert!(outside.with_namespace(&other).list_objects().await.unwrap().is_empty());
    assert!(outside.stat("object-000").await.unwrap_err().is_not_found());
    for name in names.drain(..) {
        inside.remove(&name).await.unwrap();
    }
}

/// Counts the buffers that are alive.
struct Tracked(Vec<u8>, Arc<AtomicUsize>);

impl Tracked {
    fn bytes(data: Vec<u8>, alive: &Arc<AtomicUsize>) -> Bytes {
        alive.fetch_add(1, Ordering::SeqCst);
        Bytes::from_owner(Tracked(data, alive.clone()))
    }
}

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        // Poison: if librados still sent this, the object would show it.
        self.0.fill(0xdd);
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn futures_dropped_under_load_tear_nothing_and_leak_nothing() {
    let (io, stem) = (pool().await, unique("dropped"));
    let alive = Arc::new(AtomicUsize::new(0));
    const ROUNDS: u64 = 40;
    let length = 1 << 20;
    let (mut finished, mut given_up) = (0, 0);
    for round in 0..ROUNDS {
        let writes = (0..8u64).map(|i| {
            let number = round * 8 + i;
            let data = Tracked::bytes(pattern(number, length), &alive);
            let write = io.write(WriteOp::new(format!("{stem}-{number}")).with(WriteSub::WriteFull(data)));
            // One in each round is awaited, however long it takes.
            let patience = match i {
                0 => Duration::MAX,
                i => Duration::from_micros(200 * ((round * 7 + i * 3) % 60)),
            };
            async move { tokio::time::timeout(patience, write).await.is_ok() }
        });
        for done in futures::future::join_all(writes).await {
            if done { finished += 1 } else { given_up += 1 }
        }
    }
    assert!(finished > 0 && given_up > 0, "{finished} finished, {given_up} were given up");
    // Each object holds what was written, whole, or nothing.
    let check = async |number: u64| {
        let name = format!("{stem}-{number}");
        io.write(WriteOp::new(&name).with(WriteSub::SetXattr("last".into(), Bytes::new()))).await.unwrap();
        let data = io.read_extent(&name, SnapId::HEAD, Extent::new(0, length as u64)).await.unwrap();
        assert!(data.is_empty() || data == pattern(number, length), "{name} is torn");
        io.remove(&name).await.unwrap();
    };
    for number in 0..ROUNDS * 8 {
        check(number).await;
    }
    // Lent buffers come back when librados has let go of them; another write looks after those parked.
    let nudge = async || {
        let data = Tracked::bytes(vec![1; 32 << 10], &alive);
        io.write(WriteOp::new(&stem).with(WriteSub::WriteFull(data))).await.unwrap();
        while alive.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    };
    soon("the return of lent buffers", nudge()).await;
    io.remove(&stem).await.unwrap();
}
