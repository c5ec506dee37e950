//! Writing a file front to back: keys come sorted, so every page is full when it is written and
//! never looked at again. What is held in memory is one page for each level of one tree.
//!
//! ```text
//! page 0, 1   metas: written last, as they say where the root is
//! page 2      the freelist: empty
//! page 3 …    leaf leaf leaf branch leaf …      a page comes after all that are below it
//! last page   the root bucket
//! ```
//! So every page is in use and reachable, which is what `bbolt check` (and etcd's `snapshot status`)
//! wants to see.

use std::io::{Seek, SeekFrom, Write};

use super::{
    BRANCH, BUCKET_HEAD_BYTES, BoltError, ELEMENT_BYTES, FREELIST, IS_BUCKET, LEAF,
    MAX_INLINE_BYTES, MAX_KEY_BYTES, META, Meta, PAGE_BYTES, PAGE_HEAD_BYTES, PageHead,
};

const FREELIST_PAGE: u64 = 2;
const FIRST_PAGE: u64 = 3;

/// Writes one file. Buckets come in the order of their names, keys in theirs.
pub(crate) struct BoltWriter<W> {
    pages: Pages<W>,
    root: Tree,
    bucket: Option<(Vec<u8>, Tree)>,
}

impl<W: Write + Seek> BoltWriter<W> {
    /// Begins a file at the start of `file`, which should be buffered.
    pub(crate) fn new(mut file: W) -> Result<Self, BoltError> {
        for _ in 0..FIRST_PAGE {
            file.write_all(&[0; PAGE_BYTES])?;
        }
        let pages = Pages { file, next: FIRST_PAGE };
        Ok(Self { pages, root: Tree::default(), bucket: None })
    }

    /// Begins a bucket; the one before is complete.
    pub(crate) fn begin_bucket(&mut self, name: &[u8]) -> Result<(), BoltError> {
        self.end_bucket()?;
        self.bucket = Some((name.to_vec(), Tree::default()));
        Ok(())
    }

    /// Adds a key to the bucket that was begun last.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), BoltError> {
        let (_, tree) = self.bucket.as_mut().ok_or(BoltError::Unwritable("there is no bucket"))?;
        tree.put(&mut self.pages, 0, key, value)
    }

    /// Completes the file; its size in bytes.
    pub(crate) fn finish(mut self) -> Result<u64, BoltError> {
        self.end_bucket()?;
        let root = self.root.finish(&mut self.pages)?;
        let Pages { mut file, next: end } = self.pages;
        let head = |id, flags| PageHead { id, flags, count: 0, overflow: 0 }.encode();
        let page_bytes = PAGE_BYTES as u32;
        for (page, transaction) in [(0, 2), (1, 1)] {
            let meta =
                Meta { page_bytes, root, sequence: 0, freelist: FREELIST_PAGE, end, transaction };
            file.seek(SeekFrom::Start(page * PAGE_BYTES as u64))?;
            file.write_all(&head(page, META))?;
            file.write_all(&meta.encode())?;
        }
        file.seek(SeekFrom::Start(FREELIST_PAGE * PAGE_BYTES as u64))?;
        file.write_all(&head(FREELIST_PAGE, FREELIST))?;
        file.flush()?;
        Ok(end * PAGE_BYTES as u64)
    }

    fn end_bucket(&mut self) -> Result<(), BoltError> {
        let Some((name, mut tree)) = self.bucket.take() else { return Ok(()) };
        let (root, inline) = match tree.inline() {
            Some(page) => (0, page),
            None => (tree.finish(&mut self.pages)?, Vec::new()),
        };
        let mut value = Vec::with_capacity(BUCKET_HEAD_BYTES + inline.len());
        value.extend_from_slice(&root.to_le_bytes());
        value.extend_from_slice(&0_u64.to_le_bytes());
        value.extend_from_slice(&inline);
        self.root.put(&mut self.pages, IS_BUCKET, &name, &value)
    }
}

/// Where pages go, one behind the other.
struct Pages<W> {
    file: W,
    next: u64,
}

impl<W: Write> Pages<W> {
    /// Writes a page and empties it; its id.
    fn write(&mut self, page: &mut Page) -> Result<u64, BoltError> {
        let id = self.next;
        let count = page.bytes().div_ceil(PAGE_BYTES);
        let overflow = u32::try_from(count - 1).map_err(|_| TOO_LARGE)?;
        page.write(id, overflow, &mut self.file)?;
        let padding = count * PAGE_BYTES - page.bytes();
        self.file.write_all(&[0; PAGE_BYTES][..padding])?;
        self.next += count as u64;
        page.clear();
        Ok(id)
    }
}

const TOO_LARGE: BoltError = BoltError::Unwritable("a value is too large");

/// The pages of one bucket that are being filled: the leaf, and a branch for each level above.
#[derive(Default)]
struct Tree {
    levels: Vec<Page>,
    last_key: Vec<u8>,
}

impl Tree {
    fn put<W: Write>(
        &mut self,
        pages: &mut Pages<W>,
        flags: u32,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), BoltError> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(BoltError::Unwritable("a key is empty or too long"));
        }
        if key <= self.last_key.as_slice() {
            return Err(BoltError::Unwritable("keys are not in order"));
        }
        if u32::try_from(value.len()).is_err() {
            return Err(TOO_LARGE);
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        if self.levels.is_empty() {
            self.levels.push(Page::new(LEAF));
        }
        if !self.levels[0].has_room(key.len() + value.len()) {
            self.flush(pages, 0)?;
        }
        self.levels[0].push_leaf(flags, key, value);
        Ok(())
    }

    /// Writes the page of a level and notes it on the level above.
    fn flush<W: Write>(&mut self, pages: &mut Pages<W>, level: usize) -> Result<(), BoltError> {
        let first_key = self.levels[level].first_key().to_vec();
        let id = pages.write(&mut self.levels[level])?;
        if self.levels.len() == level + 1 {
            self.levels.push(Page::new(BRANCH));
        }
        if !self.levels[level + 1].has_room(first_key.len()) {
            self.flush(pages, level + 1)?;
        }
        self.levels[level + 1].push_branch(id, &first_key);
        Ok(())
    }

    /// Writes what is left; the root's id.
    fn finish<W: Write>(&mut self, pages: &mut Pages<W>) -> Result<u64, BoltError> {
        if self.levels.is_empty() {
            self.levels.push(Page::new(LEAF));
        }
        let mut level = 0;
        // A level with one above has written pages before, so that the one above gets two at least.
        while level + 1 < self.levels.len() {
            self.flush(pages, level)?;
            level += 1;
        }
        pages.write(&mut self.levels[level])
    }

    /// The only page of a small bucket.
    fn inline(&self) -> Option<Vec<u8>> {
        let empty = Page::new(LEAF);
        let page = match self.levels.as_slice() {
            [] => &empty,
            [page] if page.bytes() <= MAX_INLINE_BYTES => page,
            _ => return None,
        };
        let mut bytes = Vec::with_capacity(page.bytes());
        page.write(0, 0, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// A page that is being filled.
struct Page {
    flags: u16,
    elements: Vec<Element>,
    /// The keys and values, one behind the other.
    data: Vec<u8>,
}

struct Element {
    start: usize,
    key_bytes: usize,
    of: Of,
}

enum Of {
    Leaf { flags: u32, value_bytes: usize },
    Branch { page: u64 },
}

impl Page {
    fn new(flags: u16) -> Self {
        Self { flags, elements: Vec::new(), data: Vec::new() }
    }

    fn bytes(&self) -> usize {
        PAGE_HEAD_BYTES + ELEMENT_BYTES * self.elements.len() + self.data.len()
    }

    /// Whether one more fits; the first one always does, if need be on overflow pages.
    fn has_room(&self, bytes: usize) -> bool {
        self.elements.is_empty() || self.bytes() + ELEMENT_BYTES + bytes <= PAGE_BYTES
    }

    fn first_key(&self) -> &[u8] {
        self.elements.first().map_or(&[], |first| &self.data[..first.key_bytes])
    }

    fn push_leaf(&mut self, flags: u32, key: &[u8], value: &[u8]) {
        let of = Of::Leaf { flags, value_bytes: value.len() };
        self.elements.push(Element { start: self.data.len(), key_bytes: key.len(), of });
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    fn push_branch(&mut self, page: u64, key: &[u8]) {
        let of = Of::Branch { page };
        self.elements.push(Element { start: self.data.len(), key_bytes: key.len(), of });
        self.data.extend_from_slice(key);
    }

    fn write(&self, id: u64, overflow: u32, file: &mut impl Write) -> Result<(), BoltError> {
        let count = u16::try_from(self.elements.len()).map_err(|_| TOO_LARGE)?;
        file.write_all(&PageHead { id, flags: self.flags, count, overflow }.encode())?;
        for (number, element) in self.elements.iter().enumerate() {
            let position = ELEMENT_BYTES * (self.elements.len() - number) + element.start;
            let position = u32::try_from(position).map_err(|_| TOO_LARGE)?.to_le_bytes();
            let key_bytes = (element.key_bytes as u32).to_le_bytes();
            match element.of {
                Of::Leaf { flags, value_bytes } => {
                    file.write_all(&flags.to_le_bytes())?;
                    file.write_all(&position)?;
                    file.write_all(&key_bytes)?;
                    file.write_all(&(value_bytes as u32).to_le_bytes())?;
                }
                Of::Branch { page } => {
                    file.write_all(&position)?;
                    file.write_all(&key_bytes)?;
                    file.write_all(&page.to_le_bytes())?;
                }
            }
        }
        file.write_all(&self.data)?;
        Ok(())
    }

    fn clear(&mut self) {
        self.elements.clear();
        // A value of megabytes should not stay in memory for the rest of the file.
        self.data.clear();
        self.data.shrink_to(2 * PAGE_BYTES);
    }
}
