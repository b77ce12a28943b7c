//! The three stories of the README, as a reader would type them.
//!
//! What is typed stands in code blocks whose first line names the site (```` ```sh site-a ````). Comments of the form
//! `<!-- test: … -->`, which readers do not see, tell what happens between them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tests::{Cluster, Extents, MirrorDaemon};
use tokio::process::Command;

use crate::world::{LIMIT, MIB, World, ctl, our_daemon, run};

const POOL: &str = "image-pool";

/// Something that happens in a story.
#[derive(Debug, PartialEq, Eq)]
enum Scene {
    /// Somebody types this at a site.
    Typed { site: String, script: String },
    /// A stage direction.
    Direction(String),
}

fn scenes(text: &str) -> Vec<Scene> {
    let mut scenes = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(site) = line.strip_prefix("```sh ") {
            let typed = lines.by_ref().take_while(|line| line.trim() != "```");
            let script = typed.map(str::trim).collect::<Vec<_>>().join("\n");
            scenes.push(Scene::Typed { site: site.to_string(), script });
        } else if let Some(direction) = line.strip_prefix("<!-- test: ").and_then(|l| l.strip_suffix(" -->"))
        {
            scenes.push(Scene::Direction(direction.to_string()));
        }
    }
    scenes
}

struct Theatre<'a> {
    world: &'a World,
    desk: tempfile::TempDir,
    daemons: Vec<MirrorDaemon>,
    lost: bool,
}

impl Theatre<'_> {
    fn site(&self, name: &str) -> Result<&Cluster> {
        let sites = self.world.clusters.both();
        sites.into_iter().find(|site| site.name() == name).with_context(|| format!("there is no '{name}'"))
    }

    async fn play(&mut self, scene: &Scene) -> Result<()> {
        match scene {
            Scene::Typed { site, script } => self.type_in(self.site(site)?, script).await,
            Scene::Direction(direction) => self.direct(direction).await,
        }
    }

    /// Types all lines into a shell; each of them must succeed.
    async fn type_in(&self, site: &Cluster, script: &str) -> Result<()> {
        let mut shell = Command::new("bash");
        let path = std::env::var("PATH").unwrap_or_default();
        let ours = ctl().parent().unwrap_or(Path::new("/")).display();
        shell.args(["-euo", "pipefail", "-c", script]).current_dir(self.desk.path());
        shell
            .env("PATH", format!("{ours}:{path}"))
            .env("CEPH_CONF", site.conf_path())
            .env_remove("CEPH_ARGS");
        shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).kill_on_drop(true);
        let said = run(shell).await?;
        ensure!(said.code == Some(0), "at {}:\n{script}\n{}{}", site.name(), said.stdout, said.stderr);
        Ok(())
    }

    async fn direct(&mut self, direction: &str) -> Result<()> {
        let (a, b) = (self.world.a(), self.world.b());
        let disk = format!("{POOL}/disk");
        match direction {
            "the mirror daemons start" => {
                for cluster in [a, b] {
                    self.daemons.push(self.world.daemon(&our_daemon(), cluster).await?);
                }
            }
            "the first copy arrives" => self.world.arrived(a, b, &disk).await?,
            "clients write at site-a" => a.apply(&disk, Extents::default().fill(0, MIB, 1)).await?,
            "clients write at site-b" => b.apply(&disk, Extents::default().fill(MIB, MIB, 2)).await?,
            "a snapshot of site-a arrives" => {
                let snap = a.mirror_snapshot(&disk).await?;
                b.wait_copied(&disk, snap, LIMIT).await?;
            }
            "site-a is lost" => {
                self.lost = true;
                a.freeze()?;
            }
            "site-a is back" => {
                a.thaw().await?;
                a.wait_healthy(LIMIT).await?;
                self.lost = false;
            }
            "site-a is primary" => expect_primary(a, b, &disk).await?,
            "site-b is primary" => expect_primary(b, a, &disk).await?,
            "site-b alone is primary" => ensure!(is_primary(b, &disk).await?),
            other => bail!("nobody knows how to play '{other}'"),
        }
        Ok(())
    }
}

async fn is_primary(cluster: &Cluster, image: &str) -> Result<bool> {
    let info = cluster.rbd_json(&["info", image]).await?;
    info["mirroring"]["primary"].as_bool().context("the image is mirrored")
}

async fn expect_primary(there: &Cluster, not_there: &Cluster, image: &str) -> Result<()> {
    ensure!(is_primary(there, image).await?, "{image} is not primary at {}", there.name());
    ensure!(!is_primary(not_there, image).await?, "{image} is primary at {}", not_there.name());
    tests::compare(there, image, not_there, image).await?.expect_equal(image)
}

pub async fn the_three_stories(world: &World) -> Result<()> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))?;
    let scenes = scenes(&readme);
    let typed = scenes.iter().filter(|scene| matches!(scene, Scene::Typed { .. })).count();
    ensure!(typed >= 6, "the README has lost its stories");
    world.clusters.create_pool(POOL).await?;
    let desk = tempfile::tempdir()?;
    let mut theatre = Theatre { world, desk, daemons: Vec::new(), lost: false };
    let mut played = Ok(());
    for scene in &scenes {
        played = theatre.play(scene).await.with_context(|| format!("{scene:?}"));
        if played.is_err() {
            break;
        }
    }
    if theatre.lost {
        world.a().thaw().await?;
    }
    played?;
    drop(theatre);
    world.strike(POOL).await
}
