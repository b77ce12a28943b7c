//! Which images a command works on, and where their counterparts are.
//!
//! The two images of a pair are known by their global id; their names may differ for as long as a rename has not been
//! copied.

use std::collections::BTreeMap;

use control::{ImageInfo, Pool};
use futures::{StreamExt, TryStreamExt};
use rbd::directory;
use rbd::mirroring::{GlobalImageId, MirrorMode, Mirroring};

use crate::connection::Site;
use crate::failure::Failure;
use crate::grammar::own::TargetArgs;
use crate::other_site::OtherSite;
use crate::spec::{self, ImageSpec, Target};

/// The pool (or namespace) and the images in it that a command works on.
pub struct Targets {
    /// The pool or namespace.
    pub pool: Pool,
    /// The images that are mirrored, by name.
    pub images: Vec<ImageInfo>,
    /// What was named.
    pub target: Target,
}

impl Targets {
    /// Finds what was named. EINVAL when it is not mirrored, ENOENT when it does not exist.
    pub async fn find(site: &Site, args: &TargetArgs) -> Result<Targets, Failure> {
        let target = named(args)?;
        match &target {
            Target::Pool(place) => {
                let pool = site.pool(place).await?;
                if Mirroring::new(pool.ioctx()).mode().await? == MirrorMode::Disabled {
                    return Err(Failure::invalid(format!("mirroring is not enabled in {pool}")));
                }
                let images = mirrored_images(&pool).await?;
                Ok(Targets { pool, images, target })
            }
            Target::Image(ImageSpec { place, image }) => {
                let pool = site.pool(place).await?;
                let info = pool.image_info(image).await?;
                if !info.is_enabled() {
                    let name = image_name(&pool, image);
                    return Err(Failure::invalid(format!("mirroring is not enabled on image '{name}'")));
                }
                Ok(Targets { pool, images: vec![info], target })
            }
        }
    }
}

/// What was named on the command line; naming nothing is an error.
pub fn named(args: &TargetArgs) -> Result<Target, Failure> {
    spec::target(args)?.ok_or_else(|| {
        Failure::invalid(
            "nothing was named; name a pool (POOL), a namespace (POOL/NAMESPACE/) or an image (POOL/IMAGE)",
        )
    })
}

/// The mirror uuid by which copies of a pool's images, in whichever namespace, name it as their primary's; empty when
/// there is none.
pub async fn mirror_uuid(pool: &Pool) -> rados::Result<String> {
    Ok(Mirroring::new(&pool.ioctx().with_namespace("")).uuid().await?.unwrap_or_default())
}

/// `POOL/[NAMESPACE/]IMAGE`, as images are named to people.
pub fn image_name(pool: &Pool, image: &str) -> String {
    match pool.namespace() {
        "" => format!("{}/{image}", pool.name()),
        namespace => format!("{}/{namespace}/{image}", pool.name()),
    }
}

/// The images of a pool (or namespace) that are mirrored, by name.
async fn mirrored_images(pool: &Pool) -> rados::Result<Vec<ImageInfo>> {
    let mirroring = Mirroring::new(pool.ioctx());
    let (names, mirrored) = futures::try_join!(directory::list(pool.ioctx()), mirroring.image_ids())?;
    let wanted = names.into_iter().filter(|(_, id)| mirrored.contains_key(id)).map(|(name, _)| name);
    let infos = futures::stream::iter(wanted.map(|name| async move {
        match pool.image_info(&name).await {
            // It went away meanwhile.
            Err(e) if e.is_not_found() => Ok(None),
            info => info.map(Some),
        }
    }));
    let infos: Vec<_> = infos.buffered(pool.options().images_in_flight.max(1)).try_collect().await?;
    Ok(infos.into_iter().flatten().filter(ImageInfo::is_enabled).collect())
}

/// The mirrored images at the other site, by global id.
pub async fn images_there(other: &OtherSite) -> Result<BTreeMap<GlobalImageId, ImageInfo>, Failure> {
    let images = other.answer(mirrored_images(&other.pool)).await?;
    Ok(images.into_iter().filter_map(|info| Some((info.global_id.clone()?, info))).collect())
}
