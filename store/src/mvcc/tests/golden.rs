//! Golden scripts: each `golden/*` file is a conversation with an empty store, with its answers.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p store golden` writes the answers; they are then read and
//! checked in. Where the answers come from is no matter of taste: the same scripts are put to a real
//! etcd (`etcd` from the `PATH`, where there is one), which has to answer the same. Scripts whose
//! names begin with `own_` are about what etcd has no answer to, or one that nobody wants.
//!
//! ```text
//! put KEY [VALUE] [lease=ID] [prev] [ignore_value] [ignore_lease]
//! get RANGE [rev=N] [limit=N] [order=ascend|descend] [by=version|create|mod|value] [keys_only] ...
//! del RANGE [prev]
//! txn "COMPARES ? OPERATIONS : OPERATIONS"         operations: put, get, del, txn [ ... ]
//! compact REVISION      grant ID TTL      revoke ID      lease ID      leases      history FROM
//! alarm nospace|corrupt                            disarm nospace|corrupt
//!
//! RANGE    a: one key     a..c: up to c     a..: from a on     all
//! COMPARE  mod a = 2      value a..c != x   (version, create, lease; =, !=, <, >)
//! ```

mod etcd;
mod random;
mod script;

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use goldenscript::{Argument, Command, Context, Runner};
use store_proto::etcdserverpb::{AlarmType, PutResponse, RangeResponse};
use store_proto::etcdserverpb::{ResponseHeader, ResponseOp, TxnResponse, response_op::Response};
use store_proto::mvccpb::{Event, KeyValue};
use store_proto::peer::{Alarm, AlarmChange, alarm::Cause};

use super::*;
use crate::mvcc::revision::is_delete;

const SCRIPTS: &str = "src/mvcc/tests/golden";
/// Any will do, as alarms stand for all members.
const ALARMED_MEMBER: u64 = 1;

/// Somebody who answers.
trait Store {
    fn write(&mut self, op: Op) -> Result<Outcome, String>;
    fn range(&mut self, request: RangeRequest) -> Result<RangeResponse, String>;
    /// The granted TTL and the keys; `None` when there is no such lease.
    fn lease(&mut self, id: i64) -> Result<Option<(i64, Vec<Bytes>)>, String>;
    fn leases(&mut self) -> Result<Vec<i64>, String>;
    /// All events from a revision on, or the compacted revision.
    fn history(&mut self, from: i64) -> Result<Vec<Event>, i64>;
}

/// The state, with the checks that the RPC layer makes before.
struct Ours {
    mvcc: Mvcc,
}

impl Ours {
    fn new() -> Self {
        // Without a window everything that can come from the engine does.
        Self { mvcc: TestEngine::memory().open(0) }
    }
}

impl Store for Ours {
    fn write(&mut self, op: Op) -> Result<Outcome, String> {
        match &op {
            Op::Put(put) => check_put(put),
            Op::DeleteRange(delete) => check_delete_range(delete),
            Op::Txn(txn) => check_txn(txn, MAX_TXN_OPS),
            _ => Ok(()),
        }
        .map_err(|refused| refused.to_string())?;
        let outcome = match &op {
            Op::Txn(txn) if is_read_only(txn) => {
                self.mvcc.read_txn(txn).map(Outcome::Txn).map_err(|refused| refused.to_string())
            }
            _ => apply_one(&self.mvcc, op).map_err(|refused| refused.to_string()),
        };
        self.mvcc.flush().unwrap();
        compact_all(&self.mvcc);
        outcome
    }

    fn range(&mut self, request: RangeRequest) -> Result<RangeResponse, String> {
        check_range(&request).map_err(|refused| refused.to_string())?;
        self.mvcc.range(&request).map_err(|refused| refused.to_string())
    }

    fn lease(&mut self, id: i64) -> Result<Option<(i64, Vec<Bytes>)>, String> {
        let lease = self.mvcc.lease(id);
        Ok(lease.map(|lease| (lease.ttl_seconds, self.mvcc.lease_keys(id))))
    }

    fn leases(&mut self) -> Result<Vec<i64>, String> {
        Ok(self.mvcc.leases().iter().map(|lease| lease.id).collect())
    }

    fn history(&mut self, from: i64) -> Result<Vec<Event>, i64> {
        match self.mvcc.history(from, usize::MAX) {
            Ok(history) => Ok(history.iter().flat_map(|made| made.events.clone()).collect()),
            Err(HistoryError::Compacted { compact_revision }) => Err(compact_revision),
            Err(HistoryError::Engine(error)) => panic!("{error}"),
        }
    }
}

struct Scripts<S>(S);

impl<S: Store> Runner for Scripts<S> {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let words: Vec<String> = command
            .args
            .iter()
            .map(|argument| match argument {
                Argument::KeyValue(key, value) => format!("{key}={value}"),
                Argument::Positional(value) => value.clone(),
                other => other.to_string(),
            })
            .collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<i64>().ok());
        let store = &mut self.0;
        let mut output = String::new();
        match command.name.as_str() {
            "get" => match store.range(script::range(&words)?) {
                Ok(response) => show_range(&mut output, 0, &response),
                Err(error) => writeln!(output, "{error}")?,
            },
            "lease" => match store.lease(number(0).ok_or("an id is needed")?)? {
                Some((ttl, keys)) => {
                    writeln!(
                        output,
                        "granted {ttl}s, keys {}",
                        keys.iter().map(text).collect::<Vec<_>>().join(" ")
                    )?;
                }
                None => writeln!(output, "none")?,
            },
            "leases" => writeln!(output, "{:?}", store.leases()?)?,
            "history" => match store.history(number(0).ok_or("a revision is needed")?) {
                Ok(events) => events.iter().for_each(|event| show_event(&mut output, event)),
                Err(compacted) => writeln!(output, "compacted at {compacted}")?,
            },
            name => {
                let op = match name {
                    "put" => Op::Put(script::put(&words)?),
                    "del" => Op::DeleteRange(script::delete(&words)?),
                    "txn" => Op::Txn(script::txn(words.first().ok_or("a transaction is needed")?)?),
                    "compact" => compact_at(number(0).ok_or("a revision is needed")?),
                    "grant" => grant(
                        number(0).ok_or("an id is needed")?,
                        number(1).ok_or("a TTL is needed")?,
                    ),
                    "revoke" => revoke(number(0).ok_or("an id is needed")?),
                    "alarm" | "disarm" => {
                        let alarm = match words.first().map(String::as_str) {
                            Some("nospace") => AlarmType::Nospace,
                            Some("corrupt") => AlarmType::Corrupt,
                            _ => return Err("nospace or corrupt is needed".into()),
                        };
                        Op::Alarm(by_client(alarm, name == "alarm"))
                    }
                    _ => return Err(format!("unknown command {name}").into()),
                };
                match store.write(op) {
                    Ok(outcome) => show_outcome(&mut output, &outcome),
                    Err(error) => writeln!(output, "{error}")?,
                }
            }
        }
        Ok(output)
    }
}

fn show_outcome(output: &mut String, outcome: &Outcome) {
    match outcome {
        Outcome::Put(response) => show_put(output, 0, response),
        Outcome::DeleteRange(response) => show_delete(output, 0, response),
        Outcome::Txn(response) => show_txn(output, 0, response),
        Outcome::Compaction(response) => show(output, 0, &response.header, "compacted"),
        Outcome::LeaseGrant(response) => {
            show(output, 0, &response.header, &format!("granted {}s", response.ttl));
        }
        Outcome::LeaseRevoke(response) => show(output, 0, &response.header, "revoked"),
        Outcome::Alarm(Some(_)) => writeln!(output, "done").unwrap(),
        Outcome::Alarm(None) => writeln!(output, "nothing to do").unwrap(),
        Outcome::Publish => unreachable!("scripts publish nothing"),
    }
}

fn by_client(alarm: AlarmType, raised: bool) -> AlarmChange {
    let (alarm, cause) = (alarm.into(), Cause::Client.into());
    AlarmChange { alarm: Some(Alarm { member_id: ALARMED_MEMBER, alarm, cause }), raised }
}

fn show(output: &mut String, depth: usize, header: &Option<ResponseHeader>, what: &str) {
    let revision = header.as_ref().map_or("none".to_owned(), |header| header.revision.to_string());
    writeln!(output, "{:depth$}{what} at {revision}", "", depth = 2 * depth).unwrap();
}

fn show_put(output: &mut String, depth: usize, response: &PutResponse) {
    show(output, depth, &response.header, "put");
    show_kvs(output, depth + 1, response.prev_kv.as_slice());
}

fn show_delete(
    output: &mut String,
    depth: usize,
    response: &store_proto::etcdserverpb::DeleteRangeResponse,
) {
    show(output, depth, &response.header, &format!("deleted {}", response.deleted));
    show_kvs(output, depth + 1, &response.prev_kvs);
}

fn show_range(output: &mut String, depth: usize, response: &RangeResponse) {
    let more = if response.more { " and more" } else { "" };
    let what = format!("{} of {}{more}", response.kvs.len(), response.count);
    show(output, depth, &response.header, &what);
    show_kvs(output, depth + 1, &response.kvs);
}

fn show_txn(output: &mut String, depth: usize, response: &TxnResponse) {
    let what = if response.succeeded { "succeeded" } else { "failed" };
    show(output, depth, &response.header, what);
    for ResponseOp { response } in &response.responses {
        match response {
            Some(Response::ResponseRange(range)) => show_range(output, depth + 1, range),
            Some(Response::ResponsePut(put)) => show_put(output, depth + 1, put),
            Some(Response::ResponseDeleteRange(delete)) => show_delete(output, depth + 1, delete),
            Some(Response::ResponseTxn(txn)) => show_txn(output, depth + 1, txn),
            None => writeln!(output, "nothing").unwrap(),
        }
    }
}

fn show_kvs(output: &mut String, depth: usize, kvs: &[KeyValue]) {
    for kv in kvs {
        let lease = if kv.lease == 0 { String::new() } else { format!(" lease {}", kv.lease) };
        writeln!(
            output,
            "{:depth$}{}={} mod {} created {} version {}{lease}",
            "",
            text(&kv.key),
            text(&kv.value),
            kv.mod_revision,
            kv.create_revision,
            kv.version,
            depth = 2 * depth,
        )
        .unwrap();
    }
}

fn show_event(output: &mut String, event: &Event) {
    output.push_str(if is_delete(event) { "DELETE " } else { "PUT " });
    show_kvs(output, 0, event.kv.as_slice());
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn scripts() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(SCRIPTS).unwrap().map(|file| file.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_none());
    paths.sort();
    paths
}

#[test]
fn golden_scripts_are_answered_as_written() {
    for path in scripts() {
        goldenscript::run(&mut Scripts(Ours::new()), path).unwrap();
    }
}

#[test]
fn golden_scripts_are_answered_so_by_etcd() {
    for path in scripts() {
        if path.file_name().unwrap().to_string_lossy().starts_with("own_") {
            continue;
        }
        let script = fs::read_to_string(&path).unwrap();
        let Some(etcd) = etcd::Etcd::start() else { return };
        let answered = goldenscript::generate(&mut Scripts(etcd), &script).unwrap();
        for (number, (ours, theirs)) in script.lines().zip(answered.lines()).enumerate() {
            assert_eq!(ours, theirs, "{}:{}", path.display(), number + 1);
        }
        assert_eq!(script, answered, "{}", path.display());
    }
}
