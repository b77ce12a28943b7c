//! What daemons tell each other through the object `rbd_mirror_leader`.
//!
//! ```text
//! u8 version 1 · u8 compat 1 · u32 length · u32 operation (0 heartbeat, 1 lock acquired, 2 lock released)
//! ```
//!
//! Ceph's daemons answer operations that they do not know, and do nothing else about them. [`Message::Probe`] is such
//! an operation: by its answer a leader shows that it lives, whoever wrote it.
//!
//! Reference: `src/tools/rbd_mirror/leader_watcher/Types.cc`.

use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};

/// Far from the numbers that Ceph hands out one after another.
const PROBE: u32 = 0x5052_4f42;

/// A notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The leader lives.
    Heartbeat,
    /// The sender has become the leader.
    LockAcquired,
    /// The sender is the leader no more.
    LockReleased,
    /// Asks for an answer; only ours send it.
    Probe,
    /// Something from the future.
    Unknown(u32),
}

impl Encode for Message {
    fn encode(&self, e: &mut Encoder) {
        let operation = match self {
            Message::Heartbeat => 0,
            Message::LockAcquired => 1,
            Message::LockReleased => 2,
            Message::Probe => PROBE,
            Message::Unknown(operation) => *operation,
        };
        e.versioned(1, 1, |e| {
            e.u32(operation);
        });
    }
}

impl Decode for Message {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.versioned("leader_watcher::NotifyMessage", 1, |d, _| {
            Ok(match d.u32()? {
                0 => Message::Heartbeat,
                1 => Message::LockAcquired,
                2 => Message::LockReleased,
                PROBE => Message::Probe,
                operation => Message::Unknown(operation),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_encoded_as_cephs() -> Result<(), DecodeError> {
        assert_eq!(&Message::Heartbeat.to_bytes()[..], [1, 1, 4, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&Message::LockReleased.to_bytes()[..], [1, 1, 4, 0, 0, 0, 2, 0, 0, 0]);
        for message in [Message::Heartbeat, Message::LockAcquired, Message::Probe, Message::Unknown(9)] {
            assert_eq!(Message::from_bytes(&message.to_bytes(), "test")?, message);
        }
        assert!(Message::from_bytes(&[1, 1, 2, 0, 0, 0, 0, 0], "test").is_err());
        Ok(())
    }
}
