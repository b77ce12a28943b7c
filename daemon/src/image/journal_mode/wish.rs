//! The wish for a resync of an image that cannot be followed: it must not wait for the pause after a failure to be over.

use journal::Journal;
use journal::image_journal::ImageJournal;
use rados::Result;
use rados::error::ResultExt;
use rbd::mirroring::MirrorImageMode;

use crate::image::{ImageContext, bootstrap};

/// Waits for the wish during the pauses between attempts.
#[derive(Debug, Default)]
pub struct ResyncWish {
    /// An attempt was made since the wish was there.
    attempted: bool,
}

impl ResyncWish {
    /// Waits until there is a wish for a resync that no attempt has been made upon; for ever when that cannot be told.
    /// Cancel-safe.
    pub async fn arises(&mut self, ctx: &ImageContext) {
        match self.listen(ctx).await {
            Ok(true) => {}
            Ok(false) => std::future::pending().await,
            Err(error) => {
                tracing::debug!(image = %ctx.global_image_id, "cannot wait for a wish for a resync: {error}");
                std::future::pending().await
            }
        }
    }

    /// True when the wish arises; false when it never will: there is no local journal, or it is being removed.
    async fn listen(&mut self, ctx: &ImageContext) -> Result<bool> {
        let local = bootstrap::find(&ctx.local, &ctx.global_image_id).await?;
        let Some(local) = local.filter(|record| record.mirror.mode == MirrorImageMode::Journal) else {
            return Ok(false);
        };
        let Some(journal) = Journal::open(&ctx.local, &local.id).await.optional()? else { return Ok(false) };
        let mut watch = journal.watch().await?;
        loop {
            let wished = ImageJournal::read(&journal).await?.resync_requested;
            if wished && !std::mem::replace(&mut self.attempted, wished) {
                return Ok(true);
            }
            self.attempted = wished;
            if watch.next().await.is_none() {
                return Ok(false);
            }
        }
    }
}
