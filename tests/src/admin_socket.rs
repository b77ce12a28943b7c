//! Asking a Ceph daemon through its admin socket, without the half second that the `ceph` command takes.
//!
//! The protocol: the client sends one JSON object and a NUL byte; the daemon answers with the length of its answer
//! (u32, big endian) and the answer, and closes. Agrees with `src/common/admin_socket.cc`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long a daemon may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The longest path that the kernel takes for a socket (`sun_path`, with its terminating NUL).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// No answer on an admin socket is longer than this.
const ANSWER_BYTES_MAX: u32 = 256 << 20;

/// Sends the command `prefix`, such as `"status"` or `"perf dump"`, and gives the answer.
///
/// Fails when nobody listens, the daemon doesn't answer within ten seconds, or the answer isn't JSON.
pub async fn ask(socket: &Path, prefix: &str) -> Result<Value> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        let mut request = json!({ "prefix": prefix, "format": "json" }).to_string().into_bytes();
        request.push(0);
        stream.write_all(&request).await?;
        let length = stream.read_u32().await?;
        if length > ANSWER_BYTES_MAX {
            bail!("the daemon announces an answer of {length} bytes");
        }
        let mut answer = vec![0; length as usize];
        stream.read_exact(&mut answer).await?;
        serde_json::from_slice(&answer)
            .with_context(|| format!("the answer isn't JSON: {}", String::from_utf8_lossy(&answer)))
    };
    match tokio::time::timeout(ANSWER_LIMIT, asked).await {
        Ok(answer) => answer,
        Err(_) => bail!("no answer within {} s", ANSWER_LIMIT.as_secs()),
    }
    .with_context(|| format!("asking `{prefix}` through the admin socket {}", socket.display()))
}
