//! For tests of encodings: bytes taken from real clusters, and the same bytes spoiled.

use proptest::prelude::*;
use rados::encoding::{Decode, Decoder, Encode};

/// The bytes that hexadecimal digits stand for; anything else between them is skipped.
pub fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// Decodes golden bytes to the end.
pub fn decoded<T: Decode>(hex: &str) -> T {
    let bytes = bytes(hex);
    let mut d = Decoder::new(&bytes, "golden");
    let value = T::decode(&mut d).unwrap();
    assert_eq!(d.left(), 0, "bytes were left over");
    value
}

/// Decodes golden bytes, and checks that encoding gives them back.
pub fn golden<T: Encode + Decode>(hex: &str) -> T {
    let value: T = decoded(hex);
    assert_eq!(value.to_bytes(), bytes(hex));
    value
}

/// One of the golden byte strings, with bytes changed, cut off, or added.
pub fn spoiled(golden: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>());
    let parts = (
        prop::sample::select(golden),
        prop::collection::vec(change, 0..6),
        any::<prop::sample::Index>(),
        any::<bool>(),
    );
    parts.prop_map(|(hex, changes, cut, whole)| {
        let mut bytes = bytes(hex);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    })
}
