//! The power is cut while the log works on what was given to it without waiting.
//!
//! How many operations of the disk that takes depends on how the thread gathers it, so a failure
//! may not repeat; [`crate::wal::tests::power_cut`] has the same property without the thread.

use proptest::collection::vec;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Fault, LogStore, MemoryDir, RaftLogStorage as _, all, begin_append, open, small};
use crate::wal::Record;
use crate::wal::tests::power_cut::{Model, Op, op};

/// Gives a record to the log; what is returned says whether it was acknowledged.
async fn submit(
    log: &mut LogStore,
    record: Record,
) -> std::io::Result<Option<impl Future<Output = std::io::Result<()>> + use<>>> {
    match record {
        Record::Entry(entry) => return begin_append(log, vec![entry]).await.map(Some),
        Record::Vote(vote) => log.save_vote(&vote).await?,
        Record::Committed(id) => log.save_committed(id).await?,
        Record::TruncateAfter(id) => log.truncate_after(id).await?,
        Record::PurgeUpTo(id) => log.purge(id).await?,
        Record::Checkpoint(id) => log.note_checkpoint(id).await?,
    }
    Ok(None)
}

async fn survives(ops: &[Op], operations: u64, seed: u64, survival: f64) {
    let dir = MemoryDir::default();
    let (mut log, _) = open(&dir, small());
    dir.inject(Fault::PowerCut(operations));

    let mut model = Model::default();
    let mut said = vec![model.clone()];
    let mut acknowledged = 0;
    let mut appends = Vec::new();
    for op in ops {
        let Some(record) = model.carry_out(op) else { continue };
        let vote = matches!(record, Record::Vote(_));
        said.push(model.clone());
        match submit(&mut log, record).await {
            Ok(Some(append)) => appends.push((said.len() - 1, append)),
            Ok(None) if vote => acknowledged = said.len() - 1,
            Ok(None) => {}
            Err(_) => break,
        }
    }
    for (number, append) in appends {
        if append.await.is_ok() {
            acknowledged = acknowledged.max(number);
        }
    }
    drop(log);

    let mut random = StdRng::seed_from_u64(seed);
    let (log, recovered) = open(&dir.power_cut(|| random.random_bool(survival)), small());
    let entries = all(&log).await;
    assert!(
        said[acknowledged..].iter().any(|model| model.is(&recovered, &entries)),
        "{recovered:?} is none of {:#?}",
        &said[acknowledged..]
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_was_acknowledged_is_there_and_nothing_is_invented(
        ops in vec(op(), 1..120),
        operations in 0..120u64,
        seed in any::<u64>(),
        survival in prop_oneof![Just(0.0), Just(0.5), Just(1.0)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(survives(&ops, operations, seed, survival));
    }
}
