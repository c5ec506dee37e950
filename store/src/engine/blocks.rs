//! Many small pairs as one value of sled, whose cost is by the piece and hardly by the byte.
//!
//! Keys from [`FIRST_KEY`] on stand in blocks: runs of pairs in the order of their keys, each kept
//! under a key that is not above its first pair's and above all of the block before. What is
//! written behind everything else, as the records of new revisions are, makes new blocks and reads
//! none; a change in the middle writes its block anew. Neighbours that change together are packed
//! together, so that blocks do not get ever smaller while their pairs go one by one.
//!
//! ```text
//! sled:   10 00 07 -> [10 00 07: …][10 00 08: …][10 00 09: …]
//!         10 00 0a -> [10 00 0a: …][10 00 0b: …]
//! delete 10 00 08 and 10 00 0a:
//!         10 00 07 -> [10 00 07: …][10 00 09: …][10 00 0b: …]
//!
//! a pair:  length of the key: u8 | key | length of the value: u16 BE | value
//! ```

use super::{EngineError, MAX_VALUE_BYTES};

/// Keys from here on stand in blocks, lower ones by themselves.
pub(super) const FIRST_KEY: &[u8] = &[0x10];

/// A key and its value.
pub(super) type Pair<'a> = (&'a [u8], &'a [u8]);

/// A change of one key: its new value, or that it goes.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

/// A block and the key that it is kept under.
pub(super) type Block = (Vec<u8>, Vec<u8>);

/// The lengths that stand with a pair.
const FRAMING_BYTES: usize = 3;

/// Whether `key` stands in a block.
pub(super) fn holds(key: &[u8]) -> bool {
    key >= FIRST_KEY
}

/// The pairs of a block, in order.
pub(super) fn pairs(block: &[u8]) -> impl Iterator<Item = Result<Pair<'_>, EngineError>> {
    let mut rest = block;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some((pair, behind)) = split_pair(rest) else {
            rest = &[];
            return Some(Err(EngineError::Damaged("a block of records is cut off".to_owned())));
        };
        rest = behind;
        Some(Ok(pair))
    })
}

fn split_pair(bytes: &[u8]) -> Option<(Pair<'_>, &[u8])> {
    let (key_len, rest) = bytes.split_first()?;
    let (key, rest) = rest.split_at_checked(usize::from(*key_len))?;
    let (value_len, rest) = rest.split_first_chunk::<2>()?;
    let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*value_len)))?;
    Some(((key, value), rest))
}

/// The value of `key` in a block.
pub(super) fn find<'a>(block: &'a [u8], key: &[u8]) -> Result<Option<&'a [u8]>, EngineError> {
    for pair in pairs(block) {
        let (found, value) = pair?;
        if found >= key {
            return Ok((found == key).then_some(value));
        }
    }
    Ok(None)
}

/// Packs pairs, in the order of their keys, into blocks no longer than a value may be, unless a
/// single pair is. Gives each block with its first key.
pub(super) fn pack<'a>(
    pairs: impl IntoIterator<Item = Pair<'a>>,
) -> Result<Vec<Block>, EngineError> {
    let mut blocks: Vec<Block> = Vec::new();
    for (key, value) in pairs {
        let too_long = |what: &str, len: usize| {
            EngineError::Damaged(format!("a {what} of {len} bytes does not fit into a block"))
        };
        let key_len = u8::try_from(key.len()).map_err(|_| too_long("key", key.len()))?;
        let value_len = u16::try_from(value.len()).map_err(|_| too_long("value", value.len()))?;
        let bytes = FRAMING_BYTES + key.len() + value.len();
        if blocks.last().is_none_or(|(_, block)| block.len() + bytes > MAX_VALUE_BYTES) {
            blocks.push((key.to_vec(), Vec::with_capacity(bytes.max(MAX_VALUE_BYTES / 8))));
        }
        if let Some((_, block)) = blocks.last_mut() {
            block.push(key_len);
            block.extend_from_slice(key);
            block.extend_from_slice(&value_len.to_be_bytes());
            block.extend_from_slice(value);
        }
    }
    Ok(blocks)
}

/// The pairs of `block` with `changes` made to them; both are in the order of their keys.
pub(super) fn merge<'a>(
    block: &'a [u8],
    changes: &'a [Change],
) -> Result<Vec<Pair<'a>>, EngineError> {
    let mut merged = Vec::new();
    let mut changes = changes.iter().peekable();
    let put = |change: &'a Change| Some((change.0.as_slice(), change.1.as_deref()?));
    for pair in pairs(block) {
        let (key, value) = pair?;
        while let Some(before) = changes.next_if(|change| change.0.as_slice() < key) {
            merged.extend(put(before));
        }
        match changes.next_if(|change| change.0.as_slice() == key) {
            Some(change) => merged.extend(put(change)),
            None => merged.push((key, value)),
        }
    }
    merged.extend(changes.filter_map(put));
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(n: u8, len: usize) -> (Vec<u8>, Vec<u8>) {
        (vec![0x10, n], vec![n; len])
    }

    fn borrow(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<Pair<'_>> {
        pairs.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).collect()
    }

    #[test]
    fn blocks_are_full_but_not_too_long_and_hold_their_pairs() {
        let long = MAX_VALUE_BYTES;
        let written = [pair(1, 0), pair(2, 3000), pair(3, 3200), pair(4, long), pair(5, 5)];
        let blocks = pack(borrow(&written)).unwrap();
        let starts: Vec<_> = blocks.iter().map(|(start, _)| start[1]).collect();
        assert_eq!(starts, [1, 3, 4, 5]);
        let read: Result<Vec<_>, _> = blocks.iter().flat_map(|(_, block)| pairs(block)).collect();
        assert_eq!(read.unwrap(), borrow(&written));
        assert_eq!(find(&blocks[0].1, &[0x10, 2]).unwrap(), Some(&[2; 3000][..]));
        assert_eq!(find(&blocks[0].1, &[0x10, 3]).unwrap(), None);
    }

    #[test]
    fn changes_are_merged_in_their_places() {
        let (_, block) = pack(borrow(&[pair(2, 1), pair(4, 1), pair(6, 1)])).unwrap().remove(0);
        let put = |n, len| (pair(n, len).0, Some(pair(n, len).1));
        let delete = |n| (vec![0x10, n], None);
        let changes = [put(1, 2), delete(2), put(3, 2), put(4, 2), delete(5), put(7, 2)];
        let expected = [pair(1, 2), pair(3, 2), pair(4, 2), pair(6, 1), pair(7, 2)];
        assert_eq!(merge(&block, &changes).unwrap(), borrow(&expected));
        assert_eq!(merge(&[], &changes[..2]).unwrap(), borrow(&[pair(1, 2)]));
    }

    #[test]
    fn a_block_that_is_cut_off_is_damage() {
        let (_, block) = pack(borrow(&[pair(2, 9), pair(4, 9)])).unwrap().remove(0);
        for end in 1..block.len() {
            let read: Result<Vec<_>, _> = pairs(&block[..end]).collect();
            assert_eq!(read.is_ok(), end == block.len() / 2, "cut at {end}");
        }
    }
}
