//! Advisory locks on objects: the object class `lock`.
//!
//! A lock has a name on its object, one or more lockers (a client's [`EntityName`] and a cookie), a kind and a tag. The
//! OSD keeps it in the object's attribute `lock.NAME`. A lock outlives its owner: whoever takes over breaks it, and
//! blocklists the address of the old owner before that.
//!
//! Encodings (all structs versioned 1, 1; kind and flags are u8, times are u32 seconds and u32 nanoseconds):
//!
//! | method | input | output |
//! |---|---|---|
//! | `lock` | name, kind, cookie, tag, description, duration, flags | |
//! | `unlock` | name, cookie | |
//! | `break_lock` | name, `entity_name_t` of the locker, cookie | |
//! | `get_info` | name | map of {entity, cookie} to {expiration, address, description}, kind, tag |
//! | `list_locks` | (nothing) | list of names |
//! | `assert_locked` | name, kind, cookie, tag | |
//! | `set_cookie` | name, kind, cookie, tag, new cookie | |
//!
//! Reference: `src/cls/lock/cls_lock_ops.h`, `cls_lock_types.h`, `cls_lock.cc`.

use std::time::Duration;

use bytes::Bytes;

use crate::encoding::{Decode, DecodeError, Decoder, Encoder};
use crate::entity::{EntityAddress, EntityName};
use crate::error::{Error, Result};
use crate::ioctx::IoCtx;
use crate::op::{ReadSub, WriteOp, WriteSub};

const CLASS: &str = "lock";

/// Whom a lock admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockKind {
    /// One locker.
    Exclusive,
    /// Many lockers with the same tag.
    Shared,
    /// One locker; the object is removed when it unlocks.
    ExclusiveEphemeral,
}

/// What to do about a lock that the same locker (client and cookie) holds already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Renewal {
    /// Fail with EEXIST.
    #[default]
    Refused,
    /// Renew it; otherwise take it anew.
    Allowed,
    /// Renew it; fail with ENOENT when it is not held.
    Required,
}

/// A lock as its owner names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockRequest {
    /// Name of the lock on its object; not empty.
    pub name: String,
    /// Whom it admits.
    pub kind: LockKind,
    /// Tells apart lockers of one client.
    pub cookie: String,
    /// All lockers must agree on it.
    pub tag: String,
    /// Free text about the locker.
    pub description: String,
    /// Time after which the lock ends by itself; never when `None`.
    pub duration: Option<Duration>,
    /// What to do when it is held already.
    pub renewal: Renewal,
}

impl LockRequest {
    /// A lock without tag, description or end.
    pub fn new(name: impl Into<String>, kind: LockKind, cookie: impl Into<String>) -> Self {
        LockRequest {
            name: name.into(),
            kind,
            cookie: cookie.into(),
            tag: String::new(),
            description: String::new(),
            duration: None,
            renewal: Renewal::default(),
        }
    }

    /// The same with a tag.
    pub fn tagged(mut self, tag: impl Into<String>) -> Self {
        self.tag = tag.into();
        self
    }

    /// Takes the lock: EBUSY when others hold it, EEXIST or ENOENT as [`Renewal`] says.
    pub fn lock_sub(&self) -> WriteSub {
        exec_write(
            "lock",
            versioned(|e| {
                e.string(&self.name)
                    .u8(kind_byte(self.kind))
                    .string(&self.cookie)
                    .string(&self.tag);
                e.string(&self.description);
                let duration = self.duration.unwrap_or_default();
                e.u32(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX))
                    .u32(duration.subsec_nanos());
                e.u8(match self.renewal {
                    Renewal::Refused => 0,
                    Renewal::Allowed => 1,
                    Renewal::Required => 2,
                });
            }),
        )
    }

    /// Fails its whole operation with EBUSY unless this very lock is held by this client.
    pub fn assert_locked_sub(&self) -> WriteSub {
        exec_write("assert_locked", self.assertion())
    }

    /// As [`LockRequest::assert_locked_sub`], for reads.
    pub fn assert_locked_read_sub(&self) -> ReadSub {
        ReadSub::Exec {
            class: CLASS.into(),
            method: "assert_locked".into(),
            input: self.assertion(),
        }
    }

    /// Renames the locker's cookie; EBUSY when this lock is not held by this client.
    pub fn set_cookie_sub(&self, new_cookie: &str) -> WriteSub {
        exec_write(
            "set_cookie",
            versioned(|e| {
                self.encode_identity(e);
                e.string(new_cookie);
            }),
        )
    }

    fn assertion(&self) -> Bytes {
        versioned(|e| self.encode_identity(e))
    }

    fn encode_identity(&self, e: &mut Encoder) {
        e.string(&self.name)
            .u8(kind_byte(self.kind))
            .string(&self.cookie)
            .string(&self.tag);
    }
}

/// Gives up the lock `name` held by this client with `cookie`; ENOENT when it is not.
pub fn unlock_sub(name: &str, cookie: &str) -> WriteSub {
    exec_write(
        "unlock",
        versioned(|e| {
            e.string(name).string(cookie);
        }),
    )
}

/// Takes the lock `name` away from another client; ENOENT when that one does not hold it.
pub fn break_lock_sub(name: &str, locker: EntityName, cookie: &str) -> WriteSub {
    exec_write(
        "break_lock",
        versioned(|e| {
            e.string(name).value(&locker).string(cookie);
        }),
    )
}

/// One who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locker {
    /// The client.
    pub entity: EntityName,
    /// Its cookie.
    pub cookie: String,
    /// Time at which the lock ends, since the epoch; `None` for never.
    pub expiration: Option<Duration>,
    /// The client's address when it took the lock: what to blocklist.
    pub address: EntityAddress,
    /// Free text.
    pub description: String,
}

/// A lock as the OSD keeps it. Without lockers when nobody holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockInfo {
    /// Who holds it, by client and cookie.
    pub lockers: Vec<Locker>,
    /// Whom it admits; `None` for a lock that was never taken.
    pub kind: Option<LockKind>,
    /// The tag.
    pub tag: String,
}

impl Decode for LockInfo {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        d.versioned("cls_lock_get_info_reply", 1, |d, _| {
            let lockers = d.seq(12, decode_locker)?;
            let kind = match d.u8()? {
                0 => None,
                1 => Some(LockKind::Exclusive),
                2 => Some(LockKind::Shared),
                3 => Some(LockKind::ExclusiveEphemeral),
                kind => return Err(d.invalid(format!("there is no lock of kind {kind}"))),
            };
            Ok(LockInfo {
                lockers,
                kind,
                tag: d.string()?,
            })
        })
    }
}

fn decode_locker(d: &mut Decoder<'_>) -> std::result::Result<Locker, DecodeError> {
    let (entity, cookie) = d.versioned("locker_id_t", 1, |d, _| Ok((EntityName::decode(d)?, d.string()?)))?;
    d.versioned("locker_info_t", 1, |d, _| {
        let expiration = Duration::from_secs(d.u32()?.into()) + Duration::from_nanos(d.u32()?.into());
        let address = EntityAddress::decode(d)?;
        let expiration = (!expiration.is_zero()).then_some(expiration);
        Ok(Locker {
            entity,
            cookie,
            expiration,
            address,
            description: d.string()?,
        })
    })
}

impl IoCtx {
    /// Takes a lock; see [`LockRequest::lock_sub`]. Creates the object when there is none.
    pub async fn lock(&self, object: &str, request: &LockRequest) -> Result<()> {
        self.write(WriteOp::new(object).with(request.lock_sub()))
            .await
            .map(drop)
    }

    /// Gives up a lock; see [`unlock_sub`].
    pub async fn unlock(&self, object: &str, name: &str, cookie: &str) -> Result<()> {
        self.write(WriteOp::new(object).with(unlock_sub(name, cookie)))
            .await
            .map(drop)
    }

    /// Takes a lock away from another client; see [`break_lock_sub`].
    pub async fn break_lock(&self, object: &str, name: &str, locker: EntityName, cookie: &str) -> Result<()> {
        self.write(WriteOp::new(object).with(break_lock_sub(name, locker, cookie)))
            .await
            .map(drop)
    }

    /// Renames a locker's cookie; see [`LockRequest::set_cookie_sub`].
    pub async fn set_lock_cookie(&self, object: &str, request: &LockRequest, new_cookie: &str) -> Result<()> {
        self.write(WriteOp::new(object).with(request.set_cookie_sub(new_cookie)))
            .await
            .map(drop)
    }

    /// Who holds the lock `name`.
    pub async fn lock_info(&self, object: &str, name: &str) -> Result<LockInfo> {
        let input = versioned(|e| {
            e.string(name);
        });
        let output = self.exec(object, CLASS, "get_info", input).await?;
        let info = LockInfo::from_bytes(&output, "cls_lock_get_info_reply");
        info.map_err(|e| Error::from(e).context(format!("cannot read lock '{name}' of object '{object}'")))
    }

    /// Names of the locks that the object has, held or not.
    pub async fn list_locks(&self, object: &str) -> Result<Vec<String>> {
        let output = self.exec(object, CLASS, "list_locks", Bytes::new()).await?;
        let mut d = Decoder::new(&output, "cls_lock_list_locks_reply");
        let names = d.versioned("cls_lock_list_locks_reply", 1, |d, _| d.seq(4, |d| d.string()));
        names.map_err(|e| Error::from(e).context(format!("cannot list the locks of object '{object}'")))
    }
}

fn kind_byte(kind: LockKind) -> u8 {
    match kind {
        LockKind::Exclusive => 1,
        LockKind::Shared => 2,
        LockKind::ExclusiveEphemeral => 3,
    }
}

fn exec_write(method: &str, input: Bytes) -> WriteSub {
    WriteSub::Exec {
        class: CLASS.into(),
        method: method.into(),
        input,
    }
}

fn versioned(fields: impl FnOnce(&mut Encoder)) -> Bytes {
    Encoder::new().versioned(1, 1, fields).finish()
}
