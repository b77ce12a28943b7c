//! A picture of all that is stored about an image, in which what must differ between two images made alike (ids, uuids,
//! times) is replaced by what it stands for. Two images that went through the same have the same picture.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use control::Pool;
use journal::Journal;
use journal::types::IMAGE_CLIENT_ID;
use rados::{Extent, SnapId};
use rbd::image_state::read_image_state;
use rbd::mirroring::{MIRRORING_OBJECT, Mirroring};
use rbd::types::{ImageId, Parent, Snapshot, SnapshotNamespace};
use rbd::{Image, ImageHeader, directory};

/// Everything that is stored, place by place.
pub type Picture = BTreeMap<String, String>;

/// What the names of one image stand for.
struct Names {
    replaced: Vec<(String, &'static str)>,
    snaps: Vec<SnapId>,
}

impl Names {
    fn text(&self, text: &str) -> String {
        let mut text = text.to_string();
        for (name, stands_for) in &self.replaced {
            text = text.replace(name, stands_for);
        }
        without_uuids(&text)
    }

    /// The number of a snapshot, counted from the oldest one that is there.
    fn snap(&self, id: SnapId) -> String {
        match self.snaps.iter().position(|snap| *snap == id) {
            Some(at) => format!("#{at}"),
            None if id.is_head() => "head".into(),
            None => "gone".into(),
        }
    }
}

/// Replaces whatever looks like a uuid. (Those that mean something have been replaced before.)
fn without_uuids(text: &str) -> String {
    const LENGTH: usize = 36;
    let is_uuid = |text: &str| {
        text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    };
    let (mut out, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        match rest.get(..LENGTH).filter(|head| is_uuid(head)) {
            Some(_) => {
                out.push_str("<uuid>");
                rest = &rest[LENGTH..];
            }
            None => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

/// Takes the picture of an image.
pub async fn picture(pool: &Pool, name: &str) -> Result<Picture> {
    picture_among(pool, name, &pool.ioctx().list_objects().await?).await
}

/// The same, when all objects of the pool have been listed: in a pool of many images, nothing takes longer.
pub async fn picture_among(pool: &Pool, name: &str, objects: &[String]) -> Result<Picture> {
    let id = directory::id_of(pool.ioctx(), name).await?;
    let (image, header) = Image::open(pool.ioctx(), &id).await?;
    let mut replaced = vec![(id.0.clone(), "<id>"), (name.to_string(), "<name>")];
    let mirroring = Mirroring::new(pool.ioctx());
    if let Some(mirror) = mirroring.image(&id).await? {
        replaced.push((mirror.global_id.0, "<global>"));
    }
    for peer in Mirroring::new(&pool.ioctx().with_namespace("")).peers().await? {
        replaced.push((peer.uuid, "<peer>"));
    }
    let names = Names { replaced, snaps: header.snapshots.keys().copied().collect() };
    let mut picture = Picture::new();
    header_parts(&header, &names, &mut picture);
    raw_header(&image, &names, &mut picture).await?;
    snapshots(&image, &header, &names, &mut picture).await?;
    objects_of(&image, objects, &names, &mut picture).await?;
    journal_of(&image, &names, &mut picture).await?;
    registrations(pool, &id, &names, &mut picture).await?;
    Ok(picture)
}

fn header_parts(header: &ImageHeader, names: &Names, picture: &mut Picture) {
    let mut part = |place: &str, value: String| picture.insert(format!("header {place}"), value);
    part("size", header.size.to_string());
    part("features", header.features.to_string());
    part("operation features", format!("{:?}", header.op_features));
    part("flags", format!("{:?}", header.flags));
    part("parent", format!("{:?}", header.parent));
    part("limit", format!("{:?}", header.snapshot_limit));
    part("lock", format!("{} {:?} '{}'", header.lock.lockers.len(), header.lock.kind, header.lock.tag));
    for (key, value) in &header.metadata {
        part(&format!("metadata {}", names.text(key)), names.text(&String::from_utf8_lossy(value)));
    }
}

/// Keys of the header's omap, and the values of those that hold nothing that must differ.
async fn raw_header(image: &Image, names: &Names, picture: &mut Picture) -> Result<()> {
    let object = rbd::layout::header_object(image.id());
    for (key, value) in image.header_ioctx().omap_all(&object, "").await? {
        let told = ["snapshot_", "snap_seq", "metadata_", "parent", "object_prefix"];
        let differs = told.iter().any(|start| key.starts_with(start)) || key.ends_with("_timestamp");
        let key = match key.strip_prefix("snapshot_") {
            Some(hex) => format!("snapshot_{}", names.snap(SnapId(u64::from_str_radix(hex, 16)?))),
            None => names.text(&key),
        };
        let value = if differs { String::new() } else { format!("{:02x?}", &value[..]) };
        picture.insert(format!("header omap {key}"), value);
    }
    Ok(())
}

fn overlap(parent: &Option<Parent>) -> Option<u64> {
    parent.as_ref().map(|parent| parent.overlap)
}

fn namespace(snapshot: &Snapshot, names: &Names) -> String {
    match &snapshot.namespace {
        SnapshotNamespace::Mirror(mirror) => {
            let peers: BTreeSet<_> = mirror.mirror_peer_uuids.iter().map(|peer| names.text(peer)).collect();
            let seqs: Vec<_> = mirror.snap_seqs.values().map(|local| names.snap(*local)).collect();
            let primary = if mirror.primary_snap_id.is_head() { "head" } else { "a snapshot" };
            format!(
                "mirror {:?} complete={} peers={peers:?} uuid='{}' of={primary} copied={} seqs={seqs:?}",
                mirror.state,
                mirror.complete,
                names.text(&mirror.primary_mirror_uuid),
                mirror.last_copied_object_number
            )
        }
        other => format!("{other:?}"),
    }
}

async fn snapshots(image: &Image, header: &ImageHeader, names: &Names, picture: &mut Picture) -> Result<()> {
    let ioctx = image.header_ioctx();
    for snapshot in header.snapshots.values() {
        let place = |what: &str| format!("snapshot {} {what}", names.snap(snapshot.id));
        let record = format!(
            "'{}' {} bytes, {:?}, flags {:?}, overlap {:?}, {} clones, {}",
            names.text(&snapshot.name),
            snapshot.image_size,
            snapshot.protection,
            snapshot.flags,
            overlap(&snapshot.parent),
            snapshot.child_count,
            namespace(snapshot, names)
        );
        picture.insert(place("record"), record);
        if let Ok(state) = read_image_state(ioctx, image.id(), snapshot.id).await {
            let snaps: BTreeMap<_, _> =
                state.snapshots.iter().map(|(id, state)| (names.snap(*id), format!("{state:?}"))).collect();
            let metadata: BTreeMap<_, _> =
                state.metadata.iter().map(|(key, value)| (names.text(key), format!("{value:?}"))).collect();
            let told = format!(
                "{} {} {:?} {snaps:?} {metadata:?}",
                names.text(&state.name),
                state.features,
                state.snap_limit
            );
            picture.insert(place("state"), told);
        }
    }
    Ok(())
}

/// Every object of the image, with the content of object maps. (That of data is compared by reading the image.)
async fn objects_of(image: &Image, objects: &[String], names: &Names, picture: &mut Picture) -> Result<()> {
    let ioctx = image.header_ioctx();
    let map = format!("rbd_object_map.{}", image.id());
    let state = format!("rbd_mirror_snapshot.{}.", image.id());
    for object in objects.iter().filter(|object| object.contains(&image.id().0)) {
        // What is left of an object for its snapshots goes when the OSD gets round to it.
        if object.starts_with(image.object_prefix()) && ioctx.stat(object).await.is_err() {
            continue;
        }
        let mut place = names.text(object);
        if let Some(hex) = object.strip_prefix(&format!("{map}.")) {
            place = format!("object map {}", names.snap(SnapId(u64::from_str_radix(hex, 16)?)));
        }
        if let Some((snap, index)) = object.strip_prefix(&state).and_then(|rest| rest.split_once('.')) {
            place = format!("state object {} {index}", names.snap(SnapId(snap.parse()?)));
        }
        let mut told = String::new();
        if object.starts_with(&map) {
            let content = ioctx.read_extent(object, SnapId::HEAD, Extent::new(0, 1 << 20)).await?;
            told = format!("{:02x?}, locked {}", &content[..], ioctx.list_locks(object).await?.len());
        }
        picture.insert(format!("object {place}"), told);
    }
    Ok(())
}

async fn journal_of(image: &Image, names: &Names, picture: &mut Picture) -> Result<()> {
    let Ok(journal) = Journal::open(image.header_ioctx(), image.id()).await else { return Ok(()) };
    let metadata = journal.mutable().await?;
    let told = format!("{:?} {:?} {:?}", journal.layout(), metadata.minimum_set, metadata.active_set);
    picture.insert("journal".into(), told);
    for client in metadata.clients {
        let data = names.text(&format!("{:?}", client.client_data()));
        let told = format!("{:?} {:?} {data}", client.state, client.commit_position);
        picture.insert(format!("journal client '{}'", names.text(&client.id)), told);
    }
    for tag in journal.tags(IMAGE_CLIENT_ID, None, None).await? {
        let data = names.text(&format!("{:?} {:?}", tag.class, tag.tag_data()));
        picture.insert(format!("journal tag {}", tag.tid.0), data);
    }
    Ok(())
}

async fn registrations(pool: &Pool, id: &ImageId, names: &Names, picture: &mut Picture) -> Result<()> {
    let mut found = |object: &str, key: &str, value: &[u8]| {
        // Behind the length of a string, or of a record: ids are not all of one length.
        let value = names.text(&String::from_utf8_lossy(value.get(4..).unwrap_or_default()));
        let value = value.trim_start_matches('\0').escape_debug().to_string();
        picture.insert(format!("{object} {}", names.text(key)), value);
    };
    for (key, value) in pool.ioctx().omap_all(directory::DIRECTORY_OBJECT, "").await? {
        if key.ends_with(&id.0) || value.ends_with(id.0.as_bytes()) {
            found("directory", &key, &value);
        }
    }
    for (key, value) in pool.ioctx().omap_all(MIRRORING_OBJECT, "").await.unwrap_or_default() {
        let global = names.text(&key);
        let mine = key.ends_with(&id.0) || global.contains("<global>");
        // Statuses tell of times and addresses.
        if mine && !key.contains("status") {
            found("mirroring", &key, &value);
        }
    }
    Ok(())
}

/// Fails unless two images have the same picture.
pub async fn expect_same_picture(pool: &Pool, stock: &str, ours: &str) -> Result<()> {
    let of_stock = picture(pool, stock).await.with_context(|| format!("the picture of {stock}"))?;
    let of_ours = picture(pool, ours).await.with_context(|| format!("the picture of {ours}"))?;
    expect_equal(&of_stock, &of_ours)
}

/// Fails unless two pictures are the same.
pub fn expect_equal(of_stock: &Picture, of_ours: &Picture) -> Result<()> {
    let places: BTreeSet<_> = of_stock.keys().chain(of_ours.keys()).collect();
    let differs = |place: &&&String| of_stock.get(**place) != of_ours.get(**place);
    let differences: Vec<_> = places
        .iter()
        .filter(differs)
        .map(|place| {
            let told = |picture: &Picture| picture.get(*place).cloned().unwrap_or_else(|| "(nothing)".into());
            format!("{place}:\n  stock {}\n  ours  {}", told(of_stock), told(of_ours))
        })
        .collect();
    ensure!(differences.is_empty(), "what is stored differs:\n{}", differences.join("\n"));
    ensure!(of_stock.len() > 10, "the picture shows next to nothing");
    Ok(())
}
