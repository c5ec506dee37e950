//! What happens when the engine no longer works.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::engine::{Visit, WriteBatch};

/// An engine that can be made to fail.
#[derive(Debug, Default)]
struct Failing {
    inner: MemoryEngine,
    fails: AtomicBool,
}

impl Failing {
    fn check(&self) -> Result<(), EngineError> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(EngineError::Damaged("the test says so".to_owned()));
        }
        Ok(())
    }
}

impl Engine for Failing {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.check()?;
        self.inner.get(key)
    }

    fn scan(&self, range: Range<&[u8]>, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        self.check()?;
        self.inner.scan(range, visit)
    }

    fn write(&self, batch: WriteBatch) -> Result<(), EngineError> {
        self.check()?;
        self.inner.write(batch)
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.check()?;
        self.inner.flush()
    }

    fn reclaim(&self) -> Result<bool, EngineError> {
        self.check()?;
        self.inner.reclaim()
    }

    fn size_bytes(&self) -> Result<u64, EngineError> {
        self.inner.size_bytes()
    }
}

#[test]
fn after_a_failure_nothing_is_applied_any_more() {
    let engine = Arc::new(Failing::default());
    let mvcc = Mvcc::open(engine.clone(), Limits { window_bytes: 0, ..Limits::default() }).unwrap();
    apply(&mvcc, [put("a", "1"), put("b", "1")]);
    mvcc.flush().unwrap();
    engine.fails.store(true, Ordering::Relaxed);
    assert!(mvcc.range_cached(&range("a", "", 0)).is_none());
    assert!(matches!(mvcc.range(&range("a", "", 0)), Err(Failure::Engine(_))));
    // What needs no value from the disk goes on.
    assert!(apply_one(&mvcc, put("c", "1")).is_ok());
    assert!(mvcc.write_behind().is_err());

    let batch = |op| {
        EntryPayload::Normal(Batch::new(vec![
            Command { id: 1, op: Some(put("d", "1")) },
            Command { id: 2, op: Some(op) },
        ]))
    };
    // The first command of the entry was carried out, the second was not: no entry may follow.
    assert!(mvcc.apply(log_id(2), &batch(delete("a", ""))).is_err());
    engine.fails.store(false, Ordering::Relaxed);
    for index in [2, 3] {
        let error = mvcc.apply(log_id(index), &batch(put("e", "1"))).unwrap_err();
        assert!(matches!(error, EngineError::Failed));
    }
    // And nothing of it gets into the engine.
    write_all(&mvcc);
    let mvcc = Mvcc::open(engine, Limits::default()).unwrap();
    assert_eq!(mvcc.applied().0, Some(log_id(1)));
    assert_eq!(mvcc.range(&range("\0", "\0", 0)).unwrap().count, 3);
}

#[test]
fn an_entry_is_applied_once_and_none_is_left_out() {
    let mvcc = TestEngine::memory().open(0);
    mvcc.apply(log_id(5), &EntryPayload::Blank).unwrap();
    for index in [5, 4, 7] {
        let error = mvcc.apply(log_id(index), &EntryPayload::Blank).unwrap_err();
        assert!(matches!(error, EngineError::Entry { .. }), "{error}");
    }
    mvcc.apply(log_id(6), &EntryPayload::Blank).unwrap();
}

#[test]
fn a_request_of_a_later_version_is_not_skipped() {
    let mvcc = TestEngine::memory().open(0);
    let unknown = EntryPayload::Normal(Batch::new(vec![Command { id: 1, op: None }]));
    let error = mvcc.apply(log_id(0), &unknown).unwrap_err();
    assert!(error.to_string().contains("does not know"), "{error}");
    assert_eq!(mvcc.applied().0, None);
}
