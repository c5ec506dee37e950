//! Makes calls up. A call is a function of the seed, of its number, and of where the real etcd
//! stands by then ([`Bearings`]): so a sequence can be repeated from its seed, and when calls are
//! left out the others keep their meaning, as their revisions are chosen near the edges of the
//! moment (the present, the compacted one).

mod kv;
mod locks;
mod txn;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use store_proto::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, HashKvRequest, LeaseGrantRequest,
    LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, MemberListRequest,
    alarm_request::AlarmAction,
};
use store_proto::v3electionpb::LeaderKey;

use crate::call::{Call, Step};

/// Where the real etcd stands, as its answers have told.
#[derive(Clone, Debug)]
pub(crate) struct Bearings {
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
    /// All leases that were ever granted.
    pub(crate) leases: Vec<i64>,
    /// The watch ids that were ever created on each open stream.
    pub(crate) watches: BTreeMap<usize, BTreeSet<i64>>,
    /// The alarms that are raised, by member and type.
    pub(crate) alarms: BTreeSet<(u64, i32)>,
    /// The holder of every lock, as far as it was not lost by a delete of its key: lease and key.
    pub(crate) locks: BTreeMap<Bytes, (i64, Bytes)>,
    /// The leader of every election, likewise.
    pub(crate) leaders: BTreeMap<Bytes, LeaderKey>,
}

impl Default for Bearings {
    fn default() -> Self {
        Self {
            revision: 1,
            compacted: 0,
            leases: Vec::new(),
            watches: BTreeMap::new(),
            alarms: BTreeSet::new(),
            locks: BTreeMap::new(),
            leaders: BTreeMap::new(),
        }
    }
}

impl Bearings {
    /// A call was carried out; what else its answer told.
    pub(crate) fn learn(
        &mut self,
        call: &Call,
        granted: Option<i64>,
        lock_key: Option<Bytes>,
        leader: Option<LeaderKey>,
    ) {
        if let Some(lease) = granted
            && !self.leases.contains(&lease)
        {
            self.leases.push(lease);
        }
        match call {
            Call::Alarm(request) => {
                let alarm = (request.member_id, request.alarm);
                match request.action() {
                    AlarmAction::Get => {}
                    AlarmAction::Activate => _ = self.alarms.insert(alarm),
                    AlarmAction::Deactivate => _ = self.alarms.remove(&alarm),
                }
            }
            Call::LeaseRevoke(request) => {
                self.locks.retain(|_, (lease, _)| *lease != request.id);
                self.leaders.retain(|_, leader| leader.lease != request.id);
            }
            Call::Lock(request) => {
                let key = lock_key.unwrap_or_default();
                self.locks.insert(request.name.clone(), (request.lease, key));
            }
            Call::Unlock(request) => self.locks.retain(|_, (_, key)| *key != request.key),
            Call::Campaign(request) => {
                let leader = leader.unwrap_or_default();
                self.leaders.insert(request.name.clone(), leader);
            }
            Call::Resign(request) => {
                let resigned = request.leader.clone().unwrap_or_default();
                self.leaders.retain(|_, leader| leader.key != resigned.key);
            }
            _ => {}
        }
    }
}

/// What all calls of a sequence have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) members: usize,
}

/// Leases that last longer than any run.
const LONG_TTL_SECONDS: i64 = 100_000;
/// Watch streams that are open at one time.
const STREAMS: usize = 3;
/// One in so many seeds also has values that fill a response.
const SEEDS_WITH_BIG_VALUES: u64 = 6;

/// One in so many seeds has more keys than etcd sorts in a stable way (12), and locks and elections.
const SEEDS_WITH_MANY_KEYS: u64 = 3;

/// The call with that number.
pub(crate) fn step(plan: Plan, number: usize, bearings: &Bearings) -> Step {
    let place = u64::try_from(number).unwrap_or(u64::MAX);
    let seed = plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ place;
    let mut random = Random {
        rng: StdRng::seed_from_u64(seed),
        bearings,
        has_big_values: plan.seed % SEEDS_WITH_BIG_VALUES == SEEDS_WITH_BIG_VALUES - 1,
        has_many_keys: plan.seed.is_multiple_of(SEEDS_WITH_MANY_KEYS),
    };
    let member = random.rng.random_range(0..plan.members);
    Step { number, member, call: random.call() }
}

struct Random<'a> {
    rng: StdRng,
    bearings: &'a Bearings,
    has_big_values: bool,
    has_many_keys: bool,
}

impl Random<'_> {
    fn call(&mut self) -> Call {
        if let Some(&(member_id, alarm)) = self.bearings.alarms.iter().next()
            && self.one_in(5)
        {
            let action = AlarmAction::Deactivate.into();
            return Call::Alarm(AlarmRequest { action, member_id, alarm });
        }
        match self.rng.random_range(0..1000) {
            0..240 => Call::Range(self.range()),
            240..440 => Call::Put(self.put()),
            440..500 => Call::DeleteRange(self.delete_range()),
            500..710 => Call::Txn(self.txn()),
            710..730 => Call::Compact(CompactionRequest {
                revision: self.compaction_revision(),
                physical: self.one_in(3),
            }),
            730..760 => Call::LeaseGrant(self.lease_grant()),
            760..772 => Call::LeaseRevoke(LeaseRevokeRequest { id: self.lease_or_unknown() }),
            772..800 => Call::LeaseTimeToLive(LeaseTimeToLiveRequest {
                id: self.lease_or_unknown(),
                keys: self.one_in(2),
            }),
            800..806 => Call::LeaseLeases,
            806..820 => Call::LeaseKeepAlive(LeaseKeepAliveRequest { id: self.lease_or_unknown() }),
            820..824 => Call::MemberList(MemberListRequest { linearizable: self.one_in(2) }),
            824..830 => Call::Alarm(self.alarm()),
            830..832 => Call::Status,
            832..840 => Call::HashKv(HashKvRequest { revision: self.read_revision() }),
            840..842 => self.oversized(),
            842..850 => Call::CompareWatches,
            850..900 if self.has_many_keys => self.lock_or_election(),
            _ => self.watch(),
        }
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        *choices.choose(&mut self.rng).expect("choices are never empty")
    }

    /// Mostly 0, which says "none".
    fn rarely(&mut self, n: u32, value: impl FnOnce(&mut Self) -> i64) -> i64 {
        if self.one_in(n) { value(self) } else { 0 }
    }

    fn key(&mut self) -> Bytes {
        const USUAL: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"f"];
        const ODD: [&[u8]; 6] = [b"\0", b"a\0", b"aa", b"\xff", b"\xff\xff", b"~"];
        if self.has_many_keys && self.one_in(3) {
            return format!("k{}", self.rng.random_range(0..40)).into();
        }
        Bytes::from_static(if self.one_in(5) { self.pick(&ODD) } else { self.pick(&USUAL) })
    }

    /// A key, and hardly ever none.
    fn key_or_empty(&mut self) -> Bytes {
        if self.one_in(100) { Bytes::new() } else { self.key() }
    }

    /// A single key, a prefix, all from a key on, up to another one, or an end before the start.
    fn range_end(&mut self, key: &Bytes) -> Bytes {
        match self.rng.random_range(0..20) {
            0..8 => Bytes::new(),
            8..12 => Bytes::from_static(b"\0"),
            12..14 => {
                let mut end = key.to_vec();
                if let Some(last) = end.last_mut() {
                    *last = last.wrapping_add(1);
                }
                end.into()
            }
            14 => key.clone(),
            15 => Bytes::from_static(b"\0\0"),
            _ => self.key(),
        }
    }

    fn value(&mut self) -> Bytes {
        if self.has_big_values && self.one_in(12) {
            let bytes = self.rng.random_range(100_000..900_000);
            return vec![self.rng.random_range(b'a'..=b'z'); bytes].into();
        }
        match self.rng.random_range(0..12) {
            0 => Bytes::new(),
            1 => vec![0xff; self.rng.random_range(1..40)].into(),
            _ => self.rng.random_range(0..30).to_string().into(),
        }
    }

    /// A revision at which something might be read.
    fn read_revision(&mut self) -> i64 {
        let Bearings { revision, compacted, .. } = *self.bearings;
        match self.rng.random_range(0..40) {
            0..10 => 0,
            10..22 => (revision - self.rng.random_range(0..12)).max(1),
            22..29 => self.rng.random_range(compacted.max(0)..=revision.max(compacted)),
            29 => revision,
            30 => revision + 1,
            31 => revision + self.rng.random_range(2..20),
            32..34 => compacted,
            34 => compacted - 1,
            35..37 => compacted + 1,
            37 => -self.rng.random_range(1..4),
            38 => self.pick(&[i64::MAX, i64::MIN]),
            _ => 1,
        }
    }

    fn compaction_revision(&mut self) -> i64 {
        let Bearings { revision, compacted, .. } = *self.bearings;
        match self.rng.random_range(0..12) {
            0..6 => revision - self.rng.random_range(0..20),
            6 => revision,
            7 => revision + self.rng.random_range(1..3),
            8 => compacted,
            9 => compacted - 1,
            10 => compacted + 1,
            _ => self.pick(&[0, -1, i64::MAX, i64::MIN]),
        }
    }

    fn alarm(&mut self) -> AlarmRequest {
        let member_id = self.rng.random_range(0..3);
        let (action, alarm) = match self.rng.random_range(0..10) {
            0..5 => (AlarmAction::Get, self.rng.random_range(0..3)),
            5 => (AlarmAction::Deactivate, self.rng.random_range(0..3)),
            6 => (AlarmAction::Activate, AlarmType::Corrupt.into()),
            _ => (AlarmAction::Activate, AlarmType::Nospace.into()),
        };
        AlarmRequest { action: action.into(), member_id, alarm }
    }

    fn lease_grant(&mut self) -> LeaseGrantRequest {
        let id = match self.rng.random_range(0..12) {
            0..4 => 0,
            4 => -self.rng.random_range(1..3),
            _ => self.rng.random_range(1..7),
        };
        let ttl = match self.rng.random_range(0..14) {
            0 => 9_000_000_001,
            1 => 9_000_000_000,
            2 => i64::MAX,
            _ => LONG_TTL_SECONDS + self.rng.random_range(0..3),
        };
        LeaseGrantRequest { ttl, id }
    }

    /// A lease that was granted at some time.
    fn lease(&mut self) -> i64 {
        self.bearings.leases.choose(&mut self.rng).copied().unwrap_or(3)
    }

    fn lease_or_unknown(&mut self) -> i64 {
        match self.rng.random_range(0..20) {
            0 => 0,
            1 => self.rng.random_range(-2..9),
            2 => self.pick(&[999, i64::MAX, i64::MIN]),
            _ => self.lease(),
        }
    }
}
