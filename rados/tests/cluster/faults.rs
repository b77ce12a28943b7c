//! The fault-injecting backend over a real one.

use std::time::Duration;

use bytes::Bytes;
use rados::fault::{Fault, FaultPlan, Faulty, Matcher, OperationKind};
use rados::severable::severable;
use rados::{Cluster, Error, WatchEvent, WriteOp, WriteSub};

use super::{connect, pool_of, soon, unique};

fn write(name: &str, data: &'static [u8]) -> WriteOp {
    WriteOp::new(name).with(WriteSub::WriteFull(Bytes::from_static(data)))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_suffer_what_the_plan_says_and_are_counted() {
    let cluster = connect().await;
    let honest = pool_of(&cluster).await;
    let writes = || Matcher::kind(OperationKind::Write);
    let plan = FaultPlan::none()
        .at(2, writes(), Fault::Fail(libc::EIO))
        .at(3, writes(), Fault::LoseAnswer(Some(libc::ETIMEDOUT)))
        .at(4, writes(), Fault::Delay(Duration::from_millis(30)))
        .from(1, Matcher::kind(OperationKind::Read).on_prefix("other"), Fault::Fail(libc::EPERM));
    let stem = unique("faulty");
    let faulty = Faulty::new(cluster.backend().clone(), plan, &["faulty", "other"]);
    let io = Cluster::new(faulty.clone()).pool(honest.pool_id());

    io.write(write(&stem, b"1")).await.unwrap();
    let error = io.write(write(&stem, b"22")).await.unwrap_err();
    assert!(error.is(libc::EIO) && error.to_string().contains("injected"), "{error}");
    assert_eq!(honest.stat(&stem).await.unwrap(), 1);
    assert!(io.write(write(&stem, b"333")).await.unwrap_err().is(libc::ETIMEDOUT));
    assert_eq!(honest.stat(&stem).await.unwrap(), 3, "the third write was carried out");
    let before = std::time::Instant::now();
    io.write(write(&stem, b"4444")).await.unwrap();
    assert!(before.elapsed() >= Duration::from_millis(30));
    assert!(io.stat("other-object").await.unwrap_err().is(libc::EPERM));
    assert_eq!(io.stat(&stem).await.unwrap(), 4);

    let counts = faulty.counts();
    let writes = counts[&(OperationKind::Write, "faulty".to_string())];
    assert_eq!((writes.operations, writes.bytes), (4, 10));
    assert_eq!(counts[&(OperationKind::Read, "other".to_string())].operations, 1);
    honest.remove(&stem).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_nothing_reaches_the_cluster_and_nothing_answers() {
    let cluster = connect().await;
    let honest = pool_of(&cluster).await;
    let name = unique("crash");
    honest.write(write(&name, b"1")).await.unwrap();
    let plan = FaultPlan::none().at(1, Matcher::kind(OperationKind::Write), Fault::CrashAfter);
    let faulty = Faulty::new(cluster.backend().clone(), plan, &[]);
    let io = Cluster::new(faulty.clone()).pool(honest.pool_id());
    let mut watch = io.watch(&name, Duration::from_secs(30)).await.unwrap();

    let unanswered = |io: rados::IoCtx, op| tokio::spawn(async move { io.write(op).await });
    let last = unanswered(io.clone(), write(&name, b"22"));
    soon("the crash", faulty.crashed()).await;
    assert_eq!(honest.stat(&name).await.unwrap(), 2, "the last write was carried out");
    let after = unanswered(io.clone(), write(&name, b"333"));
    // The dead watcher neither hears nor answers.
    let reply = honest.notify(&name, Bytes::new(), Duration::from_secs(1)).await.unwrap();
    assert_eq!((reply.answers.len(), reply.silent.len()), (0, 1));
    let heard: Option<Option<WatchEvent>> = futures::FutureExt::now_or_never(watch.next());
    assert!(heard.is_none(), "{heard:?}");
    assert!(!last.is_finished() && !after.is_finished());
    assert_eq!(honest.stat(&name).await.unwrap(), 2);
    last.abort();
    after.abort();
    honest.remove(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_severed_line_ends_waits_and_begins_nothing() {
    let cluster = connect().await;
    let honest = pool_of(&cluster).await;
    let name = unique("severed");
    let plan = FaultPlan::none().at(2, Matcher::kind(OperationKind::Write), Fault::LoseAnswer(None));
    let faulty = Faulty::new(cluster.backend().clone(), plan, &[]);
    let (backend, line) = severable(faulty.clone());
    let io = Cluster::new(backend).pool(honest.pool_id());
    io.write(write(&name, b"1")).await.unwrap();
    let watch = io.watch(&name, Duration::from_secs(30)).await.unwrap();

    let unanswered = tokio::spawn({
        let (io, op) = (io.clone(), write(&name, b"22"));
        async move { io.write(op).await }
    });
    soon("the second write", async {
        while honest.stat(&name).await.unwrap() != 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(!unanswered.is_finished() && !line.is_severed());
    line.sever(Error::new(libc::ECANCELED, "enough"));
    let ended = soon("the end of the wait", unanswered).await.unwrap();
    assert!(ended.unwrap_err().is(libc::ECANCELED));
    let requests = faulty.requests();
    assert!(io.write(write(&name, b"333")).await.unwrap_err().to_string().contains("enough"));
    assert_eq!(faulty.requests(), requests, "a request went through a severed line");
    assert!(watch.unregister().await.unwrap_err().is(libc::ECANCELED));
    soon("the end of the watch", async {
        while !honest.list_watchers(&name).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    honest.remove(&name).await.unwrap();
}

#[test]
fn a_seed_draws_the_same_plan_every_time() {
    assert_eq!(FaultPlan::seeded(42, 100, 5), FaultPlan::seeded(42, 100, 5));
    let crashes: std::collections::BTreeSet<String> =
        (0..512).map(|seed| format!("{:?}", FaultPlan::seeded_crash(seed, 10))).collect();
    assert_eq!(crashes.len(), 20, "before and after each of ten requests: {crashes:?}");
}
