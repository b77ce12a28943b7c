//! Class locks.

use std::time::Duration;

use bytes::Bytes;
use rados::entity::EntityName;
use rados::lock::{LockKind, LockRequest, Renewal, break_lock_sub};
use rados::{ReadOp, WriteOp, WriteSub};

use super::{connect, pool_of, unique};

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusive_lock_keeps_others_out_until_it_is_broken() {
    let (a, b) = (connect().await, connect().await);
    let (io_a, io_b) = (pool_of(&a).await, pool_of(&b).await);
    let name = unique("locked");
    let mut request = LockRequest::new("leader", LockKind::Exclusive, "auto 1").tagged("internal");
    request.description = "a test".into();
    io_a.lock(&name, &request).await.unwrap();
    assert!(io_a.lock(&name, &request).await.unwrap_err().is(libc::EEXIST));
    assert!(io_b.lock(&name, &request).await.unwrap_err().is(libc::EBUSY));
    let renewed = LockRequest { renewal: Renewal::Required, ..request.clone() };
    io_a.lock(&name, &renewed).await.unwrap();

    let info = io_b.lock_info(&name, "leader").await.unwrap();
    assert_eq!(
        (info.kind, info.tag.as_str(), info.lockers.len()),
        (Some(LockKind::Exclusive), "internal", 1)
    );
    let locker = &info.lockers[0];
    assert_eq!((locker.entity, locker.cookie.as_str()), (EntityName::client(a.instance_id()), "auto 1"));
    assert_eq!(locker.address.to_string(), a.address());
    assert_eq!((locker.description.as_str(), locker.expiration), ("a test", None));
    assert_eq!(io_b.list_locks(&name).await.unwrap(), ["leader"]);

    // Held by a, so a's guarded operations pass and b's don't.
    let guarded = WriteOp::new(&name).with(request.assert_locked_sub()).with(WriteSub::Truncate(0));
    io_a.write(guarded.clone()).await.unwrap();
    assert!(io_b.write(guarded).await.unwrap_err().is(libc::EBUSY));
    io_a.read(ReadOp::new(&name).with(request.assert_locked_read_sub())).await.unwrap();

    io_a.set_lock_cookie(&name, &request, "auto 2").await.unwrap();
    assert!(io_b.break_lock(&name, "leader", locker.entity, "auto 1").await.unwrap_err().is_not_found());
    // A class method doesn't see what an earlier one of the same operation did.
    let at_once =
        WriteOp::new(&name).with(break_lock_sub("leader", locker.entity, "auto 2")).with(request.lock_sub());
    assert!(io_b.write(at_once).await.unwrap_err().is(libc::EBUSY));
    io_b.break_lock(&name, "leader", locker.entity, "auto 2").await.unwrap();
    io_b.lock(&name, &request).await.unwrap();
    let info = io_a.lock_info(&name, "leader").await.unwrap();
    assert_eq!(info.lockers[0].entity, EntityName::client(b.instance_id()));
    assert!(io_a.unlock(&name, "leader", "auto 2").await.unwrap_err().is_not_found());
    io_b.unlock(&name, "leader", "auto 1").await.unwrap();
    assert!(io_a.lock_info(&name, "leader").await.unwrap().lockers.is_empty());
    io_a.remove(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_locks_agree_on_a_tag_and_end_by_themselves() {
    let (a, b) = (connect().await, connect().await);
    let (io_a, io_b) = (pool_of(&a).await, pool_of(&b).await);
    let name = unique("shared");
    let mut request = LockRequest::new("reader", LockKind::Shared, "").tagged("t");
    request.duration = Some(Duration::from_secs(3600));
    io_a.lock(&name, &request).await.unwrap();
    io_b.lock(&name, &request).await.unwrap();
    let info = io_a.lock_info(&name, "reader").await.unwrap();
    assert_eq!((info.kind, info.lockers.len()), (Some(LockKind::Shared), 2));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    for locker in &info.lockers {
        let left = locker.expiration.unwrap().saturating_sub(now);
        assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3600), "{left:?}");
    }
    let other = LockRequest { tag: "other".into(), cookie: "2".into(), ..request.clone() };
    assert!(io_b.lock(&name, &other).await.unwrap_err().is(libc::EBUSY));
    io_a.unlock(&name, "reader", "").await.unwrap();
    io_b.unlock(&name, "reader", "").await.unwrap();

    // An ephemeral lock takes its object along.
    let ephemeral = LockRequest::new("once", LockKind::ExclusiveEphemeral, "c");
    let object = unique("ephemeral");
    io_a.lock(&object, &ephemeral).await.unwrap();
    io_a.unlock(&object, "once", "c").await.unwrap();
    assert!(io_a.stat(&object).await.unwrap_err().is_not_found());
    io_a.write(WriteOp::new(&name).with(WriteSub::WriteFull(Bytes::new()))).await.unwrap();
    io_a.remove(&name).await.unwrap();
}
