//! The replicated part of leases: which there are, for how long they were granted, and their keys.
//!
//! Time is no part of it: the leader's clock decides when a lease has expired and then proposes its
//! revocation like any other client.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::revision::{RevisionEvents, is_delete, kv_of};

/// No lease, in requests and records.
pub(crate) const NO_LEASE: i64 = 0;

/// A lease as all members know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseInfo {
    /// Chosen by the member that proposed the grant.
    pub(crate) id: i64,
    /// What was granted, not what is left.
    pub(crate) ttl_seconds: i64,
}

/// All leases and their keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseTable {
    leases: BTreeMap<i64, Lease>,
    /// Only keys that have a lease.
    by_key: HashMap<Bytes, i64>,
}

#[derive(Clone, Debug, Default)]
struct Lease {
    ttl_seconds: i64,
    keys: BTreeSet<Bytes>,
}

impl LeaseTable {
    pub(crate) fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// Adds a lease without keys, or sets the TTL of the one there is.
    pub(crate) fn grant(&mut self, id: i64, ttl_seconds: i64) {
        self.leases.entry(id).or_default().ttl_seconds = ttl_seconds;
    }

    /// Removes a lease. Its keys are expected to be deleted already.
    pub(crate) fn remove(&mut self, id: i64) {
        for key in self.leases.remove(&id).unwrap_or_default().keys {
            self.by_key.remove(&key);
        }
    }

    pub(crate) fn get(&self, id: i64) -> Option<LeaseInfo> {
        self.leases.get(&id).map(|lease| LeaseInfo { id, ttl_seconds: lease.ttl_seconds })
    }

    /// The keys of a lease, sorted; none when there is no such lease.
    pub(crate) fn keys(&self, id: i64) -> Vec<Bytes> {
        self.leases.get(&id).map_or_else(Vec::new, |lease| lease.keys.iter().cloned().collect())
    }

    /// The lease that a key is bound to.
    pub(crate) fn of_key(&self, key: &[u8]) -> i64 {
        self.by_key.get(key).copied().unwrap_or(NO_LEASE)
    }

    /// All leases in the order of their ids.
    pub(crate) fn all(&self) -> Vec<LeaseInfo> {
        let info =
            |(id, lease): (&i64, &Lease)| LeaseInfo { id: *id, ttl_seconds: lease.ttl_seconds };
        self.leases.iter().map(info).collect()
    }

    /// Binds a key to `id`, or to nothing; before it may have been bound to another.
    pub(crate) fn bind(&mut self, key: &[u8], id: i64) {
        if self.of_key(key) == id {
            return;
        }
        if let Some(lease) = self.by_key.remove(key).and_then(|old| self.leases.get_mut(&old)) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&id) {
            // A key of its own: the one of a request shares the memory of its whole batch.
            let key = Bytes::copy_from_slice(key);
            lease.keys.insert(key.clone());
            self.by_key.insert(key, id);
        }
    }

    /// Follows what a revision did to its keys.
    pub(crate) fn follow(&mut self, revision: &RevisionEvents) {
        for event in &revision.events {
            let kv = kv_of(event);
            self.bind(&kv.key, if is_delete(event) { NO_LEASE } else { kv.lease });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn a_key_is_bound_to_its_last_lease_only() {
        let mut table = LeaseTable::default();
        table.grant(1, 10);
        table.grant(2, 20);
        for name in ["b", "a", "c"] {
            table.bind(&key(name), 1);
        }
        table.bind(&key("b"), 2);
        table.bind(&key("c"), NO_LEASE);
        table.bind(&key("d"), 99);
        assert_eq!(table.keys(1), [key("a")]);
        assert_eq!(table.keys(2), [key("b")]);
        assert_eq!([table.of_key(b"b"), table.of_key(b"c"), table.of_key(b"d")], [2, 0, 0]);
        table.remove(2);
        assert_eq!(table.of_key(b"b"), NO_LEASE);
        assert_eq!(table.keys(2), [] as [Bytes; 0]);
        assert_eq!(table.all(), [LeaseInfo { id: 1, ttl_seconds: 10 }]);
    }
}
