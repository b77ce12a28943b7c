//! Watches and notifications.

use std::time::Duration;

use bytes::Bytes;
use rados::{ErrorClass, IoCtx, Watch, WatchEvent, WriteOp, WriteSub};
use tests::OsdEnd;

use super::{ceph, connect, pool_of, soon, unique};

const TIMEOUT: Duration = Duration::from_secs(30);

async fn create(io: &IoCtx, name: &str) {
    io.write(WriteOp::new(name).with(WriteSub::Create { exclusive: true })).await.unwrap();
}

/// The next notification, answered with its payload and `answer` behind it; the notifier.
async fn answer_next(watch: &mut Watch, answer: &str) -> u64 {
    match soon("a notification", watch.next()).await {
        Some(WatchEvent::Notify { payload, notifier, answer: reply }) => {
            reply.send(Bytes::from([&payload[..], answer.as_bytes()].concat()));
            notifier
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_go_both_ways_between_two_connections() {
    let (a, b) = (connect().await, connect().await);
    let (io_a, io_b) = (pool_of(&a).await, pool_of(&b).await);
    let name = unique("watched");
    create(&io_a, &name).await;
    let mut watch_a = io_a.watch(&name, TIMEOUT).await.unwrap();
    let mut watch_b = io_b.watch(&name, TIMEOUT).await.unwrap();

    for (from, io) in [(&a, &io_a), (&b, &io_b)] {
        let notify = io.notify(&name, Bytes::from_static(b"hi"), Duration::from_secs(10));
        let (reply, by_a, by_b) =
            tokio::join!(notify, answer_next(&mut watch_a, " from a"), answer_next(&mut watch_b, " from b"));
        let mut answers = reply.unwrap().answers;
        let mut expected = vec![
            (a.instance_id(), watch_a.cookie, Bytes::from_static(b"hi from a")),
            (b.instance_id(), watch_b.cookie, Bytes::from_static(b"hi from b")),
        ];
        answers.sort();
        expected.sort();
        assert_eq!(answers, expected);
        assert_eq!((by_a, by_b), (from.instance_id(), from.instance_id()));
    }

    // Dropping the answer answers with nothing.
    let cookie_b = watch_b.cookie;
    watch_a.unregister().await.unwrap();
    let drop_next = async { drop(watch_b.next().await.unwrap()) };
    let (reply, ()) = tokio::join!(io_a.notify(&name, Bytes::new(), Duration::from_secs(10)), drop_next);
    assert_eq!(reply.unwrap().answers, [(b.instance_id(), cookie_b, Bytes::new())]);

    // A watcher that keeps its answer to itself is reported.
    let keep_next = async { watch_b.next().await.unwrap() };
    let (reply, kept) = tokio::join!(io_a.notify(&name, Bytes::new(), Duration::from_secs(1)), keep_next);
    let reply = reply.unwrap();
    assert_eq!((reply.answers, reply.silent), (vec![], vec![(b.instance_id(), cookie_b)]));
    drop(kept);

    watch_b.unregister().await.unwrap();
    let reply = io_a.notify(&name, Bytes::new(), Duration::from_secs(1)).await.unwrap();
    assert_eq!(reply, rados::NotifyReply::default());
    io_a.remove(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_the_osd_dropped_comes_back() {
    let cluster = connect().await;
    let io = pool_of(&cluster).await;
    let name = unique("short");
    create(&io, &name).await;
    // Librados pings every five seconds: an OSD that waits for two gives the watch up.
    let mut watch = io.watch(&name, Duration::from_secs(2)).await.unwrap();
    match soon("the loss", watch.next()).await {
        Some(WatchEvent::Lost(error)) => {
            assert_eq!((error.errno(), error.class()), (libc::ENOTCONN, ErrorClass::Transient), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let Some(WatchEvent::Restored { cookie }) = soon("the return", watch.next()).await else {
        panic!("not restored")
    };
    assert_ne!(cookie, watch.cookie);
    let (reply, _) = tokio::join!(
        io.notify(&name, Bytes::from_static(b"again"), Duration::from_secs(10)),
        answer_next(&mut watch, "!")
    );
    assert_eq!(reply.unwrap().answers, [(cluster.instance_id(), cookie, Bytes::from_static(b"again!"))]);
    watch.unregister().await.unwrap();
    io.remove(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_with_its_object() {
    let io = pool_of(&connect().await).await;
    let name = unique("removed");
    assert!(io.watch(&name, TIMEOUT).await.unwrap_err().is_not_found());
    create(&io, &name).await;
    let mut watch = io.watch(&name, TIMEOUT).await.unwrap();
    io.remove(&name).await.unwrap();
    let Some(WatchEvent::Lost(_)) = soon("the loss", watch.next()).await else { panic!("not lost") };
    let end = async {
        while let Some(event) = watch.next().await {
            assert!(matches!(&event, WatchEvent::Lost(error) if error.is_not_found()), "{event:?}");
        }
    };
    soon("the end", end).await;
    watch.unregister().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_a_restart_of_its_osd() {
    let ceph = ceph().await;
    let cluster = connect().await;
    let io = pool_of(&cluster).await;
    let name = unique("restart");
    create(&io, &name).await;
    let mut watch = io.watch(&name, TIMEOUT).await.unwrap();
    for osd in 0..ceph.osd_count() {
        ceph.osd_stop(osd, OsdEnd::Kill).await.unwrap();
        ceph.osd_start(osd).await.unwrap();
    }
    // Heard by the watch, be it the old registration or a new one.
    let notifying = async {
        loop {
            let reply = io.notify(&name, Bytes::from_static(b"up"), Duration::from_secs(5)).await.unwrap();
            if !reply.answers.is_empty() {
                break;
            }
        }
    };
    let listening = async {
        loop {
            // A notification that was under way may come twice.
            if let Some(WatchEvent::Notify { payload, answer, .. }) = watch.next().await {
                answer.send(payload);
            }
        }
    };
    soon("a notification after the restart", async {
        tokio::select! {
            () = notifying => {}
            () = listening => {}
        }
    })
    .await;
    watch.unregister().await.unwrap();
    io.remove(&name).await.unwrap();
}
