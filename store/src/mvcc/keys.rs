//! What stands under which key in the engine. The numbers are for ever.
//!
//! ```text
//! kind              key                                        value
//! 0x01 format       01                                         u32 BE, see FORMAT_VERSION
//! 0x02 applied      02                                         peer.LogId: the last applied entry
//! 0x03 membership   03                                         peer.StoredMembership
//! 0x04 revision     04                                         i64 BE: the current revision
//! 0x05 compacted    05                                         i64 BE
//! 0x06 lease        06 id:i64 BE                               i64 BE: the granted TTL in seconds
//! 0x07 member       07 id:u64 BE                               peer.MemberAttributes
//! 0x08 records      08                                         i64 BE: how many records there are
//! 0x09 alarm        09 alarm:i32 BE member:u64 BE               peer.Alarm
//! 0x10 record       10 revision:i64 BE sub:i64 BE              see `records`
//! ```
//! Revisions are positive, so the order of the keys is the order of the writes.

use super::revision::Revision;

/// The version of the whole layout; an engine with another one is not read.
pub(crate) const FORMAT_VERSION: u32 = 3;

const FORMAT: u8 = 0x01;
const APPLIED: u8 = 0x02;
const MEMBERSHIP: u8 = 0x03;
const REVISION: u8 = 0x04;
const COMPACTED: u8 = 0x05;
const LEASE: u8 = 0x06;
const MEMBER: u8 = 0x07;
const RECORDS: u8 = 0x08;
const ALARM: u8 = 0x09;
const RECORD: u8 = 0x10;

/// The length of a record's key.
pub(crate) const RECORD_KEY_BYTES: usize = 1 + 8 + 8;

/// A key in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Format,
    Applied,
    Membership,
    Revision,
    Compacted,
    Lease(i64),
    Member(u64),
    Records,
    Alarm { alarm: i32, member_id: u64 },
    Record(Revision),
}

impl Key {
    /// As it stands in the engine.
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            Self::Format => vec![FORMAT],
            Self::Applied => vec![APPLIED],
            Self::Membership => vec![MEMBERSHIP],
            Self::Revision => vec![REVISION],
            Self::Compacted => vec![COMPACTED],
            Self::Lease(id) => {
                let mut key = vec![LEASE];
                key.extend_from_slice(&id.to_be_bytes());
                key
            }
            Self::Member(id) => {
                let mut key = vec![MEMBER];
                key.extend_from_slice(&id.to_be_bytes());
                key
            }
            Self::Records => vec![RECORDS],
            Self::Alarm { alarm, member_id } => {
                let mut key = vec![ALARM];
                key.extend_from_slice(&alarm.to_be_bytes());
                key.extend_from_slice(&member_id.to_be_bytes());
                key
            }
            Self::Record(revision) => {
                let mut key = Vec::with_capacity(RECORD_KEY_BYTES);
                key.push(RECORD);
                key.extend_from_slice(&revision.main.to_be_bytes());
                key.extend_from_slice(&i64::from(revision.sub).to_be_bytes());
                key
            }
        }
    }

    /// `None` when no version of this layout would have written it.
    pub(crate) fn decode(key: &[u8]) -> Option<Self> {
        let (kind, rest) = key.split_first()?;
        Some(match (*kind, rest.len()) {
            (FORMAT, 0) => Self::Format,
            (APPLIED, 0) => Self::Applied,
            (MEMBERSHIP, 0) => Self::Membership,
            (REVISION, 0) => Self::Revision,
            (COMPACTED, 0) => Self::Compacted,
            (LEASE, 8) => Self::Lease(i64::from_be_bytes(rest.try_into().ok()?)),
            (MEMBER, 8) => Self::Member(u64::from_be_bytes(rest.try_into().ok()?)),
            (RECORDS, 0) => Self::Records,
            (ALARM, 12) => Self::Alarm {
                alarm: i32::from_be_bytes(rest[..4].try_into().ok()?),
                member_id: u64::from_be_bytes(rest[4..].try_into().ok()?),
            },
            (RECORD, 16) => {
                let main = i64::from_be_bytes(rest[..8].try_into().ok()?);
                let sub = i64::from_be_bytes(rest[8..].try_into().ok()?);
                Self::Record(Revision { main, sub: u32::try_from(sub).ok()? })
            }
            _ => return None,
        })
    }
}

/// Bounds that hold every lease.
pub(crate) fn lease_bounds() -> (Vec<u8>, Vec<u8>) {
    (vec![LEASE], vec![LEASE + 1])
}

/// Bounds that hold every member's attributes.
pub(crate) fn member_bounds() -> (Vec<u8>, Vec<u8>) {
    (vec![MEMBER], vec![MEMBER + 1])
}

/// Bounds that hold every alarm.
pub(crate) fn alarm_bounds() -> (Vec<u8>, Vec<u8>) {
    (vec![ALARM], vec![ALARM + 1])
}

/// Bounds that hold everything but the records.
pub(crate) fn state_bounds() -> (Vec<u8>, Vec<u8>) {
    (vec![FORMAT], vec![RECORD])
}

/// Bounds that hold every record from `from` on, below the revision `to_main`.
pub(crate) fn record_bounds(from: Revision, to_main: i64) -> (Vec<u8>, Vec<u8>) {
    (Key::Record(from).encode(), Key::Record(Revision::first_of(to_main)).encode())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_key() -> impl Strategy<Value = Key> {
        prop_oneof![
            Just(Key::Format),
            Just(Key::Applied),
            Just(Key::Membership),
            Just(Key::Revision),
            Just(Key::Compacted),
            any::<i64>().prop_map(Key::Lease),
            any::<u64>().prop_map(Key::Member),
            Just(Key::Records),
            (0..=i32::MAX, any::<u64>())
                .prop_map(|(alarm, member_id)| Key::Alarm { alarm, member_id }),
            (0..=i64::MAX, any::<u32>())
                .prop_map(|(main, sub)| Key::Record(Revision { main, sub })),
        ]
    }

    proptest! {
        #[test]
        fn keys_come_back_as_they_were(key in any_key()) {
            prop_assert_eq!(Key::decode(&key.encode()), Some(key));
        }

        #[test]
        fn keys_but_leases_are_ordered_as_what_they_name(a in any_key(), b in any_key()) {
            if !matches!((a, b), (Key::Lease(_), Key::Lease(_))) {
                prop_assert_eq!(a.encode().cmp(&b.encode()), a.cmp(&b));
            }
        }

        #[test]
        fn what_is_not_a_key_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
            if let Some(key) = Key::decode(&bytes) {
                prop_assert_eq!(key.encode(), bytes);
            }
        }
    }

    #[test]
    fn the_layout_on_disk_is_what_it_always_was() {
        let revision = Revision { main: 0x0102, sub: 3 };
        let expected = [0x10, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 3];
        assert_eq!(Key::Record(revision).encode(), expected);
        assert_eq!(Key::Lease(-2).encode(), [6, 255, 255, 255, 255, 255, 255, 255, 254]);
        let meta = [
            Key::Format,
            Key::Applied,
            Key::Membership,
            Key::Revision,
            Key::Compacted,
            Key::Records,
        ];
        assert_eq!(meta.map(|key| key.encode()[0]), [1, 2, 3, 4, 5, 8]);
    }
}
