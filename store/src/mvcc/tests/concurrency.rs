//! Readers beside one writer, its write-behind, and compaction.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// More than a reader walks in one step.
const KEYS: usize = 1200;

/// Every key is there all the time, and its value says when it was written.
fn check(response: &store_proto::etcdserverpb::RangeResponse, at: i64) {
    assert_eq!(response.count, KEYS as i64, "at {at}");
    assert_eq!(response.kvs.len(), KEYS, "at {at}");
    for kv in &response.kvs {
        assert!(kv.mod_revision <= at);
        assert_eq!(kv.value, Bytes::from(kv.version.to_string()));
    }
}

fn run(engine: &TestEngine, rounds: usize) {
    // Nothing stays in memory, so that compaction takes records away under the readers' eyes.
    let mvcc = engine.open(0);
    let keys: Vec<String> = (0..KEYS).map(|n| format!("key-{n:05}")).collect();
    apply(&mvcc, keys.iter().map(|key| put(key, "1")));
    mvcc.flush().unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let present = scope.spawn(|| {
            let mut last = 0;
            while !is_done.load(Ordering::Relaxed) {
                let response = mvcc.range(&range("key-", "key.", 0)).unwrap();
                let at = response.header.as_ref().unwrap().revision;
                assert!(at >= last, "the revision went back");
                last = at;
                check(&response, at);
            }
        });
        let past = scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let at = mvcc.compacted_revision().max(1 + KEYS as i64);
                match mvcc.range(&range("key-", "key.", at)) {
                    Ok(response) => check(&response, at),
                    Err(Failure::Request(RequestError::Compacted)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let history = scope.spawn(|| {
            let mut next = 2;
            while !is_done.load(Ordering::Relaxed) {
                match mvcc.history(next, 20_000) {
                    Ok(history) => {
                        for made in history {
                            assert_eq!(made.revision, next);
                            let kv = made.events[0].kv.as_ref().unwrap();
                            if let Some(kv) = mvcc.value_at(&kv.key, next - 1).unwrap() {
                                assert!(kv.mod_revision < next);
                            }
                            next += 1;
                        }
                    }
                    Err(HistoryError::Compacted { compact_revision }) => next = compact_revision,
                    Err(HistoryError::Engine(error)) => panic!("{error}"),
                }
            }
        });
        for round in 0..rounds {
            let version = (round + 2).to_string();
            apply(&mvcc, keys.iter().map(|key| put(key, &version)));
            // Often right up to the present: reads of the present are overtaken then.
            let behind = if round % 3 == 0 { 0 } else { 500 };
            apply(&mvcc, [compact_at(mvcc.current_revision() - behind)]);
            write_all(&mvcc);
            compact_all(&mvcc);
            if [&present, &past, &history].iter().any(|reader| reader.is_finished()) {
                break;
            }
        }
        is_done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn readers_never_see_a_hole() {
    run(&TestEngine::memory(), 20);
    run(&TestEngine::sled(), 6);
}
