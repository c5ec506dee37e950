//! Locks and elections. Only those that need not wait: what is free, or held by the same lease.
//! The leases are some whose ids the sequence chose, as they are a part of the keys.

use bytes::Bytes;
use rand::Rng as _;
use rand::seq::IteratorRandom as _;
use store_proto::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use store_proto::v3lockpb::{LockRequest, UnlockRequest};

use super::Random;
use crate::call::Call;
use crate::leases;

const LOCKS: [&[u8]; 3] = [b"lock", b"lock2", b"m"];
const ELECTIONS: [&[u8]; 2] = [b"election", b"e2"];

impl Random<'_> {
    pub(super) fn lock_or_election(&mut self) -> Call {
        match self.rng.random_range(0..20) {
            0..5 => self.lock(),
            5..9 => {
                let held = self.bearings.locks.values().choose(&mut self.rng);
                let key = match held {
                    Some((_, key)) if !self.one_in(8) => key.clone(),
                    _ => self.key_or_empty(),
                };
                Call::Unlock(UnlockRequest { key })
            }
            9..13 => self.campaign(),
            13..15 => Call::Leader(LeaderRequest { name: self.election_name() }),
            15..18 => {
                let mut leader = self.leader();
                if let Some(leader) = &mut leader
                    && self.one_in(5)
                {
                    leader.rev -= 1;
                }
                Call::Proclaim(ProclaimRequest { leader, value: self.value() })
            }
            _ => Call::Resign(ResignRequest { leader: self.leader() }),
        }
    }

    fn lock(&mut self) -> Call {
        let name = Bytes::from_static(self.pick(&LOCKS));
        let lease = match self.bearings.locks.get(&name) {
            Some((holder, _)) => *holder,
            None => self.chosen_lease(),
        };
        Call::Lock(LockRequest { name, lease })
    }

    fn campaign(&mut self) -> Call {
        let name = self.election_name();
        let lease = match self.bearings.leaders.get(&name) {
            Some(leader) => leader.lease,
            None => self.chosen_lease(),
        };
        Call::Campaign(CampaignRequest { name, lease, value: self.value() })
    }

    fn election_name(&mut self) -> Bytes {
        Bytes::from_static(self.pick(&ELECTIONS))
    }

    fn leader(&mut self) -> Option<LeaderKey> {
        if self.one_in(10) {
            None
        } else {
            self.bearings.leaders.values().choose(&mut self.rng).cloned()
        }
    }

    /// One that was granted with an id of the sequence's choice, or none that ever was.
    fn chosen_lease(&mut self) -> i64 {
        let chosen = self.bearings.leases.iter().filter(|id| !leases::is_name(**id));
        chosen.choose(&mut self.rng).copied().unwrap_or(777)
    }
}
