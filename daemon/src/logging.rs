//! Where log lines go and how they look: `timestamp level target message`.
//!
//! A log file is opened for appending and opened anew on request (SIGHUP after a rotation). A line that cannot be
//! written is lost: a full disk under the log must not stop mirroring.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use rados::text::visible_but;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::private_file;
use crate::process::Identity;

/// Where log lines go.
#[derive(Clone)]
pub struct Log {
    target: Arc<Target>,
}

enum Target {
    Stderr,
    File { path: PathBuf, file: Mutex<File> },
}

impl Log {
    /// Logs to stderr.
    pub fn stderr() -> Self {
        Log { target: Arc::new(Target::Stderr) }
    }

    /// Logs to a file, creating it when there is none, for a process that is going to be `identity`.
    pub fn file(path: &Path, identity: Option<&Identity>) -> anyhow::Result<Self> {
        let file = open(path, identity)?;
        Ok(Log { target: Arc::new(Target::File { path: path.to_path_buf(), file: Mutex::new(file) }) })
    }

    /// Makes this the log of the whole process, with `level` as the least severe level.
    pub fn install(&self, level: LevelFilter) {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(self.clone())
            .finish();
        // Only tests install twice; the first one stays.
        tracing::subscriber::set_global_default(subscriber).ok();
    }

    /// Opens the log file anew: what was moved away by a rotation is let go of.
    pub fn reopen(&self) -> anyhow::Result<()> {
        if let Target::File { path, file } = &*self.target {
            *lock(file) = open(path, None)?;
        }
        Ok(())
    }

    /// Gives the log file to the user that the daemon will run as.
    pub fn give_to(&self, uid: nix::unistd::Uid, gid: nix::unistd::Gid) -> anyhow::Result<()> {
        if let Target::File { path, file } = &*self.target {
            // The file that is open, not what is by now at its path.
            nix::unistd::fchown(&*lock(file), Some(uid), Some(gid))
                .with_context(|| format!("cannot give the log file '{}' to user {uid}", path.display()))?;
        }
        Ok(())
    }
}

fn open(path: &Path, identity: Option<&Identity>) -> anyhow::Result<File> {
    let opened = private_file::open(path, OpenOptions::new().create(true).append(true), identity);
    opened.with_context(|| format!("cannot open the log file '{}'", path.display()))
}

fn lock(file: &Mutex<File>) -> MutexGuard<'_, File> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        match &*self.target {
            Target::Stderr => Line::Stderr,
            Target::File { file, .. } => Line::File(lock(file)),
        }
    }
}

/// Takes one log line.
pub enum Line<'a> {
    /// To stderr.
    Stderr,
    /// To the log file.
    File(MutexGuard<'a, File>),
}

impl Write for Line<'_> {
    /// Takes a whole line, with its end. What it tells of may come from a remote cluster: control characters become
    /// visible, so that it is one line.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (line, end) = bytes.split_at(bytes.len() - usize::from(bytes.ends_with(b"\n")));
        let line = String::from_utf8_lossy(line);
        let text = [visible_but(&line, &['\t']).as_bytes(), end].concat();
        match self {
            Line::Stderr => io::stderr().write_all(&text)?,
            Line::File(file) => file.write_all(&text)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The level that a value of `debug_rbd_mirror` (`LEVEL` or `LEVEL/MEMORY-LEVEL`) asks for: Ceph's levels run from 0
/// (what an operator needs to know) to 20 (everything); below 0 only errors are wanted.
pub fn level(debug_rbd_mirror: Option<&str>) -> LevelFilter {
    let level =
        debug_rbd_mirror.and_then(|value| value.split('/').next()?.trim().parse::<i32>().ok()).unwrap_or(0);
    match level {
        i32::MIN..0 => LevelFilter::ERROR,
        0..5 => LevelFilter::INFO,
        5..20 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cephs_levels_map_to_ours() {
        assert_eq!(level(None), LevelFilter::INFO);
        assert_eq!(level(Some("0/5")), LevelFilter::INFO);
        assert_eq!(level(Some("10")), LevelFilter::DEBUG);
        assert_eq!(level(Some("20/20")), LevelFilter::TRACE);
        assert_eq!(level(Some("-1")), LevelFilter::ERROR);
    }

    #[test]
    fn a_rotated_log_file_is_let_go_of() -> anyhow::Result<()> {
        let folder = std::env::temp_dir().join(format!("rbd-mirror-log-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let (path, rotated) = (folder.join("log"), folder.join("log.1"));
        let log = Log::file(&path, None)?;
        log.make_writer().write_all(b"one\n")?;
        std::fs::rename(&path, &rotated)?;
        log.make_writer().write_all(b"two\x1b[2J\nERROR forged\n")?;
        log.reopen()?;
        log.make_writer().write_all(b"three\n")?;
        assert_eq!(std::fs::read_to_string(&rotated)?, "one\ntwo\\u{1b}[2J\\nERROR forged\n");
        assert_eq!(std::fs::read_to_string(&path)?, "three\n");
        std::fs::remove_dir_all(folder)?;
        Ok(())
    }
}
