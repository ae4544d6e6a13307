//! The trace context that travels with every call (W3C Trace Context, level 1).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A W3C `traceparent`: which trace a call belongs to and which span caused it.
///
/// Purlin carries it unchanged from caller to callee; making spans is the tracing library's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TraceContext {
    /// The trace: 16 bytes, not all zero.
    pub trace_id: [u8; 16],
    /// The calling span: 8 bytes, not all zero.
    pub parent_id: [u8; 8],
    /// Bit 0: the caller records this trace.
    pub flags: u8,
}

/// Why a text is not a `traceparent`. The call goes on without a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a traceparent: expected `00-<32 hex>-<16 hex>-<2 hex>` with ids that are not all zero"
)]
pub struct TraceContextError;

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        for byte in self.trace_id {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("-")?;
        for byte in self.parent_id {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "-{:02x}", self.flags)
    }
}

fn hex<const N: usize>(text: &str) -> Result<[u8; N], TraceContextError> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return Err(TraceContextError);
    }
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(TraceContextError),
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Ok(bytes)
}

impl FromStr for TraceContext {
    type Err = TraceContextError;

    fn from_str(text: &str) -> Result<Self, TraceContextError> {
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(TraceContextError);
        let [version] = hex::<1>(next()?)?;
        let context = Self {
            trace_id: hex(next()?)?,
            parent_id: hex(next()?)?,
            flags: hex::<1>(next()?)?[0],
        };
        // Later versions may append fields; version 255 is forbidden, and 0 has exactly four.
        let tail = parts.next();
        let known = version != 0xff && (version != 0 || tail.is_none());
        let ids = context.trace_id != [0; 16] && context.parent_id != [0; 8];
        if known && ids { Ok(context) } else { Err(TraceContextError) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_example_of_the_specification_reads_and_writes() {
        assert_eq!(EXAMPLE.parse::<TraceContext>().unwrap().to_string(), EXAMPLE);
    }

    #[test]
    fn malformed_contexts_are_refused() {
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(TraceContextError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_context_or_refused(text in ".{0,80}") {
            if let Ok(context) = text.parse::<TraceContext>() {
                prop_assert_eq!(context.to_string().parse(), Ok(context));
            }
        }
    }
}
