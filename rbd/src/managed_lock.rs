//! The lock that clients take on an object they watch, and that others take from them only when they are dead: used for
//! the exclusive lock of images (on the header) and for the leader of the mirroring daemons (on `rbd_mirror_leader`).
//!
//! It is the class lock `rbd_lock` of the object, exclusive, with the tag `internal` and the cookie `auto HANDLE`, where
//! HANDLE is the cookie of the owner's watch on the same object. So everybody can see whether the owner lives: he does
//! while the object has a watcher with his address and that handle.
//!
//! Invariants:
//! * A live owner's lock is never broken, unless the caller says so in as many words ([`Breaking::Forced`]).
//! * Before a lock is broken its owner is blocklisted, and the newest OSD map is waited for: whatever the old owner has
//!   still in flight fails. (`rbd_blocklist_on_break_lock = false` turns this off, as in librbd.)
//! * Between looking at the owner and breaking his lock, the lock is looked at again.
//! * A lock of this very client is taken over only when nobody in this process holds it any more ([`HELD`]): breaking it
//!   would fence nothing, so whoever holds it must have come to its end.
//!
//! After a connection error the watch comes back with another cookie; the lock must then get that one, too
//! ([`ManagedLock::reacquire`]), or its owner will be taken for dead.
//!
//! Reference: `src/librbd/ManagedLock.cc`, `src/librbd/managed_lock/` (`AcquireRequest`, `BreakRequest`,
//! `GetLockerRequest`, `ReacquireRequest`, `ReleaseRequest`, `Utils`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rados::entity::{EntityAddress, EntityName};
use rados::error::ResultExt;
use rados::lock::{LockInfo, LockKind, LockRequest};
use rados::{Cluster, Error, IoCtx, ReadOp, Result, Watcher, WriteSub};

use crate::header_update::LOCK_NAME;

/// What all lockers of this kind agree on.
pub const LOCK_TAG: &str = "internal";
/// Rounds of taking and breaking after which taking a lock gives up.
const ROUNDS_MAX: usize = 8;

/// The cookie of the lock of whoever has this watch.
pub fn lock_cookie(watch_cookie: u64) -> String {
    format!("auto {watch_cookie}")
}

/// The watch behind a lock's cookie; `None` when the cookie is of another form.
pub fn watch_of_cookie(cookie: &str) -> Option<u64> {
    let mut words = cookie.split_ascii_whitespace();
    (words.next() == Some("auto")).then(|| words.next()?.parse().ok())?
}

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockOwner {
    /// The client.
    pub entity: EntityName,
    /// Its cookie.
    pub cookie: String,
    /// Its address: what is blocklisted.
    pub address: EntityAddress,
    /// Its watch on the locked object.
    pub watch_cookie: u64,
}

impl LockOwner {
    /// The owner as `info` tells it; `None` when there is none. EBUSY when it is locked in another way, which only a
    /// person may undo (`rbd lock add`, a shared lock).
    pub fn of(info: &LockInfo, object: &str) -> Result<Option<LockOwner>> {
        let Some(locker) = info.lockers.first() else { return Ok(None) };
        let foreign = |why: String| {
            let what = format!("object '{object}' is locked by other means ({why}); see 'rbd lock ls'");
            Err(Error::new(libc::EBUSY, what))
        };
        if info.tag != LOCK_TAG {
            return foreign(format!("tag '{}'", info.tag));
        }
        if info.kind != Some(LockKind::Exclusive) {
            return foreign("a lock that is not exclusive".into());
        }
        let Some(watch_cookie) = watch_of_cookie(&locker.cookie) else {
            return foreign(format!("cookie '{}'", locker.cookie));
        };
        if locker.address.socket.is_none() {
            return foreign(format!("{} without an address", locker.entity));
        }
        let (entity, cookie, address) = (locker.entity, locker.cookie.clone(), locker.address);
        Ok(Some(LockOwner { entity, cookie, address, watch_cookie }))
    }

    /// True when one of `watchers` (of the locked object) is this owner.
    pub fn is_among(&self, watchers: &[Watcher]) -> bool {
        let address = self.address.to_string();
        watchers.iter().any(|watcher| watcher.address == address && watcher.cookie == self.watch_cookie)
    }
}

/// What came of an attempt to take a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// It is ours.
    Acquired,
    /// A live client has it.
    Owned(LockOwner),
}

/// What came of an attempt to break a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// That owner has it no more, by our doing or otherwise.
    Gone,
    /// He lives, or somebody else has it: look again.
    Kept,
}

/// Whose lock may be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breaking {
    /// That of an owner who is dead.
    DeadOnly,
    /// Anybody's: a live owner is blocklisted, too. For one that watches still and answers no more.
    Forced,
}

/// The lock of one object, and whether we hold it. All methods are cancel-safe: an attempt that was dropped may have
/// taken the lock, and the next one finds that out.
#[derive(Debug, Clone)]
pub struct ManagedLock {
    ioctx: IoCtx,
    object: String,
    blocklist: bool,
    blocklist_seconds: Option<f64>,
    held: Option<Arc<Held>>,
}

/// A lock as this process knows it: cluster, pool and namespace, object, cookie.
type LockKey = (String, String, String, String);

/// How many in this process hold a lock, or think so.
static HELD: Mutex<BTreeMap<LockKey, usize>> = Mutex::new(BTreeMap::new());

fn all_held() -> MutexGuard<'static, BTreeMap<LockKey, usize>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that a lock is held, for as long as it lives.
#[derive(Debug)]
pub struct Held(LockKey);

impl Held {
    fn new(key: LockKey) -> Arc<Held> {
        *all_held().entry(key.clone()).or_default() += 1;
        Arc::new(Held(key))
    }

    fn cookie(&self) -> &str {
        &self.0.3
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = all_held();
        if let Some(count) = held.get_mut(&self.0) {
            *count -= 1;
        }
        held.retain(|_, count| *count > 0);
    }
}

impl ManagedLock {
    /// The lock of `object`, not held. Blocklisting follows the options `rbd_blocklist_on_break_lock` and
    /// `rbd_blocklist_expire_seconds` of the connection.
    pub fn new(ioctx: &IoCtx, object: impl Into<String>) -> ManagedLock {
        let config = |option| ioctx.backend().config(option);
        let seconds = config("rbd_blocklist_expire_seconds").and_then(|value| value.parse::<f64>().ok());
        ManagedLock {
            ioctx: ioctx.clone(),
            object: object.into(),
            blocklist: config("rbd_blocklist_on_break_lock").is_none_or(|value| value != "false"),
            blocklist_seconds: seconds.filter(|seconds| *seconds > 0.0),
            held: None,
        }
    }

    /// True between a successful attempt and the release, as far as this client knows.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Our cookie while we hold the lock.
    pub fn cookie(&self) -> Option<&str> {
        self.held.as_deref().map(Held::cookie)
    }

    /// Forgets the lock, which stays locked. As long as the answer lives nobody else in this process takes it over.
    pub fn forget(&mut self) -> Option<Arc<Held>> {
        self.held.take()
    }

    /// Who holds it. EBUSY when it is locked by other means.
    pub async fn owner(&self) -> Result<Option<LockOwner>> {
        let info = self.ioctx.lock_info(&self.object, LOCK_NAME).await;
        LockOwner::of(
            &info.context(format!("cannot tell who locked object '{}'", self.object))?,
            &self.object,
        )
    }

    /// True when `owner` still watches the object.
    pub async fn is_alive(&self, owner: &LockOwner) -> Result<bool> {
        let watchers = self.ioctx.list_watchers(&self.object).await;
        Ok(owner.is_among(&watchers.context(format!("cannot tell whether {} lives", owner.entity))?))
    }

    /// Takes the lock, from a dead owner if need be. `watch_cookie` is our watch on the object; it must live.
    ///
    /// EBUSY when it is locked by other means; ESHUTDOWN when we are blocklisted ourselves.
    pub async fn try_acquire(&mut self, watch_cookie: u64) -> Result<Attempt> {
        let cookie = lock_cookie(watch_cookie);
        let request = request(&cookie);
        for _ in 0..ROUNDS_MAX {
            match self.ioctx.lock(&self.object, &request).await {
                // EEXIST: an earlier attempt, whose answer got lost, took it.
                Err(e) if !e.is(libc::EBUSY) && !e.is(libc::EEXIST) => {
                    return Err(e.context(format!("cannot lock object '{}'", self.object)));
                }
                Err(e) if e.is(libc::EBUSY) => {}
                _ => {
                    self.hold(cookie);
                    return Ok(Attempt::Acquired);
                }
            }
            let Some(owner) = self.owner().await? else { continue };
            if self.is_alive(&owner).await? || self.is_held_here(&owner) {
                return Ok(Attempt::Owned(owner));
            }
            if owner.entity == self.own_entity() {
                // Left from a watch of ours that is gone.
                self.release_cookie(&owner.cookie).await?;
            } else {
                self.break_lock(&owner, Breaking::DeadOnly).await?;
            }
        }
        let what = format!("cannot lock object '{}': its owners change too fast", self.object);
        Err(Error::new(libc::EAGAIN, what))
    }

    /// Takes the lock away from `owner`, who is blocklisted before. EINVAL when that is ourselves.
    pub async fn break_lock(&self, owner: &LockOwner, breaking: Breaking) -> Result<Broken> {
        if breaking == Breaking::DeadOnly && self.is_alive(owner).await? {
            return Ok(Broken::Kept);
        }
        match self.owner().await {
            Ok(None) => return Ok(Broken::Gone),
            Ok(Some(now)) if now == *owner => {}
            Ok(Some(_)) => return Ok(Broken::Kept),
            Err(e) if e.is_not_found() => return Ok(Broken::Gone),
            Err(e) => return Err(e),
        }
        if owner.entity == self.own_entity() {
            let what = format!("cannot break the lock of object '{}': it is our own", self.object);
            return Err(Error::new(libc::EINVAL, what));
        }
        if self.blocklist {
            tracing::info!(
                "blocklisting {} ({}), who locked object '{}'",
                owner.entity,
                owner.address,
                self.object
            );
            let cluster = Cluster::new(self.ioctx.backend().clone());
            let fenced = cluster.blocklist_add(&owner.address.to_string(), self.blocklist_seconds).await;
            fenced.context(format!("cannot blocklist {} before breaking its lock", owner.entity))?;
        }
        match self.ioctx.break_lock(&self.object, LOCK_NAME, owner.entity, &owner.cookie).await {
            Err(e) if !e.is_not_found() => {
                Err(e.context(format!("cannot break the lock of {}", owner.entity)))
            }
            _ => Ok(Broken::Gone),
        }
    }

    /// Gives the lock the cookie of a new watch, after the old one broke. EBUSY when somebody took it meanwhile, ENOENT
    /// when nobody holds it; we do not hold it then.
    pub async fn reacquire(&mut self, watch_cookie: u64) -> Result<()> {
        let cookie = lock_cookie(watch_cookie);
        let Some(old) = self.cookie().filter(|old| *old != cookie).map(str::to_string) else { return Ok(()) };
        let renamed = self.ioctx.set_lock_cookie(&self.object, &request(&old), &cookie).await;
        match renamed {
            Ok(()) => self.hold(cookie),
            // A rename whose answer was lost leaves the lock with the new cookie.
            Err(_) if self.verify_cookie(&cookie).await.is_ok() => self.hold(cookie),
            Err(e) => {
                if e.is(libc::EBUSY) || e.is_not_found() || e.is(libc::ESHUTDOWN) {
                    self.held = None;
                }
                return Err(
                    e.context(format!("cannot keep the lock of object '{}' over a lost watch", self.object))
                );
            }
        }
        Ok(())
    }

    /// Asks the OSD whether we still hold it. EBUSY, ENOENT or ESHUTDOWN when we do not, and we know it then.
    pub async fn verify(&mut self) -> Result<()> {
        let Some(cookie) = self.cookie().map(str::to_string) else {
            return Err(Error::new(libc::ENOENT, format!("object '{}' is not locked by us", self.object)));
        };
        let verified = self.verify_cookie(&cookie).await;
        if let Err(e) = &verified
            && (e.is(libc::EBUSY) || e.is_not_found() || e.is(libc::ESHUTDOWN))
        {
            self.held = None;
        }
        verified.context(format!("the lock of object '{}' is lost", self.object))
    }

    /// What makes a write fail with EBUSY unless we hold the lock; `None` when we do not.
    pub fn assertion(&self) -> Option<WriteSub> {
        self.cookie().map(|cookie| request(cookie).assert_locked_sub())
    }

    /// Gives up the lock; no error when it is not held any more.
    pub async fn release(&mut self) -> Result<()> {
        if let Some(cookie) = self.cookie().map(str::to_string) {
            self.release_cookie(&cookie).await?;
            self.held = None;
        }
        Ok(())
    }

    async fn release_cookie(&self, cookie: &str) -> Result<()> {
        match self.ioctx.unlock(&self.object, LOCK_NAME, cookie).await {
            Err(e) if !e.is_not_found() => Err(e.context(format!("cannot unlock object '{}'", self.object))),
            _ => Ok(()),
        }
    }

    async fn verify_cookie(&self, cookie: &str) -> Result<()> {
        let op = ReadOp::new(self.object.clone()).with(request(cookie).assert_locked_read_sub());
        self.ioctx.read(op).await.map(drop)
    }

    fn hold(&mut self, cookie: String) {
        self.held = Some(Held::new(self.key(cookie)));
    }

    fn key(&self, cookie: String) -> LockKey {
        let place = format!("{}/{}", self.ioctx.pool_id(), self.ioctx.namespace());
        (self.ioctx.backend().fsid().to_string(), place, self.object.clone(), cookie)
    }

    /// True when somebody else in this process, whose watch may be broken at the moment, holds the lock.
    fn is_held_here(&self, owner: &LockOwner) -> bool {
        owner.entity == self.own_entity() && all_held().contains_key(&self.key(owner.cookie.clone()))
    }

    fn own_entity(&self) -> EntityName {
        EntityName::client(self.ioctx.backend().instance_id())
    }
}

fn request(cookie: &str) -> LockRequest {
    LockRequest::new(LOCK_NAME, LockKind::Exclusive, cookie).tagged(LOCK_TAG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rados::encoding::Decode;

    #[test]
    fn cookies_name_watches() {
        assert_eq!(lock_cookie(139_766_490_233_824), "auto 139766490233824");
        assert_eq!(watch_of_cookie("auto 139766490233824"), Some(139_766_490_233_824));
        for foreign in ["", "auto", "auto x", "mine", "autos 5", "auto -1"] {
            assert_eq!(watch_of_cookie(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn owners_live_as_long_as_they_watch() {
        let address =
            crate::golden::bytes("0101011c000000030000004c3207a810000000020000007f0000010000000000000000");
        let owner = LockOwner {
            entity: EntityName::client(4132),
            cookie: "auto 7".into(),
            address: EntityAddress::from_bytes(&address, "address").unwrap(),
            watch_cookie: 7,
        };
        let watcher = |address: &str, cookie| Watcher {
            address: address.into(),
            client: 4132,
            cookie,
            timeout_seconds: 30,
        };
        assert!(owner.is_among(&[watcher("127.0.0.1:0/1", 7), watcher("127.0.0.1:0/2819043916", 7)]));
        assert!(!owner.is_among(&[watcher("127.0.0.1:0/1", 7), watcher("127.0.0.1:0/2819043916", 8)]));
        assert!(!owner.is_among(&[]));
    }

    #[test]
    fn foreign_locks_are_left_alone() {
        let locker = |cookie: &str| rados::lock::Locker {
            entity: EntityName::client(1),
            cookie: cookie.into(),
            expiration: None,
            address: EntityAddress { socket: Some(([127, 0, 0, 1], 0).into()), nonce: 5 },
            description: String::new(),
        };
        let info =
            |kind, tag: &str, cookie| LockInfo { lockers: vec![locker(cookie)], kind, tag: tag.into() };
        let exclusive = Some(LockKind::Exclusive);
        let of = |info: &LockInfo| LockOwner::of(info, "object");
        assert_eq!(of(&info(exclusive, LOCK_TAG, "auto 9")).unwrap().unwrap().watch_cookie, 9);
        assert_eq!(of(&LockInfo { lockers: vec![], kind: exclusive, tag: String::new() }), Ok(None));
        for foreign in [
            info(exclusive, "", "auto 9"),
            info(exclusive, LOCK_TAG, "mine"),
            info(Some(LockKind::Shared), LOCK_TAG, "auto 9"),
        ] {
            assert!(of(&foreign).is_err_and(|error| error.is(libc::EBUSY)), "{foreign:?}");
        }
    }
}
