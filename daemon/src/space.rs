//! Whether the pools of the copies have room.
//!
//! In a full pool an OSD refuses what needs room, and only that (see `rados/src/librados/connection.rs`). Removals and changes
//! of headers and statuses go through; copies must not go on, though: writes to blocks that are there already would fill
//! full OSDs further, as of each a snapshot may have to be kept. So it is looked at the pools' flags, from time to time, and
//! when a write was refused. While a pool is full, no image begins or goes on to write data to it, statuses and a callout say
//! why, and as soon as there is room the images go on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use rados::cluster::CommandTarget;
use rados::{Cluster, Error, ErrorClass, IoCtx, PoolId, Result};
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::service::{Level, ServiceDaemon};

/// How often the flags are looked at while there is room.
const INTERVAL: Duration = Duration::from_secs(15);
/// The same while a pool is full.
const INTERVAL_FULL: Duration = Duration::from_secs(2);
/// What was learnt so lately is not asked again.
const FRESH: Duration = Duration::from_secs(1);
/// How long the monitors may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Who calls out.
const CALLOUT: &str = "space";

/// What is known of the pools. Made once per connection; all images share it.
#[derive(Debug, Default)]
pub struct Space {
    known: watch::Sender<Known>,
    /// When it was learnt. Held while the monitors are asked.
    learnt: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Pools that are full, and what a write to them fails with.
    full: BTreeMap<PoolId, Error>,
    /// Pools in which data of copies lies.
    used: BTreeSet<PoolId>,
}

impl Known {
    /// Why nothing can be written to `pools`.
    fn refused(&self, pools: &[PoolId]) -> Option<Error> {
        pools.iter().find_map(|pool| self.full.get(pool)).cloned()
    }
}

impl Space {
    /// Fails with a sentence for the operator when one of these pools is full.
    pub fn expect_room(&self, pools: &[PoolId]) -> Result<()> {
        self.known.send_if_modified(|known| {
            known.used.extend(pools);
            false
        });
        self.known.borrow().refused(pools).map_or(Ok(()), Err)
    }

    /// Waits until one of these pools is full. Cancel-safe.
    pub async fn full(&self, pools: &[PoolId]) -> Error {
        let mut known = self.known.subscribe();
        loop {
            if let Some(error) = known.borrow_and_update().refused(pools) {
                return error;
            }
            if known.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Waits until no pool that is in use is full. Cancel-safe.
    pub async fn room(&self) {
        let mut known = self.known.subscribe();
        let has_room = |known: &Known| known.used.iter().all(|pool| !known.full.contains_key(pool));
        if known.wait_for(has_room).await.is_err() {
            std::future::pending().await
        }
    }

    /// When `error` came of a full pool, what is to be said of that. EDQUOT has other causes, too.
    pub async fn refusal(&self, local: &IoCtx, error: &Error) -> Option<Error> {
        if !error.is(libc::EDQUOT) && !error.is(libc::ENOSPC) {
            return None;
        }
        let cluster = Cluster::new(local.backend().clone());
        if let Err(failed) = self.look(&cluster).await {
            tracing::debug!("{failed}");
        }
        let known = self.known.borrow();
        let used: Vec<PoolId> = std::iter::once(local.pool_id()).chain(known.used.iter().copied()).collect();
        known.refused(&used)
    }

    /// Asks the monitors, unless that was done just now.
    async fn look(&self, cluster: &Cluster) -> Result<()> {
        let mut learnt = self.learnt.lock().await;
        if learnt.is_some_and(|at| at.elapsed() < FRESH) {
            return Ok(());
        }
        let command = json!({"prefix": "osd pool ls", "detail": "detail", "format": "json"});
        let answer =
            timeout(ANSWER_TIMEOUT, cluster.command(CommandTarget::Mon, command, Bytes::new())).await;
        let silent = || Error::new(libc::ETIMEDOUT, "cannot learn whether pools are full");
        let reply = answer.unwrap_or_else(|_| Err(silent()))?;
        let unreadable = |e| Error::new(libc::EBADMSG, format!("cannot read the list of pools: {e}"));
        let pools: Value = serde_json::from_slice(&reply.output).map_err(unreadable)?;
        let full: BTreeMap<PoolId, Error> = pools.as_array().into_iter().flatten().filter_map(full).collect();
        self.known.send_if_modified(|known| {
            let changed = known.full != full;
            known.full = full;
            changed
        });
        *learnt = Some(Instant::now());
        Ok(())
    }
}

/// A pool that is full, and why nothing can be written to it.
fn full(pool: &Value) -> Option<(PoolId, Error)> {
    let id = PoolId(pool["pool_id"].as_i64().or_else(|| pool["pool"].as_i64())?);
    let has =
        |flag| pool["flags_names"].as_str().is_some_and(|names| names.split(',').any(|name| name == flag));
    let name = pool["pool_name"].as_str().unwrap_or_default();
    let (errno, why, help) = if has("full_quota") {
        (libc::EDQUOT, "it has reached its quota", "raise the quota or free space")
    } else if has("full") {
        (libc::ENOSPC, "OSDs have reached the full ratio", "add OSDs or free space")
    } else {
        return None;
    };
    let what =
        format!("local pool '{name}' is full: {why}; {help}. Mirroring goes on by itself when there is room");
    Some((id, Error::new(errno, what)))
}

/// Looks at the flags for as long as the connection works; says then why not. `pool` is the one for which is called out.
pub async fn watch(cluster: &Cluster, space: &Space, pool: PoolId, service: &ServiceDaemon) -> Error {
    let (_callout, pools) = (Callout { pool, service }, [pool]);
    let mut told = false;
    if let Err(error) = space.expect_room(&pools) {
        tracing::debug!("{error}");
    }
    loop {
        match space.look(cluster).await {
            Err(error) if error.class() == ErrorClass::Fenced => return error,
            Err(error) => tracing::debug!("{error}; trying again"),
            Ok(()) => {}
        }
        let refused = {
            let known = space.known.borrow();
            known.refused(&known.used.iter().copied().collect::<Vec<_>>())
        };
        match &refused {
            Some(error) if !std::mem::replace(&mut told, true) => tracing::warn!("{error}"),
            None if std::mem::take(&mut told) => tracing::info!("there is room in the local pools again"),
            _ => {}
        }
        let interval = if refused.is_some() { INTERVAL_FULL } else { INTERVAL };
        service.callout(pool, CALLOUT, refused.map(|error| (Level::Error, error.what().to_string())));
        tokio::select! {
            () = sleep(interval) => {}
            _ = space.full(&pools), if !told => {}
        }
    }
}

/// Takes the callout back when nobody looks any more.
struct Callout<'a> {
    pool: PoolId,
    service: &'a ServiceDaemon,
}

impl Drop for Callout<'_> {
    fn drop(&mut self) {
        self.service.callout(self.pool, CALLOUT, None);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_full_pool_is_told_by_its_flags() {
        let pool = |flags: &str| json!({"pool_id": 3, "pool_name": "vms", "flags_names": flags});
        assert!(full(&pool("hashpspool,selfmanaged_snaps,nearfull,backfillfull")).is_none());
        let (id, error) = full(&pool("hashpspool,full,selfmanaged_snaps,full_quota")).expect("full");
        assert_eq!((id, error.errno()), (PoolId(3), libc::EDQUOT));
        let text = "local pool 'vms' is full: it has reached its quota; raise the quota or free space. Mirroring goes on by \
                    itself when there is room";
        assert_eq!(error.what(), text);
        assert!(full(&pool("hashpspool,full")).is_some_and(|(_, error)| error.is(libc::ENOSPC)));
    }

    #[tokio::test]
    async fn who_waits_for_room_or_for_the_lack_of_it_is_woken() {
        let space = Space::default();
        let (ours, other) = ([PoolId(1), PoolId(2)], [PoolId(3)]);
        space.expect_room(&ours).expect("room");
        let set = |full: &[PoolId]| {
            let full = full.iter().map(|pool| (*pool, Error::new(libc::EDQUOT, "full"))).collect();
            space.known.send_modify(|known| known.full = full);
        };
        let mut lack = std::pin::pin!(space.full(&ours));
        assert!((&mut lack).now_or_never().is_none());
        set(&[PoolId(2)]);
        assert!(lack.now_or_never().is_some());
        assert!(space.expect_room(&ours).is_err() && space.expect_room(&other).is_ok());
        let mut room = std::pin::pin!(space.room());
        assert!((&mut room).now_or_never().is_none());
        set(&[]);
        assert!(room.now_or_never().is_some());
    }
}
