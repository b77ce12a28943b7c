//! The name of a copy: that of its primary.
//!
//! It follows the remote directory as it is now. Neither the name in an image state nor that in a journal's event would
//! do: of two images that exchange their names, one could wait for the other's next snapshot for days, and a promoted
//! `a` would hold what is `b`'s.
//!
//! Each task renames its own copy, and nobody else's. A name that is taken is left to its holder until that has moved on;
//! a copy whose own name is some other remote image's by now gets out of the way, under a name of its own
//! ([`ASIDE_PREFIX`]). So chains resolve from their free end, and in a circle all get out of the way.
//!
//! | the wanted name belongs to | then |
//! |---|---|
//! | nobody | the copy is renamed |
//! | a copy whose primary has another name by now | waited for: that one is renamed by its own task |
//! | only an id object without an entry in the directory | waited for; removed when it stays: a rename was cut off |
//! | any other local image | an error, until that is renamed or removed |

use std::time::{Duration, Instant};

use futures::try_join;
use rados::Result;
use rados::error::ResultExt;
use rbd::mirroring::{MirrorImageState, Mirroring};
use rbd::watch_notify::notify_header_update;
use rbd::{ImageId, directory};

use super::ImageContext;

/// What a copy is called while its name belongs to another image and its next one is still taken; its id follows.
const ASIDE_PREFIX: &str = ".rbd-mirror.renamed.";
/// How often a name that is taken is looked at again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long a name that is about to be given up may be waited for before that is an error.
const PASSING_LIMIT: Duration = Duration::from_secs(15);
/// How long any other name: names change hands between two looks.
const TAKEN_LIMIT: Duration = Duration::from_secs(3);

/// Follows the name of a primary.
#[derive(Debug, Default)]
pub(super) struct NameFollower {
    blocked: Option<Blocked>,
}

/// A name that the copy cannot have.
#[derive(Debug, Clone)]
struct Blocked {
    why: String,
    /// It will be given up.
    passing: bool,
    since: Instant,
}

impl NameFollower {
    /// Gives the copy the name of its primary, as far as that can be. Answers with the name that it has then; `None` when
    /// it has none (it is in the trash).
    pub(super) async fn follow(
        &mut self,
        ctx: &ImageContext,
        local: &ImageId,
        remote: &ImageId,
    ) -> Result<Option<String>> {
        let names =
            try_join!(directory::name_of(&ctx.local, local), directory::name_of(&ctx.remote, remote))?;
        let (Some(current), Some(wanted)) = names.clone() else {
            self.blocked = None;
            return Ok(names.0);
        };
        if current == wanted || rename(ctx, local, &current, &wanted).await? {
            self.blocked = None;
            return Ok(Some(wanted));
        }
        let since = self.blocked.as_ref().map_or_else(Instant::now, |blocked| blocked.since);
        let (why, passing) = self.judge(ctx, &wanted, since.elapsed() > PASSING_LIMIT).await?;
        let why = format!("the copy cannot be renamed to '{wanted}' as its primary was: {why}");
        if self.blocked.is_none() {
            tracing::info!(image = %ctx.global_image_id, "for now {why}");
        }
        self.blocked = Some(Blocked { why, passing, since });
        self.step_aside(ctx, local, remote, current).await.map(Some)
    }

    /// Who has the wanted name, as a sentence, and whether it will be given up. `stale`: it was waited for long enough.
    async fn judge(&self, ctx: &ImageContext, wanted: &str, stale: bool) -> Result<(String, bool)> {
        let Some(holder) = directory::directory_id_of(&ctx.local, wanted).await? else {
            if stale {
                remove_leftover(ctx, wanted).await?;
            }
            return Ok(("a rename of another image that had the name was cut off".to_string(), true));
        };
        if is_moving(ctx, wanted, &holder).await? {
            return Ok((format!("the copy {holder} of another image has not given up the name yet"), true));
        }
        Ok((format!("local image {holder} has that name; rename or remove that one"), false))
    }

    /// Gives up a name that belongs to another remote image by now. Answers with the name that the copy has then.
    async fn step_aside(
        &self,
        ctx: &ImageContext,
        local: &ImageId,
        remote: &ImageId,
        current: String,
    ) -> Result<String> {
        let owner = directory::directory_id_of(&ctx.remote, &current).await?;
        if owner.is_none_or(|owner| owner == *remote) {
            return Ok(current);
        }
        let aside = format!("{ASIDE_PREFIX}{local}");
        Ok(if rename(ctx, local, &current, &aside).await? { aside } else { current })
    }

    /// When to look again; `None` when the name is right.
    pub(super) fn retry_interval(&self) -> Option<Duration> {
        self.blocked.as_ref().map(|_| RETRY_INTERVAL)
    }

    /// Why the copy has another name than its primary, as an error for the status.
    pub(super) fn trouble(&self) -> Option<&str> {
        let blocked = self.blocked.as_ref()?;
        let limit = if blocked.passing { PASSING_LIMIT } else { TAKEN_LIMIT };
        (blocked.since.elapsed() > limit).then_some(&blocked.why)
    }
}

/// Renames a copy; false when the name is taken.
async fn rename(ctx: &ImageContext, local: &ImageId, from: &str, to: &str) -> Result<bool> {
    match directory::rename(&ctx.local, local, Some(from), to).await {
        Ok(()) => {
            tracing::info!(image = %ctx.global_image_id, "renamed the copy '{from}' to '{to}'");
            let (ioctx, id) = (ctx.local.clone(), local.clone());
            // Whoever has it open learns its name; this task is among them, and must be able to answer.
            tokio::spawn(async move { notify_header_update(&ioctx, &id).await });
            Ok(true)
        }
        Err(error) if error.is(libc::EEXIST) || error.is(libc::ESTALE) => Ok(false),
        Err(error) => Err(error),
    }
}

/// True for a copy whose primary is not called `name` any more, or gone.
pub(super) async fn is_moving(ctx: &ImageContext, name: &str, local: &ImageId) -> Result<bool> {
    let Some(mirror) = Mirroring::new(&ctx.local).image(local).await? else { return Ok(false) };
    if mirror.state != MirrorImageState::Enabled {
        return Ok(false);
    }
    let Some(remote) = Mirroring::new(&ctx.remote).image_id(&mirror.global_id).await? else {
        return Ok(true);
    };
    Ok(directory::name_of(&ctx.remote, &remote).await?.is_none_or(|present| present != name))
}

/// Removes the id object of a name that its image has given up in the directory.
async fn remove_leftover(ctx: &ImageContext, name: &str) -> Result<()> {
    let Some(owner) = directory::id_of(&ctx.local, name).await.optional()? else { return Ok(()) };
    match directory::name_of(&ctx.local, &owner).await? {
        Some(present) if present != name => directory::remove_id_object(&ctx.local, name, &owner).await,
        _ => Ok(()),
    }
}
