//! Bootstrap tokens: what one site has to tell the other so that it can connect.
//!
//! A token is base64 (standard alphabet, padded) of a JSON object with four strings, as stock `rbd` writes and reads it:
//!
//! ```text
//! {"fsid":"FSID","client_id":"rbd-mirror-peer","key":"CEPHX KEY","mon_host":"[v2:IP:PORT/0,v1:IP:PORT/0]"}
//! ```
//!
//! Whoever has it can read and write every image of the cluster: it is kept like a key.
//!
//! Reference: `Mirror<I>::peer_bootstrap_create` in `src/librbd/api/Mirror.cc`.

use std::io::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rados::error::ResultExt;
use rados::{Cluster, CommandTarget, Error, PoolId, Result};
use rbd::mirroring::{MirrorMode, Mirroring};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::user::create_peer_user;
use crate::{PeerAttributes, Secret};

/// Bytes of a token that are looked at: many times what a cluster with many monitors needs.
const TOKEN_BYTES_MAX: usize = 64 << 10;

/// How to reach a cluster, and as whom. `Debug` does not show the key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Token {
    /// The cluster's fsid.
    pub fsid: String,
    /// The user to connect as, without `client.`.
    pub client_id: String,
    /// The user's key.
    pub key: Secret,
    /// Addresses of the monitors.
    pub mon_host: String,
}

impl Token {
    /// Reads a token. White space in it is ignored, and so is what stands behind its end. EINVAL when it is none.
    pub fn decode(text: &str) -> Result<Token> {
        let refuse = |why: &str| {
            let what = "cannot use the bootstrap token";
            Err(Error::new(libc::EINVAL, format!("{what}: {why}; have the other site make a new one")))
        };
        if text.len() > TOKEN_BYTES_MAX {
            return refuse("it is far longer than a token can be");
        }
        let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let padded = text.find('=').map(|at| at + text[at..].chars().take_while(|c| *c == '=').count());
        let text = &text[..padded.unwrap_or(text.len())];
        if text.is_empty() {
            return refuse("it is empty");
        }
        // No error is passed on: it could quote the key.
        let Ok(json) = STANDARD.decode(text) else {
            return refuse("it is damaged (not base64)");
        };
        let Ok(token) = serde_json::from_slice::<Token>(&json) else {
            return refuse("it does not hold fsid, client_id, key and mon_host");
        };
        if token.fsid.is_empty()
            || token.client_id.is_empty()
            || token.mon_host.is_empty()
            || token.key.is_empty()
        {
            return refuse("fsid, client_id, key or mon_host is empty in it");
        }
        Ok(token)
    }

    /// The token as text, for `rbd mirror pool peer bootstrap import` or [`Token::decode`].
    pub fn encode(&self) -> String {
        // `json!` would sort the fields; stock tokens have them in this order.
        let string = |text: &str| Value::from(text).to_string();
        STANDARD.encode(format!(
            "{{\"fsid\":{},\"client_id\":{},\"key\":{},\"mon_host\":{}}}",
            string(&self.fsid),
            string(&self.client_id),
            string(self.key.expose()),
            string(&self.mon_host)
        ))
    }

    /// Reads a token from a file.
    pub fn read(path: &Path) -> Result<Token> {
        let what = || format!("cannot read the bootstrap token '{}'", path.display());
        let text =
            std::fs::read(path).map_err(|e| Error::new(e.raw_os_error().unwrap_or(libc::EIO), what()))?;
        Token::decode(&String::from_utf8_lossy(&text)).context(what())
    }

    /// Writes the token to a file that only its owner may read, in one step: a file that was there is replaced, whatever
    /// its permissions were.
    pub fn write(&self, path: &Path) -> Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // A temporary file is made with mode 0600.
        let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
            writeln!(file, "{}", self.encode())?;
            file.as_file().sync_all()?;
            file.persist(path).map(drop).map_err(|e| e.error)
        });
        written.map_err(|e| {
            let what = format!("cannot write the bootstrap token '{}'", path.display());
            Error::new(e.raw_os_error().unwrap_or(libc::EIO), what)
        })
    }

    /// What is stored about the cluster that the token describes.
    pub fn attributes(&self) -> PeerAttributes {
        PeerAttributes::new(&self.mon_host, self.key.clone())
    }
}

/// Makes a token with which another site can connect to this one. EINVAL when mirroring is not enabled in the pool,
/// EEXIST when the peers' user exists with other capabilities.
pub async fn create_token(cluster: &Cluster, pool: PoolId) -> Result<Token> {
    let what = "cannot make a bootstrap token";
    if Mirroring::new(&cluster.pool(pool)).mode().await.context(what)? == MirrorMode::Disabled {
        return Err(Error::new(libc::EINVAL, format!("{what}: mirroring is not enabled in the pool")));
    }
    let user = create_peer_user(cluster).await.context(what)?;
    let mon_host = mon_host(cluster).await.context(what)?;
    Ok(Token { fsid: cluster.fsid().to_string(), client_id: user.client_id, key: user.key, mon_host })
}

/// The addresses of all monitors as librbd writes them: `[v2:IP:PORT/0,v1:IP:PORT/0]`, one group per monitor, by name.
pub(crate) async fn mon_host(cluster: &Cluster) -> Result<String> {
    let command = json!({"prefix": "mon dump", "format": "json"});
    let reply = cluster.command(CommandTarget::Mon, command, "").await?;
    let configured = || cluster.config("mon_host").filter(|mon_host| !mon_host.is_empty());
    format_mon_host(&reply.output)
        .or_else(configured)
        .ok_or_else(|| Error::new(libc::EBADMSG, "the monitors do not tell their addresses"))
}

#[derive(Deserialize)]
struct MonDump {
    mons: Vec<Mon>,
}

#[derive(Deserialize)]
struct Mon {
    name: String,
    public_addrs: Addresses,
}

#[derive(Deserialize)]
struct Addresses {
    addrvec: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    addr: String,
    nonce: u64,
}

fn format_mon_host(dump: &[u8]) -> Option<String> {
    let mut mons = serde_json::from_slice::<MonDump>(dump).ok()?.mons;
    mons.sort_by(|a, b| a.name.cmp(&b.name));
    let address = |a: &Address| format!("{}:{}/{}", a.kind, a.addr, a.nonce);
    let groups = mons.iter().map(|mon| match mon.public_addrs.addrvec.as_slice() {
        [one] => address(one),
        several => format!("[{}]", several.iter().map(address).collect::<Vec<_>>().join(",")),
    });
    let groups: Vec<String> = groups.collect();
    (!groups.is_empty()).then(|| groups.join(","))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    /// Made by stock `rbd` 16.2.15 on a cluster that is no more.
    const STOCK: &str = "eyJmc2lkIjoiZGYyNTE2Y2UtZWVjYS00MTM4LWFmNjktYTMxMDM2NzQ1NjRhIiwiY2xpZW50X2lkIjoicmJkLW1pcnJvci1\
                         wZWVyIiwia2V5IjoiQVFDQ1BBQnJIUU9CQmhBQURKWGVTcmUvWjBDUWJZMlg0clhaUUE9PSIsIm1vbl9ob3N0IjoiW3YyOj\
                         EyNy4wLjAuMToyMjUwOC8wLHYxOjEyNy4wLjAuMToyMjUwOS8wXSJ9";

    fn stock() -> Token {
        Token {
            fsid: "df2516ce-eeca-4138-af69-a3103674564a".into(),
            client_id: "rbd-mirror-peer".into(),
            key: Secret::new("AQCCPABrHQOBBhAADJXeSre/Z0CQbY2X4rXZQA=="),
            mon_host: "[v2:127.0.0.1:22508/0,v1:127.0.0.1:22509/0]".into(),
        }
    }

    #[test]
    fn a_stock_token_is_read_and_written_byte_for_byte() {
        assert_eq!(Token::decode(STOCK).unwrap(), stock());
        assert_eq!(stock().encode(), STOCK);
    }

    #[test]
    fn white_space_and_what_follows_are_ignored() {
        let padded = Token { fsid: "f".into(), ..stock() };
        assert!(padded.encode().ends_with('='));
        let encoded = padded.encode();
        let (head, tail) = encoded.split_at(40);
        assert_eq!(Token::decode(&format!(" {head}\n{tail}\r\njunk\n")).unwrap(), padded);
    }

    #[test]
    fn nothing_else_is_a_token_and_no_error_quotes_it() {
        let base64 = |text: &str| STANDARD.encode(text);
        let without = |field: &str| base64(&format!("{{{}}}", fields(field)));
        let mut wrong =
            vec![String::new(), "   ".into(), "hello!!".into(), base64("hello"), base64("[]"), "=".into()];
        wrong.extend(["fsid", "client_id", "key", "mon_host"].map(without));
        wrong.push(base64(r#"{"fsid":1,"client_id":"AQsecret","key":"AQsecret","mon_host":"c"}"#));
        wrong.push(base64(r#"{"fsid":"a","client_id":"b","key":"","mon_host":"c"}"#));
        wrong.push("A".repeat(TOKEN_BYTES_MAX + 1));
        for text in wrong {
            let error = Token::decode(&text).unwrap_err();
            assert!(error.is(libc::EINVAL) && !error.to_string().contains("AQsecret"), "{text}: {error}");
        }
        assert!(!format!("{:?}", stock()).contains(stock().key.expose()));
    }

    fn fields(left_out: &str) -> String {
        let fields = ["fsid", "client_id", "key", "mon_host"].into_iter().filter(|field| *field != left_out);
        fields.map(|field| format!("\"{field}\":\"AQsecret\"")).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn a_token_file_is_private_even_where_one_was_public() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        stock().write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Token::read(&path).unwrap(), stock());
        assert!(Token::read(&folder.path().join("none")).unwrap_err().is_not_found());
    }

    #[test]
    fn monitors_are_listed_as_librbd_lists_them() {
        let mon = |name: &str, addresses: &str| {
            format!(r#"{{"rank":0,"name":"{name}","public_addrs":{{"addrvec":[{addresses}]}}}}"#)
        };
        let address =
            |kind: &str, port: u16| format!(r#"{{"type":"{kind}","addr":"127.0.0.1:{port}","nonce":0}}"#);
        let both = mon("b", &[address("v2", 1), address("v1", 2)].join(","));
        let dump = format!(r#"{{"mons":[{both},{}]}}"#, mon("a", &address("v1", 3)));
        let expected = "v1:127.0.0.1:3/0,[v2:127.0.0.1:1/0,v1:127.0.0.1:2/0]";
        assert_eq!(format_mon_host(dump.as_bytes()).as_deref(), Some(expected));
        assert_eq!(format_mon_host(br#"{"mons":[]}"#), None);
        assert_eq!(format_mon_host(b"x"), None);
    }

    proptest! {
        #[test]
        fn any_token_survives_a_round_trip(a in ".+", b in ".+", c in ".+", d in ".+") {
            let token = Token { fsid: a, client_id: b, key: Secret::new(c), mon_host: d };
            prop_assert_eq!(Token::decode(&token.encode()).unwrap(), token);
        }

        #[test]
        fn any_text_is_a_token_or_an_error(text in ".*", at in 0usize..300, byte in any::<char>()) {
            let _ = Token::decode(&text);
            let mut damaged: Vec<char> = STOCK.chars().collect();
            let at = at % damaged.len();
            damaged[at] = byte;
            let _ = Token::decode(&damaged.iter().collect::<String>());
            let _ = Token::decode(&STOCK[..at]);
        }
    }
}
