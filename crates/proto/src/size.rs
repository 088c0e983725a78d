//! Sizes of memory and disks: `512M`, `8G`, `1.5GiB`; a bare number is MiB.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes. All units are powers of 1024: `8G`, `8GB` and `8GiB` are the same.
///
/// In JSON a size is a number of bytes; a text such as `"8G"` is read as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ByteSize(u64);

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSize {
    /// Neither a number nor a number with a unit.
    #[error(
        "`{0}` is not a size: write for example `512M`, `8G` or `1.5GiB`; a bare number is MiB"
    )]
    Syntax(String),
    /// More bytes than 2^53, which JSON numbers carry exactly.
    #[error("`{0}` is too large: the largest size is 8P (8192T)")]
    TooLarge(String),
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const PIB: u64 = 1 << 50;
const MAX: u64 = 1 << 53;

impl ByteSize {
    /// A size of so many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size of so many MiB.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib * MIB)
    }

    /// A size of so many GiB.
    pub const fn from_gib(gib: u64) -> Self {
        Self(gib * GIB)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number of whole MiB.
    pub const fn mib(self) -> u64 {
        self.0 / MIB
    }
}

impl fmt::Display for ByteSize {
    /// The shortest exact form, such as `8G` or `1536M`; it parses back to the same size,
    /// unless the size is no multiple of a KiB, which prints as `1234B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, letter) in [(PIB, 'P'), (TIB, 'T'), (GIB, 'G'), (MIB, 'M'), (KIB, 'K')] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{letter}", self.0 / unit);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let syntax = || InvalidSize::Syntax(text.to_owned());
        let split = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = match unit.trim_start().to_ascii_lowercase().as_str() {
            "b" => 1,
            "k" | "kb" | "kib" => KIB,
            "" | "m" | "mb" | "mib" => MIB,
            "g" | "gb" | "gib" => GIB,
            "t" | "tb" | "tib" => TIB,
            "p" | "pb" | "pib" => PIB,
            _ => return Err(syntax()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if whole.is_empty() || fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
            return Err(syntax());
        }
        let too_large = || InvalidSize::TooLarge(text.to_owned());
        let whole: u128 = whole.parse().map_err(|_| too_large())?;
        let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| syntax())?);
        let fraction: u128 = fraction.parse().map_err(|_| syntax())?;
        let unit = u128::from(unit);
        let bytes = whole
            .checked_mul(unit)
            .and_then(|whole| whole.checked_add(fraction * unit / scale))
            .filter(|bytes| *bytes <= u128::from(MAX))
            .ok_or_else(too_large)?;
        Ok(Self(u64::try_from(bytes).map_err(|_| too_large())?))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of bytes or a text such as \"8G\"")]
        enum Repr {
            Bytes(u64),
            Text(String),
        }
        match Repr::deserialize(deserializer)? {
            Repr::Bytes(bytes) => Ok(Self(bytes)),
            Repr::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_forms_of_the_specification_parse() {
        for (text, bytes) in [
            ("512M", 512 * MIB),
            ("8G", 8 * GIB),
            ("1.5GiB", 3 * GIB / 2),
            ("64", 64 * MIB),
            ("1t", TIB),
            ("2P", 2 * PIB),
            ("4096b", 4096),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "G",
            "-1G",
            "1..5G",
            "1.G",
            ".5G",
            "8X",
            "8 G B",
            "9999999999T",
            "900P",
            "1e3",
            "٣G",
        ] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_back(bytes in 0..=MAX) {
            let size = ByteSize(bytes);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<ByteSize>();
        }
    }
}
