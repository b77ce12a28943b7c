//! A handle of an image: where its parts lie and how it is cut.

use rados::error::ResultExt;
use rados::{IoCtx, Result, SnapId};

use crate::directory;
use crate::header::ImageHeader;
use crate::layout::{Layout, data_object};
use crate::object_map::ObjectMapObject;
use crate::types::{ChildImage, ImageId, ObjectNumber};

/// Where an image's parts lie. It holds nothing that changes but the name, and is cheap to clone.
#[derive(Debug, Clone)]
pub struct Image {
    header: IoCtx,
    data: IoCtx,
    id: ImageId,
    name: String,
    object_prefix: String,
    layout: Layout,
}

impl Image {
    /// The handle of an image whose header was read; `name` may be empty when it does not matter.
    pub fn of(ioctx: &IoCtx, name: &str, header: &ImageHeader) -> Image {
        let data = match header.data_pool {
            Some(pool) => ioctx.with_pool(pool).for_data(),
            None => ioctx.for_data(),
        };
        Image {
            header: ioctx.clone(),
            data,
            id: header.id.clone(),
            name: name.to_string(),
            object_prefix: header.object_prefix.clone(),
            layout: header.layout,
        }
    }

    /// Opens an image by its id. ENOENT when there is none. The name is empty when the image is not in the directory
    /// (it is in the trash, or half made).
    pub async fn open(ioctx: &IoCtx, id: &ImageId) -> Result<(Image, ImageHeader)> {
        let (name, header) = futures::try_join!(directory::name_of(ioctx, id), ImageHeader::read(ioctx, id))?;
        Ok((Image::of(ioctx, &name.unwrap_or_default(), &header), header))
    }

    /// Opens an image by its name. ENOENT when there is none.
    pub async fn open_by_name(ioctx: &IoCtx, name: &str) -> Result<(Image, ImageHeader)> {
        let id = directory::id_of(ioctx, name).await.context(format!("cannot open image '{name}'"))?;
        let header = ImageHeader::read(ioctx, &id).await?;
        Ok((Image::of(ioctx, name, &header), header))
    }

    /// Pool and namespace of the header, the object maps and all else but the data.
    pub fn header_ioctx(&self) -> &IoCtx {
        &self.header
    }

    /// Pool and namespace of the data objects; snapshot ids are allocated here.
    pub fn data_ioctx(&self) -> &IoCtx {
        &self.data
    }

    /// Its id.
    pub fn id(&self) -> &ImageId {
        &self.id
    }

    /// Its name when it was opened, empty when unknown.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is cut into objects.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Prefix of the names of its data objects.
    pub fn object_prefix(&self) -> &str {
        &self.object_prefix
    }

    /// Name of a data object.
    pub fn data_object(&self, object: ObjectNumber) -> String {
        data_object(&self.object_prefix, object)
    }

    /// Its object map at `snap`.
    pub fn object_map(&self, snap: SnapId) -> ObjectMapObject {
        ObjectMapObject::new(&self.header, &self.id, snap)
    }

    /// This image as a parent knows it.
    pub fn as_child(&self) -> ChildImage {
        ChildImage {
            pool: self.header.pool_id(),
            namespace: self.header.namespace().to_string(),
            image: self.id.clone(),
        }
    }

    /// Reads its header anew.
    pub async fn read_header(&self) -> Result<ImageHeader> {
        ImageHeader::read(&self.header, &self.id).await
    }
}

/// An open image and its header as last read.
#[derive(Debug, Clone)]
pub struct OpenImage {
    /// The image.
    pub image: Image,
    /// Its header.
    pub header: ImageHeader,
}

impl OpenImage {
    /// Reads the header anew.
    pub async fn refresh(&mut self) -> Result<()> {
        self.header = self.image.read_header().await?;
        Ok(())
    }
}
