//! The user that a peer connects as.
//!
//! Its id comes from the config-key `rbd/mirror/peer_client_id`, `rbd-mirror-peer` unless somebody chose another one. Its
//! capabilities are what a mirror daemon needs of a remote cluster, and no more.
//!
//! Reference: `create_bootstrap_user` in `src/librbd/api/Mirror.cc`.

use rados::error::ResultExt;
use rados::{Cluster, CommandTarget, Error, Result};
use serde::Deserialize;
use serde_json::json;

use crate::Secret;
use crate::site;

/// Key of the id of the peers' user.
const CLIENT_ID_KEY: &str = "rbd/mirror/peer_client_id";
/// The id of the peers' user unless configured.
pub const DEFAULT_CLIENT_ID: &str = "rbd-mirror-peer";

/// A user of a cluster, for its peers to connect as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerUser {
    /// Its id: its name without `client.`.
    pub client_id: String,
    /// Its key.
    pub key: Secret,
}

/// Makes the peers' user of this cluster, or finds it. EEXIST when there is one with other capabilities, EACCES when
/// this client may not make users.
pub async fn create_peer_user(cluster: &Cluster) -> Result<PeerUser> {
    let what = "cannot make the user that peers connect as";
    let client_id = client_id(cluster).await.context(what)?;
    let command = json!({
        "prefix": "auth get-or-create",
        "entity": format!("client.{client_id}"),
        "caps": ["mon", "profile rbd-mirror-peer", "osd", "profile rbd"],
        "format": "json",
    });
    let reply = match cluster.command(CommandTarget::Mon, command, "").await {
        Err(e) if e.is(libc::EINVAL) => {
            let why = format!(
                "client.{client_id} exists with other capabilities than mon 'profile rbd-mirror-peer', osd 'profile \
                 rbd': change them (ceph auth caps) or remove that user"
            );
            return Err(Error::new(libc::EEXIST, why).context(what));
        }
        reply => reply.context(what)?,
    };
    let key = parse_key(&reply.output).ok_or_else(|| {
        Error::new(libc::EBADMSG, format!("{what}: the monitors did not answer with a key for it"))
    })?;
    Ok(PeerUser { client_id, key })
}

async fn client_id(cluster: &Cluster) -> Result<String> {
    if let Some(id) = site::get(cluster, CLIENT_ID_KEY).await?.filter(|id| !id.is_empty()) {
        return Ok(id);
    }
    site::set(cluster, CLIENT_ID_KEY, DEFAULT_CLIENT_ID).await?;
    Ok(DEFAULT_CLIENT_ID.to_string())
}

#[derive(Deserialize)]
struct Entity {
    key: Secret,
}

fn parse_key(output: &[u8]) -> Option<Secret> {
    let entities: Vec<Entity> = serde_json::from_slice(output).ok()?;
    entities.into_iter().next().map(|entity| entity.key).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_keyring_has_a_key() {
        let keyring = br#"[{"entity":"client.rbd-mirror-peer","key":"AQCC==","caps":{"osd":"profile rbd"}}]"#;
        assert_eq!(parse_key(keyring), Some(Secret::new("AQCC==")));
        for other in ["", "[]", "{}", "[{}]", r#"[{"key":""}]"#, r#"[{"key":7}]"#] {
            assert_eq!(parse_key(other.as_bytes()), None, "{other}");
        }
    }
}
