//! `status`: all mirrored images in one table, once or again and again.

use std::io::IsTerminal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control::{Health, Pool};
use rbd::directory;
use rbd::mirroring::{MirrorMode, Mirroring};
use serde::Serialize;

use crate::connection::Site;
use crate::failure::Failure;
use crate::grammar::Request;
use crate::grammar::own::StatusArgs;
use crate::grammar::rbd::Format;
use crate::output;
use crate::overview::{Row, rows, table};
use crate::spec::{self, ImageSpec, PoolSpec, Target};
use crate::targets;

/// Clears the terminal from the top.
const CLEAR: &str = "\x1b[H\x1b[J";

/// One look.
#[derive(Debug, Serialize)]
struct Look {
    time: String,
    site: String,
    pools: Vec<PoolLook>,
    images: Vec<Row>,
}

/// The state of a pool or namespace.
#[derive(Debug, Serialize)]
struct PoolLook {
    pool: String,
    health: Health,
    daemon_health: Health,
    image_health: Health,
    daemons: Vec<String>,
    callouts: Vec<String>,
}

/// Carries out the command.
pub async fn run(request: &Request, args: &StatusArgs) -> Result<(), Failure> {
    let target = spec::target(&args.target)?;
    output::document(&args.format)?;
    if args.format.format == Some(Format::Xml) {
        return Err(Failure::invalid("this table can be had as plain text or as JSON, not as XML"));
    }
    let site = Site::connect(request).await?;
    let on_terminal = std::io::stdout().is_terminal() && args.format.format != Some(Format::Json);
    let show = async || {
        let look = look(&site, target.as_ref()).await?;
        match args.format.format {
            Some(Format::Json) => json(&look, args.format.pretty_format),
            _ => Ok(plain(&look)),
        }
    };
    let mut text = show().await?;
    if !args.watch {
        return output::put(&text);
    }
    // Once it has begun, a look that fails is no reason to end.
    loop {
        let shown = match on_terminal {
            true => format!("{CLEAR}{}", cut_to_terminal(&output::shown(&text))),
            false => text,
        };
        if !output::put_if_read(&shown)? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(args.interval.max(1))).await;
        text = match show().await {
            Ok(text) => text,
            Err(failure) => {
                output::complain(&failure.to_string());
                String::new()
            }
        };
    }
}

async fn look(site: &Site, target: Option<&Target>) -> Result<Look, Failure> {
    let site_name = bootstrap::site_name(&site.cluster).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = output::time::universal(chrono::Utc::now());
    let mut look = Look { time, site: site_name, pools: Vec::new(), images: Vec::new() };
    let (places, only) = match target {
        Some(Target::Pool(place)) => (vec![place.clone()], None),
        Some(Target::Image(ImageSpec { place, image })) => (vec![place.clone()], Some(image)),
        None => (mirrored_places(site).await?, None),
    };
    for place in places {
        let pool = site.pool(&place).await?;
        let mut status = pool.status(only.is_none()).await?;
        let images = match only {
            Some(image) => vec![pool.image_status(image).await?],
            None => status.images.take().unwrap_or_default(),
        };
        for image in &images {
            let name = targets::image_name(&pool, &image.info.name);
            look.images.extend(rows(image, &name, &look.site, now));
        }
        look.pools.push(PoolLook {
            pool: place_name(&pool),
            health: status.health,
            daemon_health: status.daemon_health,
            image_health: status.image_health,
            daemons: status.daemons.iter().map(|daemon| daemon.description()).collect(),
            callouts: status.daemons.into_iter().flat_map(|daemon| daemon.callouts).collect(),
        });
    }
    Ok(look)
}

/// Every pool and namespace where mirroring is enabled.
async fn mirrored_places(site: &Site) -> Result<Vec<PoolSpec>, Failure> {
    let mut places = Vec::new();
    let mut pools = site.cluster.pools().await?;
    pools.sort_by(|a, b| a.1.cmp(&b.1));
    for (id, name) in pools {
        let ioctx = site.cluster.pool(id);
        // A pool that is not for images, or not ours to look at, has nothing to tell.
        let Ok(namespaces) = directory::namespaces(&ioctx).await else { continue };
        for namespace in std::iter::once(String::new()).chain(namespaces) {
            let mode = Mirroring::new(&ioctx.with_namespace(&namespace)).mode().await?;
            if mode != MirrorMode::Disabled {
                places.push(PoolSpec { pool: Some(name.clone()), namespace });
            }
        }
    }
    Ok(places)
}

fn place_name(pool: &Pool) -> String {
    match pool.namespace() {
        "" => pool.name().to_string(),
        namespace => format!("{}/{namespace}", pool.name()),
    }
}

fn json(look: &Look, pretty: bool) -> Result<String, Failure> {
    let text = if pretty { serde_json::to_string_pretty(look) } else { serde_json::to_string(look) };
    text.map(|text| text + "\n").map_err(|e| Failure::new(libc::EIO, format!("cannot make the output: {e}")))
}

fn plain(look: &Look) -> String {
    let mut text = format!("site {} at {}\n", look.site, look.time);
    for pool in &look.pools {
        let daemons = if pool.daemons.is_empty() { "none".to_string() } else { pool.daemons.join(", ") };
        text += &format!(
            "{}: {} (daemons {}: {daemons}; images {})\n",
            pool.pool, pool.health, pool.daemon_health, pool.image_health
        );
        text.extend(pool.callouts.iter().map(|callout| format!("  {callout}\n")));
    }
    if look.pools.is_empty() {
        return text + "mirroring is enabled in no pool\n";
    }
    format!("{text}\n{}\n", table(&look.images))
}

/// Lines no longer and no more than the terminal shows.
fn cut_to_terminal(text: &str) -> String {
    let (rows, columns) = console::Term::stdout().size();
    let lines = text.lines().take(usize::from(rows.max(2)) - 1);
    lines.map(|line| line.chars().take(columns.into()).collect::<String>() + "\n").collect()
}
