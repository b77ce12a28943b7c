//! The tour: every step with the commands that an operator would type.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use futures::future::try_join_all;
use tests::two_clusters::SITES;
use tests::{Cluster, ClusterOptions, DaemonKind, MirrorDaemon, MirrorDaemonOptions, TwoClusters, wait};

use crate::compared::{Compared, compare_all};
use crate::images::{IMAGES, POOL};
use crate::live::{Arrival, Goals, follow};
use crate::place::Place;
use crate::screen::{Drawing, bytes, draws_in_place, say, table};

/// How long the daemon may take until it follows the pool.
const DAEMON_START_LIMIT: Duration = Duration::from_secs(60);

/// The file, in the demo's folder, that carries the bootstrap token from one site to the other.
const TOKEN_FILE: &str = "token";

/// A tour in a folder, with a daemon.
pub struct Tour<'a> {
    place: &'a Place,
    program: PathBuf,
    started: Instant,
}

type Arrivals = BTreeMap<&'static str, Arrival>;

impl<'a> Tour<'a> {
    /// A tour that has not begun.
    pub fn new(place: &'a Place, program: PathBuf) -> Self {
        Tour { place, program, started: Instant::now() }
    }

    /// Goes through all of it; tells whether every copy is equal.
    pub async fn run(self) -> Result<bool> {
        let clusters = self.start_clusters().await?;
        let daemon = self.connect(&clusters).await?;
        let first = self.first_copies(&clusters, &daemon).await?;
        let deltas = self.deltas(&clusters, &daemon).await?;
        let equal = self.compare(&clusters, &first, &deltas).await?;
        self.farewell(&clusters, equal);
        Ok(equal)
    }

    fn heading(&self, number: usize, text: &str) {
        say(format!("\n{number}. {text}"));
    }

    async fn start_clusters(&self) -> Result<TwoClusters> {
        let dir = self.place.dir();
        say(format!("A demo of rbd-mirror, in {}", dir.display()));
        self.heading(1, "Two Ceph clusters: a monitor, a manager and an OSD each, on 127.0.0.1");
        // The clusters are to be as slow or fast as anybody's: Ceph's own intervals.
        let options = ClusterOptions {
            paxos_propose_interval_s: None,
            die_with_parent: false,
            ..ClusterOptions::default()
        };
        let mut clusters = TwoClusters::start(dir, SITES, &options).await?;
        clusters.keep();
        let version = clusters.a.ceph(&["--version"]).await?;
        let version = version.split_whitespace().nth(2).unwrap_or("of unknown version");
        let took_s = self.started.elapsed().as_secs_f64();
        say(format!("   {} and {} run Ceph {version}, after {took_s:.1} s", SITES[0], SITES[1]));
        Ok(clusters)
    }

    async fn connect(&self, clusters: &TwoClusters) -> Result<MirrorDaemon> {
        let (a, b) = (&clusters.a, &clusters.b);
        self.heading(2, "A pool of both, mirrored from site-a to site-b");
        for cluster in clusters.both() {
            shown(cluster, "ceph", &["osd", "pool", "create", POOL]).await?;
            shown(cluster, "rbd", &["pool", "init", POOL]).await?;
            shown(
                cluster,
                "rbd",
                &["mirror", "pool", "enable", "--site-name", cluster.name(), POOL, "image"],
            )
            .await?;
        }
        let create = ["mirror", "pool", "peer", "bootstrap", "create", POOL];
        say(format!("   {} > token", line(a, "rbd", &create)));
        let token = a.rbd(&create).await?;
        let token_file = self.place.dir().join(TOKEN_FILE);
        std::fs::write(&token_file, token)
            .with_context(|| format!("cannot write {}", token_file.display()))?;
        let import = ["mirror", "pool", "peer", "bootstrap", "import", "--direction", "rx-only", POOL];
        say(format!("   {} token", line(b, "rbd", &import)));
        b.tool("rbd").args(import).arg(token_file).run().await?;

        self.heading(3, "This project's daemon, at site-b");
        let options = MirrorDaemonOptions { die_with_parent: false, ..MirrorDaemonOptions::default() };
        let mut daemon = MirrorDaemon::spawn(&DaemonKind::Ours(self.program.clone()), b, &options).await?;
        daemon.keep();
        self.place.record_daemon(daemon.identity())?;
        say(
            "   site-b$ ceph auth get-or-create client.rbd-mirror.a \\\n             mon 'profile rbd-mirror' osd 'profile rbd' mgr 'profile rbd'",
        );
        say("   site-b$ rbd-mirror -f --cluster site-b --id rbd-mirror.a");
        let leads = wait::until("the daemon to follow the pool", DAEMON_START_LIMIT, || async {
            ensure!(daemon.alive(), "the daemon has ended by itself");
            let status = daemon.ask("rbd mirror status").await.ok();
            Ok(status.filter(|status| status["pool_replayers"][0]["leader"] == true).map(drop))
        });
        leads.await.map_err(|error| anyhow!("{error:#}; {}", daemon.log_tail(20)))?;
        say(format!("   runs as pid {}", daemon.pid()));
        Ok(daemon)
    }

    async fn first_copies(&self, clusters: &TwoClusters, daemon: &MirrorDaemon) -> Result<Arrivals> {
        let (a, b) = (&clusters.a, &clusters.b);
        self.heading(4, "Images at site-a");
        for image in IMAGES {
            image.write(a).await.with_context(|| format!("cannot write {}", image.spec()))?;
            say(format!("   {:8} {}", image.name, image.what));
        }
        self.heading(5, "The first copies, while they are made");
        let goals = Goals::default();
        for image in IMAGES {
            say(format!("   {}", line(a, "rbd", &["mirror", "image", "enable", &image.spec(), "snapshot"])));
        }
        say("");
        let enabling = async {
            // A clone can be mirrored only when its parent is.
            for image in IMAGES {
                goals.ordered(image.name);
                a.rbd(&["mirror", "image", "enable", &image.spec(), "snapshot"]).await?;
                goals.made(image.name, a.newest_primary_snapshot(&image.spec()).await?);
            }
            Ok(())
        };
        Ok(tokio::try_join!(enabling, follow(b, daemon, &goals))?.1)
    }

    async fn deltas(&self, clusters: &TwoClusters, daemon: &MirrorDaemon) -> Result<Arrivals> {
        let (a, b) = (&clusters.a, &clusters.b);
        self.heading(6, "Changes at site-a");
        for image in IMAGES {
            image.write_again(a).await.with_context(|| format!("cannot write {}", image.spec()))?;
            say(format!("   {:8} {}", image.name, image.change));
        }
        self.heading(7, "Mirror-snapshots of them, and only what has changed is copied");
        let goals = Goals::default();
        for image in IMAGES {
            say(format!("   {}", line(a, "rbd", &["mirror", "image", "snapshot", &image.spec()])));
        }
        say("");
        let snapshots = try_join_all(IMAGES.iter().map(async |image| {
            goals.ordered(image.name);
            goals.made(image.name, a.mirror_snapshot(&image.spec()).await?);
            anyhow::Ok(())
        }));
        Ok(tokio::try_join!(snapshots, follow(b, daemon, &goals))?.1)
    }

    async fn compare(&self, clusters: &TwoClusters, first: &Arrivals, deltas: &Arrivals) -> Result<bool> {
        self.heading(8, "Both sites, compared byte for byte");
        let mut rows = vec![HEADING.map(str::to_owned).to_vec()];
        rows.extend(IMAGES.iter().map(|image| result_row(image.name, first[image.name], deltas[image.name])));
        let mut drawing = draws_in_place().then(Drawing::default);
        let mut differences = Vec::new();
        for (image, row) in IMAGES.iter().zip(1..) {
            if let Some(drawing) = &mut drawing {
                drawing.draw(&table(&rows, &FLUSH_RIGHT));
            }
            let compared = compare_all(clusters, &image.spec()).await?;
            rows[row][1] = bytes(compared.size);
            rows[row][6] = what_was_compared(&compared);
            rows[row][7] = if compared.differences.is_empty() { "yes" } else { "NO" }.to_owned();
            differences.extend(compared.differences);
        }
        drawing.unwrap_or_default().draw(&table(&rows, &FLUSH_RIGHT));
        say("   Bytes: what the daemon copied. Seconds: from the start of the command that");
        say("   made the snapshot until its copy was seen to be whole.");
        for difference in &differences {
            say(format!("   NOT EQUAL: {difference}"));
        }
        Ok(differences.is_empty())
    }

    fn farewell(&self, clusters: &TwoClusters, equal: bool) {
        let took_s = self.started.elapsed().as_secs_f64();
        let outcome = if equal { "Every copy is equal" } else { "NOT EVERY COPY IS EQUAL" };
        let (dir, log) = (clusters.folder().display(), "site-b/log/rbd-mirror.a.log");
        say(format!(
            "
{outcome}. All of it took {took_s:.0} s. Clusters and daemon go on running.

Look around:

   D={dir} A=$D/site-a/ceph.conf B=$D/site-b/ceph.conf
   rbd -c $B mirror pool status {POOL} --verbose  # every image
   rbd -c $B snap ls --all {POOL}/history         # user's and mirror-snapshots
   ceph -c $B -s                                # rbd-mirror is among services
   ceph daemon $D/site-b/run/site-b-client.rbd-mirror.a.asok rbd mirror status
   less $D/{log}

Write something and have it copied:

   rbd -c $A bench --io-type write --io-pattern rand --io-total 16M {POOL}/full
   rbd -c $A mirror image snapshot {POOL}/full
   rbd -c $B mirror image status {POOL}/full

Change over to site-b, with both sites up:

   rbd -c $A mirror image demote {POOL}/full
   rbd -c $B mirror image promote {POOL}/full

Change over as if site-a were lost:

   rbd -c $B mirror image promote --force {POOL}/sparse

End everything, and remove the folder:

   make demo-down DEMO_DIR={dir}"
        ));
    }
}

const HEADING: [&str; 8] = ["image", "size", "first copy", "", "delta", "", "compared", "equal"];
const FLUSH_RIGHT: [bool; 8] = [false, true, true, true, true, true, false, false];

/// The row of an image that has not been compared yet.
fn result_row(image: &str, first: Arrival, delta: Arrival) -> Vec<String> {
    let seconds = |arrival: Arrival| format!("{:.1} s", arrival.took.as_secs_f64());
    let (pending, unknown) = ("...".to_owned(), String::new());
    let copies = [bytes(first.bytes), seconds(first), bytes(delta.bytes), seconds(delta)];
    [vec![image.to_owned(), unknown], copies.to_vec(), vec!["-".to_owned(), pending]].concat()
}

fn what_was_compared(compared: &Compared) -> String {
    match compared.snapshots {
        0 => "head".to_owned(),
        1 => "head, 1 snap".to_owned(),
        n => format!("head, {n} snaps"),
    }
}

/// A command as an operator types it at a site.
fn line(cluster: &Cluster, tool: &str, args: &[&str]) -> String {
    format!("{}$ {tool} {}", cluster.name(), args.join(" "))
}

/// Shows a command and runs it.
async fn shown(cluster: &Cluster, tool: &str, args: &[&str]) -> Result<()> {
    say(format!("   {}", line(cluster, tool, args)));
    cluster.tool(tool).args(args).run().await?;
    Ok(())
}
