//! Alarms: what every member is to know of one member's trouble, and what is refused meanwhile.
//!
//! They are part of the replicated state: raised and taken back by entries of the log, so that all
//! members refuse the same requests. The rules are etcd's, two added to them:
//!
//! | alarm   | raised by           | refused while it stands                          | taken back by |
//! |---------|---------------------|--------------------------------------------------|---------------|
//! | NOSPACE | a client            | puts, grants, transactions that might put        | a client      |
//! | NOSPACE | a member: its quota | the same                                         | the member, or a client |
//! | NOSPACE | a member: its disk  | the same, once the voters that have room are no quorum | the member, or a client |
//! | CORRUPT | a client            | every write; reads pass, transactions that only read too | a client |
//!
//! Whoever left the cluster cannot take its own alarm back, so that goes with it.

use std::collections::BTreeMap;

use store_proto::etcdserverpb::AlarmType;
use store_proto::peer::alarm::Cause;
use store_proto::peer::command::Op;
use store_proto::peer::{Alarm, AlarmChange};

use super::quota;
use super::txn::is_read_only;
use crate::error::RequestError;
use crate::raft::types::StoredMembership;

/// The alarms that are raised.
#[derive(Clone, Debug, Default)]
pub(super) struct AlarmTable {
    /// By type and member.
    raised: BTreeMap<(i32, u64), Alarm>,
}

/// What is refused for the alarms that are raised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Restrictions {
    /// Whatever needs more room.
    pub(crate) growth: bool,
    /// Every write.
    pub(crate) writes: bool,
}

impl Restrictions {
    /// Why `op` is refused; `None` when it is not.
    pub(crate) fn refusal(self, op: &Op) -> Option<RequestError> {
        let is_write = match op {
            Op::Put(_)
            | Op::DeleteRange(_)
            | Op::Compaction(_)
            | Op::LeaseGrant(_)
            | Op::LeaseRevoke(_) => true,
            Op::Txn(txn) => !is_read_only(txn),
            _ => false,
        };
        if self.writes && is_write {
            return Some(RequestError::Corrupt);
        }
        (self.growth && quota::cost_bytes(op) > 0).then_some(RequestError::NoSpace)
    }
}

impl AlarmTable {
    /// All of a type, or all when it is NONE, in the order of types and members.
    pub(super) fn of_type(&self, alarm: AlarmType) -> Vec<Alarm> {
        let is_asked_for =
            |raised: &&Alarm| alarm == AlarmType::None || raised.alarm == i32::from(alarm);
        self.raised.values().filter(is_asked_for).copied().collect()
    }

    /// Adds an alarm as it stands.
    pub(super) fn raise(&mut self, alarm: Alarm) {
        self.raised.insert((alarm.alarm, alarm.member_id), alarm);
    }

    /// Carries out a change; what is raised now, or was taken back. `None` when nothing is to be said
    /// of it.
    pub(super) fn change(&mut self, change: &AlarmChange) -> Option<Alarm> {
        let wanted = change.alarm?;
        let is_known = matches!(wanted.alarm(), AlarmType::Nospace | AlarmType::Corrupt);
        let key = (wanted.alarm, wanted.member_id);
        let by_client = wanted.cause() == Cause::Client;
        let standing = self.raised.get(&key).copied();
        // What a client raised is no member's to change.
        let is_fixed = standing.is_some_and(|raised| raised.cause() == Cause::Client) && !by_client;
        if change.raised {
            if !is_known || is_fixed {
                return standing;
            }
            self.raise(wanted);
            return Some(wanted);
        }
        if is_fixed { None } else { self.raised.remove(&key) }
    }

    /// Takes back what was raised by members that are not part of `membership` any more.
    pub(super) fn follow(&mut self, membership: &StoredMembership) -> Vec<Alarm> {
        let is_orphan = |alarm: &Alarm| {
            alarm.cause() != Cause::Client && membership.get_node(&alarm.member_id).is_none()
        };
        let orphans: Vec<Alarm> = self.raised.values().filter(|a| is_orphan(a)).copied().collect();
        self.raised.retain(|_, alarm| !is_orphan(alarm));
        orphans
    }

    /// What is refused by a cluster with this membership.
    pub(super) fn restrictions(&self, membership: &StoredMembership) -> Restrictions {
        if self.raised.is_empty() {
            return Restrictions::default();
        }
        let nospace = || self.raised.values().filter(|raised| raised.alarm() == AlarmType::Nospace);
        let has_full_disk = |voter: &u64| {
            nospace().any(|raised| raised.member_id == *voter && raised.cause() == Cause::Disk)
        };
        // In a joint membership both halves need a quorum.
        let lacks_quorum = membership.membership().get_joint_config().iter().any(|voters| {
            let with_room = voters.iter().filter(|voter| !has_full_disk(voter)).count();
            with_room <= voters.len() / 2 && with_room < voters.len()
        });
        Restrictions {
            growth: lacks_quorum || nospace().any(|raised| raised.cause() != Cause::Disk),
            writes: self.raised.values().any(|raised| raised.alarm() == AlarmType::Corrupt),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use openraft::Membership;
    use store_proto::etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
        RangeRequest, RequestOp, TxnRequest, request_op::Request,
    };

    use super::*;
    use crate::raft::types::{LogId, MemberNode};

    fn membership(voters: &[u64]) -> StoredMembership {
        let nodes: BTreeMap<u64, MemberNode> =
            voters.iter().map(|id| (*id, MemberNode::default())).collect();
        let voters: BTreeSet<u64> = voters.iter().copied().collect();
        let membership = Membership::new(vec![voters], nodes).unwrap();
        StoredMembership::new(Some(LogId::new_term_index(1, 1)), membership)
    }

    fn change(member_id: u64, alarm: AlarmType, cause: Cause, raised: bool) -> AlarmChange {
        let alarm = Alarm { member_id, alarm: alarm.into(), cause: cause.into() };
        AlarmChange { alarm: Some(alarm), raised }
    }

    fn table(alarms: &[(u64, AlarmType, Cause)]) -> AlarmTable {
        let mut table = AlarmTable::default();
        for (member_id, alarm, cause) in alarms {
            table.change(&change(*member_id, *alarm, *cause, true));
        }
        table
    }

    #[test]
    fn a_full_disk_counts_once_no_quorum_has_room() {
        use AlarmType::{Corrupt, Nospace};
        let disk = |id| (id, Nospace, Cause::Disk);
        let none = Restrictions::default();
        let growth = Restrictions { growth: true, ..none };
        type Alarms<'a> = &'a [(u64, AlarmType, Cause)];
        let cases: [(&[u64], Alarms<'_>, Restrictions); 9] = [
            (&[1, 2, 3], &[], none),
            (&[1, 2, 3], &[(1, Nospace, Cause::Client)], growth),
            (&[1, 2, 3], &[(1, Nospace, Cause::Quota)], growth),
            (&[1, 2, 3], &[(1, Corrupt, Cause::Client)], Restrictions { writes: true, ..none }),
            (&[1, 2, 3], &[disk(1)], none),
            (&[1, 2, 3], &[disk(1), disk(9)], none),
            (&[1, 2, 3], &[disk(1), disk(3)], growth),
            (&[1, 2], &[disk(1)], growth),
            (&[1], &[disk(1)], growth),
        ];
        for (voters, alarms, expected) in cases {
            let restrictions = table(alarms).restrictions(&membership(voters));
            assert_eq!(restrictions, expected, "{voters:?} {alarms:?}");
        }
    }

    #[test]
    fn what_a_client_raised_only_a_client_takes_back() {
        use AlarmType::Nospace;
        let mut alarms = table(&[(1, Nospace, Cause::Quota)]);
        assert!(alarms.change(&change(1, Nospace, Cause::Client, true)).is_some());
        assert_eq!(alarms.change(&change(1, Nospace, Cause::Quota, false)), None);
        let standing = alarms.change(&change(1, Nospace, Cause::Disk, true)).unwrap();
        assert_eq!(standing.cause(), Cause::Client);
        assert!(alarms.change(&change(1, Nospace, Cause::Client, false)).is_some());
        assert_eq!(alarms.change(&change(1, Nospace, Cause::Client, false)), None);

        alarms.change(&change(1, Nospace, Cause::Disk, true));
        assert!(alarms.change(&change(1, Nospace, Cause::Quota, true)).is_some());
        assert_eq!(alarms.of_type(Nospace)[0].cause(), Cause::Quota);
        assert!(alarms.change(&change(1, Nospace, Cause::Quota, false)).is_some());
        assert_eq!(alarms.change(&change(1, AlarmType::None, Cause::Client, true)), None);
        assert!(alarms.of_type(AlarmType::None).is_empty());
    }

    #[test]
    fn the_own_alarms_of_a_removed_member_go_with_it() {
        use AlarmType::Nospace;
        let mut alarms = table(&[
            (1, Nospace, Cause::Disk),
            (8, Nospace, Cause::Disk),
            (9, Nospace, Cause::Client),
        ]);
        let gone = alarms.follow(&membership(&[1, 2, 3]));
        assert_eq!(gone.iter().map(|alarm| alarm.member_id).collect::<Vec<_>>(), [8]);
        let left: Vec<u64> = alarms.of_type(Nospace).iter().map(|a| a.member_id).collect();
        assert_eq!(left, [1, 9]);
    }

    #[test]
    fn each_alarm_refuses_what_etcd_refuses() {
        let txn = |request| {
            let success = vec![RequestOp { request: Some(request) }];
            Op::Txn(TxnRequest { success, ..TxnRequest::default() })
        };
        let delete = DeleteRangeRequest::default();
        let nested = TxnRequest::default();
        let cases = [
            // What is asked, and whether NOSPACE and CORRUPT refuse it.
            (Op::Put(PutRequest::default()), true, true),
            (Op::DeleteRange(delete.clone()), false, true),
            (Op::Compaction(CompactionRequest::default()), false, true),
            (Op::LeaseGrant(LeaseGrantRequest::default()), true, true),
            (Op::LeaseRevoke(LeaseRevokeRequest::default()), false, true),
            (txn(Request::RequestPut(PutRequest::default())), true, true),
            (txn(Request::RequestDeleteRange(delete)), false, true),
            (txn(Request::RequestRange(RangeRequest::default())), false, false),
            (txn(Request::RequestTxn(nested)), false, true),
            (Op::Txn(TxnRequest::default()), false, false),
            (Op::Alarm(AlarmChange::default()), false, false),
        ];
        let nospace = Restrictions { growth: true, writes: false };
        let corrupt = Restrictions { growth: false, writes: true };
        for (op, by_nospace, by_corrupt) in cases {
            assert_eq!(Restrictions::default().refusal(&op), None);
            let expected = by_nospace.then_some(RequestError::NoSpace);
            assert_eq!(nospace.refusal(&op), expected, "NOSPACE: {op:?}");
            let expected = by_corrupt.then_some(RequestError::Corrupt);
            assert_eq!(corrupt.refusal(&op), expected, "CORRUPT: {op:?}");
        }
    }
}
