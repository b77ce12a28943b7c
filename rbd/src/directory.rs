//! Names of images: the pool's directory, the id objects, namespaces, and the mark that a pool is fit for RBD.
//!
//! An image `NAME` with id `ID` is in two places: `rbd_directory` maps names to ids and ids to names (omap keys
//! `name_NAME` and `id_ID`), and the object `rbd_id.NAME` holds the id (as an encoded string). Stock tools open an image
//! by its id object and list by the directory, so that both must agree; each operation here changes them in librbd's
//! order and can be repeated after it was cut off.
//!
//! Reference: `src/cls/rbd/cls_rbd.cc` (`dir_*`, `get_id`, `namespace_*`), `src/librbd/operation/RenameRequest.cc`,
//! `src/librbd/image/ValidatePoolRequest.cc`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rados::encoding::{Decoder, Encoder};
use rados::error::ResultExt;
use rados::{Error, Extent, IoCtx, ReadAnswer, ReadOp, ReadSub, Result, SnapId, WriteOp, WriteSub};

use crate::layout::id_object;
use crate::types::ImageId;

/// The directory object.
pub const DIRECTORY_OBJECT: &str = "rbd_directory";
/// Holds the pool's mark and its configuration.
pub const INFO_OBJECT: &str = "rbd_info";
/// Lists the namespaces of a pool; lies in the default one.
pub const NAMESPACE_OBJECT: &str = "rbd_namespace";
/// Entries asked for at once.
const PAGE_ENTRIES: u64 = 1024;
const VALIDATE: &[u8] = b"validate";
const OVERWRITE_VALIDATED: &[u8] = b"overwrite validated";

fn strings(values: &[&str]) -> Bytes {
    let mut e = Encoder::new();
    for value in values {
        e.string(value);
    }
    e.finish()
}

fn page_after(last: &str) -> Bytes {
    let mut e = Encoder::new();
    e.string(last).u64(PAGE_ENTRIES);
    e.finish()
}

/// The id of the image called `name`, from its id object. ENOENT when there is none.
pub async fn id_of(ioctx: &IoCtx, name: &str) -> Result<ImageId> {
    let output = ioctx.exec(&id_object(name), "rbd", "get_id", Bytes::new()).await;
    let output = output.context(format!("cannot find the id of image '{name}'"))?;
    Ok(ImageId(Decoder::new(&output, "image id").string()?))
}

/// The id of the image called `name`, from the directory; `None` when it is not there.
pub async fn directory_id_of(ioctx: &IoCtx, name: &str) -> Result<Option<ImageId>> {
    let output = ioctx.exec(DIRECTORY_OBJECT, "rbd", "dir_get_id", strings(&[name])).await.optional();
    let Some(output) = output.context(format!("cannot look up image '{name}'"))? else {
        return Ok(None);
    };
    Ok(Some(ImageId(Decoder::new(&output, "image id").string()?)))
}

/// The name of an image, from the directory; `None` when it is not there.
pub async fn name_of(ioctx: &IoCtx, id: &ImageId) -> Result<Option<String>> {
    let output = ioctx.exec(DIRECTORY_OBJECT, "rbd", "dir_get_name", strings(&[&id.0])).await.optional();
    let Some(output) = output.context(format!("cannot look up the name of image {id}"))? else {
        return Ok(None);
    };
    Ok(Some(Decoder::new(&output, "image name").string()?))
}

/// All images of the pool and namespace: name to id.
pub async fn list(ioctx: &IoCtx) -> Result<BTreeMap<String, ImageId>> {
    let mut images = BTreeMap::<String, ImageId>::new();
    loop {
        let last = images.keys().next_back().cloned().unwrap_or_default();
        let output = ioctx.exec(DIRECTORY_OBJECT, "rbd", "dir_list", page_after(&last)).await.optional();
        let Some(output) = output.context("cannot list images")? else {
            return Ok(images);
        };
        let page =
            Decoder::new(&output, "image directory").seq(8, |d| Ok((d.string()?, ImageId(d.string()?))))?;
        let end = (page.len() as u64) < PAGE_ENTRIES;
        images.extend(page);
        if end {
            return Ok(images);
        }
    }
}

/// Adds an image to the directory. EEXIST when the name is taken, EBADF when the id is, ENOENT when there is no such
/// namespace. Answers whether it was this call that added it, and not an earlier one.
pub async fn add(ioctx: &IoCtx, name: &str, id: &ImageId) -> Result<bool> {
    const STATE_READY: u8 = 0;
    let mut op = WriteOp::new(DIRECTORY_OBJECT);
    if !ioctx.namespace().is_empty() {
        op = op.exec("rbd", "dir_state_assert", vec![STATE_READY]);
    }
    let added = ioctx.write(op.exec("rbd", "dir_add_image", strings(&[name, &id.0]))).await;
    match added {
        Ok(_) => Ok(true),
        Err(error) if error.is(libc::EEXIST) && directory_id_of(ioctx, name).await?.as_ref() == Some(id) => {
            Ok(false)
        }
        Err(error) => Err(error.context(format!("cannot add image '{name}' ({id}) to the directory"))),
    }
}

/// Removes an image from the directory. It is no error when it is not there. ESTALE when name and id are there, but
/// do not belong together.
pub async fn remove(ioctx: &IoCtx, name: &str, id: &ImageId) -> Result<()> {
    let removed =
        ioctx.exec_write(DIRECTORY_OBJECT, "rbd", "dir_remove_image", strings(&[name, &id.0])).await;
    removed.optional().map(drop).context(format!("cannot remove image '{name}' ({id}) from the directory"))
}

/// Creates the id object of an image; answers whether it was this call that did, and not an earlier one. EEXIST when
/// there is one of another image.
pub async fn create_id_object(ioctx: &IoCtx, name: &str, id: &ImageId) -> Result<bool> {
    let op = WriteOp::new(id_object(name)).with(WriteSub::Create { exclusive: true });
    match ioctx.write(op.exec("rbd", "set_id", strings(&[&id.0]))).await {
        Ok(_) => Ok(true),
        Err(error) if error.is(libc::EEXIST) && id_of(ioctx, name).await.optional()?.as_ref() == Some(id) => {
            Ok(false)
        }
        Err(error) => Err(error.context(format!("cannot create the id object of image '{name}' ({id})"))),
    }
}

/// Removes the id object of an image, unless it belongs to another one. It is no error when there is none.
pub async fn remove_id_object(ioctx: &IoCtx, name: &str, id: &ImageId) -> Result<()> {
    let what = || format!("cannot remove the id object of image '{name}'");
    loop {
        let read = ReadOp::new(id_object(name)).with(ReadSub::Stat).exec("rbd", "get_id", Bytes::new());
        let version = match ioctx.read(read).await {
            Ok(reply) if owner(&reply.answers)? != *id => return Ok(()),
            // Another image may take the name over between reading and removing.
            Ok(reply) => Some(reply.version),
            Err(error) if error.is_not_found() => return Ok(()),
            // One without content, left by a creation that was cut off, can only be a leftover.
            Err(_) => None,
        };
        let remove = WriteOp::new(id_object(name));
        let remove = version.map_or(remove.clone(), |version| remove.with(WriteSub::AssertVersion(version)));
        match ioctx.write(remove.with(WriteSub::Remove)).await {
            Err(error) if error.is(libc::ERANGE) || error.is(libc::EOVERFLOW) => continue,
            removed => return removed.optional().map(drop).context(what()),
        }
    }
}

/// The image that an id object names.
fn owner(answers: &[ReadAnswer]) -> Result<ImageId> {
    match answers.get(1) {
        Some(ReadAnswer::Data(data)) => Ok(ImageId(Decoder::new(data, "image id").string()?)),
        _ => Err(Error::new(libc::EBADMSG, "cannot read an image id: there is no answer")),
    }
}

/// Renames an image: new id object, directory, old id object. The image answers to its old name until the directory
/// is changed, and to its new one from then on. `from` is its name as the caller last knew it: it lets a repetition
/// remove the old id object that a rename cut off behind the directory left. ENOENT when the image is not in the
/// directory, EEXIST when the new name is taken, ESTALE when somebody else renamed the image meanwhile.
pub async fn rename(ioctx: &IoCtx, id: &ImageId, from: Option<&str>, to: &str) -> Result<()> {
    let what = || format!("cannot rename image {id} to '{to}'");
    let Some(name) = name_of(ioctx, id).await? else {
        return Err(Error::new(libc::ENOENT, what()));
    };
    if name != to {
        if directory_id_of(ioctx, to).await?.is_some() {
            return Err(Error::new(libc::EEXIST, what()));
        }
        create_id_object(ioctx, to, id).await?;
        let renamed =
            ioctx.exec_write(DIRECTORY_OBJECT, "rbd", "dir_rename_image", strings(&[&name, to, &id.0])).await;
        if let Err(error) = renamed {
            // Nobody finds the image by what may be left of the attempt, but others would find the name taken.
            if name_of(ioctx, id).await?.as_deref() != Some(to) {
                remove_id_object(ioctx, to, id).await?;
            }
            let raced = error.is_not_found() || error.is(libc::ESTALE);
            let error = if raced { Error::new(libc::ESTALE, error.to_string()) } else { error };
            return Err(error.context(what()));
        }
        remove_id_object(ioctx, &name, id).await?;
    }
    match from {
        Some(from) if from != to && from != name => remove_id_object(ioctx, from, id).await,
        _ => Ok(()),
    }
}

/// Names of the namespaces of a pool, without the default one.
pub async fn namespaces(ioctx: &IoCtx) -> Result<BTreeSet<String>> {
    let ioctx = ioctx.with_namespace("");
    let mut names = BTreeSet::<String>::new();
    loop {
        let last = names.last().cloned().unwrap_or_default();
        let output =
            ioctx.exec(NAMESPACE_OBJECT, "rbd", "namespace_list", page_after(&last)).await.optional();
        let Some(output) = output.context("cannot list namespaces")? else {
            return Ok(names);
        };
        let page: Vec<String> = Decoder::new(&output, "namespaces").seq(4, |d| d.string())?;
        let end = (page.len() as u64) < PAGE_ENTRIES;
        names.extend(page);
        if end {
            return Ok(names);
        }
    }
}

/// Makes sure that a pool takes overwrites and self-managed snapshots, as librbd does before it creates an image with
/// data there, and marks it so. EINVAL when it cannot hold images.
pub async fn validate_pool(ioctx: &IoCtx) -> Result<()> {
    let what = || format!("cannot use pool {} for images", ioctx.pool_id());
    let content = ioctx.read_extent(INFO_OBJECT, SnapId::HEAD, Extent::new(0, 64)).await.optional();
    let content = content.context(what())?.unwrap_or_default();
    if content == OVERWRITE_VALIDATED {
        return Ok(());
    }
    if content != VALIDATE {
        // The first snapshot id puts the pool into the mode that images need.
        let snap = ioctx.snap_create().await.context(what())?;
        let mark = WriteOp::new(INFO_OBJECT).with(WriteSub::Create { exclusive: true });
        let mark = mark.with(WriteSub::Write { offset: 0, data: Bytes::from_static(VALIDATE) });
        let marked = ioctx.write(mark).await;
        if let Err(error) = ioctx.snap_remove(snap).await {
            tracing::warn!(pool = %ioctx.pool_id(), "cannot give back snapshot id {snap}: {error}");
        }
        match marked {
            Err(error) if error.is(libc::EEXIST) => {}
            other => refuse_without_overwrite(other.map(drop)).context(what())?,
        }
    }
    let write = WriteSub::Write { offset: 0, data: Bytes::from_static(OVERWRITE_VALIDATED) };
    let written = ioctx.write(WriteOp::new(INFO_OBJECT).with(write)).await;
    refuse_without_overwrite(written.map(drop)).context(what())
}

fn refuse_without_overwrite(written: Result<()>) -> Result<()> {
    match written {
        Err(error) if error.is(libc::EOPNOTSUPP) => {
            Err(Error::new(libc::EINVAL, "the pool does not allow overwrites"))
        }
        other => other,
    }
}
