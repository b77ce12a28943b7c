//! Running a stock command line tool to its end, and telling in full what went wrong when it fails.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::process::{DIE_WITH_PARENT, from_lasting_thread};

/// How long a tool may take unless told otherwise. Ceph's tools wait for ever for a cluster that doesn't answer.
pub const TOOL_LIMIT_DEFAULT: Duration = Duration::from_secs(120);

/// Environment variables that would send Ceph's tools to some other cluster.
pub(crate) const FOREIGN_ENVIRONMENT: [&str; 3] = ["CEPH_CONF", "CEPH_ARGS", "CEPH_KEYRING"];

/// What `setpriv` says when there is no such program, or it may not be run.
const NOT_STARTED: &str = "setpriv: ";

/// A tool that couldn't be run, took too long, or ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The program couldn't be started at all.
    #[error("cannot run `{command}`: {source}; is the package that holds it installed?")]
    Start {
        /// The command line.
        command: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It ended, but not with exit code 0.
    #[error("`{command}` ended with {status}: {}", stderr.trim())]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to its standard error.
        stderr: String,
    },
    /// It was killed because it hadn't ended in time.
    #[error("`{command}` hadn't ended after {} s and was killed; does the cluster answer?", limit.as_secs())]
    TimedOut {
        /// The command line.
        command: String,
        /// The time it was given.
        limit: Duration,
    },
    /// Its output isn't the JSON that was asked for.
    #[error("`{command}` answered something that isn't JSON ({source}): {output:.200}")]
    NotJson {
        /// The command line.
        command: String,
        /// What it wrote.
        output: String,
        /// Where the JSON breaks.
        source: serde_json::Error,
    },
}

impl ToolError {
    /// The exit code, if the tool ran to its own end. Ceph's tools end with the errno of the failure.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            ToolError::Failed { status, .. } => status.code(),
            _ => None,
        }
    }

    /// What the tool wrote to its standard error, if it ran.
    pub fn stderr(&self) -> Option<&str> {
        match self {
            ToolError::Failed { stderr, .. } => Some(stderr),
            _ => None,
        }
    }
}

/// A command line to be run to its end.
#[derive(Debug, Clone)]
pub struct Tool {
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    stdin: Option<Vec<u8>>,
    limit: Duration,
}

impl Tool {
    /// The command line of just this program.
    pub fn new(program: impl AsRef<Path>) -> Self {
        Tool {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            envs: Vec::new(),
            stdin: None,
            limit: TOOL_LIMIT_DEFAULT,
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Gives the tool something to read; without this its standard input is empty.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Kills the tool when it takes longer than this.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The command line as one would type it.
    pub fn line(&self) -> String {
        self.words().join(" ")
    }

    /// The program and its arguments.
    pub fn words(&self) -> Vec<String> {
        let words =
            std::iter::once(self.program.as_os_str()).chain(self.args.iter().map(OsString::as_os_str));
        words.map(|word| word.to_string_lossy().into_owned()).collect()
    }

    /// Starts the tool with its own pipes. It is killed when its handle is dropped, and at the latest when this process
    /// ends: it might wait for ever for a cluster that has ended as well.
    pub(crate) fn spawn(&self) -> std::io::Result<Child> {
        let input = if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() };
        self.spawn_with(input, Stdio::piped())
    }

    /// Starts the tool and lets it run: its standard input is a pipe, its standard error is one, and what it writes to
    /// its standard output is thrown away. It is killed when its handle is dropped, and at the latest when this process
    /// ends.
    pub fn start(&self) -> Result<Child, ToolError> {
        let failed = |source| ToolError::Start { command: self.line(), source };
        self.spawn_with(Stdio::piped(), Stdio::null()).map_err(failed)
    }

    fn spawn_with(&self, input: Stdio, output: Stdio) -> std::io::Result<Child> {
        let mut command = Command::new(DIE_WITH_PARENT[0]);
        for name in FOREIGN_ENVIRONMENT {
            command.env_remove(name);
        }
        command
            .args(&DIE_WITH_PARENT[1..])
            .arg(&self.program)
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .stdin(input)
            .stdout(output)
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let runtime = tokio::runtime::Handle::current();
        from_lasting_thread(move || {
            let _in_runtime = runtime.enter();
            command.spawn()
        })
    }

    /// Runs the tool and gives its standard output as bytes. A dropped future kills the tool.
    pub async fn run_bytes(self) -> Result<Vec<u8>, ToolError> {
        let start_error = |source| ToolError::Start { command: self.line(), source };
        let mut child = self.spawn().map_err(start_error)?;
        let feed = child.stdin.take().zip(self.stdin.clone());
        let feeding = async {
            if let Some((mut pipe, bytes)) = feed {
                // A tool that ends before it has read everything says why on its standard error.
                let _ = pipe.write_all(&bytes).await;
            }
        };
        let ended = tokio::time::timeout(self.limit, async {
            let ((), output) = tokio::join!(feeding, child.wait_with_output());
            output
        });
        let output = match ended.await {
            Err(_) => {
                return Err(ToolError::TimedOut { command: self.line(), limit: self.limit });
            }
            Ok(output) => output.map_err(start_error)?,
        };
        if output.status.success() {
            return Ok(output.stdout);
        }
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if let Some(why) = stderr.strip_prefix(NOT_STARTED) {
            return Err(start_error(std::io::Error::other(why.trim().to_owned())));
        }
        Err(ToolError::Failed { command: self.line(), status: output.status, stderr })
    }

    /// Runs the tool and gives its standard output as text. A dropped future kills the tool.
    pub async fn run(self) -> Result<String, ToolError> {
        Ok(String::from_utf8_lossy(&self.run_bytes().await?).into_owned())
    }

    /// Runs the tool and reads its standard output as JSON. A dropped future kills the tool.
    pub async fn run_json(self) -> Result<serde_json::Value, ToolError> {
        let command = self.line();
        let output = self.run().await?;
        serde_json::from_str(&output).map_err(|source| ToolError::NotJson { command, output, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_tells_command_code_and_words() {
        let error = Tool::new("sh").args(["-c", "echo no luck >&2; exit 22"]).run().await.unwrap_err();
        assert_eq!(error.exit_code(), Some(22));
        assert_eq!(
            error.to_string(),
            "`sh -c echo no luck >&2; exit 22` ended with exit status: 22: no luck"
        );
    }

    #[tokio::test]
    async fn a_tool_that_is_not_there_is_told_from_one_that_fails() {
        let error = Tool::new("/no/such/tool").run().await.unwrap_err();
        assert!(matches!(error, ToolError::Start { .. }), "{error}");
        assert!(error.to_string().contains("No such file"), "{error}");
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_killed() {
        let error = Tool::new("sleep").arg("60").limit(Duration::from_millis(20)).run().await.unwrap_err();
        assert!(matches!(error, ToolError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn input_reaches_the_tool_even_when_larger_than_a_pipe() {
        let bytes = vec![7_u8; 1 << 20];
        assert_eq!(Tool::new("cat").stdin(bytes.clone()).run_bytes().await.unwrap(), bytes);
    }
}
