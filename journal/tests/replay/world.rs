//! A primary with a journal on one cluster, a copy on the other.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use deep_copy::ids::SnapIds;
use journal::Journal;
use journal::budget::Budget;
use journal::event::EventEntry;
use journal::replay::{Replay, ReplayContext};
use journal::tail::walk;
use journal::types::{ClientData, CommitPosition, EntryPosition, TagTid};
use rados::{ConnectOptions, IoCtx};
use rbd::exclusive_lock::{ExclusiveLock, LockOptions};
use rbd::image::{Image, OpenImage};
use serde_json::{Value, json};
use tests::{Cluster, Tool, TwoClusters, compare};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// Pool of the images.
pub const POOL: &str = "replays";
/// Another pool.
pub const OTHER_POOL: &str = "replays-other";
/// The client that keeps journals from being trimmed.
const CLIENT: &str = "replays";
/// The mirror uuid that primaries are known by.
pub const REMOTE_UUID: &str = "5ee0c4f0-0000-4000-8000-00000000000a";
/// A tag of the copy's own journal.
pub const LOCAL_TAG: TagTid = TagTid(7);
/// Debian's own: it comes with `ceph-mgr`.
const PYTHON: &str = "/usr/bin/python3";

/// Both clusters.
pub async fn clusters() -> Result<&'static TwoClusters> {
    static CLUSTERS: OnceCell<TwoClusters> = OnceCell::const_new();
    let start = async || {
        let clusters = TwoClusters::for_tests().await?;
        for cluster in clusters.both() {
            for pool in [POOL, OTHER_POOL] {
                // There may be one of an earlier run.
                cluster.delete_pool(pool).await?;
                cluster.create_pool(pool).await?;
            }
            cluster.rbd(&["namespace", "create", &format!("{OTHER_POOL}/ns")]).await?;
        }
        Ok::<_, anyhow::Error>(clusters)
    };
    CLUSTERS.get_or_try_init(start).await
}

/// A pool, through a connection that lives as long as the program.
pub async fn pool(cluster: &'static Cluster, name: &str) -> Result<IoCtx> {
    static CONNECTIONS: [OnceCell<rados::Cluster>; 2] = [OnceCell::const_new(), OnceCell::const_new()];
    let first = cluster.name() == clusters().await?.a.name();
    let connection = CONNECTIONS[usize::from(!first)].get_or_try_init(|| connect(cluster)).await?;
    Ok(connection.pool(connection.pool_by_name(name).await?))
}

/// A new connection.
pub async fn connect(cluster: &'static Cluster) -> Result<rados::Cluster> {
    let conf_file = Some(cluster.conf_path());
    Ok(rados::connect(ConnectOptions { conf_file, ..ConnectOptions::default() }).await?)
}

/// An image that librbd writes to, and keeps a journal of.
pub struct Primary {
    pub cluster: &'static Cluster,
    pub name: String,
    journal: Journal,
}

impl Primary {
    /// Gives an image that there is a journal.
    pub async fn of(name: &str) -> Result<Primary> {
        let cluster = &clusters().await?.a;
        cluster.rbd(&["feature", "enable", &format!("{POOL}/{name}"), "journaling"]).await?;
        let ioctx = pool(cluster, POOL).await?;
        let (image, _) = Image::open_by_name(&ioctx, name).await?;
        let journal = Journal::open(&ioctx, image.id()).await?;
        journal.client_register(CLIENT, &ClientData::Cli).await?;
        Ok(Primary { cluster, name: name.to_string(), journal })
    }

    /// Makes an image on both sides, and gives the first one a journal.
    pub async fn create(name: &str, size: u64, args: &[&str]) -> Result<Primary> {
        for cluster in clusters().await?.both() {
            cluster.create_image(&format!("{POOL}/{name}"), size, args).await?;
        }
        Primary::of(name).await
    }

    pub fn spec(&self) -> String {
        format!("{POOL}/{}", self.name)
    }

    /// Has librbd carry out operations (see `librbd.py`), in one tag.
    pub async fn carry_out(&self, operations: &[Value]) -> Result<()> {
        let told = json!({
            "conf": self.cluster.conf_path(), "pool": POOL, "image": self.name, "operations": operations,
            "options": {"rbd_discard_granularity_bytes": "4096", "rbd_skip_partial_discard": "false"},
        });
        let tool = Tool::new(PYTHON).args(["-", &told.to_string()]).stdin(include_str!("librbd.py"));
        tool.run().await.map(drop).context("librbd")
    }

    /// All entries of the journal so far.
    pub async fn entries(&self) -> Result<Vec<(EntryPosition, EventEntry)>> {
        let mut entries = Vec::new();
        walk(&self.journal, CLIENT, CommitPosition::default(), |entry| {
            entries.push(entry);
            ControlFlow::Continue(())
        })
        .await?;
        entries.into_iter().map(|entry| Ok((entry.position, EventEntry::decode(&entry.data)?))).collect()
    }
}

/// The copy of an image.
pub struct Copy {
    pub cluster: &'static Cluster,
    pub name: String,
    pub ioctx: IoCtx,
    pub lock: ExclusiveLock,
    ids: SnapIds,
}

impl Copy {
    /// Opens and locks the copy of `name`.
    pub async fn open(name: &str) -> Result<Copy> {
        let cluster = &clusters().await?.b;
        let ioctx = pool(cluster, POOL).await?.gated();
        let (image, _) = Image::open_by_name(&ioctx, name).await?;
        let lock = ExclusiveLock::open(&ioctx, image.id(), LockOptions::default()).await?;
        lock.acquire().await?;
        let ids = SnapIds::new(image.data_ioctx().clone(), 16);
        Ok(Copy { cluster, name: name.to_string(), ioctx, lock, ids })
    }

    /// What a replay behind `commit` needs; all of its I/O goes through `ioctx`.
    pub async fn context(&self, ioctx: &IoCtx, commit: Option<EntryPosition>) -> Result<ReplayContext> {
        let (image, header) = Image::open_by_name(ioctx, &self.name).await?;
        Ok(ReplayContext {
            ids: match Arc::ptr_eq(ioctx.backend(), self.ioctx.backend()) {
                true => self.ids.clone(),
                false => SnapIds::new(image.data_ioctx().clone(), 4),
            },
            local: OpenImage { image, header },
            lock: self.lock.report(),
            remote_mirror_uuid: REMOTE_UUID.into(),
            local_tag: LOCAL_TAG,
            commit,
            holds: None,
            snap_seqs: Default::default(),
            budget: Budget::new(64 << 20),
            cancel: CancellationToken::new(),
        })
    }

    /// Begins a replay.
    pub async fn replay(&self, commit: Option<EntryPosition>) -> Result<Replay> {
        Ok(Replay::open(self.context(&self.ioctx, commit).await?).await?)
    }

    /// Replays entries from the beginning to the end.
    pub async fn replay_all(&self, entries: &[(EntryPosition, EventEntry)]) -> Result<()> {
        let mut replay = self.replay(None).await?;
        push(&mut replay, entries).await?;
        replay.end_tag().await?;
        ensure!(*replay.applied().borrow() == entries.last().map(|(position, _)| *position), "it is behind");
        replay.stop().await?;
        Ok(())
    }

    /// Gives up the lock; then head, snapshots, object maps and metadata are compared with the primary's.
    pub async fn compare(self, primary: &Primary, name: &str) -> Result<()> {
        self.lock.close().await?;
        same(primary, self.cluster, name, Maps::Exact).await
    }

    /// The same for a replay that was cut off.
    pub async fn compare_after_cuts(self, primary: &Primary, name: &str) -> Result<()> {
        self.lock.close().await?;
        same(primary, self.cluster, name, Maps::Safe).await
    }
}

/// How right object maps must be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Maps {
    Exact,
    /// They may claim changes since a snapshot that were none: whether any came behind a snapshot that was cut off is not
    /// known.
    Safe,
}

/// Pushes entries.
pub async fn push(replay: &mut Replay, entries: &[(EntryPosition, EventEntry)]) -> Result<()> {
    for (position, entry) in entries {
        replay.push(*position, entry.clone()).await?;
    }
    Ok(())
}

/// What stock tools tell of an image, but for what differs between clusters.
async fn told(cluster: &Cluster, spec: &str) -> Result<Value> {
    let json = async |args: &[&str]| {
        let told = cluster.rbd(&[args, &["--format", "json"]].concat()).await?;
        // Where there is nothing to tell of, nothing is told.
        Ok::<Value, anyhow::Error>(if told.trim().is_empty() {
            json!(null)
        } else {
            serde_json::from_str(&told)?
        })
    };
    let info = json(&["info", spec]).await?;
    let mut features = info["features"].as_array().context("features")?.clone();
    features.retain(|feature| feature != "journaling");
    let snaps = json(&["snap", "ls", spec]).await?;
    let snaps: Vec<Value> = snaps
        .as_array()
        .context("snapshots")?
        .iter()
        .map(|snap| json!([snap["name"], snap["size"], snap["protected"]]))
        .collect();
    let metadata = json(&["image-meta", "list", spec]).await?;
    let parent = json!([info["parent"]["image"], info["parent"]["snapshot"], info["parent"]["overlap"]]);
    Ok(json!({
        "size": info["size"], "features": features, "limit": info["snapshot_limit"],
        "snaps": snaps, "metadata": metadata, "parent": parent,
    }))
}

/// Fails unless `name` is the same on both sides, to every byte of the head and of every snapshot, and its object maps
/// are right.
pub async fn same(primary: &Primary, copy: &'static Cluster, name: &str, maps: Maps) -> Result<()> {
    let spec = format!("{POOL}/{name}");
    let (of_primary, of_copy) = (told(primary.cluster, &spec).await?, told(copy, &spec).await?);
    ensure!(of_primary == of_copy, "{spec} is {of_primary} there and {of_copy} here");
    let snaps = of_copy["snaps"].as_array().context("snapshots")?.iter();
    let snaps = snaps.filter_map(|snap| Some(format!("{spec}@{}", snap[0].as_str()?)));
    let all: Vec<String> = std::iter::once(spec.clone()).chain(snaps).collect();
    for spec in &all {
        compare(primary.cluster, spec, copy, spec).await?.expect_equal(spec)?;
    }
    for spec in &all {
        let flags = async || {
            let info: Value = serde_json::from_str(&copy.rbd(&["info", spec, "--format", "json"]).await?)?;
            let mapped = info["features"].as_array().is_some_and(|all| all.iter().any(|f| f == "object-map"));
            Ok::<_, anyhow::Error>(mapped.then(|| info["flags"].clone()))
        };
        if flags().await? == Some(json!([])) {
            // It flags a map that is wrong.
            let log = copy.rbd(&["object-map", "check", spec, "--log-file", "/dev/stdout"]).await?;
            let wrong: Vec<&str> = log.lines().filter(|line| line.contains("object map error")).collect();
            let claims = wrong.iter().all(|line| line.ends_with("marked as 1, but should be 3"));
            let safe = maps == Maps::Safe && !wrong.is_empty() && claims;
            ensure!(safe || flags().await? == Some(json!([])), "the object map of {spec} is wrong: {log}");
        }
    }
    Ok(())
}
