//! One sequence of calls on two fresh clusters.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use store_proto::etcdserverpb::{AlarmRequest, PutRequest, alarm_request::AlarmAction};
use tokio::time::Instant;

use crate::Options;
use crate::accepted;
use crate::call::{Call, Step, shorten};
use crate::cluster::Program;
use crate::generate::{self, Bearings, Plan};
use crate::side::Side;
use crate::watches::{self, MARKER, WatchStream};

/// Calls that a report shows.
const CALLS_SHOWN: usize = 12;
const CALL_SHOWN_CHARS: usize = 1500;
const ANSWER_SHOWN_CHARS: usize = 4000;
/// How long what differs may take to become the same, after it should have arrived.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// What sequences run with.
pub(crate) struct Setup {
    pub(crate) etcd: Program,
    pub(crate) subject: Program,
    pub(crate) dir: PathBuf,
    is_verbose: bool,
}

/// The numbers of the calls that are made.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    end: usize,
    without: BTreeSet<usize>,
}

/// How a sequence ended.
pub(crate) enum Ended {
    Same,
    Different(Box<Difference>),
    /// Nothing can be said, and why.
    Broken(String),
}

/// Where the two parted.
pub(crate) struct Difference {
    /// The call that showed it.
    pub(crate) number: usize,
    what: String,
    etcd: String,
    subject: String,
    /// The last calls, in a readable form.
    calls: VecDeque<String>,
}

impl Setup {
    pub(crate) fn from_options(options: &Options) -> Result<Self, String> {
        let etcd = Program::Etcd(options.etcd.clone());
        let subject = match options.subject.as_str() {
            "etcd" => etcd.clone(),
            _ => Program::Store,
        };
        let memory = Path::new("/dev/shm");
        let dir = match &options.dir {
            Some(dir) => dir.clone(),
            None if memory.is_dir() => memory.to_owned(),
            None => std::env::temp_dir(),
        };
        if options.members.iter().any(|members| !(1..=9).contains(members)) {
            return Err("--members: a cluster has 1 to 9".to_owned());
        }
        Ok(Self { etcd, subject, dir, is_verbose: options.verbose })
    }
}

impl Calls {
    /// The calls below `end`, without those that are named: `7` or `20-30`.
    pub(crate) fn new(end: usize, without: &[String]) -> Result<Self, String> {
        let mut calls = Self { end, without: BTreeSet::new() };
        for part in without {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let number =
                |text: &str| text.parse::<usize>().map_err(|_| format!("`{text}` is no number"));
            calls.without.extend(number(from)?..=number(to)?);
        }
        Ok(calls)
    }

    /// Those up to a call and with it.
    pub(crate) fn up_to(&self, number: usize) -> Self {
        let without = self.without.iter().copied().filter(|other| *other < number).collect();
        Self { end: number + 1, without }
    }

    /// All but some.
    pub(crate) fn without(&self, numbers: &[usize]) -> Self {
        let mut fewer = self.clone();
        fewer.without.extend(numbers);
        fewer
    }

    pub(crate) fn numbers(&self) -> Vec<usize> {
        (0..self.end).filter(|number| !self.without.contains(number)).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.without.range(..self.end).count()
    }

    fn flags(&self) -> String {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for &number in &self.without {
            match ranges.last_mut() {
                Some((_, to)) if *to + 1 == number => *to = number,
                _ => ranges.push((number, number)),
            }
        }
        let ranges: Vec<String> = ranges
            .iter()
            .map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") })
            .collect();
        let without = if ranges.is_empty() {
            String::new()
        } else {
            format!(" --without {}", ranges.join(","))
        };
        format!("--calls {}{without}", self.end)
    }
}

impl Difference {
    /// Tells it to a person.
    pub(crate) fn report(&self, plan: Plan, calls: &Calls) -> String {
        let Plan { seed, members } = plan;
        let mut report =
            format!("== seed {seed}, {members} members, call {}: {}\n", self.number, self.what);
        report.push_str("-- the last calls\n");
        for call in &self.calls {
            let _ = writeln!(report, "{call}");
        }
        let _ = write!(
            report,
            "-- etcd\n{}\n-- the store\n{}\n-- the lines that differ\n",
            shorten(&self.etcd, ANSWER_SHOWN_CHARS),
            shorten(&self.subject, ANSWER_SHOWN_CHARS),
        );
        let (etcd, subject): (Vec<&str>, Vec<&str>) =
            (self.etcd.lines().collect(), self.subject.lines().collect());
        for at in 0..etcd.len().max(subject.len()) {
            let (one, other) = (etcd.get(at), subject.get(at));
            if one != other {
                let show = |line: Option<&&str>| shorten(line.copied().unwrap_or(""), 200);
                let _ = writeln!(report, "{at:4} etcd  {}\n     store {}", show(one), show(other));
                if report.len() > 20_000 {
                    break;
                }
            }
        }
        let _ = write!(
            report,
            "-- again\ncargo run -p store-differential -- --seed {seed} --members {members} {}",
            calls.flags()
        );
        report
    }
}

/// Runs a sequence.
pub(crate) async fn run(plan: Plan, setup: &Setup, calls: &Calls) -> Ended {
    let started = tokio::join!(
        Side::start(&setup.etcd, plan.members, &setup.dir),
        Side::start(&setup.subject, plan.members, &setup.dir),
    );
    let (etcd, subject) = match started {
        (Ok(etcd), Ok(subject)) => (etcd, subject),
        (Err(error), _) | (_, Err(error)) => return Ended::Broken(error.to_string()),
    };
    let mut pair = Pair {
        sides: [etcd, subject],
        streams: BTreeMap::new(),
        bearings: Bearings::default(),
        shown: VecDeque::new(),
        is_verbose: setup.is_verbose,
    };
    for number in calls.numbers() {
        let step = generate::step(plan, number, &pair.bearings);
        if accepted::is_left_out(&step.call, &pair.bearings, plan.members) {
            continue;
        }
        if let Err(ended) = pair.take(&step).await {
            return ended;
        }
    }
    let last = calls.numbers().last().copied().unwrap_or(0);
    for (member_id, alarm) in pair.bearings.alarms.clone() {
        let action = AlarmAction::Deactivate.into();
        let call = Call::Alarm(AlarmRequest { action, member_id, alarm });
        if let Err(ended) = pair.take(&Step { number: last, member: 0, call }).await {
            return ended;
        }
    }
    match pair.compare_watches(last).await {
        Ok(()) => Ended::Same,
        Err(ended) => ended,
    }
}

/// Both clusters, etcd first.
struct Pair {
    sides: [Side; 2],
    streams: BTreeMap<usize, Streams>,
    bearings: Bearings,
    shown: VecDeque<String>,
    is_verbose: bool,
}

/// The same watch stream on both.
struct Streams {
    member: usize,
    both: [WatchStream; 2],
    /// A watch on it started in the past since they were compared.
    is_dirty: bool,
    /// The latest revision from which a watch on it started.
    latest_start: i64,
}

impl Pair {
    fn different(&mut self, number: usize, what: &str, [etcd, subject]: [String; 2]) -> Ended {
        for (side, name) in self.sides.iter_mut().zip(["etcd", "the store"]) {
            if let Some(ended) = side.cluster.ended() {
                if name == "etcd" {
                    return Ended::Broken(format!("call {number}: {name}: {ended}"));
                }
                let calls = std::mem::take(&mut self.shown);
                let what = format!("{what}; {name}: {ended}");
                return Ended::Different(Box::new(Difference {
                    number,
                    what,
                    etcd,
                    subject,
                    calls,
                }));
            }
        }
        let what = what.to_owned();
        let calls = std::mem::take(&mut self.shown);
        Ended::Different(Box::new(Difference { number, what, etcd, subject, calls }))
    }

    /// What was done on both sides; when it failed on one, that is a difference.
    fn both<T>(
        &mut self,
        number: usize,
        what: &str,
        done: [Result<T, String>; 2],
    ) -> Result<[T; 2], Ended> {
        match done {
            [Ok(one), Ok(other)] => Ok([one, other]),
            [Err(one), Err(other)] => Err(Ended::Broken(format!(
                "call {number}: {what}: etcd: {one}; the store: {other}\n{}",
                self.shown.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
            ))),
            done => {
                let tell = |done: Result<T, String>| done.err().unwrap_or("came".to_owned());
                Err(self.different(number, what, done.map(tell)))
            }
        }
    }

    fn show(&mut self, step: &Step) {
        let Bearings { revision, compacted, .. } = self.bearings;
        let call = shorten(&format!("{:?}", step.call), CALL_SHOWN_CHARS);
        self.shown.push_back(format!(
            "{:5} n{} (revision {revision}, compacted {compacted}) {call}",
            step.number,
            step.member + 1,
        ));
        if self.is_verbose {
            println!("{}", self.shown[self.shown.len() - 1]);
        }
        if self.shown.len() > CALLS_SHOWN {
            self.shown.pop_front();
        }
    }

    async fn take(&mut self, step: &Step) -> Result<(), Ended> {
        let number = step.number;
        let needs_marker = matches!(
            step.call,
            Call::WatchCancel(..)
                | Call::WatchProgress(_)
                | Call::WatchClose(_)
                | Call::CompareWatches
                | Call::Compact(_)
        );
        if needs_marker && !self.bearings.alarms.is_empty() && !self.streams.is_empty() {
            // The marker could not be put.
            return Ok(());
        }
        match &step.call {
            Call::WatchCreate(stream, request) => {
                self.open(*stream, step).await?;
                self.show(step);
                let streams = self.streams.get_mut(stream).expect("it was opened above");
                streams.is_dirty |= request.start_revision != 0;
                streams.latest_start = streams.latest_start.max(request.start_revision);
                let [one, other] = &streams.both;
                let (one, other) =
                    tokio::join!(one.create(request.clone()), other.create(request.clone()));
                let [id, other] = self.both(number, "a watch is created", [one, other])?;
                if id != other {
                    let ids = [id, other].map(|id| format!("watch id {id:?}"));
                    return Err(self.different(number, "another id", ids));
                }
                if let Some(id) = id {
                    if let Some(revision) = accepted::forgiven_deletes(request, &self.bearings) {
                        let streams = self.streams.get(stream).expect("it was opened above");
                        streams.both.iter().for_each(|one| one.forgive_deletes(id, revision));
                    }
                    self.bearings.watches.entry(*stream).or_default().insert(id);
                }
            }
            Call::WatchCancel(stream, request) => {
                // Otherwise it depends on the moment what is heard before the end.
                self.compare_watches(number).await?;
                self.open(*stream, step).await?;
                self.show(step);
                let [one, other] =
                    &mut self.streams.get_mut(stream).expect("it was opened above").both;
                let done =
                    tokio::join!(one.cancel(request.watch_id), other.cancel(request.watch_id));
                self.both(number, "a watch is canceled", done.into())?;
            }
            Call::WatchProgress(stream) => {
                self.compare_watches(number).await?;
                self.open(*stream, step).await?;
                let streams = self.streams.get(stream).expect("it was opened above");
                if accepted::is_progress_left_out(streams.latest_start, &self.bearings) {
                    return Ok(());
                }
                self.show(step);
                let [one, other] = &self.streams.get(stream).expect("it was opened above").both;
                let done = tokio::join!(one.progress(), other.progress());
                self.both(number, "a progress mark", done.into())?;
            }
            Call::WatchNothing(stream) => {
                self.open(*stream, step).await?;
                self.show(step);
                let [one, other] =
                    &mut self.streams.get_mut(stream).expect("it was opened above").both;
                let done = tokio::join!(one.nothing(), other.nothing());
                self.both(number, "an empty watch request", done.into())?;
            }
            Call::WatchClose(stream) => {
                self.compare_watches(number).await?;
                self.show(step);
                self.streams.remove(stream);
                self.bearings.watches.remove(stream);
            }
            Call::CompareWatches => self.compare_watches(number).await?,
            Call::Compact(request) => {
                // What is behind at that moment may or may not be told of the compaction.
                self.compare_watches(number).await?;
                if self.make(step).await? {
                    self.bearings.compacted = request.revision;
                }
            }
            _ => {
                self.make(step).await?;
            }
        }
        Ok(())
    }

    /// Makes a call on both sides and compares the answers; whether it was carried out.
    async fn make(&mut self, step: &Step) -> Result<bool, Ended> {
        self.show(step);
        let [etcd, subject] = &mut self.sides;
        let ((etcd, facts), (subject, _)) = tokio::join!(etcd.make(step), subject.make(step));
        if etcd != subject {
            return Err(self.different(step.number, "another answer", [etcd.0, subject.0]));
        }
        self.bearings.revision = self.bearings.revision.max(facts.revision);
        let is_done = !etcd.0.starts_with("error");
        if is_done {
            self.bearings.learn(&step.call, facts.granted, facts.lock_key, facts.leader);
        }
        Ok(is_done)
    }

    /// Opens a watch stream if it is not open, on the step's member.
    async fn open(&mut self, stream: usize, step: &Step) -> Result<(), Ended> {
        let member = self.streams.get(&stream).map_or(step.member, |streams| streams.member);
        let [one, other] = &self.sides;
        let settled = tokio::join!(one.settle(member), other.settle(member));
        let settled = [settled.0, settled.1].map(|done| done.map_err(|status| status.to_string()));
        let what = "a member comes up to date";
        if self.streams.contains_key(&stream) {
            return self.both(step.number, what, settled).map(|_| ());
        }
        self.both(step.number, what, settled)?;
        let [one, other] =
            [0, 1].map(|side: usize| self.sides[side].cluster.channels[member].clone());
        let opened = tokio::join!(WatchStream::open(one), WatchStream::open(other));
        let both = self.both(step.number, "a watch stream is opened", opened.into())?;
        self.streams.insert(stream, Streams { member, both, is_dirty: false, latest_start: 0 });
        Ok(())
    }

    /// Brings all watches up to the present and compares what they heard.
    async fn compare_watches(&mut self, number: usize) -> Result<(), Ended> {
        if self.streams.is_empty() {
            return Ok(());
        }
        let put = PutRequest { key: Bytes::from_static(MARKER), ..PutRequest::default() };
        self.make(&Step { number, member: 0, call: Call::Put(put) }).await?;
        self.shown.pop_back();
        let [one, other] = &self.sides;
        let agreed = tokio::join!(one.agree(), other.agree());
        self.both(number, "all members come up to date", agreed.into())?;
        let marker = self.bearings.revision;
        let numbers: Vec<usize> = self.streams.keys().copied().collect();
        for stream in numbers {
            let streams = self.streams.get_mut(&stream).expect("its number was just listed");
            let (member, is_dirty) = (streams.member, std::mem::take(&mut streams.is_dirty));
            let [one, other] = &self.sides;
            let settled = tokio::join!(one.settle(member), other.settle(member));
            let settled =
                [settled.0, settled.1].map(|done| done.map_err(|status| status.to_string()));
            let [one, other] = &mut streams.both;
            let done =
                tokio::join!(one.catch_up(marker, is_dirty), other.catch_up(marker, is_dirty));
            self.both(number, "a member comes up to date", settled)?;
            let what = format!("stream {stream} on n{}", member + 1);
            self.both(number, &what, done.into())?;
            if let Some(difference) = self.differ(stream).await {
                return Err(self.different(number, &what, difference));
            }
        }
        Ok(())
    }

    /// Compares what was heard on a stream; what differs gets some time to arrive.
    async fn differ(&mut self, stream: usize) -> Option<[String; 2]> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let [etcd, subject] = &self.sides;
        let [one, other] = &mut self.streams.get_mut(&stream)?.both;
        loop {
            let difference = watches::compare((one, &etcd.ids), (other, &subject.ids))?;
            let changed = async {
                tokio::select! {
                    () = one.changed() => {}
                    () = other.changed() => {}
                }
            };
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Some(difference);
            }
        }
    }
}
