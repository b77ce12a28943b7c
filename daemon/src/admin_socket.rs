//! The admin socket: `ceph --admin-daemon PATH rbd mirror status` and its kin.
//!
//! A client connects, sends one command as JSON ended by a NUL (or newline), and reads a big-endian u32 length and as
//! many bytes of answer. `ceph` first asks for `get_command_descriptions` and checks the user's words against it, then
//! sends `{"prefix": "…", "spec": ["…"], "format": "json"}`.
//!
//! Reference: `src/common/admin_socket.cc`, `src/pybind/ceph_daemon.py`.

use std::future::Future;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Longest command that is read.
const COMMAND_BYTES_MAX: u64 = 64 << 10;
/// A client that says nothing for so long is hung up on.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// A command that takes words behind it: literal words, help, and whether a target may follow.
const COMMANDS: &[(&str, &str, bool)] = &[
    ("help", "list available commands", false),
    ("version", "get the version", false),
    ("rbd mirror status", "get status for rbd mirror, for a pool and peer, or for an image", true),
    ("rbd mirror start", "start rbd mirror, a pool and peer, or an image", true),
    ("rbd mirror stop", "stop rbd mirror, a pool and peer, or an image", true),
    ("rbd mirror restart", "restart rbd mirror, a pool and peer, or an image", true),
    ("rbd mirror flush", "flush rbd mirror, a pool and peer, or an image", true),
    ("rbd mirror leader release", "release the leadership of all pools, or of a pool and peer", true),
];

/// A command with its words separated from its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// One of the known commands, for example `rbd mirror status`.
    pub name: &'static str,
    /// The words behind it: nothing, `POOL PEER`, or `POOL/[NAMESPACE/]IMAGE`.
    pub target: Vec<String>,
}

/// The socket, removed when dropped.
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Listens at `path`. A socket that a dead daemon left there is replaced; one that answers is not, and neither is
    /// anything that is no socket.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let what = || format!("cannot listen at the admin socket '{}'", path.display());
        match std::fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                anyhow::bail!(
                    "{}: a file that is no socket is there already; remove it or set admin_socket to another path",
                    what()
                );
            }
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).with_context(what)?;
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e).with_context(what),
                Ok(_) => {
                    anyhow::bail!("the admin socket '{}' belongs to another running daemon", path.display())
                }
            },
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(what),
        }
        let listener = UnixListener::bind(path).with_context(what)?;
        Ok(AdminSocket { listener, path: path.to_path_buf() })
    }

    /// Answers commands for ever with what `handle` says; an error is answered as its sentence. Drop to end.
    pub async fn serve<H, F>(self, handle: H)
    where
        H: Fn(Command) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Value, String>> + Send,
    {
        let handle = Arc::new(handle);
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let handle = handle.clone();
                    tokio::spawn(async move {
                        if let Err(e) = converse(stream, &*handle).await {
                            tracing::debug!("admin socket: {e}");
                        }
                    });
                }
                Err(e) => {
                    tracing::warn!("admin socket: cannot accept a connection: {e}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // A socket that stays behind is replaced by the next daemon.
        std::fs::remove_file(&self.path).ok();
    }
}

async fn converse<H, F>(mut stream: UnixStream, handle: &H) -> anyhow::Result<()>
where
    H: Fn(Command) -> F,
    F: Future<Output = Result<Value, String>>,
{
    let request = tokio::time::timeout(CLIENT_TIMEOUT, read_command(&mut stream)).await??;
    let answer = match parse(&request) {
        Ok(Request::Descriptions) => descriptions().to_string(),
        Ok(Request::Command(Command { name: "help", .. })) => pretty(&help()),
        Ok(Request::Command(Command { name: "version", .. })) => {
            pretty(&json!({"version": env!("CARGO_PKG_VERSION"), "program": "rbd-mirror"}))
        }
        Ok(Request::Command(command)) => match handle(command).await {
            Ok(Value::Null) => String::new(),
            Ok(value) => pretty(&value),
            Err(sentence) => format!("ERROR: {sentence}\n"),
        },
        Err(sentence) => format!("ERROR: {sentence}\n"),
    };
    let length = u32::try_from(answer.len()).context("the answer is too long")?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(answer.as_bytes()).await?;
    Ok(())
}

async fn read_command(stream: &mut UnixStream) -> anyhow::Result<Vec<u8>> {
    let mut command = Vec::new();
    let mut limited = stream.take(COMMAND_BYTES_MAX);
    loop {
        match limited.read_u8().await {
            Ok(0 | b'\n') => return Ok(command),
            Ok(byte) => command.push(byte),
            Err(e) => return Err(e).context("a command ended early, or is too long"),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Request {
    Descriptions,
    Command(Command),
}

/// Reads a command. The target comes as `spec`, or as further words of the prefix.
fn parse(request: &[u8]) -> Result<Request, String> {
    let request: Value =
        serde_json::from_slice(request).map_err(|e| format!("the command is not JSON: {e}"))?;
    let prefix = request["prefix"].as_str().ok_or("the command has no prefix")?;
    if prefix == "get_command_descriptions" {
        return Ok(Request::Descriptions);
    }
    let words: Vec<&str> = prefix.split_whitespace().collect();
    let found = COMMANDS.iter().find_map(|(name, _, targeted)| {
        let name_words: Vec<&str> = name.split(' ').collect();
        let rest = words.strip_prefix(name_words.as_slice())?;
        (*targeted || rest.is_empty()).then_some((*name, rest))
    });
    let (name, rest) = found.ok_or_else(|| format!("there is no command '{prefix}'; try help"))?;
    let spec: Vec<String> = match &request["spec"] {
        Value::Array(words) => words.iter().filter_map(|word| word.as_str().map(str::to_string)).collect(),
        Value::String(words) => words.split_whitespace().map(str::to_string).collect(),
        _ => Vec::new(),
    };
    let target = rest.iter().map(|word| word.to_string()).chain(spec).collect();
    Ok(Request::Command(Command { name, target }))
}

fn help() -> Value {
    COMMANDS
        .iter()
        .map(|(name, help, _)| (name.to_string(), Value::from(*help)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn descriptions() -> Value {
    let describe = |(number, (name, help, targeted)): (usize, &(&str, &str, bool))| {
        let mut signature: Vec<Value> = name.split(' ').map(Value::from).collect();
        if *targeted {
            signature.push(json!({"name": "spec", "type": "CephString", "n": "N", "req": false}));
        }
        let description = json!({"sig": signature, "help": help, "module": "", "perm": "", "flags": 0});
        (format!("cmd{number:03}"), description)
    };
    COMMANDS.iter().enumerate().map(describe).collect::<serde_json::Map<_, _>>().into()
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(json: Value) -> Result<Command, String> {
        match parse(json.to_string().as_bytes())? {
            Request::Command(command) => Ok(command),
            Request::Descriptions => Err("descriptions".into()),
        }
    }

    #[test]
    fn targets_are_separated_from_commands() {
        let status = |target: &[&str]| {
            Ok(Command { name: "rbd mirror status", target: target.iter().map(|t| t.to_string()).collect() })
        };
        assert_eq!(command(json!({"prefix": "rbd mirror status"})), status(&[]));
        assert_eq!(
            command(json!({"prefix": "rbd mirror status", "spec": ["p", "site"]})),
            status(&["p", "site"])
        );
        assert_eq!(command(json!({"prefix": "rbd mirror status p/i"})), status(&["p/i"]));
        assert!(command(json!({"prefix": "help me"})).is_err());
        assert!(command(json!({"prefix": 3})).is_err());
        assert!(parse(b"{").is_err());
    }

    #[tokio::test]
    async fn only_dead_sockets_are_replaced() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let (file, link, dead) =
            (folder.path().join("file"), folder.path().join("link"), folder.path().join("dead"));
        std::fs::write(&file, "precious")?;
        std::os::unix::fs::symlink(&file, &link)?;
        for path in [&file, &link] {
            assert!(AdminSocket::bind(path).is_err(), "{}", path.display());
        }
        assert_eq!(std::fs::read_to_string(&link)?, "precious");
        drop(std::os::unix::net::UnixListener::bind(&dead)?);
        let alive = AdminSocket::bind(&dead)?;
        assert!(AdminSocket::bind(&dead).is_err(), "a living daemon's socket was taken");
        drop(alive);
        Ok(())
    }

    #[tokio::test]
    async fn a_client_gets_its_answer() -> anyhow::Result<()> {
        let path = std::env::temp_dir().join(format!("rbd-mirror-asok-{}", std::process::id()));
        let server = tokio::spawn(AdminSocket::bind(&path)?.serve(|command| async move {
            if command.target.is_empty() {
                Ok(json!({"fine": true}))
            } else {
                Err("no such pool".to_string())
            }
        }));
        assert!(AdminSocket::bind(&path).is_err(), "the socket of a living daemon must not be taken");
        let ask = async |text: &str| -> anyhow::Result<String> {
            let mut stream = UnixStream::connect(&path).await?;
            stream.write_all(format!("{text}\0").as_bytes()).await?;
            let mut answer = vec![0; stream.read_u32().await? as usize];
            stream.read_exact(&mut answer).await?;
            Ok(String::from_utf8(answer)?)
        };
        assert_eq!(ask(r#"{"prefix": "rbd mirror status"}"#).await?, "{\n  \"fine\": true\n}\n");
        assert_eq!(ask(r#"{"prefix": "rbd mirror status x y"}"#).await?, "ERROR: no such pool\n");
        assert!(
            ask(r#"{"prefix": "get_command_descriptions"}"#)
                .await?
                .contains("\"sig\":[\"rbd\",\"mirror\",\"status\"")
        );
        assert!(ask("nonsense").await?.starts_with("ERROR: "));
        server.abort();
        assert!(server.await.is_err());
        assert!(!path.exists());
        Ok(())
    }
}
