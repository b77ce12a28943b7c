//! Proving that a copy of a large image equals its primary: `rbd-mirrorctl verify`, and two `rbd export`s whose output is
//! compared by `cmp`.
//!
//! **Bytes over the wire** are those that the processes have read: `rchar` of `/proc/PID/io`, which counts what is read from
//! sockets, and with that the few files that they read. A shell that has waited for a process has that process's count
//! added to its own, and tells it. What two exports read is counted apart from the pipes between them and `cmp`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{Cluster, Extents, Tool};

use super::{Command, all_at_once};
use crate::figures::{Measure, Results, Target, Who};
use crate::ground::{Ground, spec};
use crate::turn::Turn;
use crate::work::Written;

const TIME: Measure = Measure {
    name: "proof that a copy of 4 GiB is equal (stock: two exports)",
    unit: "s",
    target: Target::RatioAtMost(1.0),
};
const BYTES: Measure =
    Measure { name: "  bytes over the wire", unit: "MiB", target: Target::RatioAtMost(0.01) };

const IMAGE: &str = "proved";
const SIZE: u64 = 4 << 30;
const SIZE_QUICK: u64 = 512 << 20;
/// Written at a time.
const CHUNK: u64 = 256 << 20;
/// How long a proof may take.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs a command, and writes what it has read to a file.
const COUNTED: &str = r#"file=$1; shift; "$@" || exit; sed -n 's/^rchar: //p' "/proc/$$/io" >"$file""#;
/// Compares what two counted commands print. Each is a command line for a shell.
const COMPARED: &str = r#"set -o pipefail; cmp <(eval "$1") <(eval "$2")"#;

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    let size = if ground.quick { SIZE_QUICK } else { SIZE };
    let written = make_copy(ground, size).await?;
    for who in Who::alternate(ground.repetitions(2, 1)) {
        let counts = tempfile::tempdir()?;
        let began = Instant::now();
        match who {
            Who::Ours => {
                let files = counts.path().join("verify");
                let verify = counted(&files.to_string_lossy());
                let verify = verify.arg(&ground.ctl).arg("-c").arg(ground.b().conf_path());
                let said = verify.args(["verify", &spec(&written.image)]).limit(LIMIT).run().await?;
                ensure!(said.contains("equal"), "nothing was proved: {said}");
            }
            Who::Ceph => {
                let export = |cluster: &Cluster| {
                    let file = counts.path().join(cluster.name());
                    let counted = counted(&file.to_string_lossy()).arg(cluster.program("rbd"));
                    let counted = counted.arg("-c").arg(cluster.conf_path());
                    quoted(&counted.args(["export", "--no-progress", &spec(&written.image), "-"]))
                };
                let both = [export(ground.a()), export(ground.b())];
                let compared = Tool::new("bash").args(["-c", COMPARED, "bash"]).args(both);
                compared.limit(LIMIT).run().await.context("the exports differ")?;
            }
        }
        results.add(TIME, who, began.elapsed().as_secs_f64());
        let mut bytes = 0;
        for count in std::fs::read_dir(counts.path())? {
            bytes += std::fs::read_to_string(count?.path())?.trim().parse::<u64>()?;
        }
        ensure!(who == Who::Ours || bytes >= 2 * size, "two exports cannot have read {bytes} bytes only");
        results.add(BYTES, who, bytes as f64 / f64::from(1 << 20));
    }
    Ok(())
}

/// Makes the image, full of random bytes, and has our daemon copy it.
async fn make_copy(ground: &Ground, size: u64) -> Result<Written> {
    ground.a().create_image(&spec(IMAGE), size, &[]).await?;
    for chunk in 0..size / CHUNK {
        ground.a().apply(&spec(IMAGE), Extents::default().fill(chunk * CHUNK, CHUNK, chunk)).await?;
    }
    let written = Written { image: IMAGE.to_owned(), probes: Vec::new() };
    let turn = Turn::begin(ground, Who::Ours).await?;
    all_at_once(&turn, std::slice::from_ref(&written), Command::Enable).await?;
    turn.end().await?;
    Ok(written)
}

fn counted(file: &str) -> Tool {
    Tool::new("bash").args(["-c", COUNTED, "bash", file])
}

/// A command line for a shell.
fn quoted(tool: &Tool) -> String {
    let quote = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
    tool.words().iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}
