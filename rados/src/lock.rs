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
                e.string(&self.name).u8(kind_byte(self.kind)).string(&self.cookie).string(&self.tag);
                e.string(&self.description);
                let duration = self.duration.unwrap_or_default();
                e.u32(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)).u32(duration.subsec_nanos());
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
        ReadSub::Exec { class: CLASS.into(), method: "assert_locked".into(), input: self.assertion() }
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
        e.string(&self.name).u8(kind_byte(self.kind)).string(&self.cookie).string(&self.tag);
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
///
/// Taking it for oneself is another operation: class methods read the state from before their operation, so that a
/// [`LockRequest::lock_sub`] behind this one still finds the old locker, and EBUSY.
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
            Ok(LockInfo { lockers, kind, tag: d.string()? })
        })
    }
}

fn decode_locker(d: &mut Decoder<'_>) -> std::result::Result<Locker, DecodeError> {
    let (entity, cookie) = d.versioned("locker_id_t", 1, |d, _| Ok((EntityName::decode(d)?, d.string()?)))?;
    d.versioned("locker_info_t", 1, |d, _| {
        let expiration = Duration::from_secs(d.u32()?.into()) + Duration::from_nanos(d.u32()?.into());
        let address = EntityAddress::decode(d)?;
        let expiration = (!expiration.is_zero()).then_some(expiration);
        Ok(Locker { entity, cookie, expiration, address, description: d.string()? })
    })
}

impl IoCtx {
    /// Takes a lock; see [`LockRequest::lock_sub`]. Creates the object when there is none.
    pub async fn lock(&self, object: &str, request: &LockRequest) -> Result<()> {
        self.write(WriteOp::new(object).with(request.lock_sub())).await.map(drop)
    }

    /// Gives up a lock; see [`unlock_sub`].
    pub async fn unlock(&self, object: &str, name: &str, cookie: &str) -> Result<()> {
        self.write(WriteOp::new(object).with(unlock_sub(name, cookie))).await.map(drop)
    }

    /// Takes a lock away from another client; see [`break_lock_sub`].
    pub async fn break_lock(&self, object: &str, name: &str, locker: EntityName, cookie: &str) -> Result<()> {
        self.write(WriteOp::new(object).with(break_lock_sub(name, locker, cookie))).await.map(drop)
    }

    /// Renames a locker's cookie; see [`LockRequest::set_cookie_sub`].
    pub async fn set_lock_cookie(&self, object: &str, request: &LockRequest, new_cookie: &str) -> Result<()> {
        self.write(WriteOp::new(object).with(request.set_cookie_sub(new_cookie))).await.map(drop)
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
    WriteSub::Exec { class: CLASS.into(), method: method.into(), input }
}

fn versioned(fields: impl FnOnce(&mut Encoder)) -> Bytes {
    Encoder::new().versioned(1, 1, fields).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lock that the stock `rados lock get` took on a 16.2.15 cluster, as the OSD stored it.
    const STORED: &str = "0101 65000000 01000000 \
        0101 13000000 08 a210000000000000 06000000 6175746f2031 \
        0101 35000000 0000000000000000 \
        01 0101 1c000000 01000000 0806f439 10000000 0200 0000 7f000001 0000000000000000 \
        06000000 612074657374 01 08000000 696e7465726e616c";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
        digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
    }

    fn input(sub: WriteSub) -> Bytes {
        match sub {
            WriteSub::Exec { class, input, .. } if class == CLASS => input,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_stored_lock_reads_as_the_stock_tool_shows_it() {
        let info = LockInfo::from_bytes(&bytes(STORED), "lock").unwrap();
        let [locker] = info.lockers.as_slice() else { panic!("{info:?}") };
        assert_eq!((info.kind, info.tag.as_str()), (Some(LockKind::Exclusive), "internal"));
        assert_eq!((locker.entity.to_string().as_str(), locker.cookie.as_str()), ("client.4258", "auto 1"));
        assert_eq!(locker.address.to_string(), "127.0.0.1:0/972293640");
        assert_eq!((locker.description.as_str(), locker.expiration), ("a test", None));
    }

    #[test]
    fn no_damage_to_a_stored_lock_panics() {
        let stored = bytes(STORED);
        for length in 0..stored.len() {
            assert!(LockInfo::from_bytes(&stored[..length], "lock").is_err());
        }
        for at in 0..stored.len() {
            for damage in [0x01, 0x80, 0xff] {
                let mut damaged = stored.clone();
                damaged[at] ^= damage;
                // Whether it still reads depends on the place; it must only not panic.
                let _ = LockInfo::from_bytes(&damaged, "lock").map(|info| assert!(info.lockers.len() <= 1));
            }
        }
    }

    #[test]
    fn requests_are_encoded_as_the_class_reads_them() {
        let mut request = LockRequest::new("n", LockKind::Shared, "c").tagged("t");
        request.description = "d".into();
        request.duration = Some(Duration::new(5, 6));
        request.renewal = Renewal::Allowed;
        let identity = "01000000 6e 02 01000000 63 01000000 74";
        let lock = format!("0101 1e000000 {identity} 01000000 64 05000000 06000000 01");
        assert_eq!(input(request.lock_sub()), bytes(&lock));
        assert_eq!(input(request.assert_locked_sub()), bytes(&format!("0101 10000000 {identity}")));
        let renamed = format!("0101 15000000 {identity} 01000000 65");
        assert_eq!(input(request.set_cookie_sub("e")), bytes(&renamed));
        assert_eq!(input(unlock_sub("n", "c")), bytes("0101 0a000000 01000000 6e 01000000 63"));
        let broken = "0101 13000000 01000000 6e 08 a210000000000000 01000000 63";
        assert_eq!(input(break_lock_sub("n", EntityName::client(4258), "c")), bytes(broken));
    }
}
