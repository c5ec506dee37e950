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
/// In the place of a controller's uid.
const NO_CONTROLLER: &str = "";

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
pub(crate) struct Progress {
    /// Everything up to this revision is in the cache; 0 before the first list.
    revision: i64,
    /// Nobody writes the cache any more.
    ended: bool,
}

struct State<K> {
    objects: Group<K>,
    /// By the uids of their owners; those without a controller by an empty one as well.
    by_owner: BTreeMap<String, Group<K>>,
    by_node: BTreeMap<String, Group<K>>,
    subscribers: Vec<Weak<Inbox<K>>>,
    synced: bool,
}

type Group<K> = BTreeMap<ObjectKey, Arc<K>>;

/// One object's way from the last state that a subscriber was told of to the newest.
///
/// If the uids differ, the object was replaced by another of its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Change<K> {
    /// The name of the object.
    pub key: ObjectKey,
    /// What the subscriber was told last. If it knows of no object, the last one that came and
    /// went unseen, so that nobody waits for it in vain; mostly none.
    pub old: Option<Arc<K>>,
    /// What it is now; none when it is gone.
    pub new: Option<Arc<K>>,
}

/// What a subscriber is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice<K> {
    /// Look at everything in the cache, and at everything you remember: the first notice after
    /// the cache is filled, and the one for a subscriber who fell far behind. Changes up to this
    /// moment are not told one by one.
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
                    pending.changes.clear();
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
            by_owner: BTreeMap::new(),
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
        let mut owned = self.owned_by(uid);
        owned.retain(|object| object.controller().is_some_and(|owner| owner.uid == uid));
        owned
    }

    /// The objects that no controller owns.
    pub fn uncontrolled(&self) -> Vec<Arc<K>> {
        group(&self.shared.state.read().by_owner, NO_CONTROLLER)
    }

    /// The objects that name this uid among their owners.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        if uid == NO_CONTROLLER {
            return Vec::new();
        }
        group(&self.shared.state.read().by_owner, uid)
    }

    /// Whether there is any object that names this uid among its owners.
    pub fn owns(&self, uid: &str) -> bool {
        uid != NO_CONTROLLER && self.shared.state.read().by_owner.contains_key(uid)
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

    /// Follows the revision, for those who look at the objects whenever it moves.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Whether nobody writes the cache any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.shared.progress.borrow().ended
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
        let told = state.set_all(changes);
        self.progress_to(revision);
        if std::mem::replace(&mut state.synced, true) {
            state.tell(|pending| pending.add(&told));
        } else {
            state.tell(|pending| pending.resync = true);
        }
    }

    /// Takes over changes, in order.
    pub(crate) fn apply(&self, changes: Vec<(ObjectKey, Option<Arc<K>>)>, revision: i64) {
        if changes.is_empty() {
            return self.progress_to(revision);
        }
        let mut state = self.shared.state.write();
        let told = state.set_all(changes);
        self.progress_to(revision);
        state.tell(|pending| pending.add(&told));
    }

    /// Moves the revision: after the objects, which [`Self::reached`] promises, and before the
    /// notices, so that whoever is told of a change finds the cache to have seen it.
    fn progress_to(&self, revision: i64) {
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
    fn set(&mut self, key: &ObjectKey, new: Option<&Arc<K>>) -> Option<Arc<K>> {
        let old = match new {
            Some(new) => self.objects.insert(key.clone(), Arc::clone(new)),
            None => self.objects.remove(key),
        };
        if let Some(old) = &old {
            for owner in owner_uids(&**old) {
                leave(&mut self.by_owner, owner, key);
            }
            leave(&mut self.by_node, node_name(&**old), key);
        }
        if let Some(new) = new {
            for owner in owner_uids(&**new) {
                join(&mut self.by_owner, owner, key, new);
            }
            join(&mut self.by_node, node_name(&**new), key, new);
        }
        old
    }

    /// Sets objects to their new states, in order, and gives back what is to be told of it.
    fn set_all(&mut self, changes: Vec<(ObjectKey, Option<Arc<K>>)>) -> Vec<Change<K>> {
        let mut told = Vec::with_capacity(changes.len());
        for (key, new) in changes {
            let old = self.set(&key, new.as_ref());
            if old.is_some() || new.is_some() {
                told.push(Change { key, old, new });
            }
        }
        told
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

/// What an object is found by in the index of owners.
fn owner_uids<K: Object>(object: &K) -> impl Iterator<Item = &str> {
    let owners = object.metadata().owner_references.iter().flatten();
    let free = object.controller().is_none().then_some(NO_CONTROLLER);
    owners.map(|owner| owner.uid.as_str()).chain(free)
}

fn leave<K>(index: &mut BTreeMap<String, Group<K>>, name: &str, key: &ObjectKey) {
    if let Some(group) = index.get_mut(name) {
        group.remove(key);
        if group.is_empty() {
            index.remove(name);
        }
    }
}

fn join<K>(index: &mut BTreeMap<String, Group<K>>, name: &str, key: &ObjectKey, object: &Arc<K>) {
    let group = match index.get_mut(name) {
        Some(group) => group,
        None => index.entry(name.to_owned()).or_default(),
    };
    group.insert(key.clone(), Arc::clone(object));
}

fn node_name<K: Object>(object: &K) -> &str {
    object.node_name().unwrap_or_default()
}

fn group<K>(index: &BTreeMap<String, Group<K>>, name: &str) -> Vec<Arc<K>> {
    index.get(name).into_iter().flat_map(|group| group.values().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicI64, Ordering};

    use futures::FutureExt as _;
    use k8s_openapi::api::core::v1::{Pod, PodSpec};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
    use proptest::prelude::*;

    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::namespaced("default", name)
    }

    fn pod(name: &str, revision: i64) -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("default".into()),
                resource_version: Some(revision.to_string()),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        }
    }

    fn set(cache: &Cache<Pod>, pod: Pod) {
        let revision = pod.revision();
        cache.apply(vec![(pod.key(), Some(Arc::new(pod)))], revision);
    }

    fn remove(cache: &Cache<Pod>, name: &str, revision: i64) {
        cache.apply(vec![(key(name), None)], revision);
    }

    fn notice(subscription: &mut Subscription<Pod>) -> Option<Notice<Pod>> {
        subscription.next().now_or_never().expect("there is a notice, or the end")
    }

    /// The revisions that the changes of a notice lead from and to.
    fn steps(subscription: &mut Subscription<Pod>) -> Vec<(String, i64, i64)> {
        let Some(Notice::Changed(changes)) = notice(subscription) else { panic!("no changes") };
        let revision = |pod: &Option<Arc<Pod>>| pod.as_ref().map_or(0, |pod| pod.revision());
        changes
            .into_iter()
            .map(|change| {
                (change.key.name.to_string(), revision(&change.old), revision(&change.new))
            })
            .collect()
    }

    #[test]
    fn changes_are_told_once_an_object_from_the_first_to_the_last() {
        let cache = Cache::new();
        cache.replace(vec![pod("a", 1), pod("b", 2)], 2);
        let mut subscription = cache.subscribe();
        assert_eq!(notice(&mut subscription), Some(Notice::Resync));
        assert!(subscription.next().now_or_never().is_none());

        set(&cache, pod("a", 3));
        set(&cache, pod("a", 4));
        remove(&cache, "b", 5);
        set(&cache, pod("c", 6));
        set(&cache, pod("d", 7));
        remove(&cache, "d", 8);
        remove(&cache, "never", 9);
        let expected = [("a", 1, 4), ("b", 2, 0), ("c", 0, 6), ("d", 7, 0)];
        let expected = expected.map(|(name, old, new)| (name.to_owned(), old, new));
        assert_eq!(steps(&mut subscription), expected);
        assert!(subscription.next().now_or_never().is_none());
        assert_eq!(cache.revision(), 9);
    }

    #[test]
    fn a_new_list_tells_the_differences() {
        let cache = Cache::new();
        cache.replace(vec![pod("gone", 1), pod("kept", 2), pod("changed", 3)], 3);
        let mut subscription = cache.subscribe();
        notice(&mut subscription);
        cache.replace(vec![pod("kept", 2), pod("changed", 8), pod("new", 9)], 9);
        let expected = [("changed", 3, 8), ("gone", 1, 0), ("new", 0, 9)];
        let expected = expected.map(|(name, old, new)| (name.to_owned(), old, new));
        assert_eq!(steps(&mut subscription), expected);
    }

    #[test]
    fn a_subscriber_who_came_early_hears_when_the_cache_is_filled() {
        let cache = Cache::new();
        let mut subscription = cache.subscribe();
        assert!(subscription.next().now_or_never().is_none());
        assert!(cache.synced().now_or_never().is_none());
        cache.replace(Vec::new(), 4);
        assert_eq!(notice(&mut subscription), Some(Notice::Resync));
        assert_eq!(cache.synced().now_or_never(), Some(true));
        assert!(cache.reached(5).now_or_never().is_none());
        cache.end();
        assert_eq!(cache.reached(5).now_or_never(), Some(false));
        assert_eq!(notice(&mut subscription), None);
        assert_eq!(notice(&mut cache.subscribe()), Some(Notice::Resync));
    }

    #[test]
    fn whoever_is_told_finds_the_revision_moved() {
        let cache = Cache::new();
        let told_at = |tell: &dyn Fn()| {
            let mut subscription = cache.subscribe();
            subscription.next().now_or_never();
            let at = Arc::new(AtomicI64::new(0));
            let waker = Arc::new(ReadsRevision { cache: cache.clone(), at: Arc::clone(&at) });
            let waker = std::task::Waker::from(waker);
            let mut context = std::task::Context::from_waker(&waker);
            let mut next = std::pin::pin!(subscription.next());
            assert!(next.as_mut().poll(&mut context).is_pending());
            tell();
            at.load(Ordering::SeqCst)
        };
        assert_eq!(told_at(&|| cache.replace(vec![pod("a", 3)], 4)), 4);
        assert_eq!(told_at(&|| cache.apply(vec![(key("b"), Some(Arc::new(pod("b", 5))))], 5)), 5);
        assert_eq!(told_at(&|| cache.replace(Vec::new(), 6)), 6);
    }

    /// Reads the revision of a cache at the moment when a task is woken.
    struct ReadsRevision {
        cache: Cache<Pod>,
        at: Arc<AtomicI64>,
    }

    impl std::task::Wake for ReadsRevision {
        fn wake(self: Arc<Self>) {
            self.at.store(self.cache.revision(), Ordering::SeqCst);
        }
    }

    #[test]
    fn a_subscriber_who_falls_far_behind_is_told_to_look_at_everything() {
        let cache = Cache::new();
        cache.replace(Vec::new(), 1);
        let mut subscription = cache.subscribe();
        notice(&mut subscription);
        for i in 0..=MAX_PENDING_CHANGES {
            set(&cache, pod(&i.to_string(), 2));
        }
        set(&cache, pod("included", 3));
        assert_eq!(notice(&mut subscription), Some(Notice::Resync));
        assert!(subscription.next().now_or_never().is_none());
        set(&cache, pod("after", 3));
        assert_eq!(steps(&mut subscription), [("after".to_owned(), 0, 3)]);
    }

    #[test]
    fn groups_follow_their_objects() {
        let cache = Cache::new();
        cache.replace(Vec::new(), 1);
        let owned = |revision, owner: Option<&str>, node: Option<&str>| {
            let mut pod = pod("a", revision);
            pod.metadata.owner_references = owner.map(|uid| {
                vec![OwnerReference {
                    uid: uid.into(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }]
            });
            pod.metadata.labels = owner.map(|uid| [("owner".to_owned(), uid.to_owned())].into());
            pod.spec = Some(PodSpec { node_name: node.map(Into::into), ..PodSpec::default() });
            pod
        };
        let counts = || {
            [
                cache.controlled_by("rs").len(),
                cache.uncontrolled().len(),
                cache.on_node("n").len(),
                cache.unbound().len(),
                cache
                    .select("default", &Selector::labels(&[("owner".into(), "rs".into())].into()))
                    .len(),
                cache.select("other", &Selector::default()).len(),
            ]
        };
        set(&cache, owned(2, None, None));
        assert_eq!(counts(), [0, 1, 0, 1, 0, 0]);
        set(&cache, owned(3, Some("rs"), Some("n")));
        assert_eq!(counts(), [1, 0, 1, 0, 1, 0]);
        set(&cache, owned(4, None, Some("n")));
        assert_eq!(counts(), [0, 1, 1, 0, 0, 0]);
        remove(&cache, "a", 5);
        assert_eq!(counts(), [0; 6]);
        assert!(cache.shared.state.read().by_node.is_empty());
    }

    /// What happens to a cache and a subscriber of it.
    #[derive(Clone, Debug)]
    enum Happening {
        Set(u8),
        Remove(u8),
        List(Vec<u8>),
        Read,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            4 => (0..6_u8).prop_map(Happening::Set),
            2 => (0..6_u8).prop_map(Happening::Remove),
            1 => proptest::collection::vec(0..6_u8, 0..6).prop_map(Happening::List),
            3 => Just(Happening::Read),
        ]
    }

    proptest! {
        /// A subscriber who follows its notices ends with what is in the cache, and each change
        /// begins with what it knew.
        #[test]
        fn notices_lead_to_what_is_there(happenings in proptest::collection::vec(happening(), 0..60)) {
            let cache = Cache::new();
            let mut subscription = cache.subscribe();
            let mut known: BTreeMap<ObjectKey, Arc<Pod>> = BTreeMap::new();
            let listed = |cache: &Cache<Pod>| {
                cache.list().into_iter().map(|pod| (pod.key(), pod)).collect::<BTreeMap<_, _>>()
            };
            let read = |subscription: &mut Subscription<Pod>, known: &mut BTreeMap<_, _>| {
                while let Some(Some(notice)) = subscription.next().now_or_never() {
                    match notice {
                        Notice::Resync => *known = listed(&cache),
                        Notice::Changed(changes) => for change in changes {
                            if let Some(known) = known.get(&change.key) {
                                assert_eq!(change.old.as_ref(), Some(known));
                            }
                            match change.new {
                                Some(new) => known.insert(change.key, new),
                                None => known.remove(&change.key),
                            };
                        }
                    }
                }
            };
            cache.replace(Vec::new(), 1);
            read(&mut subscription, &mut known);
            for (revision, happening) in (2..).zip(happenings) {
                match happening {
                    Happening::Set(n) => set(&cache, pod(&n.to_string(), revision)),
                    Happening::Remove(n) => remove(&cache, &n.to_string(), revision),
                    Happening::List(names) => {
                        let pods = names.iter().map(|n| pod(&n.to_string(), revision));
                        cache.replace(pods.collect(), revision);
                    }
                    Happening::Read => read(&mut subscription, &mut known),
                }
            }
            read(&mut subscription, &mut known);
            prop_assert_eq!(known, listed(&cache));
        }
    }
}
