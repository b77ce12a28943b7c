//! `mirror pool peer add|remove|set`

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::sync::LazyLock;

use bootstrap::peers::NewPeer;
use bootstrap::{PeerAttributes, Secret};
use control::Pool;
use rbd::mirroring::{MirrorMode, Mirroring, PeerDirection};
use regex::Regex;

use crate::connection::Site;
use crate::failure::Failure;
use crate::grammar::Request;
use crate::grammar::rbd::{Direction, PeerCommand, PoolNameArgs};
use crate::output;
use crate::spec::{self, PoolSpec, Positionals};

/// `[CLIENT@]CLUSTER`
static REMOTE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^(?:(client\.[^@]+)@)?([^/@]+)$").ok());
/// What can be set of a peer.
const KEYS: [&str; 6] = ["client", "cluster", "direction", "key-file", "mon-host", "site-name"];
/// Bytes of a key file that are looked at.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Carries out a command about a peer.
pub async fn run(request: &Request, command: &PeerCommand) -> Result<(), Failure> {
    match command {
        PeerCommand::Add { .. } => add(request, command).await,
        PeerCommand::Remove { pool, uuid } => {
            let mut words = Positionals::new([&pool.pool_name, uuid]);
            let spec = spec::pool_name(pool, &mut words)?;
            let uuid = take_uuid(&mut words)?;
            words.end()?;
            Ok(mirrored_pool(request, &spec).await?.1.remove_peer(&uuid).await?)
        }
        PeerCommand::Set { pool, uuid, key, value } => {
            let mut words = Positionals::new([&pool.pool_name, uuid, key, value]);
            let spec = spec::pool_name(pool, &mut words)?;
            let (uuid, key) = (take_uuid(&mut words)?, take_key(&mut words)?);
            let change = Change::new(&key, words.take().unwrap_or_default())?;
            words.end()?;
            let (_, pool) = mirrored_pool(request, &spec).await?;
            change.apply(&pool, &uuid).await
        }
        // Tokens have a module of their own.
        PeerCommand::Bootstrap(_) => Ok(()),
    }
}

/// Which way data flows to and from a peer.
pub fn direction(direction: Option<Direction>) -> PeerDirection {
    match direction {
        Some(Direction::RxOnly) => PeerDirection::Rx,
        Some(Direction::RxTx) | None => PeerDirection::RxTx,
    }
}

async fn add(request: &Request, command: &PeerCommand) -> Result<(), Failure> {
    let PeerCommand::Add {
        pool,
        remote_cluster_spec,
        remote_client_name,
        remote_cluster,
        remote_mon_host,
        remote_key_file,
        direction: flow,
    } = command
    else {
        return Ok(());
    };
    let mut words = Positionals::new([&pool.pool_name, remote_cluster_spec]);
    let spec = spec::pool_name(pool, &mut words)?;
    let (client, cluster) = match words.take() {
        Some(word) => {
            let parts = REMOTE.as_ref().and_then(|pattern| pattern.captures(&word));
            let parts = parts.ok_or_else(|| {
                Failure::invalid(format!(
                    "'{word}' does not name a cluster; it must be [client.ID@]CLUSTER-NAME"
                ))
            })?;
            (parts.get(1).map(|part| part.as_str().to_string()), Some(parts[2].to_string()))
        }
        None => (None, remote_cluster.clone()),
    };
    words.end()?;
    let Some(cluster) = cluster.filter(|cluster| !cluster.is_empty()) else {
        return Err(Failure::invalid("the other cluster was not named; name it as [client.ID@]CLUSTER-NAME"));
    };
    let key = remote_key_file.as_deref().map(read_key).transpose()?.unwrap_or_default();
    let attributes = PeerAttributes::new(remote_mon_host.as_deref().unwrap_or_default(), key);
    let (site, pool) = mirrored_pool(request, &spec).await?;
    let client_name = client.or_else(|| remote_client_name.clone()).unwrap_or(site.client_name);
    let new = NewPeer { direction: direction(*flow), site_name: cluster, client_name, attributes };
    let uuid = pool.peers().add(&new).await?;
    output::put(&format!("{uuid}\n"))
}

/// What is to be changed of a peer.
enum Change {
    Client(String),
    SiteName(String),
    Direction(PeerDirection),
    MonHost(String),
    Key(Secret),
}

impl Change {
    fn new(key: &str, value: String) -> Result<Change, Failure> {
        Ok(match key {
            "client" | "cluster" | "site-name" if value.is_empty() => {
                return Err(Failure::invalid(format!("no new value was given for '{key}'")));
            }
            "client" => Change::Client(value),
            "direction" => Change::Direction(match value.as_str() {
                "rx-only" => PeerDirection::Rx,
                "tx-only" => PeerDirection::Tx,
                "rx-tx" => PeerDirection::RxTx,
                other => {
                    let sentence = format!("'{other}' is no direction; it must be rx-only, tx-only or rx-tx");
                    return Err(Failure::invalid(sentence));
                }
            }),
            "key-file" => Change::Key(read_key(&value)?),
            "mon-host" => Change::MonHost(value),
            _ => Change::SiteName(value),
        })
    }

    async fn apply(self, pool: &Pool, uuid: &str) -> Result<(), Failure> {
        let peers = pool.peers();
        match self {
            Change::Client(name) => peers.set_client(uuid, &name).await?,
            Change::SiteName(name) => peers.set_site_name(uuid, &name).await?,
            Change::Direction(direction) => peers.set_direction(uuid, direction).await?,
            Change::MonHost(mon_host) => peers.set_mon_host(uuid, &mon_host).await?,
            Change::Key(key) => peers.set_key(uuid, key).await?,
        }
        Ok(())
    }
}

/// Connects, and opens a pool that must be mirrored.
pub async fn mirrored_pool(request: &Request, spec: &PoolSpec) -> Result<(Site, Pool), Failure> {
    let site = Site::connect(request).await?;
    let pool = site.pool(spec).await?;
    if Mirroring::new(pool.ioctx()).mode().await? == MirrorMode::Disabled {
        let sentence = format!("mirroring is not enabled in {pool}; enable it first (mirror pool enable)");
        return Err(Failure::invalid(sentence));
    }
    Ok((site, pool))
}

fn take_uuid(words: &mut Positionals) -> Result<String, Failure> {
    let uuid = words.take().ok_or_else(|| {
        Failure::invalid("no peer was named; name it by its uuid, which `mirror pool info` shows")
    })?;
    Pool::check_peer_uuid(&uuid)?;
    Ok(uuid)
}

fn take_key(words: &mut Positionals) -> Result<String, Failure> {
    let refuse = |why: String| Err(Failure::invalid(format!("{why}; it must be one of {}", KEYS.join(", "))));
    match words.take() {
        Some(key) if KEYS.contains(&key.as_str()) => Ok(key),
        Some(key) => refuse(format!("a peer has no '{key}'")),
        None => refuse("what to change was not said".to_string()),
    }
}

/// The first line of a file that holds a key.
fn read_key(path: &str) -> Result<Secret, Failure> {
    let mut line = String::new();
    let read =
        File::open(path).and_then(|file| BufReader::new(file.take(KEY_FILE_BYTES_MAX)).read_line(&mut line));
    // Ceph's error number, whatever the reason.
    read.map_err(|e| Failure::invalid(format!("cannot read the key file '{path}': {e}")))?;
    Ok(Secret::new(line.trim_end_matches(['\n', '\r'])))
}

/// The pool of a command that takes no other words.
pub fn only(args: &PoolNameArgs) -> Result<PoolSpec, Failure> {
    let mut words = Positionals::new([&args.pool_name]);
    let spec = spec::pool_name(args, &mut words)?;
    words.end()?;
    Ok(spec)
}
