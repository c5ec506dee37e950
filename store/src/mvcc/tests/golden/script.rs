//! The words of a script, read as requests.

use bytes::Bytes;
use store_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    range_request::{SortOrder, SortTarget},
    request_op::Request,
};

fn bytes(word: &str) -> Bytes {
    Bytes::copy_from_slice(word.as_bytes())
}

fn number(word: &str) -> Result<i64, String> {
    word.parse().map_err(|error| format!("{word}: {error}"))
}

fn key_range(word: &str) -> (Bytes, Bytes) {
    match word.split_once("..") {
        None if word == "all" => (bytes("\0"), bytes("\0")),
        None => (bytes(word), Bytes::new()),
        Some((key, "")) => (bytes(key), bytes("\0")),
        Some((key, end)) => (bytes(key), bytes(end)),
    }
}

pub(super) fn put(words: &[String]) -> Result<PutRequest, String> {
    let mut request = PutRequest::default();
    let mut positional = 0;
    for word in words {
        match word.split_once('=') {
            Some(("lease", id)) => request.lease = number(id)?,
            None if word == "prev" => request.prev_kv = true,
            None if word == "ignore_value" => request.ignore_value = true,
            None if word == "ignore_lease" => request.ignore_lease = true,
            _ if positional == 0 => {
                request.key = bytes(word);
                positional += 1;
            }
            _ if positional == 1 => {
                request.value = bytes(word);
                positional += 1;
            }
            _ => return Err(format!("put does not know {word}")),
        }
    }
    Ok(request)
}

pub(super) fn delete(words: &[String]) -> Result<DeleteRangeRequest, String> {
    let mut request = DeleteRangeRequest::default();
    for word in words {
        match word.as_str() {
            "prev" => request.prev_kv = true,
            range => (request.key, request.range_end) = key_range(range),
        }
    }
    Ok(request)
}

pub(super) fn range(words: &[String]) -> Result<RangeRequest, String> {
    let mut request = RangeRequest::default();
    for word in words {
        match word.split_once('=') {
            Some(("rev", revision)) => request.revision = number(revision)?,
            Some(("limit", limit)) => request.limit = number(limit)?,
            Some(("min_mod", revision)) => request.min_mod_revision = number(revision)?,
            Some(("max_mod", revision)) => request.max_mod_revision = number(revision)?,
            Some(("min_create", revision)) => request.min_create_revision = number(revision)?,
            Some(("max_create", revision)) => request.max_create_revision = number(revision)?,
            Some(("order", order)) => {
                request.sort_order = match SortOrder::from_str_name(&order.to_uppercase()) {
                    Some(order) => order.into(),
                    None => number(order)? as i32,
                }
            }
            Some(("by", target)) => {
                request.sort_target = match SortTarget::from_str_name(&target.to_uppercase()) {
                    Some(target) => target.into(),
                    None => number(target)? as i32,
                }
            }
            None if word == "keys_only" => request.keys_only = true,
            None if word == "count_only" => request.count_only = true,
            None => (request.key, request.range_end) = key_range(word),
            Some((name, _)) => return Err(format!("get does not know {name}")),
        }
    }
    Ok(request)
}

pub(super) fn txn(text: &str) -> Result<TxnRequest, String> {
    let spaced = [",", "?", ";", ":", "[", "]"]
        .iter()
        .fold(text.to_owned(), |text, sign| text.replace(sign, &format!(" {sign} ")));
    let mut parser = Parser { words: spaced.split_whitespace().map(str::to_owned).collect() };
    let request = parser.txn()?;
    match parser.words.first() {
        None => Ok(request),
        Some(word) => Err(format!("the transaction goes on with {word}")),
    }
}

struct Parser {
    words: Vec<String>,
}

impl Parser {
    fn txn(&mut self) -> Result<TxnRequest, String> {
        let mut request = TxnRequest::default();
        while !self.take("?") {
            let words = self.words_until(&[",", "?"]);
            request.compare.push(compare(&words)?);
            self.take(",");
        }
        request.success = self.operations()?;
        if self.take(":") {
            request.failure = self.operations()?;
        }
        Ok(request)
    }

    fn operations(&mut self) -> Result<Vec<RequestOp>, String> {
        let mut operations = Vec::new();
        loop {
            let request = if self.words.first().is_some_and(|word| word == "txn") {
                self.words.remove(0);
                if !self.take("[") {
                    return Err("txn needs [".to_owned());
                }
                let nested = self.txn()?;
                if !self.take("]") {
                    return Err("txn needs ]".to_owned());
                }
                Some(Request::RequestTxn(nested))
            } else {
                let words = self.words_until(&[";", ":", "]"]);
                match words.split_first() {
                    None => break,
                    Some((name, words)) => match name.as_str() {
                        "put" => Some(Request::RequestPut(put(words)?)),
                        "get" => Some(Request::RequestRange(range(words)?)),
                        "del" => Some(Request::RequestDeleteRange(delete(words)?)),
                        "nothing" => None,
                        name => return Err(format!("unknown operation {name}")),
                    },
                }
            };
            operations.push(RequestOp { request });
            if !self.take(";") {
                break;
            }
        }
        Ok(operations)
    }

    fn take(&mut self, word: &str) -> bool {
        let is_next = self.words.first().is_none_or(|next| next == word);
        if is_next && !self.words.is_empty() {
            self.words.remove(0);
            return true;
        }
        // A transaction that has ended has an empty rest.
        self.words.is_empty() && word == "?"
    }

    fn words_until(&mut self, signs: &[&str]) -> Vec<String> {
        let end = self.words.iter().position(|word| signs.contains(&word.as_str()));
        self.words.drain(..end.unwrap_or(self.words.len())).collect()
    }
}

fn compare(words: &[String]) -> Result<Compare, String> {
    let [target, key, relation, operand] = words else {
        return Err(format!("{words:?} is no compare"));
    };
    let (key, range_end) = key_range(key);
    let result = match relation.as_str() {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        _ => return Err(format!("{relation} is no relation")),
    };
    let (target, union) = match target.as_str() {
        "version" => (CompareTarget::Version, TargetUnion::Version(number(operand)?)),
        "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number(operand)?)),
        "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number(operand)?)),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number(operand)?)),
        "value" => (CompareTarget::Value, TargetUnion::Value(bytes(operand))),
        target => return Err(format!("{target} is no target")),
    };
    Ok(Compare {
        result: result.into(),
        target: target.into(),
        key,
        target_union: Some(union),
        range_end,
    })
}
