//! Metadata of a pool: what `rbd config pool set` stores, under keys that begin with `conf_`. It counts for all namespaces
//! of the pool, and is overridden by the metadata of an image.
//!
//! Reference: `src/librbd/api/PoolMetadata.cc`, `src/librbd/ImageCtx.cc` (`apply_metadata`).

use std::collections::BTreeMap;

use bytes::Bytes;
use rados::encoding::{Decoder, Encoder};
use rados::error::ResultExt;
use rados::{IoCtx, Result};

use crate::directory::INFO_OBJECT;

/// How the keys of options begin, in the metadata of pools and of images.
pub const OPTION_PREFIX: &str = "conf_";
/// Entries asked for at once.
const PAGE_ENTRIES: u64 = 1024;

/// All metadata of the pool of `ioctx`.
pub async fn pool_metadata(ioctx: &IoCtx) -> Result<BTreeMap<String, Bytes>> {
    let ioctx = ioctx.with_namespace("");
    let mut metadata = BTreeMap::<String, Bytes>::new();
    loop {
        let mut input = Encoder::new();
        input.string(metadata.keys().next_back().map_or("", String::as_str)).u64(PAGE_ENTRIES);
        let output = ioctx.exec(INFO_OBJECT, "rbd", "metadata_list", input.finish()).await.optional();
        let Some(output) = output.context("cannot read the configuration of the pool")? else {
            return Ok(metadata);
        };
        let page = Decoder::new(&output, "metadata of a pool").string_map()?;
        let end = (page.len() as u64) < PAGE_ENTRIES;
        metadata.extend(page);
        if end {
            return Ok(metadata);
        }
    }
}
