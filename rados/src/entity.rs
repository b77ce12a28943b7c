//! Names and addresses of Ceph's clients and daemons, as messages and object classes encode them.
//!
//! | value | bytes |
//! |---|---|
//! | `entity_name_t` | u8 kind (1 mon, 2 mds, 4 osd, 8 client, 16 mgr), i64 number |
//! | `entity_addr_t` | u8 1, versioned struct (1, 1): u32 type (1 legacy, 2 msgr2, 3 any), u32 nonce, u32 length, sockaddr |
//! | the same for clients before nautilus | u32 0, u32 nonce, 128 bytes of sockaddr with a big-endian family |
//! | `sockaddr` | u16 family, u16 port (big endian), 4 bytes of IPv4, or u32 flow and 16 bytes of IPv6 |
//!
//! Reference: `src/msg/msg_types.h`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};

/// `entity_name_t::TYPE_CLIENT`.
const KIND_CLIENT: u8 = 8;

/// Bytes of a `sockaddr_storage`.
const SOCKADDR_STORAGE_BYTES: usize = 128;

const AF_INET: u16 = libc::AF_INET as u16;
const AF_INET6: u16 = libc::AF_INET6 as u16;

/// A client or daemon by kind and number, for example `client.4123`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityName {
    /// Kind, as encoded.
    pub kind: u8,
    /// Number: a client's global id, an OSD's index.
    pub number: i64,
}

impl EntityName {
    /// The client with this global id ([`crate::Cluster::instance_id`]).
    pub fn client(instance_id: u64) -> Self {
        EntityName { kind: KIND_CLIENT, number: instance_id as i64 }
    }
}

impl fmt::Display for EntityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            1 => "mon",
            2 => "mds",
            4 => "osd",
            KIND_CLIENT => "client",
            16 => "mgr",
            32 => "auth",
            _ => "unknown",
        };
        write!(f, "{kind}.{}", self.number)
    }
}

impl Encode for EntityName {
    fn encode(&self, e: &mut Encoder) {
        e.u8(self.kind).i64(self.number);
    }
}

impl Decode for EntityName {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(EntityName { kind: d.u8()?, number: d.i64()? })
    }
}

/// An address and the nonce that tells apart processes on it. Printed as blocklists want it: `127.0.0.1:0/123456`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntityAddress {
    /// Address and port; `None` when there is none.
    pub socket: Option<SocketAddr>,
    /// The nonce.
    pub nonce: u32,
}

impl fmt::Display for EntityAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.socket {
            Some(socket) => write!(f, "{socket}/{}", self.nonce),
            None => write!(f, ":/{}", self.nonce),
        }
    }
}

impl Decode for EntityAddress {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        match d.u8()? {
            0 => {
                d.raw(3)?;
                let nonce = d.u32()?;
                let storage = d.raw(SOCKADDR_STORAGE_BYTES)?;
                let family = u16::from_be_bytes([storage[0], storage[1]]);
                Ok(EntityAddress { socket: socket(family, &storage[2..], d)?, nonce })
            }
            1 => d.versioned("entity_addr_t", 1, |d, _| {
                let _type = d.u32()?;
                let nonce = d.u32()?;
                let length = d.u32()? as usize;
                if length == 0 {
                    return Ok(EntityAddress { socket: None, nonce });
                }
                let family = d.u16()?;
                let rest = d.raw(length.saturating_sub(2))?;
                Ok(EntityAddress { socket: socket(family, rest, d)?, nonce })
            }),
            marker => Err(d.invalid(format!("an address starts with {marker}"))),
        }
    }
}

/// The address behind the family of a `sockaddr`; `None` for other families than the two of IP.
fn socket(family: u16, rest: &[u8], d: &Decoder<'_>) -> Result<Option<SocketAddr>, DecodeError> {
    let short = || d.invalid("a socket address is too short");
    let port = || rest.first_chunk::<2>().map(|bytes| u16::from_be_bytes(*bytes));
    let ip = match family {
        AF_INET => {
            let ip: [u8; 4] = rest.get(2..6).and_then(|ip| ip.try_into().ok()).ok_or_else(short)?;
            IpAddr::V4(Ipv4Addr::from(ip))
        }
        AF_INET6 => {
            let ip: [u8; 16] = rest.get(6..22).and_then(|ip| ip.try_into().ok()).ok_or_else(short)?;
            IpAddr::V6(Ipv6Addr::from(ip))
        }
        _ => return Ok(None),
    };
    Ok(Some(SocketAddr::new(ip, port().ok_or_else(short)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_decode_in_both_forms() {
        let mut modern = vec![1, 1, 1, 28, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 16, 0, 0, 0];
        modern.extend([2, 0, 0x1a, 0x85, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let address = EntityAddress::from_bytes(&modern, "address").unwrap();
        assert_eq!(address.to_string(), "127.0.0.1:6789/7");

        let mut legacy = vec![0, 0, 0, 0, 9, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0];
        legacy.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        legacy.resize(8 + 128, 0);
        let address = EntityAddress::from_bytes(&legacy, "address").unwrap();
        assert_eq!(address.to_string(), "[fe80::1]:0/9");
    }

    #[test]
    fn no_prefix_of_an_address_panics() {
        let mut bytes = vec![1, 1, 1, 28, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 16, 0, 0, 0];
        bytes.extend([10, 0, 0x1a, 0x85, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        for length in 0..=bytes.len() {
            assert!(EntityAddress::from_bytes(&bytes[..length], "address").is_err());
        }
        bytes[0] = 2;
        assert!(EntityAddress::from_bytes(&bytes, "address").is_err());
    }

    #[test]
    fn names_print_as_ceph_prints_them() {
        let name = EntityName::client(4123);
        assert_eq!(name.to_string(), "client.4123");
        assert_eq!(EntityName::from_bytes(&name.to_bytes(), "name"), Ok(name));
        assert_eq!(EntityName { kind: 4, number: 0 }.to_string(), "osd.0");
    }
}
