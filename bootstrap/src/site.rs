//! The name of this site, and the config-key store in which it lies.

use rados::error::ResultExt;
use rados::{Cluster, CommandTarget, Error, Result};
use serde_json::json;

/// Key of the site's name.
const SITE_NAME_KEY: &str = "rbd/mirror/site_name";

/// The name of this site: as set (`rbd mirror pool enable --site-name`), else the cluster's fsid.
pub async fn site_name(cluster: &Cluster) -> Result<String> {
    let name = get(cluster, SITE_NAME_KEY).await.context("cannot read the name of this site")?;
    let name = name.map(|name| name.trim().to_string());
    Ok(name.filter(|name| !name.is_empty()).unwrap_or_else(|| cluster.fsid().to_string()))
}

/// Names this site; an empty name stands for the cluster's fsid.
pub async fn set_site_name(cluster: &Cluster, name: &str) -> Result<()> {
    let name = name.trim();
    let set = match name.is_empty() {
        true => remove(cluster, SITE_NAME_KEY).await,
        false => set(cluster, SITE_NAME_KEY, name).await,
    };
    set.context(format!("cannot name this site '{name}'"))
}

/// The text of a key of the config-key store; `None` when there is no such key.
pub(crate) async fn get(cluster: &Cluster, key: &str) -> Result<Option<String>> {
    let value = cluster.config_key_get(key).await.map_err(unknown_command)?;
    Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

/// Sets a key of the config-key store. The value travels beside the command, and so into no log of commands.
pub(crate) async fn set(cluster: &Cluster, key: &str, value: &str) -> Result<()> {
    let command = json!({"prefix": "config-key set", "key": key});
    let set = cluster.command(CommandTarget::Mon, command, value.to_string()).await;
    set.map(drop).map_err(unknown_command)
}

/// Removes a key of the config-key store; no error when there is none.
pub(crate) async fn remove(cluster: &Cluster, key: &str) -> Result<()> {
    let command = json!({"prefix": "config-key rm", "key": key});
    let removed = cluster.command(CommandTarget::Mon, command, "").await;
    removed.optional().map(drop).map_err(unknown_command)
}

/// Monitors too old for a command say EINVAL; librbd says EOPNOTSUPP then.
fn unknown_command(error: Error) -> Error {
    if !error.is(libc::EINVAL) {
        return error;
    }
    Error::new(libc::EOPNOTSUPP, "the monitors do not know the config-key store")
}
