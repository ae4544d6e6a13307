//! One record on disk: length, checksum, number, bytes.
//!
//! ```text
//! 0        4        8                16
//! | length | crc32c | number (lsn)   | payload ... | padding to 8
//! ```
//! Little endian. The checksum covers length, number and payload. A length of 0 marks the end of
//! what was written: segments are preallocated with zeros, so a record is never empty on disk.

use std::fmt;

/// The number of a record in its log, from 1, without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes in front of a payload.
pub const HEADER_BYTES: usize = 16;

/// The largest payload of one record.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// What stands at some place of a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A whole record; the next one begins `size` bytes further.
    Record {
        /// Its number.
        lsn: Lsn,
        /// Its payload.
        payload: &'a [u8],
        /// How many bytes it takes, padding included.
        size: usize,
    },
    /// Zeros: nothing was written here.
    End,
    /// Something that is no whole record: torn or damaged.
    Broken,
}

/// How many bytes a record of `payload` bytes takes.
#[must_use]
pub fn size_of(payload: usize) -> usize {
    (HEADER_BYTES + payload).next_multiple_of(8)
}

/// Appends a record to `into`.
///
/// # Panics
/// When `payload` is empty or larger than [`RECORD_BYTES_MAX`]; the log refuses those before.
pub fn append(into: &mut Vec<u8>, lsn: Lsn, payload: &[u8]) {
    assert!(
        !payload.is_empty() && payload.len() <= RECORD_BYTES_MAX,
        "a record of {} bytes is outside 1 to {RECORD_BYTES_MAX}",
        payload.len()
    );
    let length = u32::try_from(payload.len()).expect("at most RECORD_BYTES_MAX");
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(&checksum(length, lsn, payload).to_le_bytes());
    into.extend_from_slice(&lsn.0.to_le_bytes());
    into.extend_from_slice(payload);
    into.resize(into.len().next_multiple_of(8), 0);
}

fn checksum(length: u32, lsn: Lsn, payload: &[u8]) -> u32 {
    let mut head = [0; 12];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..].copy_from_slice(&lsn.0.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), payload)
}

/// Looks at the record at the start of `bytes`.
#[must_use]
pub fn read(bytes: &[u8]) -> Found<'_> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return if bytes.iter().all(|&byte| byte == 0) { Found::End } else { Found::Broken };
    };
    if *header == [0; HEADER_BYTES] {
        return Found::End;
    }
    let four = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let lsn = Lsn(u64::from_le_bytes(header[8..].try_into().expect("8 bytes")));
    let (length, expected) = (four(0), four(4));
    let payload = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    match payload {
        Some(payload) if !payload.is_empty() && checksum(length, lsn, payload) == expected => {
            Found::Record { lsn, payload, size: size_of(payload.len()) }
        }
        Some(_) | None => Found::Broken,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_record_reads_back(lsn: u64, payload in prop::collection::vec(any::<u8>(), 1..300)) {
            let mut bytes = Vec::new();
            append(&mut bytes, Lsn(lsn), &payload);
            prop_assert_eq!(bytes.len(), size_of(payload.len()));
            let size = bytes.len();
            prop_assert_eq!(read(&bytes), Found::Record { lsn: Lsn(lsn), payload: &payload, size });
        }

        #[test]
        fn no_flipped_bit_goes_unnoticed(payload in prop::collection::vec(any::<u8>(), 1..60), at: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = Vec::new();
            append(&mut bytes, Lsn(7), &payload);
            let meaningful = HEADER_BYTES + payload.len();
            bytes[at.index(meaningful)] ^= 1 << bit;
            prop_assert_eq!(read(&bytes), Found::Broken);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(read(&bytes));
        }
    }
}
