//! `mirror image …`

use control::Quiesce;
use rbd::mirroring::MirrorImageMode;

use super::show;
use crate::connection::Site;
use crate::failure::Failure;
use crate::grammar::Request;
use crate::grammar::rbd::{ImageArgs, ImageCommand};
use crate::output;
use crate::spec::{self, ImageSpec, Positionals};

/// Carries out a command about an image.
pub async fn run(request: &Request, command: &ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::Enable { image, mode } => {
            let mut words = Positionals::new([&image.image_spec, mode]);
            let spec = spec::image(image, &mut words)?;
            let mode = mode_of(words.take())?;
            words.end()?;
            let pool = Site::connect(request).await?.pool(&spec.place).await?;
            pool.enable(&spec.image, mode).await?;
            output::put("Mirroring enabled\n")
        }
        ImageCommand::Disable { image, force } => {
            let spec = only(image)?;
            let pool = Site::connect(request).await?.pool(&spec.place).await?;
            pool.disable(&spec.image, *force).await?;
            output::put("Mirroring disabled\n")
        }
        ImageCommand::Promote { image, force } => {
            let spec = only(image)?;
            let pool = Site::connect(request).await?.pool(&spec.place).await?;
            pool.promote(&spec.image, *force).await?;
            output::put("Image promoted to primary\n")
        }
        ImageCommand::Demote { image } => {
            let spec = only(image)?;
            let pool = Site::connect(request).await?.pool(&spec.place).await?;
            pool.demote(&spec.image).await?;
            output::put("Image demoted to non-primary\n")
        }
        ImageCommand::Resync { image } => {
            let spec = only(image)?;
            let pool = Site::connect(request).await?.pool(&spec.place).await?;
            pool.resync(&spec.image).await?;
            output::put("Flagged image for resync from primary\n")
        }
        ImageCommand::Snapshot { image, skip_quiesce, ignore_quiesce_error } => {
            let spec = only(image)?;
            let quiesce = match (skip_quiesce, ignore_quiesce_error) {
                (true, true) => {
                    let sentence = "--skip-quiesce and --ignore-quiesce-error cannot be given together";
                    return Err(Failure::invalid(sentence));
                }
                (true, false) => Quiesce::Skip,
                (false, true) => Quiesce::IgnoreError,
                (false, false) => Quiesce::Required,
            };
            let pool = Site::connect(request).await?.pool(&spec.place).await?;
            let snap = pool.snapshot(&spec.image, Some(quiesce)).await?;
            output::put(&format!("Snapshot ID: {snap}\n"))
        }
        ImageCommand::Status { image, format } => {
            let spec = only(image)?;
            let document = output::document(format)?;
            let site = Site::connect(request).await?;
            let status = site.pool(&spec.place).await?.image_status(&spec.image).await?;
            let dialect = show::Dialect::of(&site.cluster).await?;
            output::put(&show::image_status(&status, dialect, document))
        }
    }
}

/// The image of a command that takes no other words.
fn only(args: &ImageArgs) -> Result<ImageSpec, Failure> {
    let mut words = Positionals::new([&args.image_spec]);
    let spec = spec::image(args, &mut words)?;
    words.end()?;
    Ok(spec)
}

fn mode_of(word: Option<String>) -> Result<MirrorImageMode, Failure> {
    match word.as_deref() {
        None | Some("journal") => Ok(MirrorImageMode::Journal),
        Some("snapshot") => Ok(MirrorImageMode::Snapshot),
        Some(other) => Err(Failure::invalid(format!("'{other}' is no mode; it must be journal or snapshot"))),
    }
}
