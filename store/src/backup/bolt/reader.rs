//! Reading a file that anybody may have written: nothing in it is believed, and every page that is
//! not what bbolt would have written is an error that says where it is.
//!
//! What bounds the work: a tree has at most [`MAX_DEPTH`] levels, no page is longer than
//! [`MAX_PAGE_BYTES`], keys only ever go up, and a walk ends with an error when it has seen more pages
//! than the file has.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::{
    BRANCH, BUCKET_HEAD_BYTES, BoltError, ELEMENT_BYTES, IS_BUCKET, LEAF, META_BYTES, Meta,
    PAGE_HEAD_BYTES, PageHead, u32_at, u64_at,
};

/// Far above what a tree of small pages reaches within 64-bit file sizes.
const MAX_DEPTH: usize = 32;
/// The longest page with what overflows: more than any request brings into a store.
const MAX_PAGE_BYTES: u64 = 256 << 20;
/// bbolt takes its page size from the system; none has others than these.
const PAGE_SIZES: std::ops::RangeInclusive<u32> = 512..=65536;
/// etcd has about ten.
const MAX_BUCKETS: usize = 1024;

/// Where the bytes of a file come from.
pub(crate) trait Source {
    /// Fills `buffer` from the byte `offset` on.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Source for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

/// A file that is read.
#[derive(Debug)]
pub(crate) struct Bolt<S> {
    source: S,
    meta: Meta,
}

/// A bucket's place in the file.
#[derive(Clone, Debug)]
pub(crate) struct BucketRef {
    /// What it is called.
    pub(crate) name: Bytes,
    root: Root,
}

#[derive(Clone, Debug)]
enum Root {
    /// A page, and the byte that says so.
    Page(u64, u64),
    /// The page itself.
    Inline(Page),
}

/// A page as it stands in the file, with what overflows.
#[derive(Clone, Debug)]
struct Page {
    offset: u64,
    kind: Kind,
    count: usize,
    bytes: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Leaf,
    Branch,
}

/// One element of a leaf.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Where it stands in the file.
    pub(crate) offset: u64,
    is_bucket: bool,
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
}

/// A page on the way from the root to where a walk is.
struct Level {
    page: Page,
    next: usize,
    /// No key below may be smaller.
    lower: Bytes,
    /// Every key below must be smaller.
    upper: Option<Bytes>,
}

fn damaged(offset: u64, reason: impl Into<String>) -> BoltError {
    BoltError::Damaged { offset, reason: reason.into() }
}

impl<S: Source> Bolt<S> {
    /// Takes the first `size_bytes` of a source for a file.
    pub(crate) fn open(source: S, size_bytes: u64) -> Result<Self, BoltError> {
        let meta = find_meta(&source, size_bytes)?;
        let Some(used) = meta.end.checked_mul(meta.page_bytes.into()) else {
            return Err(damaged(0, format!("it claims to have {} pages", meta.end)));
        };
        if used > size_bytes {
            let text = format!("it ends after {size_bytes} bytes instead of {used}");
            return Err(damaged(size_bytes, text));
        }
        Ok(Self { source, meta })
    }

    /// The bytes of all pages that are in use, or once were.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.meta.end * u64::from(self.meta.page_bytes)
    }

    /// All buckets in the order of their names.
    pub(crate) fn buckets(&self) -> Result<Vec<BucketRef>, BoltError> {
        let mut buckets = Vec::new();
        self.walk_entries(self.page(self.meta.root, 0)?, &mut |entry: Entry| {
            if !entry.is_bucket {
                return Err(damaged(entry.offset, "a key stands outside of all buckets"));
            }
            if buckets.len() == MAX_BUCKETS {
                return Err(damaged(entry.offset, "there are too many buckets"));
            }
            // What the file says must not keep a whole page in memory.
            let name = Bytes::copy_from_slice(&entry.key);
            buckets.push(BucketRef { name, root: root_of(&entry)? });
            Ok(())
        })?;
        Ok(buckets)
    }

    /// Shows all keys of a bucket and their values, in order, until `visit` fails.
    pub(crate) fn walk<E: From<BoltError>>(
        &self,
        bucket: &BucketRef,
        mut visit: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        self.walk_entries(self.root(bucket)?, &mut |entry: Entry| {
            if entry.is_bucket {
                return Err(damaged(entry.offset, "a bucket holds another bucket").into());
            }
            visit(entry)
        })
    }

    /// The last key of a bucket.
    pub(crate) fn last_key(&self, bucket: &BucketRef) -> Result<Option<Bytes>, BoltError> {
        let mut page = self.root(bucket)?;
        for _ in 0..MAX_DEPTH {
            let Some(last) = page.count.checked_sub(1) else { return Ok(None) };
            match page.kind {
                Kind::Leaf => return Ok(Some(page.entry(last)?.key)),
                Kind::Branch => page = self.page(page.child(last)?.0, page.offset)?,
            }
        }
        Err(damaged(page.offset, "its tree is too deep"))
    }

    fn root(&self, bucket: &BucketRef) -> Result<Page, BoltError> {
        match &bucket.root {
            Root::Page(id, from) => self.page(*id, *from),
            Root::Inline(page) => Ok(page.clone()),
        }
    }

    fn walk_entries<E: From<BoltError>>(
        &self,
        root: Page,
        visit: &mut dyn FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut pages_left = self.meta.end;
        let mut last = Bytes::new();
        let mut path = vec![Level { page: root, next: 0, lower: Bytes::new(), upper: None }];
        while let Some(level) = path.last_mut() {
            if level.next == level.page.count {
                path.pop();
                continue;
            }
            let number = level.next;
            level.next += 1;
            if level.page.kind == Kind::Leaf {
                let entry = level.page.entry(number)?;
                let is_within = level.upper.as_ref().is_none_or(|upper| entry.key < *upper);
                if entry.key <= last || entry.key < level.lower || !is_within {
                    return Err(damaged(entry.offset, "a key is out of order").into());
                }
                last = entry.key.clone();
                visit(entry)?;
                continue;
            }
            let (id, lower) = level.page.child(number)?;
            let upper = match number + 1 {
                next if next < level.page.count => Some(level.page.child(next)?.1),
                _ => level.upper.clone(),
            };
            let offset = level.page.offset;
            let is_ordered = upper.as_ref().is_none_or(|upper| lower < *upper);
            let is_within = level.upper.as_ref().is_none_or(|upper| lower < *upper);
            if lower < level.lower || !is_ordered || !is_within {
                return Err(damaged(offset, "the keys of a branch are out of order").into());
            }
            if path.len() == MAX_DEPTH {
                return Err(damaged(offset, "its tree is too deep").into());
            }
            pages_left = pages_left
                .checked_sub(1)
                .ok_or_else(|| damaged(offset, "a page stands in a tree twice"))?;
            path.push(Level { page: self.page(id, offset)?, next: 0, lower, upper });
        }
        Ok(())
    }

    /// Reads a page of a tree, which something at the byte `from` refers to.
    fn page(&self, id: u64, from: u64) -> Result<Page, BoltError> {
        let page_bytes = u64::from(self.meta.page_bytes);
        if !(2..self.meta.end).contains(&id) {
            return Err(damaged(from, format!("it refers to page {id}, which it does not have")));
        }
        let offset = id * page_bytes;
        let mut head = [0; PAGE_HEAD_BYTES];
        self.source.read_exact_at(&mut head, offset)?;
        let head = PageHead::decode(&head).expect("as many bytes as a head has");
        if head.id != id {
            return Err(damaged(offset, format!("page {id} says that it is page {}", head.id)));
        }
        let count = u64::from(head.overflow) + 1;
        let length = count * page_bytes;
        if count > self.meta.end - id || length > MAX_PAGE_BYTES {
            return Err(damaged(offset, format!("page {id} is too long")));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.source.read_exact_at(&mut bytes, offset)?;
        Page::new(offset, head, bytes.into())
    }
}

impl Page {
    fn new(offset: u64, head: PageHead, bytes: Bytes) -> Result<Self, BoltError> {
        let kind = match head.flags {
            LEAF => Kind::Leaf,
            BRANCH => Kind::Branch,
            flags => {
                let text = format!("a page of a tree has the flags {flags:#x}");
                return Err(damaged(offset, text));
            }
        };
        if kind == Kind::Branch && head.count == 0 {
            return Err(damaged(offset, "a branch has nothing below"));
        }
        Ok(Self { offset, kind, count: head.count.into(), bytes })
    }

    fn entry(&self, number: usize) -> Result<Entry, BoltError> {
        let at = self.element(number);
        let key_bytes = self.number(at + 8)?;
        Ok(Entry {
            offset: self.offset + at as u64,
            is_bucket: self.number(at)? & IS_BUCKET as usize != 0,
            key: self.key(at, self.number(at + 4)?, key_bytes)?,
            value: self.slice(at, self.number(at + 4)? + key_bytes, self.number(at + 12)?)?,
        })
    }

    /// The page below and its first key.
    fn child(&self, number: usize) -> Result<(u64, Bytes), BoltError> {
        let at = self.element(number);
        let id = u64_at(&self.bytes, at + 8).ok_or_else(|| self.too_short(at))?;
        Ok((id, self.key(at, self.number(at)?, self.number(at + 4)?)?))
    }

    fn element(&self, number: usize) -> usize {
        PAGE_HEAD_BYTES + ELEMENT_BYTES * number
    }

    fn number(&self, at: usize) -> Result<usize, BoltError> {
        u32_at(&self.bytes, at).map(|number| number as usize).ok_or_else(|| self.too_short(at))
    }

    fn key(&self, element: usize, position: usize, length: usize) -> Result<Bytes, BoltError> {
        if length == 0 {
            return Err(damaged(self.offset + element as u64, "a key is empty"));
        }
        self.slice(element, position, length)
    }

    fn slice(&self, element: usize, position: usize, length: usize) -> Result<Bytes, BoltError> {
        let start = element + position;
        let end = start + length;
        if end > self.bytes.len() {
            return Err(self.too_short(element));
        }
        Ok(self.bytes.slice(start..end))
    }

    fn too_short(&self, at: usize) -> BoltError {
        damaged(self.offset + at as u64, "an element reaches beyond its page")
    }
}

fn root_of(entry: &Entry) -> Result<Root, BoltError> {
    let value_at = entry.offset;
    let broken = || damaged(value_at, "a bucket is cut off");
    let root = u64_at(&entry.value, 0).ok_or_else(broken)?;
    if root != 0 {
        return Ok(Root::Page(root, value_at));
    }
    let inline = Bytes::copy_from_slice(entry.value.get(BUCKET_HEAD_BYTES..).ok_or_else(broken)?);
    let head = PageHead::decode(&inline).ok_or_else(broken)?;
    if head.flags != LEAF {
        return Err(damaged(value_at, "the page within a bucket is no leaf"));
    }
    Ok(Root::Inline(Page::new(value_at, head, inline)?))
}

/// The newer one of the metas that are whole.
fn find_meta(source: &impl Source, size_bytes: u64) -> Result<Meta, BoltError> {
    let read = |offset: u64, page_bytes: Option<u32>| -> Result<Option<Meta>, BoltError> {
        let start = offset + PAGE_HEAD_BYTES as u64;
        if start + META_BYTES as u64 > size_bytes {
            return Ok(None);
        }
        let mut bytes = [0; META_BYTES];
        source.read_exact_at(&mut bytes, start)?;
        let meta = Meta::decode(&bytes);
        Ok(meta.filter(|meta| {
            let size = meta.page_bytes;
            PAGE_SIZES.contains(&size)
                && size.is_power_of_two()
                && page_bytes.is_none_or(|page_bytes| page_bytes == size)
        }))
    };
    let first = read(0, None)?;
    let mut sizes: Vec<u32> = first.iter().map(|meta| meta.page_bytes).collect();
    if sizes.is_empty() {
        // The second one is at a distance that only it knows.
        sizes = (9..=16).map(|power| 1 << power).collect();
    }
    let mut found = first;
    for size in sizes {
        let second = read(size.into(), Some(size))?;
        found = found.into_iter().chain(second).max_by_key(|meta| meta.transaction);
    }
    found.ok_or_else(|| damaged(0, "it is no bbolt database, or its metas are damaged"))
}
