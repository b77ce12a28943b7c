//! Connections: configuration, commands, fencing, bounds.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rados::{CommandTarget, ConnectOptions, ErrorClass, Extent, Limits, PoolId, SnapId, WriteOp, WriteSub};
use serde_json::json;
use tests::OsdEnd;

use super::{POOL, ceph, connect, options, pool_of, soon, unique};

#[tokio::test(flavor = "multi_thread")]
async fn mon_host_and_key_are_enough_to_connect() {
    let ceph = ceph().await;
    let key = ceph.ceph(&["auth", "get-key", "client.admin"]).await.unwrap();
    let mut options =
        ConnectOptions { client_name: "client.admin".into(), no_conf_file: true, ..Default::default() };
    options.options.insert("mon_host".into(), ceph.mon_host().into());
    options.options.insert("key".into(), key.trim().into());
    let cluster = rados::connect(options.clone()).await.unwrap();
    assert_eq!(cluster.fsid(), ceph.fsid());
    let io = pool_of(&cluster).await;
    let name = unique("keyed");
    io.write(WriteOp::new(&name).with(WriteSub::WriteFull(Bytes::from_static(b"x")))).await.unwrap();
    io.remove(&name).await.unwrap();

    options.options.insert("key".into(), "AQCQ0WFnAAAAABAAxMxnJQyD3s2LmnbTFMmXTw==".into());
    let error = rados::connect(options.clone()).await.err().expect("a wrong key is refused");
    assert!(error.is(libc::EACCES) || error.is(libc::EPERM), "{error}");
    assert!(error.to_string().contains("as client.admin (the monitors refused the client's key)"), "{error}");

    // Of a type that no librados knows, as 16 and 18 do not know that of the keys which Ceph 20.2 makes. That one lets the
    // monitors refuse it.
    if ceph.release().await.unwrap() >= 20 {
        return;
    }
    let unknown = "/wCah2kLjHVUOSAADnmJXgQUVEICEBzMNVq65qwaxoy2eyLWJGmdx3+jEFo=";
    options.options.insert("key".into(), unknown.into());
    let error = rados::connect(options.clone()).await.err().expect("a key of an unknown type cannot be used");
    assert!(error.to_string().contains("of a type that this librados does not know"), "{error}");
    options.options.remove("key");
    let keyring = ceph.folder().join(unique("keyring"));
    std::fs::write(&keyring, format!("[client.admin]\n\tkey = {unknown}\n")).unwrap();
    options.options.insert("keyring".into(), keyring.display().to_string());
    let error = rados::connect(options).await.err().expect("a keyring with such a key cannot be used");
    assert!(error.to_string().contains("of a type that this librados does not know"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_is_read_and_its_mistakes_are_told() {
    let ceph = ceph().await;
    let text = std::fs::read_to_string(ceph.conf_path()).unwrap();
    let (conf, socket) = (ceph.folder().join(unique("own.conf")), ceph.folder().join(unique("own.asok")));
    std::fs::write(&conf, format!("{text}\n[client]\nadmin socket = {}\n", socket.display())).unwrap();
    let cluster =
        rados::connect(ConnectOptions { conf_file: Some(conf), ..Default::default() }).await.unwrap();
    assert!(cluster.config("mon_host").is_some_and(|hosts| !hosts.is_empty()));
    assert_eq!(cluster.config("no_such_option"), None);
    // The configured path is the daemon's to open: librados does not.
    assert_eq!(cluster.config("admin_socket").as_deref(), socket.to_str());
    assert!(!socket.exists());

    let absent = ConnectOptions { conf_file: Some("/nonexistent/x.conf".into()), ..Default::default() };
    let error = rados::connect(absent).await.err().unwrap();
    assert!(error.is_not_found() && error.to_string().contains("'/nonexistent/x.conf'"), "{error}");
    let mut unknown = options().await;
    unknown.options.insert("no_such_option".into(), "1".into());
    let error = rados::connect(unknown).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "cannot set the Ceph option 'no_such_option': Ceph has no option of that name ('ceph config ls' lists them): \
         invalid argument (errno 22)"
    );
    let mut senseless = options().await;
    senseless.options.insert("rados_osd_op_timeout".into(), "soon".into());
    let error = rados::connect(senseless).await.err().unwrap();
    let told = "cannot set the Ceph option 'rados_osd_op_timeout': Ceph does not take its value: ";
    assert!(error.to_string().starts_with(told) && !error.to_string().contains("soon"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_reach_monitors_and_manager() {
    let cluster = connect().await;
    let status =
        cluster.command(CommandTarget::Mon, json!({"prefix": "status", "format": "json"}), "").await.unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.output).unwrap();
    assert_eq!(status["fsid"], cluster.fsid());
    let schedules = json!({"prefix": "rbd mirror snapshot schedule list", "format": "json"});
    let schedules = cluster.command(CommandTarget::Mgr, schedules, "").await.unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&schedules.output).unwrap(), json!({}));
    let error =
        cluster.command(CommandTarget::Mon, json!({"prefix": "no such thing"}), "").await.unwrap_err();
    assert!(
        error.is(libc::EINVAL) && error.to_string().contains("'no such thing' (command not known)"),
        "{error}"
    );

    let key = unique("rbd/test");
    assert_eq!(cluster.config_key_get(&key).await.unwrap(), None);
    let set = json!({"prefix": "config-key set", "key": key, "val": "value"});
    cluster.command(CommandTarget::Mon, set, "").await.unwrap();
    assert_eq!(cluster.config_key_get(&key).await.unwrap(), Some(Bytes::from_static(b"value")));
    cluster.command(CommandTarget::Mon, json!({"prefix": "config-key rm", "key": key}), "").await.unwrap();

    let pools = cluster.pools().await.unwrap();
    let id = cluster.pool_by_name(POOL).await.unwrap();
    assert!(pools.contains(&(id, POOL.to_string())));
    assert!(cluster.pool_by_name("nobody's").await.unwrap_err().is_not_found());
    let error = cluster.pool(PoolId(123_456)).stat("x").await.unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("cannot open pool 123456"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_daemon_is_seen_with_its_status() {
    let cluster = connect().await;
    let metadata = vec![("site".to_string(), "here".to_string()), ("empty".to_string(), String::new())];
    cluster.service_register("rbd-mirror", &cluster.instance_id().to_string(), metadata).await.unwrap();
    let status = vec![("json".to_string(), "{\"1\":{}}".to_string())];
    cluster.service_update_status(status).await.unwrap();
    let daemon = cluster.instance_id().to_string();
    let seen = tests::wait::until("the service daemon to be seen", super::LIMIT, || async {
        let dump = ceph().await.ceph_json(&["service", "dump"]).await?;
        let entry = &dump["services"]["rbd-mirror"]["daemons"][&daemon];
        Ok(entry.is_object().then(|| entry.clone()))
    });
    let seen = seen.await.unwrap();
    assert_eq!(seen["metadata"]["site"], "here");
    let shown = tests::wait::until("the status to be seen", super::LIMIT, || async {
        let status = ceph().await.ceph_json(&["service", "status"]).await?;
        let entry = &status["rbd-mirror"][&daemon]["status"]["json"];
        Ok(entry.as_str().map(str::to_string))
    });
    assert_eq!(shown.await.unwrap(), "{\"1\":{}}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocklisted_connection_is_fenced() {
    let (victim, other) = (connect().await, connect().await);
    let (io, other_io) = (pool_of(&victim).await, pool_of(&other).await);
    let name = unique("fenced");
    io.write(WriteOp::new(&name).with(WriteSub::Create { exclusive: true })).await.unwrap();
    let mut watch = io.watch(&name, Duration::from_secs(30)).await.unwrap();
    other.blocklist_add(victim.address(), Some(600.0)).await.unwrap();
    let listed = ceph().await.blocklist().await.unwrap();
    assert!(listed.iter().any(|entry| entry.addr == victim.address()), "{listed:?}");

    let error = soon("an answer", io.stat(&name)).await.unwrap_err();
    assert_eq!((error.errno(), error.class()), (libc::ESHUTDOWN, ErrorClass::Fenced));
    assert!(error.to_string().contains("this client is blocklisted"), "{error}");
    let error =
        soon("an answer", io.write(WriteOp::new(&name).with(WriteSub::Truncate(0)))).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Fenced);
    let end = async {
        while let Some(event) = watch.next().await {
            assert!(matches!(event, rados::WatchEvent::Lost(_)), "{event:?}");
        }
    };
    soon("the end of the watch", end).await;
    other_io.remove(&name).await.unwrap();
}

/// Within its bounds a connection never blocks a worker thread, however much is asked of it while nobody answers.
#[tokio::test]
async fn a_silent_cluster_blocks_no_thread() {
    let ceph = ceph().await;
    let mut options = options().await;
    options.limits = Limits { operations: 3000, bytes: 64 << 20 };
    let cluster = rados::connect(options).await.unwrap();
    let io = pool_of(&cluster).await;
    let stem = unique("silent");
    io.write(WriteOp::new(&stem).with(WriteSub::Create { exclusive: true })).await.unwrap();
    for osd in 0..ceph.osd_count() {
        ceph.osd_stop(osd, OsdEnd::Kill).await.unwrap();
    }
    let data = Bytes::from(vec![7u8; 64 << 10]);
    let writes: Vec<_> = (0..4000)
        .map(|i| {
            let (io, op) =
                (io.clone(), WriteOp::new(format!("{stem}-{i}")).with(WriteSub::WriteFull(data.clone())));
            tokio::spawn(async move { io.write(op).await })
        })
        .collect();
    // One thread runs all tasks here: it goes on turning them over.
    for _ in 0..20 {
        let before = Instant::now();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(before.elapsed() < Duration::from_secs(2), "blocked for {:?}", before.elapsed());
    }
    assert!(writes.iter().all(|write| !write.is_finished()));
    // Those given up make room for others.
    for write in &writes[..2000] {
        write.abort();
    }
    for osd in 0..ceph.osd_count() {
        ceph.osd_start(osd).await.unwrap();
    }
    for write in writes.into_iter().skip(2000) {
        soon("a write", write).await.unwrap().unwrap();
    }
    let removals = (0..4000).map(|i| (io.clone(), format!("{stem}-{i}")));
    futures::future::join_all(removals.map(async |(io, name)| match io.remove(&name).await {
        Err(error) if !error.is_not_found() => panic!("{error}"),
        _ => {}
    }))
    .await;
    io.remove(&stem).await.unwrap();
}

/// Placement groups that are inactive answer nothing. What goes to others does not wait for them.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_not_answered_hold_up_no_others() {
    let pool = unique("inactive");
    let ceph = ceph().await;
    ceph.ceph(&["osd", "pool", "create", &pool, "1"]).await.unwrap();
    // More copies than there are OSDs.
    ceph.ceph(&["osd", "pool", "set", &pool, "size", "9"]).await.unwrap();
    ceph.ceph(&["osd", "pool", "set", &pool, "min_size", "9"]).await.unwrap();
    let limits = Limits { operations: 4, bytes: 1 << 20 };
    let cluster = rados::connect(ConnectOptions { limits, ..options().await }).await.unwrap();
    let inactive = cluster.pool(cluster.pool_by_name(&pool).await.unwrap()).for_data();
    let io = pool_of(&cluster).await;
    let name = unique("active");
    io.write(WriteOp::new(&name).with(WriteSub::WriteFull(Bytes::from_static(b"data")))).await.unwrap();
    let hung: Vec<_> = (0..8)
        .map(|_| {
            let (io, extent) = (inactive.clone(), Extent::new(0, 4096));
            tokio::spawn(async move { io.read_extent("object", SnapId::HEAD, extent).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let whole = Extent::new(0, 4096);
    for io in [io.clone(), io.for_data()] {
        let data = soon("an answer", io.read_extent(&name, SnapId::HEAD, whole)).await.unwrap();
        assert_eq!(&data[..], b"data");
    }
    assert!(hung.iter().all(|read| !read.is_finished()));
    ceph.ceph(&["osd", "pool", "set", &pool, "min_size", "1"]).await.unwrap();
    for read in hung {
        assert!(soon("the answer", read).await.unwrap().unwrap_err().is_not_found());
    }
    io.remove(&name).await.unwrap();
    ceph.delete_pool(&pool).await.unwrap();
}
