//! Just enough DER to say whom a certificate is for and how long it is valid.
//!
//! Nothing is trusted because of what is read here: verification is rustls' work. This is for
//! people (`purlin cert show`) and for expiry warnings.

use purlin_core::WallTime;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// What people want to know about a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSummary {
    /// The subject's common name; the node or, for an authority, the cluster.
    pub subject: String,
    /// The issuer's common name.
    pub issuer: String,
    /// The DNS names it is valid for.
    pub names: Vec<String>,
    /// Valid from.
    pub not_before: WallTime,
    /// Valid until.
    pub not_after: WallTime,
}

impl CertificateSummary {
    /// Reads the first certificate of a PEM text.
    ///
    /// # Errors
    /// A sentence about what is wrong with it.
    pub fn of_pem(pem: &str) -> Result<Self, String> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| format!("no certificate in PEM form: {error}"))?;
        Self::of_der(&der)
    }

    /// Reads a certificate.
    ///
    /// # Errors
    /// A sentence about what is wrong with it.
    pub fn of_der(der: &CertificateDer<'_>) -> Result<Self, String> {
        let entity = webpki::EndEntityCert::try_from(der).map_err(|error| error.to_string());
        // An authority's certificate has no DNS names, and webpki calls some of them no end
        // entity; only the names are missing then.
        let names = entity
            .map(|entity| entity.valid_dns_names().map(str::to_owned).collect())
            .unwrap_or_default();
        let summary = parse(der.as_ref()).ok_or("the certificate's DER is malformed")?;
        Ok(Self { names, ..summary })
    }

    /// How long it is still valid at `now`, in milliseconds; zero once expired.
    #[must_use]
    pub fn valid_for_millis(&self, now: WallTime) -> u64 {
        self.not_after.as_millis().saturating_sub(now.as_millis())
    }
}

fn parse(der: &[u8]) -> Option<CertificateSummary> {
    let (certificate, _) = element(der, SEQUENCE)?;
    let (tbs, _) = element(certificate, SEQUENCE)?;
    let rest = element(tbs, VERSION).map_or(tbs, |(_, rest)| rest);
    let (_serial, rest) = element(rest, INTEGER)?;
    let (_algorithm, rest) = element(rest, SEQUENCE)?;
    let (issuer, rest) = element(rest, SEQUENCE)?;
    let (validity, rest) = element(rest, SEQUENCE)?;
    let (subject, _) = element(rest, SEQUENCE)?;
    let (not_before, rest) = time(validity)?;
    let (not_after, _) = time(rest)?;
    Some(CertificateSummary {
        subject: common_name(subject)?,
        issuer: common_name(issuer)?,
        names: Vec::new(),
        not_before,
        not_after,
    })
}

const INTEGER: u8 = 0x02;
const OBJECT: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;

/// The content of the element with `tag` at the start of `der`, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    if found != tag {
        return None;
    }
    let (&short, rest) = rest.split_first()?;
    let (length, rest) = if short < 0x80 {
        (usize::from(short), rest)
    } else {
        let count = usize::from(short & 0x7f);
        if count == 0 || count > 4 {
            return None;
        }
        let (digits, rest) = rest.split_at_checked(count)?;
        (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
    };
    rest.split_at_checked(length)
}

fn common_name(mut name: &[u8]) -> Option<String> {
    while let Some((set, rest)) = element(name, SET) {
        let (pair, _) = element(set, SEQUENCE)?;
        let (oid, value) = element(pair, OBJECT)?;
        if oid == [0x55, 0x04, 0x03] {
            let tag = *value.first()?;
            let (text, _) = element(value, tag)?;
            return String::from_utf8(text.to_vec()).ok();
        }
        name = rest;
    }
    None
}

fn time(der: &[u8]) -> Option<(WallTime, &[u8])> {
    if let Some((text, rest)) = element(der, UTC_TIME) {
        let year = number(text.get(..2)?)?;
        let century = if year < 50 { 2000 } else { 1900 };
        return Some((moment(century + year, text.get(2..)?)?, rest));
    }
    let (text, rest) = element(der, GENERALIZED_TIME)?;
    Some((moment(number(text.get(..4)?)?, text.get(4..)?)?, rest))
}

/// `MMDDhhmmssZ` of `year` as wall time.
fn moment(year: u64, text: &[u8]) -> Option<WallTime> {
    let field = |at: usize| number(text.get(at..at + 2)?);
    let (month, day) = (field(0)?, field(2)?);
    let (hour, minute, second) = (field(4)?, field(6)?, field(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    // Days since 1970 by counting years from March, so that a leap day ends its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    Some(WallTime::from_millis(seconds * 1000))
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |sum, digit| {
        digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_count_from_1970_with_leap_years() {
        let at = |text: &[u8]| time(text).unwrap().0.as_millis() / 1000;
        assert_eq!(at(b"\x17\x0d700101000000Z"), 0);
        assert_eq!(at(b"\x17\x0d251120054325Z"), 1_763_617_405);
        assert_eq!(at(b"\x18\x0f20240229120000Z"), 1_709_208_000);
        assert_eq!(at(b"\x18\x0f20500101000000Z"), 2_524_608_000);
    }

    proptest! {
        #[test]
        fn hostile_der_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&bytes));
            let _outcome = time(&bytes);
        }
    }
}
