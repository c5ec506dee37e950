use std::io::Cursor;
use std::sync::LazyLock;

use bytes::Bytes;
use proptest::prelude::*;

use super::reader::Source;
use super::*;

impl Source for Bytes {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = self.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn written(buckets: &[(&str, Pairs)]) -> Bytes {
    let mut file = Cursor::new(Vec::new());
    let mut writer = BoltWriter::new(&mut file).unwrap();
    for (name, pairs) in buckets {
        writer.begin_bucket(name.as_bytes()).unwrap();
        for (key, value) in pairs {
            writer.put(key, value).unwrap();
        }
    }
    let size_bytes = writer.finish().unwrap();
    let bytes = file.into_inner();
    assert_eq!(bytes.len() as u64, size_bytes);
    bytes.into()
}

fn read(file: &Bytes) -> Result<Vec<(String, Pairs)>, BoltError> {
    let bolt = Bolt::open(file.clone(), file.len() as u64)?;
    let mut read = Vec::new();
    for bucket in bolt.buckets()? {
        let mut pairs = Pairs::new();
        bolt.walk(&bucket, |entry| {
            pairs.push((entry.key.to_vec(), entry.value.to_vec()));
            Ok::<_, BoltError>(())
        })?;
        let last = bolt.last_key(&bucket)?;
        assert_eq!(last.as_deref(), pairs.last().map(|(key, _)| key.as_slice()));
        read.push((String::from_utf8_lossy(&bucket.name).into_owned(), pairs));
    }
    Ok(read)
}

fn numbered(count: u32, value_bytes: usize) -> Pairs {
    (0..count).map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; value_bytes])).collect()
}

#[test]
fn what_was_written_is_read() {
    // Within the root, one page, pages that overflow, and two and three levels of branches.
    for (count, value_bytes) in [
        (0, 0),
        (1, 0),
        (10, 20),
        (40, 30),
        (3, PAGE_BYTES),
        (5, 3 * PAGE_BYTES + 7),
        (2, 1 << 20),
        (1000, 100),
        (50_000, 10),
        (300, 2000),
    ] {
        let pairs = numbered(count, value_bytes);
        let many: Vec<String> = (0..300).map(|n| format!("z{n:03}")).collect();
        let mut buckets = vec![("empty", Vec::new()), ("key", pairs), ("small", numbered(2, 2))];
        buckets.extend(many.iter().map(|name| (name.as_str(), numbered(3, 30))));
        let file = written(&buckets);
        let read = read(&file).unwrap();
        assert_eq!(read.len(), buckets.len());
        for ((found, in_file), (name, pairs)) in read.iter().zip(&buckets) {
            assert_eq!(found, name);
            assert!(in_file == pairs, "{count} of {value_bytes} bytes in {name}");
        }
    }
}

#[test]
fn the_newer_meta_counts_and_either_will_do() {
    let file = written(&[("key", numbered(100, 100))]);
    let whole = read(&file).unwrap();
    for meta in [0, PAGE_BYTES] {
        let mut one = file.to_vec();
        one[meta + PAGE_HEAD_BYTES + 20] ^= 1;
        assert_eq!(read(&one.into()).unwrap(), whole);
    }
    let mut none = file.to_vec();
    none[PAGE_HEAD_BYTES] ^= 1;
    none[PAGE_BYTES + PAGE_HEAD_BYTES] ^= 1;
    assert!(read(&none.into()).unwrap_err().to_string().contains("no bbolt database"));
}

#[test]
fn what_is_out_of_order_is_not_written() {
    let mut writer = BoltWriter::new(Cursor::new(Vec::new())).unwrap();
    assert!(writer.put(b"a", b"").is_err());
    writer.begin_bucket(b"one").unwrap();
    writer.put(b"b", b"").unwrap();
    assert!(writer.put(b"b", b"").is_err());
    assert!(writer.put(b"", b"").is_err());
    assert!(writer.put(&[b'c'; MAX_KEY_BYTES + 1], b"").is_err());
    writer.begin_bucket(b"one").unwrap();
    assert!(writer.finish().is_err());
}

#[test]
fn damage_is_named_with_its_place() {
    let file = written(&[("key", numbered(5000, 100))]);
    let page = |id: usize| id * PAGE_BYTES;
    let cases: [(usize, &[u8], &str); 8] = [
        (page(3), &[9], "page 3 says that it is page 9 (at byte 12288)"),
        (page(4) + 8, &[BRANCH as u8], "a branch are out of order (at byte 16384)"),
        (page(5) + 8, &[FREELIST as u8], "has the flags 0x10 (at byte 20480)"),
        (page(6) + 12, &[0xff, 0xff], "page 6 is too long (at byte 24576)"),
        (page(7) + PAGE_HEAD_BYTES + 4, &[0, 0xff], "reaches beyond its page (at byte 28688)"),
        (page(8) + PAGE_HEAD_BYTES + 8, &[0], "a key is empty (at byte 32784)"),
        (page(9) + PAGE_HEAD_BYTES + ELEMENT_BYTES + 4, &[0], "out of order"),
        (page(10) + PAGE_HEAD_BYTES, &[1], "a bucket holds another bucket (at byte 40976)"),
    ];
    for (at, bytes, expected) in cases {
        let mut bad = file.to_vec();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        let error = read(&bad.into()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, not {expected}");
    }
    let cut = file.slice(..file.len() - 1);
    assert!(read(&cut).unwrap_err().to_string().contains("it ends after"));
}

/// With two levels of branches, of long keys.
static TREE: LazyLock<Bytes> = LazyLock::new(|| {
    let pairs = (0..1500_u32).map(|n| (format!("{n:0200}").into_bytes(), vec![n as u8; 9]));
    written(&[("key", pairs.collect()), ("lease", numbered(3, 5000))])
});

#[test]
fn a_tree_that_goes_in_circles_comes_to_an_end() {
    let file = &*TREE;
    let branches: Vec<usize> = (3..file.len() / PAGE_BYTES)
        .filter_map(|id| Some((id, PageHead::decode(&file[id * PAGE_BYTES..])?)))
        .filter(|(id, head)| head.id == *id as u64 && head.flags == BRANCH)
        .map(|(id, _)| id * PAGE_BYTES)
        .collect();
    assert!(branches.len() > 2);
    for from in &branches {
        for to in &branches {
            let mut bad = file.to_vec();
            let id = (to / PAGE_BYTES) as u64;
            let element = from + PAGE_HEAD_BYTES;
            bad[element + 8..element + 16].copy_from_slice(&id.to_le_bytes());
            let is_as_it_was = bad == *file;
            assert_eq!(read(&bad.into()).is_ok(), is_as_it_was);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_content_comes_back(
        keys in prop::collection::btree_map(
            prop::collection::vec(any::<u8>(), 1..300),
            prop::collection::vec(any::<u8>(), 0..6000),
            0..60,
        )
    ) {
        let pairs: Pairs = keys.into_iter().collect();
        let file = written(&[("a", pairs.clone()), ("b", Vec::new())]);
        prop_assert_eq!(read(&file).unwrap(), [("a".to_owned(), pairs), ("b".to_owned(), vec![])]);
    }

    /// Whatever happens to a file, reading it ends, and without a panic.
    #[test]
    fn damaged_files_are_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        in_heads in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = TREE.to_vec();
        for (place, byte) in changes {
            let at = if in_heads {
                place.index(file.len() / PAGE_BYTES) * PAGE_BYTES + place.index(64)
            } else {
                place.index(file.len())
            };
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let _ = read(&file.into());
    }
}
