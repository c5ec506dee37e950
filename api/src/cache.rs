//! A local copy of a scope, and how its readers hear of changes.
//!
//! One [`Informer`](crate::Informer) writes it, anybody reads it. A subscriber is told which
//! objects changed. What it has not fetched yet is held once per object, from the first state it
//! has not heard of to the newest; when that grows beyond a limit it is given up for one
//! [`Notice::Resync`], "everything may have changed". So a slow subscriber costs bounded memory and
//! holds nobody back, and that something changed is never lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use crate::{Object, ObjectKey, Selector};

/// Changed objects that are held for a subscriber who does not fetch them.
const MAX_PENDING_CHANGES: usize = 16_384;

/// A local copy of the objects of a scope. Clones are cheap and show the same objects.
pub struct Cache<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<K> {
    state: RwLock<State<K>>,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    /// Everything up to this revision is in the cache; 0 before the first list.
    revision: i64,
    /// Nobody writes the cache any more.
    ended: bool,
}

struct State<K> {
    objects: Group<K>,
    by_controller: BTreeMap<String, Group<K>>,
    by_node: BTreeMap<String, Group<K>>,
    subscribers: Vec<Weak<Inbox<K>>>,
    synced: bool,
}

type Group<K> = BTreeMap<ObjectKey, Arc<K>>;

/// One object's way from the last state that a subscriber was told of to the newest.
///
/// `old` is none for an object that is new, `new` for one that is gone. For an object that came and
/// went unseen, `old` is what it was last. If the uids differ, the object was replaced by another
/// of its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Change<K> {
    /// The name of the object.
    pub key: ObjectKey,
    /// What the subscriber was told last.
    pub old: Option<Arc<K>>,
    /// What it is now.
    pub new: Option<Arc<K>>,
}

/// What a subscriber is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice<K> {
    /// Look at everything in the cache, and at everything you remember: the first notice after
    /// the cache is filled, and the one for a subscriber who fell far behind.
    Resync,
    /// These objects changed.
    Changed(Vec<Change<K>>),
}

struct Inbox<K> {
    pending: Mutex<Pending<K>>,
    arrived: Notify,
}

struct Pending<K> {
    resync: bool,
    changes: BTreeMap<ObjectKey, Change<K>>,
    ended: bool,
}

/// One reader's notices. Dropping it ends the subscription.
pub struct Subscription<K> {
    inbox: Arc<Inbox<K>>,
}

impl<K> Subscription<K> {
    /// The next notice; none when the informer has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Notice<K>> {
        loop {
            {
                let mut pending = self.inbox.pending.lock();
                if std::mem::take(&mut pending.resync) {
                    return Some(Notice::Resync);
                }
                if !pending.changes.is_empty() {
                    let changes = std::mem::take(&mut pending.changes);
                    return Some(Notice::Changed(changes.into_values().collect()));
                }
                if pending.ended {
                    return None;
                }
            }
            self.inbox.arrived.notified().await;
        }
    }
}

impl<K: Object> Cache<K> {
    pub(crate) fn new() -> Self {
        let state = State {
            objects: Group::new(),
            by_controller: BTreeMap::new(),
            by_node: BTreeMap::new(),
            subscribers: Vec::new(),
            synced: false,
        };
        let progress = watch::Sender::new(Progress::default());
        Self { shared: Arc::new(Shared { state: RwLock::new(state), progress }) }
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.shared.state.read().objects.get(key).cloned()
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.state.read().objects.values().cloned().collect()
    }

    /// The objects of a namespace whose labels match; looks at every object of the namespace.
    pub fn select(&self, namespace: &str, selector: &Selector) -> Vec<Arc<K>> {
        let state = self.shared.state.read();
        let from = ObjectKey::namespaced(namespace, "");
        let in_namespace = state.objects.range(from..).map(|(_, object)| object);
        in_namespace
            .take_while(|object| object.namespace() == namespace)
            .filter(|object| selector.matches(object.metadata().labels.as_ref()))
            .cloned()
            .collect()
    }

    /// The objects whose controller, their owner with `controller: true`, has this uid.
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        group(&self.shared.state.read().by_controller, uid)
    }

    /// The objects that no controller owns.
    pub fn uncontrolled(&self) -> Vec<Arc<K>> {
        self.controlled_by("")
    }

    /// The pods that are bound to a node.
    pub fn on_node(&self, node: &str) -> Vec<Arc<K>> {
        group(&self.shared.state.read().by_node, node)
    }

    /// The pods that are bound to no node.
    pub fn unbound(&self) -> Vec<Arc<K>> {
        self.on_node("")
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.shared.state.read().objects.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The revision up to which the cache has seen everything; 0 before it is filled.
    pub fn revision(&self) -> i64 {
        self.shared.progress.borrow().revision
    }

    /// Waits until the cache is filled; false when the informer ended before.
    pub async fn synced(&self) -> bool {
        self.reached(1).await
    }

    /// Waits until the cache has seen a revision, such as that of an object just written by the
    /// caller that is in its scope; false when the informer ended before.
    pub async fn reached(&self, revision: i64) -> bool {
        let mut progress = self.shared.progress.subscribe();
        let reached = progress.wait_for(|at| at.ended || at.revision >= revision).await;
        reached.is_ok_and(|at| at.revision >= revision)
    }

    /// Subscribes to changes. The first notice is [`Notice::Resync`], once the cache is filled.
    pub fn subscribe(&self) -> Subscription<K> {
        let mut state = self.shared.state.write();
        let ended = self.shared.progress.borrow().ended;
        let pending = Pending { resync: state.synced, changes: BTreeMap::new(), ended };
        let inbox = Arc::new(Inbox { pending: Mutex::new(pending), arrived: Notify::new() });
        state.subscribers.push(Arc::downgrade(&inbox));
        Subscription { inbox }
    }

    /// Takes over a whole list, and tells subscribers the differences.
    pub(crate) fn replace(&self, objects: Vec<K>, revision: i64) {
        let mut state = self.shared.state.write();
        let listed: Group<K> =
            objects.into_iter().map(|object| (object.key(), Arc::new(object))).collect();
        let gone = state.objects.keys().filter(|key| !listed.contains_key(*key));
        let mut changes: Vec<(ObjectKey, Option<Arc<K>>)> =
            gone.map(|key| (key.clone(), None)).collect();
        changes.extend(listed.into_iter().filter_map(|(key, new)| {
            let known = state.objects.get(&key);
            let changed = known.is_none_or(|old| old.revision() != new.revision());
            changed.then_some((key, Some(new)))
        }));
        if state.synced {
            state.apply(changes);
        } else {
            state.synced = true;
            for (key, new) in changes {
                state.set(&key, new);
            }
            state.tell(|pending| pending.resync = true);
        }
        drop(state);
        self.shared.progress.send_modify(|progress| progress.revision = revision);
    }

    /// Takes over changes, in order.
    pub(crate) fn apply(&self, changes: Vec<(ObjectKey, Option<Arc<K>>)>, revision: i64) {
        if !changes.is_empty() {
            self.shared.state.write().apply(changes);
        }
        self.shared.progress.send_modify(|progress| progress.revision = revision);
    }

    /// Nobody writes any more: subscriptions end once they are read.
    pub(crate) fn end(&self) {
        let mut state = self.shared.state.write();
        self.shared.progress.send_modify(|progress| progress.ended = true);
        state.tell(|pending| pending.ended = true);
    }
}

impl<K: Object> State<K> {
    /// Sets an object to its new state and gives back the old one.
    fn set(&mut self, key: &ObjectKey, new: Option<Arc<K>>) -> Option<Arc<K>> {
        let old = match &new {
            Some(new) => self.objects.insert(key.clone(), Arc::clone(new)),
            None => self.objects.remove(key),
        };
        for (index, name_of) in [
            (&mut self.by_controller, controller_uid as fn(&K) -> &str),
            (&mut self.by_node, node_name as fn(&K) -> &str),
        ] {
            if let Some(old) = &old
                && let Some(group) = index.get_mut(name_of(old))
            {
                group.remove(key);
                if group.is_empty() {
                    index.remove(name_of(old));
                }
            }
            if let Some(new) = &new {
                let group = index.entry(name_of(new).to_owned()).or_default();
                group.insert(key.clone(), Arc::clone(new));
            }
        }
        old
    }

    fn apply(&mut self, changes: Vec<(ObjectKey, Option<Arc<K>>)>) {
        let mut told = Vec::with_capacity(changes.len());
        for (key, new) in changes {
            let old = self.set(&key, new.clone());
            if old.is_some() || new.is_some() {
                told.push(Change { key, old, new });
            }
        }
        self.tell(|pending| pending.add(&told));
    }

    fn tell(&mut self, mut what: impl FnMut(&mut Pending<K>)) {
        self.subscribers.retain(|subscriber| {
            let Some(inbox) = subscriber.upgrade() else { return false };
            what(&mut inbox.pending.lock());
            inbox.arrived.notify_one();
            true
        });
    }
}

impl<K> Pending<K> {
    fn add(&mut self, changes: &[Change<K>]) {
        for change in changes {
            match self.changes.get_mut(&change.key) {
                Some(pending) => {
                    if pending.old.is_none() && change.new.is_none() {
                        pending.old.clone_from(&change.old);
                    }
                    pending.new.clone_from(&change.new);
                }
                None => {
                    let change = Change {
                        key: change.key.clone(),
                        old: change.old.clone(),
                        new: change.new.clone(),
                    };
                    self.changes.insert(change.key.clone(), change);
                }
            }
        }
        if self.changes.len() > MAX_PENDING_CHANGES {
            self.changes.clear();
            self.resync = true;
        }
    }
}

fn controller_uid<K: Object>(object: &K) -> &str {
    object.controller().map_or("", |owner| &owner.uid)
}

fn node_name<K: Object>(object: &K) -> &str {
    object.node_name().unwrap_or_default()
}

fn group<K>(index: &BTreeMap<String, Group<K>>, name: &str) -> Vec<Arc<K>> {
    index.get(name).into_iter().flat_map(|group| group.values().cloned()).collect()
}
