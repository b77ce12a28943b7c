//! What a copy has to know of both images together.

use rados::{Error, Result, SnapId};
use rbd::Snapshot;
use rbd::image::OpenImage;
use rbd::read::Reader;

use crate::copier::CopyFailed;
use crate::diff::{Chain, Changes, Scope, changes};
use crate::map_trust::{History, Trust};
use crate::object_copy::{CopyError, Parents, Side};

/// A primary image and its copy.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// The copy.
    pub local: &'a OpenImage,
    /// The primary.
    pub remote: &'a OpenImage,
}

impl Pair<'_> {
    /// Number of objects of the largest size that either image has, or had at a snapshot.
    pub fn objects_max(&self) -> u64 {
        let sizes = [&self.local.header, &self.remote.header].map(|header| {
            let snapshots = header.snapshots.values().map(|s| s.image_size).max();
            snapshots.unwrap_or(0).max(header.size)
        });
        self.local.image.layout().object_count(sizes[0].max(sizes[1]))
    }

    /// True when the remote image has no parent at `end`, and the local one, which still has one, is about to lose it.
    pub fn flattened(&self, end: SnapId) -> bool {
        self.local.header.parent.is_some() && self.remote.header.parent_at(end).is_none()
    }

    /// The objects to look at for what lies between the remote snapshots `start` and `end`.
    pub async fn changes(
        &self,
        start: Option<SnapId>,
        end: SnapId,
        trust: Trust,
        history: &History,
    ) -> Result<Changes> {
        let header = &self.remote.header;
        let snapshots: Vec<Snapshot> = header.snapshots.values().cloned().collect();
        let chain = Chain {
            header: self.remote.image.header_ioctx(),
            image: self.remote.image.id(),
            features: header.features,
            layout: &header.layout,
            snapshots: &snapshots,
            start,
            end,
            trust,
            history,
        };
        let scope = if self.flattened(end) { Scope::Existing } else { Scope::Changed };
        let changes = changes(&chain, scope).await?;
        let candidates = chain.candidates();
        if trust != Trust::Auto || candidates.is_empty() {
            return Ok(changes);
        }
        // A snapshot that is removed while the maps are read changes the next one's.
        let now: Vec<Snapshot> = self.remote.image.read_header().await?.snapshots.into_values().collect();
        if (Chain { snapshots: &now, ..chain }).candidates() == candidates {
            return Ok(changes);
        }
        Ok(Changes { visits: changes.visits.and_all_others(self.objects_max()), settled: false })
    }

    /// What [`ObjectCopier::parents`](crate::object_copy::ObjectCopier) needs when the first step ends at `end`; `None` when
    /// no parent shows in either image.
    pub async fn parents(&self, end: SnapId) -> Result<Option<Parents>> {
        if self.local.header.parent.is_none() && self.remote.header.parent_at(end).is_none() {
            return Ok(None);
        }
        Ok(Some(Parents {
            remote: Reader::open(&self.remote.image, &self.remote.header, end).await?,
            local: Reader::open(&self.local.image, &self.local.header, SnapId::HEAD).await?,
            layout: *self.local.image.layout(),
        }))
    }
}

/// The data objects of an image.
pub fn side(image: &OpenImage) -> Side {
    Side { data: image.image.data_ioctx().clone(), object_prefix: image.image.object_prefix().to_string() }
}

/// Why the image called `name` could not be copied, as an error whose class tells how to go on.
pub fn failure(name: &str, failed: CopyFailed) -> Error {
    let what = format!("cannot copy image '{name}'");
    match failed {
        CopyFailed::Object { object, source } => {
            let errno = match (&source, source.rados()) {
                (_, Some(error)) => error.errno(),
                (CopyError::SnapshotGone { .. } | CopyError::Overtaken { .. }, _) => libc::EAGAIN,
                _ => libc::EIO,
            };
            Error::new(errno, format!("{what}: object {object}: {source}"))
        }
        CopyFailed::Checkpoint(error) => error.context(what),
        CopyFailed::Cancelled => Error::new(libc::ECANCELED, what),
    }
}
