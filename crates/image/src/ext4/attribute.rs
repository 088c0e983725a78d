//! Extended attributes: in the inode's spare bytes where they fit, else in one block.

use super::{BLOCK, low16, low32, put16, put32};

const MAGIC: u32 = 0xea02_0000;
const ENTRY_HEADER: usize = 16;
const BLOCK_HEADER: usize = 32;

/// Why extended attributes cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AttributeError {
    /// ext4 knows no such family of names.
    #[error("the extended attribute `{0}` has a name that ext4 cannot store")]
    Name(String),
    /// The value is not what the kernel would write.
    #[error("the extended attribute `{0}` is no valid access control list")]
    AccessList(String),
    /// All of them together have to fit into one block.
    #[error("its extended attributes take more than 4 KiB")]
    TooLarge,
}

/// Where a file's attributes go.
pub(super) enum Placed {
    /// It has none.
    None,
    /// The spare bytes of its inode.
    Inode(Box<[u8]>),
    /// A block of its own.
    Block(Box<[u8; BLOCK]>),
}

struct Attribute {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Attribute {
    fn entry_size(&self) -> usize {
        ENTRY_HEADER + self.name.len().next_multiple_of(4)
    }

    fn value_size(&self) -> usize {
        self.value.len().next_multiple_of(4)
    }

    /// `ext4_xattr_hash_entry` of the kernel's `fs/ext4/xattr.c`.
    fn hash(&self) -> u32 {
        let name = self
            .name
            .iter()
            .fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(name, |hash, chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// Decides where `attributes` (full name, value as `getxattr` gives it) go, given `room`
/// spare bytes in the inode.
pub(super) fn place(
    attributes: &[(Vec<u8>, Vec<u8>)],
    room: usize,
) -> Result<Placed, AttributeError> {
    if attributes.is_empty() {
        return Ok(Placed::None);
    }
    let mut list = Vec::with_capacity(attributes.len());
    for (name, value) in attributes {
        list.push(encode(name, value)?);
    }
    // The kernel searches a block's entries by this order.
    list.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
    let size: usize = list
        .iter()
        .map(|one| one.entry_size() + one.value_size())
        .sum();
    // Four bytes of zeros end the entries, and four of magic begin those in the inode.
    if size + 8 <= room {
        let mut bytes = vec![0; room];
        put32(&mut bytes, 0, MAGIC);
        fill(&mut bytes[4..], &list, 0);
        return Ok(Placed::Inode(bytes.into_boxed_slice()));
    }
    if BLOCK_HEADER + size + 4 > BLOCK {
        return Err(AttributeError::TooLarge);
    }
    let mut bytes = Box::new([0; BLOCK]);
    put32(&mut bytes[..], 0, MAGIC);
    put32(&mut bytes[..], 4, 1);
    put32(&mut bytes[..], 8, 1);
    let hash = list
        .iter()
        .fold(0u32, |hash, one| hash.rotate_left(16) ^ one.hash());
    put32(&mut bytes[..], 12, hash);
    fill(&mut bytes[..], &list, BLOCK_HEADER);
    Ok(Placed::Block(bytes))
}

/// Writes entries upwards from `at` and values downwards from the end; offsets count from
/// the start of `bytes`.
fn fill(bytes: &mut [u8], list: &[Attribute], mut at: usize) {
    let mut end = bytes.len();
    for one in list {
        bytes[at] = one.name.len() as u8;
        bytes[at + 1] = one.index;
        if !one.value.is_empty() {
            end -= one.value_size();
            bytes[end..end + one.value.len()].copy_from_slice(&one.value);
            put16(bytes, at + 2, low16(end as u64));
        }
        put32(bytes, at + 8, low32(one.value.len() as u64));
        put32(bytes, at + 12, one.hash());
        let name_at = at + ENTRY_HEADER;
        bytes[name_at..name_at + one.name.len()].copy_from_slice(&one.name);
        at += one.entry_size();
    }
}

fn encode(name: &[u8], value: &[u8]) -> Result<Attribute, AttributeError> {
    let shown = || String::from_utf8_lossy(name).into_owned();
    let (index, rest, value) = match name {
        b"system.posix_acl_access" => (
            2,
            &b""[..],
            access_list(value).ok_or_else(|| AttributeError::AccessList(shown()))?,
        ),
        b"system.posix_acl_default" => (
            3,
            &b""[..],
            access_list(value).ok_or_else(|| AttributeError::AccessList(shown()))?,
        ),
        _ => {
            let (index, rest) = [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
                .into_iter()
                .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))
                .ok_or_else(|| AttributeError::Name(shown()))?;
            (index, rest, value.to_vec())
        }
    };
    let acl = matches!(index, 2 | 3);
    match (acl || !rest.is_empty()) && rest.len() <= 255 && !rest.contains(&0) {
        true => Ok(Attribute {
            index,
            name: rest.to_vec(),
            value,
        }),
        false => Err(AttributeError::Name(shown())),
    }
}

/// Whether ext4 has a place for an attribute of that name.
pub(crate) fn holds_attribute(name: &[u8]) -> bool {
    let is_list = matches!(
        name,
        b"system.posix_acl_access" | b"system.posix_acl_default"
    );
    is_list || encode(name, b"").is_ok()
}

/// What ext4 stores for an access control list that user space has as version 2: version 1,
/// in which only named users and groups have an id (`fs/ext4/acl.h`).
fn access_list(value: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    let entries = value.strip_prefix(&2u32.to_le_bytes())?;
    if !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut stored = 1u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let named = matches!(u16::from_le_bytes([entry[0], entry[1]]), USER | GROUP);
        stored.extend_from_slice(&entry[..if named { 8 } else { 4 }]);
    }
    Some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_list_loses_the_ids_that_mean_nothing() {
        let mut value = vec![2, 0, 0, 0];
        value.extend([0x01, 0, 7, 0, 0xff, 0xff, 0xff, 0xff]);
        value.extend([0x02, 0, 5, 0, 0xe8, 3, 0, 0]);
        assert_eq!(
            access_list(&value),
            Some(vec![
                1, 0, 0, 0, 0x01, 0, 7, 0, 0x02, 0, 5, 0, 0xe8, 3, 0, 0
            ])
        );
        assert_eq!(access_list(&[1, 0, 0, 0]), None);
        assert_eq!(access_list(&[2, 0, 0, 0, 1]), None);
    }

    #[test]
    fn names_of_unknown_families_are_refused() {
        for name in ["", "user.", "system.data", "com.apple.x", "user.a\0b"] {
            assert!(encode(name.as_bytes(), b"").is_err(), "{name:?}");
        }
    }
}
