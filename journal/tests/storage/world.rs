//! The cluster that the scenarios share, and what they ask of it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use bytes::Bytes;
use journal::types::{ClientData, CommitPosition, EntryPosition, IMAGE_CLIENT_ID, TagTid};
use journal::{Entry, Journal};
use rados::{ConnectOptions, Extent, IoCtx, SnapId};
use rbd::ImageId;
use tests::{Cluster, TwoClusters};

/// Journal objects of 64 KiB, four of them in turn: sets change after a few writes.
pub const SMALL_JOURNAL: [&str; 4] = ["--journal-object-size", "65536", "--journal-splay-width", "4"];
/// Size of test images.
pub const IMAGE_BYTES: u64 = 16 << 20;
/// A client of ours.
pub const CLIENT: &str = "ours";

/// A cluster and a connection to it.
pub struct World {
    clusters: TwoClusters,
    pub connection: rados::Cluster,
    /// Pool of the images.
    pub pool: String,
    pub io: IoCtx,
    /// Another pool, for journals.
    pub other: String,
}

impl tests::World for World {
    /// Uses the running clusters, or starts some.
    async fn start() -> Result<World> {
        let clusters = TwoClusters::for_tests().await?;
        let [pool, other] = ["journals", "others"].map(|name| format!("{name}-{}", std::process::id()));
        clusters.a.create_pool(&pool).await?;
        clusters.a.create_pool(&other).await?;
        clusters.a.rbd(&["mirror", "pool", "enable", &pool, "image"]).await?;
        let options = ConnectOptions {
            client_name: "client.admin".to_string(),
            conf_file: Some(clusters.a.conf_path()),
            ..ConnectOptions::default()
        };
        let connection = rados::connect(options).await?;
        let io = connection.pool(connection.pool_by_name(&pool).await?);
        Ok(World { clusters, connection, pool, io, other })
    }

    /// Removes what was made.
    async fn end(&self) -> Result<()> {
        self.stock().delete_pool(&self.pool).await?;
        self.stock().delete_pool(&self.other).await?;
        Ok(())
    }
}

impl World {
    /// The cluster, driven by stock tools.
    pub fn stock(&self) -> &Cluster {
        &self.clusters.a
    }

    /// `pool/image`.
    pub fn spec(&self, image: &str) -> String {
        format!("{}/{image}", self.pool)
    }

    /// Makes a journalled image with the stock tool, and opens its journal.
    pub async fn image(&self, name: &str, args: &[&str]) -> Result<Journal> {
        let features = ["--image-feature", "layering,exclusive-lock,object-map,fast-diff,journaling"];
        self.stock().create_image(&self.spec(name), IMAGE_BYTES, &[&features, args].concat()).await?;
        Ok(Journal::open(&self.io, &self.id_of(name).await?).await?)
    }

    /// The same, with a client of ours registered from the beginning: nothing is trimmed, and the stock tool exports
    /// everything.
    pub async fn followed_image(&self, name: &str) -> Result<Journal> {
        let journal = self.image(name, &SMALL_JOURNAL).await?;
        journal.client_register(CLIENT, &ClientData::Cli).await?;
        Ok(journal)
    }

    pub async fn id_of(&self, image: &str) -> Result<ImageId> {
        rbd::directory::id_of(&self.io, image).await.context("an id")
    }

    /// Writes blocks of 4 KiB at random places, sixteen at once.
    pub async fn bench(&self, image: &str, writes: u64) -> Result<()> {
        let total = (writes * 4096).to_string();
        let sizes = ["--io-size", "4096", "--io-threads", "16", "--io-total", &total, "--io-pattern", "rand"];
        let image = self.spec(image);
        let args = [&["bench", "--io-type", "write"], &sizes[..], &[image.as_str()]].concat();
        self.stock().rbd(&args).await?;
        Ok(())
    }

    /// What `rbd journal export` finds: tag and data of every entry, in order.
    pub async fn exported(&self, image: &str) -> Result<Vec<(TagTid, Bytes)>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("journal");
        let path_arg = path.to_string_lossy();
        let (pool, name) = image.rsplit_once('/').unwrap_or((&self.pool, image));
        let mut args = vec!["journal", "export", "--image", name, "--path", &path_arg, "--pool"];
        match pool.split_once('/') {
            Some((pool, namespace)) => args.extend([pool, "--namespace", namespace]),
            None => args.push(pool),
        }
        self.stock().rbd(&args).await?;
        let text = std::fs::read_to_string(&path)?;
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.map(exported_entry).collect()
    }

    /// How many entries `rbd journal inspect` finds, and how many of them wrong.
    pub async fn inspected(&self, image: &str) -> Result<(usize, usize)> {
        let args = ["journal", "inspect", "--pool", &self.pool, "--image", image];
        let text = self.stock().rbd(&args).await?;
        let numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
        let numbers: Vec<usize> = numbers.collect();
        ensure!(numbers.len() == 2, "`rbd journal inspect` said {text:?}");
        Ok((numbers[0], numbers[1]))
    }

    /// Everything that is stored of a journal: the metadata's omap and the data objects' bytes, with the image's id
    /// replaced.
    pub async fn stored(&self, journal: &Journal) -> Result<BTreeMap<String, Bytes>> {
        let mut stored = BTreeMap::new();
        for (key, value) in journal.header_ioctx().omap_all(journal.metadata_object(), "").await? {
            stored.insert(key, value);
        }
        let prefix = journal.data_object(journal::types::JournalObject(0));
        let prefix = prefix.trim_end_matches('0').to_string();
        for object in journal.data_ioctx().list_objects().await? {
            if let Some(number) = object.strip_prefix(&prefix) {
                let content =
                    journal.data_ioctx().read_extent(&object, SnapId::HEAD, Extent::new(0, 1 << 26)).await?;
                stored.insert(format!("object {number}"), content);
            }
        }
        Ok(stored)
    }
}

/// A line of an exported journal: a length and JSON.
fn exported_entry(line: &str) -> Result<(TagTid, Bytes)> {
    let (_, json) = line.split_once(' ').context("no length")?;
    let entry: serde_json::Value = serde_json::from_str(json)?;
    let tag = entry["tag_id"].as_u64().context("no tag")?;
    let data = entry["entry"].as_str().context("no entry")?;
    Ok((TagTid(tag), base64::engine::general_purpose::STANDARD.decode(data)?.into()))
}

/// All entries of a journal of which nothing was removed.
pub async fn walked(journal: &Journal) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    journal::tail::walk(journal, IMAGE_CLIENT_ID, CommitPosition::default(), |entry| {
        entries.push(entry);
        ControlFlow::Continue(())
    })
    .await?;
    Ok(entries)
}

/// Fails unless entries are those that the stock tool exported.
pub fn expect_same(entries: &[Entry], exported: &[(TagTid, Bytes)]) -> Result<()> {
    for (index, (ours, (tag, data))) in entries.iter().zip(exported).enumerate() {
        ensure!(ours.position.tag == *tag && ours.data == *data, "entry {index}, {}, differs", ours.position);
    }
    let (ours, theirs) = (entries.len(), exported.len());
    ensure!(ours == theirs, "we found {ours} entries, the stock tool {theirs}");
    ensure!(ours > 0, "there are no entries");
    expect_order(entries)
}

/// Fails unless entries follow each other without a gap.
pub fn expect_order(entries: &[Entry]) -> Result<()> {
    let mut last: Option<EntryPosition> = None;
    for Entry { position, .. } in entries {
        let follows = match last {
            Some(last) if last.tag == position.tag => position.entry.0 == last.entry.0 + 1,
            Some(last) => last.tag < position.tag && position.entry.0 == 0,
            None => true,
        };
        ensure!(follows, "{position} follows {last:?}");
        last = Some(*position);
    }
    Ok(())
}
