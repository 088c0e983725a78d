//! SHA-256, which everything that comes from elsewhere is known by: in bytes and in words.

/// What a file must turn out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Its SHA-256.
    pub(crate) sha256: [u8; 32],
    /// Its length.
    pub(crate) size: u64,
}

/// The hash that 64 hexadecimal digits say, with or without `sha256:` before them.
pub fn parse_hash(text: &str) -> Option<[u8; 32]> {
    parse_sha256(text.strip_prefix("sha256:").unwrap_or(text))
}

/// 64 hex digits.
pub(crate) fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// 64 lower-case hex digits.
pub(crate) fn show_sha256(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_64_digits_and_nothing_else() {
        let hash: [u8; 32] = std::array::from_fn(|at| at as u8 * 7);
        let shown = show_sha256(&hash);
        for text in [
            shown.clone(),
            shown.to_uppercase(),
            format!("sha256:{shown}"),
        ] {
            assert_eq!(parse_hash(&text), Some(hash), "{text}");
        }
        let signed = format!("+{}", &shown[1..]);
        for text in [&shown[1..], "sha512:", "", &signed, &"é".repeat(32)] {
            assert_eq!(parse_hash(text), None, "{text}");
        }
    }
}
