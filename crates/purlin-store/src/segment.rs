//! What recovery makes of a segment: whole records, then a clean end, a torn tail, or damage.
//!
//! After a crash the last write may be there in part. That is a torn tail: it was never
//! acknowledged, so it is cut off. Damage looks alike at first, a record that does not check, but
//! acknowledged records may follow it, and cutting them off would lose them silently. So recovery
//! looks on: if any whole record with a later number stands behind the broken one, or another
//! segment follows, this is damage, and the log refuses to start.
//!
//! # Source
//! Alagappan et al. 2018, "Protocol-Aware Recovery for Consensus-Based Storage", §3 (telling a
//! crash from corruption).

use crate::record::{self, Found, HEADER_BYTES, Lsn};

/// Bytes of the header of a segment: magic, format version, first number, checksum.
pub const SEGMENT_HEADER_BYTES: usize = 24;

const MAGIC: &[u8; 4] = b"PLNL";

/// The format this release writes.
pub const FORMAT: u32 = 1;

/// How a segment ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Zeros up to the end of the file, or the end itself.
    Clean,
    /// A write that a crash cut off: nothing acknowledged is behind it.
    Torn {
        /// How many bytes are cut off, up to the last that is not zero.
        bytes: usize,
    },
    /// Acknowledged records stand behind something broken.
    Damaged {
        /// Where the broken part begins, in bytes from the start of the file.
        offset: usize,
        /// The first whole record behind it.
        next: Lsn,
    },
}

/// Why a file is no segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It is shorter than a header, or the header is not whole: the crash came while it was made.
    #[error("its header is not whole")]
    Unfinished,
    /// It is a segment of another release.
    #[error("it has format {found}; this release reads format {FORMAT}")]
    Format {
        /// The format found.
        found: u32,
    },
}

/// The header of a segment whose first record has the number `first`.
#[must_use]
pub fn header(first: Lsn) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    header[..4].copy_from_slice(MAGIC);
    header[4..8].copy_from_slice(&FORMAT.to_le_bytes());
    header[8..16].copy_from_slice(&first.0.to_le_bytes());
    let sum = crc32c::crc32c(&header[..16]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    header
}

/// The number of the first record, from a header.
///
/// # Errors
/// [`HeaderError`] when it is none of this release.
pub fn read_header(bytes: &[u8]) -> Result<Lsn, HeaderError> {
    let header = bytes.first_chunk::<SEGMENT_HEADER_BYTES>().ok_or(HeaderError::Unfinished)?;
    let four = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    if header[..4] != *MAGIC || four(16) != crc32c::crc32c(&header[..16]) {
        return Err(HeaderError::Unfinished);
    }
    if four(4) != FORMAT {
        return Err(HeaderError::Format { found: four(4) });
    }
    Ok(Lsn(u64::from_le_bytes(header[8..16].try_into().expect("8 bytes"))))
}

/// Reads the records of a segment, header included in `bytes`, the first of which must have the
/// number `first`. Calls `each` for every whole record in order and tells where and how they end:
/// the offset behind the last one, and what stands there.
pub fn scan(bytes: &[u8], first: Lsn, mut each: impl FnMut(Lsn, &[u8])) -> (usize, Lsn, End) {
    let mut offset = SEGMENT_HEADER_BYTES.min(bytes.len());
    let mut expected = first;
    loop {
        match record::read(&bytes[offset..]) {
            Found::Record { lsn, payload, size } if lsn == expected => {
                each(lsn, payload);
                expected = expected.next();
                offset = (offset + size).min(bytes.len());
            }
            Found::End if bytes[offset..].iter().all(|&byte| byte == 0) => {
                return (offset, expected, End::Clean);
            }
            Found::End | Found::Broken | Found::Record { .. } => {
                return (offset, expected, judge(bytes, offset, expected));
            }
        }
    }
}

/// Torn or damaged: whether a whole record with a later number stands behind `offset`.
fn judge(bytes: &[u8], offset: usize, expected: Lsn) -> End {
    let mut at = offset.next_multiple_of(8);
    while at + HEADER_BYTES <= bytes.len() {
        if let Found::Record { lsn, .. } = record::read(&bytes[at..])
            && lsn > expected
        {
            return End::Damaged { offset, next: lsn };
        }
        at += 8;
    }
    let last = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
    End::Torn { bytes: last.saturating_sub(offset) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(first: u64, payloads: &[Vec<u8>], zeros: usize) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = header(Lsn(first)).to_vec();
        let mut starts = Vec::new();
        for (lsn, payload) in (first..).zip(payloads) {
            starts.push(bytes.len());
            record::append(&mut bytes, Lsn(lsn), payload);
        }
        bytes.resize(bytes.len() + zeros, 0);
        (bytes, starts)
    }

    fn read(bytes: &[u8], first: u64) -> (Vec<Vec<u8>>, End) {
        let mut records = Vec::new();
        let (_, _, end) = scan(bytes, Lsn(first), |_, payload| records.push(payload.to_vec()));
        (records, end)
    }

    #[test]
    fn a_record_of_an_older_life_of_the_file_is_not_read() {
        let (mut bytes, starts) = segment(10, &[vec![1], vec![2]], 64);
        let mut old = Vec::new();
        record::append(&mut old, Lsn(3), &[9]);
        let end = starts[1];
        bytes[end..end + old.len()].copy_from_slice(&old);
        assert_eq!(read(&bytes, 10), (vec![vec![1]], End::Torn { bytes: 17 }));
    }

    proptest! {
        #[test]
        fn a_whole_segment_reads_back(payloads in prop::collection::vec(prop::collection::vec(1..=255_u8, 1..50), 0..20), zeros in 0..100_usize) {
            let (bytes, _) = segment(5, &payloads, zeros);
            prop_assert_eq!(read(&bytes, 5), (payloads, End::Clean));
        }

        #[test]
        fn a_tail_cut_anywhere_keeps_every_record_before_it(payloads in prop::collection::vec(prop::collection::vec(1..=255_u8, 1..50), 1..20), cut: prop::sample::Index) {
            let (mut bytes, starts) = segment(5, &payloads, 0);
            let cut = SEGMENT_HEADER_BYTES + cut.index(bytes.len() - SEGMENT_HEADER_BYTES);
            bytes[cut..].fill(0);
            let whole = starts.iter().zip(&payloads).filter(|(start, payload)| *start + HEADER_BYTES + payload.len() <= cut).count();
            let (records, end) = read(&bytes, 5);
            prop_assert_eq!(&records[..], &payloads[..whole]);
            let damaged = matches!(end, End::Damaged { .. });
            prop_assert!(!damaged);
        }

        #[test]
        fn a_flipped_bit_before_the_last_record_is_damage_not_a_torn_tail(payloads in prop::collection::vec(prop::collection::vec(1..=255_u8, 1..50), 2..20), at: prop::sample::Index, bit in 0..8_u8) {
            let (mut bytes, starts) = segment(5, &payloads, 64);
            let victim = at.index(payloads.len() - 1);
            let within = at.index(HEADER_BYTES + payloads[victim].len());
            bytes[starts[victim] + within] ^= 1 << bit;
            let (records, end) = read(&bytes, 5);
            prop_assert_eq!(&records[..], &payloads[..victim]);
            prop_assert_eq!(end, End::Damaged { offset: starts[victim], next: Lsn(5 + victim as u64 + 1) });
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            drop(read_header(&bytes));
            drop(read(&bytes, 1));
        }
    }
}
