//! How a peer is reached: its monitors and our key there, in the config-key store of this cluster.
//!
//! The value of `rbd/mirror/peer/POOL-ID/PEER-UUID` is a JSON object of strings, `{"key": "…", "mon_host": "…"}`, in this
//! very spelling. Other attributes are kept as they are.
//!
//! Reference: `peer_site_get_attributes` and `peer_site_set_attributes` in `src/librbd/api/Mirror.cc`.

use std::collections::BTreeMap;
use std::fmt;

use rados::error::ResultExt;
use rados::{Cluster, Error, PoolId, Result};
use serde_json::Value;

use crate::{Secret, site};

const MON_HOST: &str = "mon_host";
const KEY: &str = "key";

/// What the config-key store says about a peer. `Debug` does not show the key.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PeerAttributes {
    values: BTreeMap<String, String>,
}

impl PeerAttributes {
    /// These monitors and this key; an empty one is left out.
    pub fn new(mon_host: &str, key: Secret) -> PeerAttributes {
        let mut attributes = PeerAttributes::default();
        attributes.set_mon_host(mon_host);
        attributes.set_key(key);
        attributes
    }

    /// Addresses of the peer's monitors; empty when they are not stored.
    pub fn mon_host(&self) -> &str {
        self.values.get(MON_HOST).map_or("", String::as_str)
    }

    /// Our key there; empty when it is not stored.
    pub fn key(&self) -> Secret {
        Secret::new(self.values.get(KEY).cloned().unwrap_or_default())
    }

    /// Sets the addresses of the monitors; forgets them when empty.
    pub fn set_mon_host(&mut self, mon_host: &str) {
        self.set(MON_HOST, mon_host);
    }

    /// Sets the key; forgets it when empty.
    pub fn set_key(&mut self, key: Secret) {
        self.set(KEY, key.expose());
    }

    /// True when nothing is known.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Every attribute by its name, the key among them: for those who were asked to show it (`rbd mirror pool info
    /// --all`).
    pub fn exposed(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    fn set(&mut self, name: &str, value: &str) {
        match value.is_empty() {
            true => self.values.remove(name),
            false => self.values.insert(name.to_string(), value.to_string()),
        };
    }

    /// From the stored text; `None` when it is not an object of strings.
    fn parse(text: &str) -> Option<PeerAttributes> {
        let Ok(Value::Object(object)) = serde_json::from_str(text) else { return None };
        let string = |(name, value): (String, Value)| Some((name, value.as_str()?.to_string()));
        Some(PeerAttributes { values: object.into_iter().map(string).collect::<Option<_>>()? })
    }

    /// The text to store.
    fn format(&self) -> String {
        let string = |text: &str| Value::from(text).to_string();
        let pairs = self.values.iter().map(|(name, value)| format!("{}: {}", string(name), string(value)));
        format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
    }
}

// The key must not reach a log.
impl fmt::Debug for PeerAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerAttributes(mon_host '{}', key {:?})", self.mon_host(), self.key())
    }
}

/// Key of the config-key store that tells of a peer of `pool`.
pub fn config_key(pool: PoolId, peer_uuid: &str) -> String {
    format!("rbd/mirror/peer/{pool}/{peer_uuid}")
}

/// What is stored about a peer of `pool`; `None` when nothing is. EINVAL when it is not to be understood, EPERM or
/// EACCES when this client may not see it.
pub async fn read(cluster: &Cluster, pool: PoolId, peer_uuid: &str) -> Result<Option<PeerAttributes>> {
    let key = config_key(pool, peer_uuid);
    let what = || format!("cannot read how peer {peer_uuid} is reached");
    let Some(text) = site::get(cluster, &key).await.context(what())?.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let damaged = || {
        // The text is not quoted: it may hold the key.
        let why = format!("the config-key '{key}' does not hold the JSON object that it should");
        Error::new(libc::EINVAL, format!("{}: {why}", what()))
    };
    PeerAttributes::parse(&text).map(Some).ok_or_else(damaged)
}

/// Stores how a peer of `pool` is reached. That the peer is registered is for the caller to know.
pub async fn write(
    cluster: &Cluster,
    pool: PoolId,
    peer_uuid: &str,
    attributes: &PeerAttributes,
) -> Result<()> {
    let written = site::set(cluster, &config_key(pool, peer_uuid), &attributes.format()).await;
    written.context(format!("cannot store how peer {peer_uuid} is reached"))
}

/// Forgets how a peer of `pool` is reached; no error when nothing was stored, or when this client may not know.
pub async fn remove(cluster: &Cluster, pool: PoolId, peer_uuid: &str) -> Result<()> {
    match site::remove(cluster, &config_key(pool, peer_uuid)).await {
        Err(e) if e.is(libc::EPERM) => Ok(()),
        removed => removed.context(format!("cannot forget how peer {peer_uuid} is reached")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As stock `rbd` 16.2.15 stored it.
    const STOCK: &str = r#"{"key": "AQCCPABr0b7WDBAAuTpTjtB8Mh7VMmOVzNPTVA==", "mon_host": "[v2:127.0.0.1:12884/0,v1:127.0.0.1:12885/0]"}"#;

    #[test]
    fn stored_text_is_stocks() {
        let attributes = PeerAttributes::parse(STOCK).unwrap();
        assert_eq!(attributes.mon_host(), "[v2:127.0.0.1:12884/0,v1:127.0.0.1:12885/0]");
        assert_eq!(attributes.key().expose(), "AQCCPABr0b7WDBAAuTpTjtB8Mh7VMmOVzNPTVA==");
        assert_eq!(attributes.format(), STOCK);
        let printed = format!("{attributes:?}");
        assert!(printed.contains("12884") && !printed.contains("AQCC"), "{printed}");
    }

    #[test]
    fn attributes_come_and_go_one_by_one() {
        let mut attributes = PeerAttributes::parse(r#"{"mon_host": "a", "later": "\"b\""}"#).unwrap();
        attributes.set_key(Secret::new("k"));
        attributes.set_mon_host("");
        assert_eq!(attributes.format(), r#"{"key": "k", "later": "\"b\""}"#);
        assert_eq!(PeerAttributes::parse(&attributes.format()), Some(attributes.clone()));
        attributes.set_key(Secret::default());
        assert_eq!(attributes.exposed().len(), 1);
        assert!(PeerAttributes::new("", Secret::default()).is_empty());
    }

    #[test]
    fn what_is_no_object_of_strings_is_refused() {
        for text in ["", "[]", "{", r#"{"key": 7}"#, r#"{"key": "a"} b"#] {
            assert_eq!(PeerAttributes::parse(text), None, "{text}");
        }
    }
}
