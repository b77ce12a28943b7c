//! Ceph's wire encoding: little-endian integers, length-prefixed strings and containers, versioned structs.
//!
//! | value | bytes |
//! |---|---|
//! | integer | little endian |
//! | bool | one byte, 0 or 1 |
//! | string, blob | u32 length, bytes |
//! | vector, set, map | u32 count, elements (key then value) |
//! | versioned struct | u8 version, u8 oldest compatible version, u32 length of what follows, fields |
//!
//! Reference: `src/include/encoding.h`. A decoder never panics and never allocates more than its input warrants,
//! whatever the bytes: counts are checked against the bytes that are left.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ends inside a value.
    #[error("the encoding of {what} ends early: {needed} more bytes needed at offset {offset}, {left} left")]
    Truncated {
        /// What was being decoded.
        what: &'static str,
        /// Where in the input.
        offset: usize,
        /// Bytes needed there.
        needed: usize,
        /// Bytes left there.
        left: usize,
    },
    /// A struct is newer than this program understands.
    #[error(
        "{what} has encoding version {version}, readable from version {compat} on; this program knows {known}"
    )]
    TooNew {
        /// What was being decoded.
        what: &'static str,
        /// Its version.
        version: u8,
        /// The oldest version that can read it.
        compat: u8,
        /// The newest version known here.
        known: u8,
    },
    /// A value is outside what is allowed.
    #[error("the encoding of {what} is invalid: {why}")]
    Invalid {
        /// What was being decoded.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// A value that has Ceph's encoding.
pub trait Encode {
    /// Appends the encoding.
    fn encode(&self, e: &mut Encoder);

    /// The encoding alone.
    fn to_bytes(&self) -> Bytes {
        let mut e = Encoder::new();
        self.encode(&mut e);
        e.finish()
    }
}

/// A value that can be read from Ceph's encoding.
pub trait Decode: Sized {
    /// Reads one value.
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError>;

    /// Reads one value from the start of `bytes`; what follows it is ignored, as Ceph does.
    fn from_bytes(bytes: &[u8], what: &'static str) -> Result<Self, DecodeError> {
        Self::decode(&mut Decoder::new(bytes, what))
    }
}

/// Builds an encoding.
#[derive(Debug, Default)]
pub struct Encoder {
    buf: Vec<u8>,
}

macro_rules! encode_int {
    ($($name:ident: $type:ty),*) => {$(
        #[doc = concat!("Appends a little-endian `", stringify!($type), "`.")]
        pub fn $name(&mut self, value: $type) -> &mut Self {
            self.buf.extend_from_slice(&value.to_le_bytes());
            self
        }
    )*};
}

impl Encoder {
    /// An empty encoding.
    pub fn new() -> Self {
        Self::default()
    }

    encode_int!(u8: u8, u16: u16, u32: u32, u64: u64, i32: i32, i64: i64);

    /// Appends a bool as one byte.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(value.into())
    }

    /// Appends a count or length as u32.
    pub fn count(&mut self, n: usize) -> &mut Self {
        debug_assert!(u32::try_from(n).is_ok(), "a container of {n} elements has no encoding");
        self.u32(n as u32)
    }

    /// Appends a blob: length, then bytes.
    pub fn blob(&mut self, bytes: &[u8]) -> &mut Self {
        self.count(bytes.len());
        self.raw(bytes)
    }

    /// Appends a string: length, then bytes.
    pub fn string(&mut self, s: &str) -> &mut Self {
        self.blob(s.as_bytes())
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(bytes);
        self
    }

    /// Appends a value.
    pub fn value(&mut self, value: &impl Encode) -> &mut Self {
        value.encode(self);
        self
    }

    /// Appends a sequence: count, then elements.
    pub fn seq<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) -> &mut Self {
        self.count(items.len());
        for item in items {
            each(self, item);
        }
        self
    }

    /// Appends a map of strings to blobs or strings.
    pub fn string_map<V: AsRef<[u8]>>(&mut self, map: &BTreeMap<String, V>) -> &mut Self {
        self.count(map.len());
        for (key, value) in map {
            self.string(key).blob(value.as_ref());
        }
        self
    }

    /// Appends a versioned struct whose fields `fields` appends.
    pub fn versioned(&mut self, version: u8, compat: u8, fields: impl FnOnce(&mut Self)) -> &mut Self {
        self.u8(version).u8(compat);
        let at = self.buf.len();
        self.u32(0);
        fields(self);
        let length = (self.buf.len() - at - 4) as u32;
        self.buf[at..at + 4].copy_from_slice(&length.to_le_bytes());
        self
    }

    /// The encoding.
    pub fn finish(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.buf))
    }
}

/// Reads an encoding from front to back.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    input: &'a [u8],
    offset: usize,
    what: &'static str,
}

macro_rules! decode_int {
    ($($name:ident: $type:ty),*) => {$(
        #[doc = concat!("Reads a little-endian `", stringify!($type), "`.")]
        pub fn $name(&mut self) -> Result<$type, DecodeError> {
            const SIZE: usize = size_of::<$type>();
            let mut bytes = [0; SIZE];
            bytes.copy_from_slice(self.raw(SIZE)?);
            Ok(<$type>::from_le_bytes(bytes))
        }
    )*};
}

impl<'a> Decoder<'a> {
    /// A reader of `input`; `what` names it in errors.
    pub fn new(input: &'a [u8], what: &'static str) -> Self {
        Decoder { input, offset: 0, what }
    }

    decode_int!(u8: u8, u16: u16, u32: u32, u64: u64, i32: i32, i64: i64);

    /// Reads a bool; any byte but 0 is true.
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        Ok(self.u8()? != 0)
    }

    /// Reads `length` bytes as they are.
    pub fn raw(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let left = self.left();
        if length > left {
            return Err(DecodeError::Truncated {
                what: self.what,
                offset: self.offset,
                needed: length,
                left,
            });
        }
        let bytes = &self.input[self.offset..self.offset + length];
        self.offset += length;
        Ok(bytes)
    }

    /// Reads a blob.
    pub fn blob(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()? as usize;
        self.raw(length)
    }

    /// Reads a string; bytes that are not UTF-8 are refused.
    pub fn string(&mut self) -> Result<String, DecodeError> {
        let bytes = self.blob()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.invalid("a string is not UTF-8"))
    }

    /// Reads a count of elements that take at least `element_bytes_min` (at least 1) bytes each.
    pub fn count(&mut self, element_bytes_min: usize) -> Result<usize, DecodeError> {
        let count = self.u32()? as usize;
        let needed = count.saturating_mul(element_bytes_min.max(1));
        let left = self.left();
        if needed > left {
            return Err(DecodeError::Truncated { what: self.what, offset: self.offset, needed, left });
        }
        Ok(count)
    }

    /// Reads a sequence whose elements take at least `element_bytes_min` bytes each.
    pub fn seq<T>(
        &mut self,
        element_bytes_min: usize,
        mut each: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.count(element_bytes_min)?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(each(self)?);
        }
        Ok(items)
    }

    /// Reads a map of strings to blobs.
    pub fn string_map(&mut self) -> Result<BTreeMap<String, Bytes>, DecodeError> {
        let entries = self.seq(8, |d| Ok((d.string()?, Bytes::copy_from_slice(d.blob()?))))?;
        Ok(entries.into_iter().collect())
    }

    /// Reads a versioned struct, of which this program knows versions up to `known`. `fields` gets a decoder of just
    /// its fields and its version; fields that it leaves unread are skipped.
    pub fn versioned<T>(
        &mut self,
        what: &'static str,
        known: u8,
        fields: impl FnOnce(&mut Decoder<'a>, u8) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        let version = self.u8()?;
        let compat = self.u8()?;
        if compat > known {
            return Err(DecodeError::TooNew { what, version, compat, known });
        }
        let length = self.u32()? as usize;
        let start = self.offset;
        let body = self.raw(length)?;
        let mut inner = Decoder { input: &self.input[..start + body.len()], offset: start, what };
        fields(&mut inner, version)
    }

    /// Bytes not yet read.
    pub fn left(&self) -> usize {
        self.input.len() - self.offset
    }

    /// An error about a value just read.
    pub fn invalid(&self, why: impl Into<String>) -> DecodeError {
        DecodeError::Invalid { what: self.what, why: why.into() }
    }
}

impl From<DecodeError> for crate::Error {
    fn from(error: DecodeError) -> Self {
        crate::Error::new(libc::EBADMSG, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versioned_structs_skip_fields_from_the_future() {
        let mut e = Encoder::new();
        e.versioned(2, 1, |e| {
            e.u32(7).string("from the future");
        })
        .u8(9);
        let bytes = e.finish();
        let mut d = Decoder::new(&bytes, "test");
        assert_eq!(d.versioned("test", 1, |d, v| Ok((v, d.u32()?))), Ok((2, 7)));
        assert_eq!(d.u8(), Ok(9));
        assert_eq!(d.left(), 0);
    }

    #[test]
    fn incompatible_versions_and_lying_counts_are_refused() {
        let mut e = Encoder::new();
        e.versioned(5, 4, |_| {});
        let bytes = e.finish();
        let refused = Decoder::new(&bytes, "test").versioned("thing", 3, |_, _| Ok(()));
        assert!(matches!(refused, Err(DecodeError::TooNew { compat: 4, known: 3, .. })));

        let lying = [0xff, 0xff, 0xff, 0xff, 1, 2, 3];
        assert!(Decoder::new(&lying, "test").string_map().is_err());
        assert!(Decoder::new(&lying, "test").seq(1, |d| d.u8()).is_err());
        assert!(Decoder::new(&lying, "test").blob().is_err());
    }

    #[test]
    fn a_struct_cannot_read_past_its_own_length() {
        let mut e = Encoder::new();
        e.versioned(1, 1, |e| {
            e.u16(1);
        })
        .u32(2);
        let bytes = e.finish();
        let read = Decoder::new(&bytes, "test").versioned("thing", 1, |d, _| d.u32());
        assert!(matches!(read, Err(DecodeError::Truncated { .. })));
    }
}
