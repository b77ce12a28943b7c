//! Looking for the remote image, and telling one that is gone from one that cannot be found for another reason.
//!
//! A copy follows its primary when that is removed, or its mirroring is disabled: it is removed. Nothing else may look
//! like that. So the absence of the image's entry counts only together with the rest of the metadata of mirroring, read in
//! the same operation: the object `rbd_mirroring` is there, mirroring is enabled, and the mirror uuid is the one that
//! the copy was made from. When the pool was deleted, or made anew under its name, when mirroring was disabled in it or its
//! metadata are lost, or when the cluster was rebuilt, copies stay, and their statuses say why nothing comes.
//!
//! A namespace has its own `rbd_mirroring`, with a mirror uuid that no copy names; that of the pool is compared after it.

use rados::encoding::Decoder;
use rados::{Error, IoCtx, ReadAnswer, ReadOp, ReadSub, Result};
use rbd::ImageId;
use rbd::mirroring::{MIRRORING_OBJECT, MirrorImageState, MirrorMode, Mirroring};

use super::ImageContext;
use super::bootstrap::Record;

/// What is known of the remote image.
#[derive(Debug)]
pub(super) enum RemoteImage {
    /// It is mirrored.
    Mirrored(Record),
    /// Its mirroring is being disabled, or it is being removed.
    Disabling,
    /// It is gone, or mirrored no more.
    Gone(Gone),
    /// This cannot be told: a sentence for an operator says why.
    Unknown(String),
}

/// The remote image was seen to be gone. Nothing but [`find`] makes this.
#[derive(Debug)]
pub(super) struct Gone(());

impl RemoteImage {
    /// The image's entry, if it is mirrored.
    pub(super) fn mirrored(self) -> Option<Record> {
        match self {
            RemoteImage::Mirrored(record) => Some(record),
            _ => None,
        }
    }
}

/// Looks for the remote image.
pub(super) async fn find(ctx: &ImageContext) -> Result<RemoteImage> {
    let key = format!("global_{}", ctx.global_image_id);
    let found = match read_namespace(&ctx.remote, &ctx.remote_mirror_uuid, Some(&key)).await? {
        Ok(found) => found,
        Err(why) => return Ok(RemoteImage::Unknown(kept(&why))),
    };
    if let Some(id) = found {
        let mirror = Mirroring::new(&ctx.remote).image(&id).await?;
        // Without metadata, it went after its id had been read.
        let mirror = mirror.filter(|mirror| mirror.state != MirrorImageState::Disabling);
        return Ok(match mirror {
            Some(mirror) => RemoteImage::Mirrored(Record { id, mirror }),
            None => RemoteImage::Disabling,
        });
    }
    Ok(match pool_trouble(&ctx.remote, &ctx.remote_mirror_uuid).await? {
        Some(why) => RemoteImage::Unknown(kept(&why)),
        None => RemoteImage::Gone(Gone(())),
    })
}

/// What keeps all images of a remote pool and namespace from being mirrored, if there is something: a sentence for an
/// operator.
pub async fn trouble(remote: &IoCtx, mirror_uuid: &str) -> Result<Option<String>> {
    match read_namespace(remote, mirror_uuid, None).await? {
        Ok(_) => pool_trouble(remote, mirror_uuid).await,
        Err(why) => Ok(Some(kept(&why))),
    }
}

/// The same of the pool alone, when `remote` is one of its namespaces: that is looked at before.
async fn pool_trouble(remote: &IoCtx, mirror_uuid: &str) -> Result<Option<String>> {
    if remote.namespace().is_empty() {
        return Ok(None);
    }
    Ok(read_metadata(&remote.with_namespace(""), mirror_uuid, None).await?.err())
}

async fn read_namespace(
    remote: &IoCtx,
    mirror_uuid: &str,
    key: Option<&str>,
) -> Result<std::result::Result<Option<ImageId>, String>> {
    let read = read_metadata(remote, mirror_uuid, key).await?;
    Ok(read.and_then(|read| if read.mode.is_enabled() { Ok(read.image) } else { Err(not_enabled(remote)) }))
}

/// What a namespace says of its mirroring.
struct Metadata {
    mode: MirrorMode,
    /// The id of the image that was asked for.
    image: Option<ImageId>,
}

/// Reads the metadata of mirroring in one operation; a sentence when they are not those of a mirrored namespace. `key` names
/// the image that is asked for.
async fn read_metadata(
    remote: &IoCtx,
    mirror_uuid: &str,
    key: Option<&str>,
) -> Result<std::result::Result<Metadata, String>> {
    let mut keys = vec!["mirror_uuid".to_string(), "mirror_mode".to_string()];
    keys.extend(key.map(str::to_string));
    let op = ReadOp::new(MIRRORING_OBJECT).with(ReadSub::AssertExists).with(ReadSub::OmapGetByKeys(keys));
    let page = match remote.read(op).await {
        Ok(mut reply) => match reply.answers.pop() {
            Some(ReadAnswer::Omap(page)) => page,
            _ => return Err(Error::new(libc::EBADMSG, "an omap was read and something else came")),
        },
        Err(error) if error.is_not_found() => return Ok(Err(why_no_metadata(remote).await?)),
        Err(error) => return Err(error.context("cannot read the mirroring metadata of the remote pool")),
    };
    let value = |key: &str| page.entries.iter().find(|(k, _)| k == key).map(|(_, value)| value);
    let mode = match value("mirror_mode") {
        Some(mode) => MirrorMode::from_wire(Decoder::new(mode, "the mirroring mode").u32()?),
        None => MirrorMode::Disabled,
    };
    // What is disabled has no mirror uuid.
    if mode == MirrorMode::Disabled {
        return Ok(Err(not_enabled(remote)));
    }
    let uuid =
        value("mirror_uuid").map(|uuid| String::from_utf8_lossy(uuid).into_owned()).unwrap_or_default();
    let foreign = if remote.namespace().is_empty() { uuid != mirror_uuid } else { uuid.is_empty() };
    if foreign {
        return Ok(Err(other_uuid(&uuid, mirror_uuid)));
    }
    let image = match key.and_then(value) {
        Some(id) => Some(ImageId(Decoder::new(id, "the id of a mirrored image").string()?)),
        None => None,
    };
    Ok(Ok(Metadata { mode, image }))
}

/// Why there is no object `rbd_mirroring`.
async fn why_no_metadata(remote: &IoCtx) -> Result<String> {
    remote.backend().wait_for_latest_osdmap().await?;
    let pools = remote.backend().pools().await?;
    Ok(match pools.iter().any(|(id, _)| *id == remote.pool_id()) {
        true => format!(
            "the remote {} has no mirroring metadata any more (there is no object {MIRRORING_OBJECT})",
            place(remote)
        ),
        false => format!("the remote pool (id {}) no longer exists", remote.pool_id()),
    })
}

fn not_enabled(remote: &IoCtx) -> String {
    format!("mirroring is not enabled in the remote {}", place(remote))
}

fn other_uuid(uuid: &str, expected: &str) -> String {
    format!(
        "the remote pool has the mirror uuid '{uuid}' and this image was copied from the one with '{expected}': it was \
         made anew or its mirroring was"
    )
}

fn place(remote: &IoCtx) -> String {
    match remote.namespace() {
        "" => "pool".into(),
        namespace => format!("namespace '{namespace}'"),
    }
}

/// What follows for copies.
fn kept(why: &str) -> String {
    format!(
        "{why}; the copy is kept. Bring the remote pool back or promote the copy by force to use it; if it is not needed \
         any more disable its mirroring and remove it"
    )
}
