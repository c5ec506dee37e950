//! Many small pairs as one piece, whose cost is by the piece and hardly by the byte.
//!
//! Keys from [`FIRST_KEY`] on stand in blocks: runs of pairs in the order of their keys, each kept
//! under a key that is not above its first pair's and above all of the block before. What is
//! written behind everything else, as the records of new revisions are, makes new blocks and reads
//! none; a change in the middle writes its block anew. Neighbours that change together are packed
//! together, so that blocks do not get ever smaller while their pairs go one by one.
//!
//! ```text
//! 10 00 07 -> [10 00 07: …][10 00 08: …][10 00 09: …]
//! 10 00 0a -> [10 00 0a: …][10 00 0b: …]
//! delete 10 00 08 and 10 00 0a:
//! 10 00 07 -> [10 00 07: …][10 00 09: …][10 00 0b: …]
//!
//! a pair:  length of the key: u8 | key | length of the value: u32 BE | value
//! ```
//! Where a block stands is the subject of [`super::block_files`].

use std::ops::Range;

use super::EngineError;

/// Keys from here on stand in blocks, lower ones by themselves.
pub(super) const FIRST_KEY: &[u8] = &[0x10];

/// How long a block may get, unless a single pair is longer. Whoever wants one pair reads all of its
/// block, and a change writes all of it.
const BLOCK_BYTES: usize = 8 * 1024;

/// A key and its value.
pub(super) type Pair<'a> = (&'a [u8], &'a [u8]);

/// A change of one key: its new value, or that it goes.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

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
    let (value_len, rest) = rest.split_first_chunk::<4>()?;
    let value_len = usize::try_from(u32::from_be_bytes(*value_len)).ok()?;
    let (value, rest) = rest.split_at_checked(value_len)?;
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

/// New blocks, one behind the other as they go to a file.
#[derive(Debug, Default)]
pub(super) struct Packed {
    bytes: Vec<u8>,
    /// The key that each block is kept under, and where it begins.
    starts: Vec<(Vec<u8>, usize)>,
}

impl Packed {
    /// Adds pairs, in the order of their keys, as blocks of their own. The first block is kept under
    /// `start` if there is one, the others under their first keys.
    pub(super) fn pack<'a>(
        &mut self,
        start: Option<&[u8]>,
        pairs: impl IntoIterator<Item = Pair<'a>>,
    ) -> Result<(), EngineError> {
        let mut start = start;
        // Where the open block begins, once there is one.
        let mut open = None;
        for (key, value) in pairs {
            let too_long = |what: &str, len: usize| {
                EngineError::Damaged(format!("a {what} of {len} bytes does not fit into a block"))
            };
            let key_len = u8::try_from(key.len()).map_err(|_| too_long("key", key.len()))?;
            let value_len =
                u32::try_from(value.len()).map_err(|_| too_long("value", value.len()))?;
            let pair_bytes = 1 + key.len() + 4 + value.len();
            if open.is_none_or(|open| self.bytes.len() - open + pair_bytes > BLOCK_BYTES) {
                open = Some(self.bytes.len());
                self.starts.push((start.take().unwrap_or(key).to_vec(), self.bytes.len()));
            }
            self.bytes.push(key_len);
            self.bytes.extend_from_slice(key);
            self.bytes.extend_from_slice(&value_len.to_be_bytes());
            self.bytes.extend_from_slice(value);
        }
        Ok(())
    }

    /// All of them.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The key that each is kept under, and where in [`Self::bytes`] it is.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (&[u8], Range<usize>)> {
        let ends = self.starts.iter().skip(1).map(|(_, begin)| *begin).chain([self.bytes.len()]);
        self.starts.iter().zip(ends).map(|((key, begin), end)| (key.as_slice(), *begin..end))
    }
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

    /// The keys that blocks are kept under, and the blocks.
    fn pack(start: Option<&[u8]>, pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut packed = Packed::default();
        packed.pack(start, borrow(pairs)).unwrap();
        let block = |(key, at): (&[u8], Range<usize>)| (key.to_vec(), packed.bytes()[at].to_vec());
        packed.blocks().map(block).collect()
    }

    #[test]
    fn blocks_are_full_but_not_too_long_and_hold_their_pairs() {
        let long = BLOCK_BYTES;
        let written = [pair(1, 0), pair(2, 4000), pair(3, 4200), pair(4, 9 * long), pair(5, 5)];
        let blocks = pack(None, &written);
        let starts: Vec<_> = blocks.iter().map(|(start, _)| start[1]).collect();
        assert_eq!(starts, [1, 3, 4, 5]);
        let read: Result<Vec<_>, _> = blocks.iter().flat_map(|(_, block)| pairs(block)).collect();
        assert_eq!(read.unwrap(), borrow(&written));
        assert_eq!(find(&blocks[0].1, &[0x10, 2]).unwrap(), Some(&[2; 4000][..]));
        assert_eq!(find(&blocks[0].1, &[0x10, 3]).unwrap(), None);
    }

    #[test]
    fn what_is_packed_for_itself_stands_in_blocks_of_its_own() {
        let mut packed = Packed::default();
        packed.pack(Some(&[0x10]), borrow(&[pair(1, 5000), pair(2, 5000)])).unwrap();
        packed.pack(Some(&[0x10, 3]), []).unwrap();
        packed.pack(None, borrow(&[pair(4, 1)])).unwrap();
        let starts: Vec<_> =
            packed.blocks().map(|(start, at)| (start.to_vec(), at.len())).collect();
        assert_eq!(starts, [(vec![0x10], 5007), (vec![0x10, 2], 5007), (vec![0x10, 4], 8)]);
    }

    #[test]
    fn changes_are_merged_in_their_places() {
        let (_, block) = pack(None, &[pair(2, 1), pair(4, 1), pair(6, 1)]).remove(0);
        let put = |n, len| (pair(n, len).0, Some(pair(n, len).1));
        let delete = |n| (vec![0x10, n], None);
        let changes = [put(1, 2), delete(2), put(3, 2), put(4, 2), delete(5), put(7, 2)];
        let expected = [pair(1, 2), pair(3, 2), pair(4, 2), pair(6, 1), pair(7, 2)];
        assert_eq!(merge(&block, &changes).unwrap(), borrow(&expected));
        assert_eq!(merge(&[], &changes[..2]).unwrap(), borrow(&[pair(1, 2)]));
    }

    #[test]
    fn a_block_that_is_cut_off_is_damage() {
        let (_, block) = pack(None, &[pair(2, 9), pair(4, 9)]).remove(0);
        for end in 1..block.len() {
            let read: Result<Vec<_>, _> = pairs(&block[..end]).collect();
            assert_eq!(read.is_ok(), end == block.len() / 2, "cut at {end}");
        }
    }
}
