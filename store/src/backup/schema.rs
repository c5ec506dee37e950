//! What stands in the buckets of an etcd database: the names, keys and values of etcd 3.4 and 3.5.
//!
//! ```text
//! key        main:u64 BE '_' sub:u64 BE        -> mvccpb.KeyValue
//!            the same and 't' for a deletion   -> mvccpb.KeyValue with the key alone
//! lease      id:u64 BE                         -> leasepb.Lease
//! members    id in hexadecimal                 -> JSON
//! meta       consistent_index, term            -> u64 BE
//!            scheduledCompactRev, finishedCompactRev -> a revision as in `key`
//!            confState                         -> JSON
//! ```

use store_proto::mvccpb::KeyValue;

use crate::mvcc::Revision;

pub(super) const ALARM: &str = "alarm";
pub(super) const AUTH: &str = "auth";
/// In the bucket `auth`: 1 when authentication is on.
pub(super) const AUTH_ENABLED: &str = "authEnabled";
pub(super) const AUTH_ROLES: &str = "authRoles";
pub(super) const AUTH_USERS: &str = "authUsers";
pub(super) const CLUSTER: &str = "cluster";
pub(super) const KEY: &str = "key";
pub(super) const LEASE: &str = "lease";
pub(super) const MEMBERS: &str = "members";
pub(super) const MEMBERS_REMOVED: &str = "members_removed";
pub(super) const META: &str = "meta";

pub(super) const CONF_STATE: &str = "confState";
pub(super) const CONSISTENT_INDEX: &str = "consistent_index";
pub(super) const FINISHED_COMPACTION: &str = "finishedCompactRev";
pub(super) const SCHEDULED_COMPACTION: &str = "scheduledCompactRev";
pub(super) const TERM: &str = "term";

const REVISION_BYTES: usize = 17;
const TOMBSTONE: u8 = b't';

/// etcd's record of a lease.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Lease {
    #[prost(int64, tag = "1")]
    pub(super) id: i64,
    #[prost(int64, tag = "2")]
    pub(super) ttl_seconds: i64,
    /// What was left at a checkpoint; 0 when there was none.
    #[prost(int64, tag = "3")]
    pub(super) remaining_ttl_seconds: i64,
}

/// A revision as a key.
pub(super) fn revision_key(revision: Revision, is_tombstone: bool) -> Vec<u8> {
    let mut key = Vec::with_capacity(REVISION_BYTES + 1);
    key.extend_from_slice(&revision.main.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&u64::from(revision.sub).to_be_bytes());
    if is_tombstone {
        key.push(TOMBSTONE);
    }
    key
}

/// The revision that a key says, and whether it marks a deletion; `None` for anything else.
pub(super) fn parse_revision_key(key: &[u8]) -> Option<(Revision, bool)> {
    let (main, rest) = key.split_first_chunk()?;
    let (separator, rest) = rest.split_first()?;
    let (sub, mark) = rest.split_first_chunk()?;
    let is_tombstone = match mark {
        [] => false,
        [TOMBSTONE] => true,
        _ => return None,
    };
    let main = i64::from_be_bytes(*main);
    let sub = u32::try_from(u64::from_be_bytes(*sub)).ok()?;
    let is_revision = *separator == b'_' && main >= 0;
    is_revision.then_some((Revision { main, sub }, is_tombstone))
}

/// What etcd notes of a deletion.
pub(super) fn tombstone(kv: &KeyValue) -> KeyValue {
    KeyValue { key: kv.key.clone(), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_etcds_keys() {
        let revision = Revision { main: 0x0102, sub: 3 };
        let key = revision_key(revision, false);
        assert_eq!(key, *b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03");
        assert_eq!(parse_revision_key(&key), Some((revision, false)));
        let key = revision_key(revision, true);
        assert_eq!(key, *b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03t");
        assert_eq!(parse_revision_key(&key), Some((revision, true)));
        for bad in [&key[..16], b"", b"\xff234567812345678_", &[&key[..], b"t"].concat()] {
            assert_eq!(parse_revision_key(bad), None);
        }
    }
}
