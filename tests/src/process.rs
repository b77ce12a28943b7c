//! Daemons as processes: started into the background, told apart from strangers with the same pid, and ended.
//!
//! A pid alone says little once its process has ended and the number has been given away again. A process is therefore
//! known by its [`Identity`]: pid, start time, and a text (a path in its private folder) that stands in its command
//! line. Nothing is ever signalled that doesn't match in all three.
//!
//! What is to die with its parent, as tools always are, is started through `setpriv --pdeathsig KILL`. The kernel sends
//! that signal when the *thread* that started the process ends, and threads of an async runtime come and go; so
//! processes are started by one thread that lives as long as this process.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::tool::FOREIGN_ENVIRONMENT;
use crate::wait::POLL_INTERVAL;

/// The unit of CPU time in `/proc`: Linux shows it to programs in hundredths of a second on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// How often to look for the command line of a process that has none, a millisecond apart.
const COMMAND_LINE_LOOKS_MAX: u32 = 50;

/// How long a killed process may take to be gone: it may be in the middle of writing to a slow disk.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How to recognise a process for certain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The process id.
    pub pid: i32,
    /// When it was started, in clock ticks since the machine booted.
    pub start_ticks: u64,
    /// A text that its command line contains.
    pub mark: String,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// CPU time of all its threads, in user and kernel mode, in seconds.
    pub cpu_s: f64,
    /// The most memory it has had resident, in bytes.
    pub rss_peak_bytes: u64,
    /// The memory it has resident now, in bytes.
    pub rss_bytes: u64,
}

/// The fields of `/proc/PID/stat` that we look at.
struct Stat {
    state: char,
    threads: u64,
    cpu_ticks: u64,
    start_ticks: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may itself hold blanks and parentheses.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        threads: ticks(17)?,
        cpu_ticks: ticks(11)? + ticks(12)?,
        start_ticks: ticks(19)?,
    })
}

impl Identity {
    /// A process that was just started. It fails when it has ended already.
    pub fn of_running(pid: i32, mark: &str) -> Result<Self> {
        let stat = stat(pid).with_context(|| format!("process {pid} ended as soon as it was started"))?;
        Ok(Identity { pid, start_ticks: stat.start_ticks, mark: mark.to_owned() })
    }

    /// Whether that very process still runs. One that has ended but wasn't waited for counts as ended.
    pub fn alive(&self) -> bool {
        // A process has no command line for an instant while a program replaces another (`setpriv` does), and none any
        // more while it ends: then we look again, and take it for alive in the end, as pid and start time agree.
        let mut foreign = false;
        for _ in 0..COMMAND_LINE_LOOKS_MAX {
            let Some(stat) = stat(self.pid) else { return false };
            // The first thread of a killed process is a zombie while others still hold its files and locks.
            let ended = matches!(stat.state, 'Z' | 'X') && stat.threads <= 1;
            if ended || stat.start_ticks != self.start_ticks {
                return false;
            }
            let Ok(command_line) = std::fs::read(format!("/proc/{}/cmdline", self.pid)) else { return false };
            if String::from_utf8_lossy(&command_line).contains(&self.mark) {
                return true;
            }
            foreign = !command_line.is_empty();
            std::thread::sleep(Duration::from_millis(1));
        }
        !foreign
    }

    /// Sends a signal; tells whether the process was there to get it.
    pub fn signal(&self, signal: Signal) -> bool {
        self.alive() && kill(Pid::from_raw(self.pid), signal).is_ok()
    }

    /// CPU time and memory so far, or nothing when the process has ended.
    pub fn usage(&self) -> Option<Usage> {
        if !self.alive() {
            return None;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok()
        };
        Some(Usage {
            cpu_s: stat(self.pid)?.cpu_ticks as f64 / TICKS_PER_SECOND,
            rss_peak_bytes: kib("VmHWM:")? * 1024,
            rss_bytes: kib("VmRSS:")? * 1024,
        })
    }

    /// Kills the process and blocks until it has ended, which the kernel doesn't let take long.
    pub fn kill_now(&self) {
        let started = Instant::now();
        while self.signal(Signal::SIGKILL) && started.elapsed() < KILL_LIMIT {
            std::thread::sleep(Duration::from_millis(2));
        }
        reap();
    }

    /// Waits until the process has ended; tells whether it did within `limit`.
    pub async fn ended_within(&self, limit: Duration) -> bool {
        let started = Instant::now();
        while self.alive() {
            if started.elapsed() > limit {
                return false;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        true
    }
}

/// What to start, and how.
#[derive(Debug)]
pub struct Launch {
    /// The program, by path or by name.
    pub program: PathBuf,
    /// Its arguments; the mark must be a part of one of them.
    pub args: Vec<OsString>,
    /// The working directory.
    pub cwd: PathBuf,
    /// The file that gets its standard output and standard error; appended to.
    pub output: PathBuf,
    /// The text by which to recognise it, see [`Identity::mark`].
    pub mark: String,
    /// Whether it is killed as soon as this process ends, however that comes about.
    pub die_with_parent: bool,
}

impl Launch {
    /// Starts the process in a process group of its own, so that Ctrl-C at the terminal doesn't reach it.
    pub fn start(self) -> Result<(Identity, Child)> {
        let output = File::options().create(true).append(true).open(&self.output);
        let output = output.with_context(|| format!("cannot write {}", self.output.display()))?;
        let mut words: Vec<&OsStr> = Vec::new();
        if self.die_with_parent {
            words.extend(DIE_WITH_PARENT.map(OsStr::new));
        }
        words.push(self.program.as_os_str());
        words.extend(self.args.iter().map(OsString::as_os_str));
        let mut command = Command::new(words[0]);
        for name in FOREIGN_ENVIRONMENT {
            command.env_remove(name);
        }
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
            .args(&words[1..])
            .current_dir(&self.cwd)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let line = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let child =
            from_lasting_thread(move || command.spawn()).with_context(|| format!("cannot start `{line}`"))?;
        let identity = Identity::of_running(child.id().cast_signed(), &self.mark);
        Ok((identity.with_context(|| tail(&self.output, 20))?, child))
    }
}

/// What a command line begins with whose process is to die with the process that starts it. It must be started by
/// [`from_lasting_thread`].
pub(crate) const DIE_WITH_PARENT: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];

/// Starts a process from the one thread that never ends before this process does.
pub(crate) fn from_lasting_thread<T: Send + 'static>(
    start: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    static ORDERS: OnceLock<mpsc::Sender<Box<dyn FnOnce() + Send>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        std::thread::spawn(move || receiver.into_iter().for_each(|order| order()));
        sender
    });
    let gone = || std::io::Error::other("the thread that starts processes is gone");
    let (answer, started) = mpsc::channel();
    orders.send(Box::new(move || drop(answer.send(start())))).map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}

/// Daemons that this process has started and that nobody waits for: they are waited for here once they have ended.
static ADOPTED: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// Takes over the waiting for a child.
pub fn adopt(child: Child) {
    ADOPTED.lock().unwrap_or_else(PoisonError::into_inner).push(child);
}

/// Waits for those adopted children that have ended, so that nothing of them is left.
pub fn reap() {
    let mut adopted = ADOPTED.lock().unwrap_or_else(PoisonError::into_inner);
    adopted.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}

/// The last lines of a log file, for an error message.
pub fn tail(file: &Path, lines: usize) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    format!("the end of {}:\n{}", file.display(), all[all.len().saturating_sub(lines)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(folder: &Path) -> Launch {
        Launch {
            program: "sh".into(),
            args: ["-c", "sleep 60; :", "the-mark"].map(OsString::from).into(),
            cwd: folder.to_owned(),
            output: folder.join("out"),
            mark: "the-mark".to_owned(),
            die_with_parent: true,
        }
    }

    #[tokio::test]
    async fn a_process_is_known_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let (identity, mut child) = sleeper(folder.path()).start().unwrap();
        assert!(identity.alive());
        assert!(identity.usage().unwrap().rss_peak_bytes > 0);
        assert!(identity.signal(Signal::SIGKILL));
        assert!(identity.ended_within(Duration::from_secs(5)).await);
        child.wait().unwrap();
        assert!(!identity.signal(Signal::SIGKILL));
    }

    #[test]
    fn a_stranger_with_the_same_pid_is_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let (identity, mut child) = sleeper(folder.path()).start().unwrap();
        let later = Identity { start_ticks: identity.start_ticks + 1, ..identity.clone() };
        let other = Identity { mark: "another-mark".to_owned(), ..identity.clone() };
        assert!(!later.signal(Signal::SIGKILL) && !other.signal(Signal::SIGKILL));
        assert!(identity.alive());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
