//! Options as librbd sees them for one image: of the image, else of the pool, else of this client.
//!
//! Overrides are metadata whose keys begin with `conf_`: of the image in its header, of the pool in `rbd_info`.
//!
//! Reference: `src/librbd/ImageCtx.cc` (`apply_metadata`), `src/librbd/image/RefreshRequest.cc`.

use std::collections::BTreeMap;

use rados::{IoCtx, Result};
use rbd::ImageHeader;
use rbd::pool_metadata::OPTION_PREFIX;

use crate::pool::Pool;

/// What to do about those who have an image open when a mirror-snapshot is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiesce {
    /// Ask them to stop writing; make none when one of them does not.
    Required,
    /// Ask them, and make it anyway.
    IgnoreError,
    /// Do not ask them.
    Skip,
}

impl Pool {
    /// The value of an option for the image with this header.
    pub(crate) async fn image_option(&self, header: &ImageHeader, option: &str) -> Result<Option<String>> {
        let key = format!("{OPTION_PREFIX}{option}");
        if let Some(value) = header.metadata.get(&key) {
            return Ok(Some(String::from_utf8_lossy(value).into_owned()));
        }
        let overrides = self.inner.overrides.get_or_try_init(|| pool_metadata(self.ioctx())).await?;
        Ok(overrides.get(&key).cloned().or_else(|| self.cluster().config(option)))
    }

    /// What is done about those who have the image open unless it is said otherwise
    /// (`rbd_default_snapshot_quiesce_mode`).
    pub(crate) async fn default_quiesce(&self, header: &ImageHeader) -> Result<Quiesce> {
        let mode = self.image_option(header, "rbd_default_snapshot_quiesce_mode").await?;
        Ok(match mode.as_deref() {
            Some("skip") => Quiesce::Skip,
            Some("ignore-error") => Quiesce::IgnoreError,
            _ => Quiesce::Required,
        })
    }

    /// A number that an option gives for the image with this header.
    pub(crate) async fn image_number(&self, header: &ImageHeader, option: &str, default: u64) -> Result<u64> {
        let value = self.image_option(header, option).await?;
        Ok(value.and_then(|value| value.parse().ok()).unwrap_or(default))
    }
}

/// Metadata of the pool.
async fn pool_metadata(ioctx: &IoCtx) -> Result<BTreeMap<String, String>> {
    let metadata = rbd::pool_metadata::pool_metadata(ioctx).await?;
    Ok(metadata.into_iter().map(|(key, value)| (key, String::from_utf8_lossy(&value).into_owned())).collect())
}
