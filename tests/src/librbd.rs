//! An image held open through the stock librbd by a process of its own, as a virtual machine would: for what no command
//! line tool does (write-same, compare-and-write, an image kept open), and for writers that are killed.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::cluster::Cluster;
use crate::tool::FOREIGN_ENVIRONMENT;

/// The program that holds the image; Python comes with Ceph's own tools.
const PROGRAM: &str = include_str!("librbd.py");

/// An image that is open. Dropping it kills whoever holds it.
#[derive(Debug)]
pub struct LibrbdImage {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    address: String,
}

impl LibrbdImage {
    /// Opens an image (`pool/[namespace/]image`) to write.
    pub async fn open(cluster: &Cluster, image: &str) -> Result<LibrbdImage> {
        let parts: Vec<&str> = image.split('/').collect();
        let (pool, namespace, name) = match parts[..] {
            [pool, name] => (pool, "", name),
            [pool, namespace, name] => (pool, namespace, name),
            _ => anyhow::bail!("images are called POOL/[NAMESPACE/]IMAGE, not {image}"),
        };
        let mut command = Command::new("python3");
        for name in FOREIGN_ENVIRONMENT {
            command.env_remove(name);
        }
        let conf = cluster.conf_path();
        command.args(["-c", PROGRAM]).arg(conf).args([pool, namespace, name]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot run python3")?;
        let stdin = child.stdin.take().context("a pipe")?;
        let mut stdout = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let address = stdout.next_line().await?;
        let address = address.with_context(|| format!("librbd could not open {image}"))?;
        Ok(LibrbdImage { child, stdin, stdout, address })
    }

    /// The client's address, as blocklists know it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Does a command (see `librbd.py`) and gives what librbd returned: a length, 0, or a negated errno.
    pub async fn run(&mut self, command: &str) -> Result<i64> {
        self.begin(command).await?;
        self.answer().await
    }

    /// Begins a command; [`answer`](Self::answer) waits for its end.
    pub async fn begin(&mut self, command: &str) -> Result<()> {
        self.stdin.write_all(format!("{command}\n").as_bytes()).await.context("librbd's process has ended")
    }

    /// Waits for the end of the oldest command that was begun.
    pub async fn answer(&mut self) -> Result<i64> {
        let line = self.stdout.next_line().await?.context("librbd's process has ended")?;
        line.trim().parse().with_context(|| format!("librbd's process said {line:?}"))
    }

    /// Writes bytes.
    pub async fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        let written = self.run(&format!("write {offset} {hex}")).await?;
        ensure!(written == data.len() as i64, "writing {} bytes gave {written}", data.len());
        Ok(())
    }

    /// Writes `count` blocks of `length` random bytes at random places below `size`, `depth` of them at once.
    pub async fn burst(&mut self, count: u64, length: u64, depth: u64, seed: u64, size: u64) -> Result<()> {
        let worst = self.run(&format!("burst {count} {length} {depth} {seed} {size}")).await?;
        ensure!(worst == 0, "a write of a burst gave {worst}");
        Ok(())
    }

    /// Kills it (`kill -9`) and waits until it is dead.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.context("cannot kill librbd's process")
    }

    /// Closes the image in good order.
    pub async fn close(self) -> Result<()> {
        let LibrbdImage { mut child, stdin, .. } = self;
        drop(stdin);
        let ended = child.wait().await?;
        ensure!(ended.success(), "closing the image ended with {ended}");
        Ok(())
    }
}
