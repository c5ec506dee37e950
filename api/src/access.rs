//! Reading and writing objects.

use std::marker::PhantomData;

use store_client::{Client, request};
use uuid::Uuid;

use crate::lifecycle::{self, Step};
use crate::swap::{Swap, decode, set_revision};
use crate::taints::DefaultTolerations;
use crate::{Clock, Error, Object, ObjectKey, Propagation, Scope, Term, WatchStream};

/// Random characters after a `generateName`, and how often another draw is made when the name is
/// taken: Kubernetes' numbers.
const GENERATED_CHARS: usize = 5;
const GENERATE_TRIES: usize = 8;
/// How often an update without a resourceVersion, or a [`Api::modify`], is tried on an object that
/// others keep changing.
const MODIFY_TRIES: usize = 64;

/// The store as a place for objects. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Store {
    client: Client,
    clock: Clock,
    tolerations: DefaultTolerations,
    term: Option<Term>,
}

impl Store {
    /// Objects in the store that a client talks to, stamped with the time of a clock.
    pub fn new(client: Client, clock: Clock) -> Self {
        Self { client, clock, tolerations: DefaultTolerations::default(), term: None }
    }

    /// The same store, whose new pods tolerate nodes in trouble for another time.
    #[must_use]
    pub fn with_tolerations(self, tolerations: DefaultTolerations) -> Self {
        Self { tolerations, ..self }
    }

    /// The same store for a leader: what it writes is refused once the term is over.
    #[must_use]
    pub fn during(self, term: Term) -> Self {
        Self { term: Some(term), ..self }
    }

    /// The same store for writes that are few and must not wait behind others: signs of life.
    #[must_use]
    pub fn urgent(self) -> Self {
        Self { client: self.client.urgent(), ..self }
    }

    /// Access to the objects of one kind.
    pub fn api<K: Object>(&self) -> Api<K> {
        Api { store: self.clone(), kind: PhantomData }
    }

    /// The client underneath.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The clock that objects are stamped with.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}

/// The objects of one kind in the store. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Api<K> {
    store: Store,
    kind: PhantomData<fn() -> K>,
}

/// How to delete an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Only the object with this uid.
    pub uid: Option<String>,
    /// Only the object as it was at this revision, its resourceVersion.
    pub revision: Option<i64>,
    /// Seconds that its containers get to stop; none: as long as the object says. 0 removes a pod
    /// at once, whatever still runs of it.
    pub grace_seconds: Option<i64>,
    /// What becomes of its dependents; none: as its finalizers say, mostly Background.
    pub propagation: Option<Propagation>,
}

/// What became of a request for deletion.
#[derive(Clone, Debug, PartialEq)]
pub enum Deletion<K> {
    /// The object is gone; this is what it was last.
    Removed(K),
    /// The object has a `deletionTimestamp` and stays until what holds it lets go.
    Pending(K),
}

impl<K> Deletion<K> {
    /// The object, as it was last or is now.
    pub fn into_object(self) -> K {
        match self {
            Self::Removed(object) | Self::Pending(object) => object,
        }
    }
}

impl<K: Object> Api<K> {
    /// The clock that objects are stamped with.
    pub fn clock(&self) -> &Clock {
        &self.store.clock
    }

    pub(crate) fn client(&self) -> &Client {
        &self.store.client
    }

    pub(crate) fn term(&self) -> Option<&Term> {
        self.store.term.as_ref()
    }

    /// Reads an object, linearizably. [`Error::NotFound`] when there is none.
    pub async fn get(&self, key: &ObjectKey) -> Result<K, Error> {
        self.find(key).await?.ok_or_else(|| not_found::<K>(key))
    }

    /// Reads an object, linearizably, if there is one.
    pub async fn find(&self, key: &ObjectKey) -> Result<Option<K>, Error> {
        let response = self.store.client.range(request::key(key.store_key(K::kind()))).await?;
        response.kvs.first().map(decode).transpose()
    }

    /// Creates an object: fills in uid, creationTimestamp, generation 1 and defaults, and a name
    /// when it has only a `generateName`. Returns it as it is stored.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Invalid`].
    pub async fn create(&self, object: K) -> Result<K, Error> {
        let generate = object.metadata().generate_name.clone().filter(|_| object.name().is_empty());
        let Some(prefix) = generate.filter(|prefix| !prefix.is_empty()) else {
            return self.create_named(object).await;
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let mut named = object.clone();
            named.metadata_mut().name = Some(format!("{prefix}{}", random_suffix()));
            match self.create_named(named).await {
                Err(Error::AlreadyExists { .. }) if tries < GENERATE_TRIES => {}
                result => return result,
            }
        }
    }

    async fn create_named(&self, object: K) -> Result<K, Error> {
        let uid = Uuid::new_v4().to_string();
        let now = self.store.clock.now();
        let mut object = lifecycle::create(object, uid, now, self.store.tolerations)?;
        let key = object.key();
        match self.swap(&key, None, Some(&mut object)).await? {
            Swap::Done(revision) => {
                set_revision(&mut object, revision);
                Ok(object)
            }
            Swap::Changed(found) => {
                // The uid is nobody else's: if it is there, an attempt whose answer was lost had
                // created the object, and whoever was quick has changed it since.
                let ours = found.and_then(|kv| decode::<K>(&kv).ok());
                ours.filter(|stored| stored.uid() == object.uid())
                    .ok_or(Error::AlreadyExists { kind: K::kind().plural, key })
            }
        }
    }

    /// Replaces an object, but for its status and what only the store sets. With a
    /// resourceVersion, only if it was not changed since; without, whatever it is now. A change of
    /// the spec counts up the generation. An update that changes nothing writes nothing; one that
    /// removes the last finalizer of an object being deleted removes it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`], [`Error::Invalid`].
    pub async fn update(&self, object: K) -> Result<K, Error> {
        self.replace(object, |before, desired| Ok(lifecycle::update(before, desired.clone())?))
            .await
    }

    /// Replaces the status of an object and nothing else; otherwise like [`Self::update`].
    pub async fn update_status(&self, object: K) -> Result<K, Error> {
        self.replace(object, |before, desired| Ok(lifecycle::update_status(before, desired))).await
    }

    async fn replace(
        &self,
        desired: K,
        step: impl Fn(&K, &K) -> Result<Step<K>, Error>,
    ) -> Result<K, Error> {
        let key = desired.key();
        let uid = desired.metadata().uid.clone().filter(|uid| !uid.is_empty());
        let version = desired.metadata().resource_version.clone().filter(|text| !text.is_empty());
        let revision = match version {
            None => None,
            Some(text) => Some(text.parse::<i64>().map_err(|_| Error::Conflict {
                kind: K::kind().plural,
                key: key.clone(),
                reason: format!("resourceVersion {text:?} is not one that the store gave out"),
            })?),
        };
        let before = self.get(&key).await?;
        let done = self
            .step_until_done(before, |before| {
                lifecycle::check_preconditions(before, uid.as_deref(), revision)?;
                step(before, &desired)
            })
            .await?;
        Ok(done.into_object())
    }

    /// Reads an object, lets a function change it and writes it, as [`Self::update`] does; when
    /// others changed it in between, all over again, so the function may run several times. One
    /// that changes nothing writes nothing; its error is the answer.
    pub async fn modify<F>(&self, key: &ObjectKey, change: F) -> Result<K, Error>
    where
        F: FnMut(&mut K) -> Result<(), Error>,
    {
        let before = self.get(key).await?;
        self.modify_from(&before, change).await
    }

    /// Like [`Self::modify`], but begins with an object that was read before, from a [`Cache`]
    /// say, and so costs one request when that one is still the newest. If the function changes
    /// nothing in it, nothing tells whether it is.
    ///
    /// [`Cache`]: crate::Cache
    pub async fn modify_from<F>(&self, before: &K, mut change: F) -> Result<K, Error>
    where
        F: FnMut(&mut K) -> Result<(), Error>,
    {
        let done = self
            .step_until_done(before.clone(), |before| {
                let mut after = before.clone();
                change(&mut after)?;
                Ok(lifecycle::update(before, after)?)
            })
            .await?;
        Ok(done.into_object())
    }

    /// Like [`Self::modify`], for the status and the annotations alone: what the one who does the
    /// work has to report.
    pub async fn modify_status<F>(&self, key: &ObjectKey, change: F) -> Result<K, Error>
    where
        F: FnMut(&mut K) -> Result<(), Error>,
    {
        let before = self.get(key).await?;
        self.modify_status_from(&before, change).await
    }

    /// Like [`Self::modify_from`], for the status and the annotations alone.
    pub async fn modify_status_from<F>(&self, before: &K, mut change: F) -> Result<K, Error>
    where
        F: FnMut(&mut K) -> Result<(), Error>,
    {
        let done = self
            .step_until_done(before.clone(), |before| {
                let mut after = before.clone();
                change(&mut after)?;
                Ok(lifecycle::report(before, &after))
            })
            .await?;
        Ok(done.into_object())
    }

    /// Asks for the deletion of an object: see [`Deletion`] for what may come of it.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when a precondition does not hold.
    pub async fn delete(
        &self,
        key: &ObjectKey,
        options: &DeleteOptions,
    ) -> Result<Deletion<K>, Error> {
        let before = self.get(key).await?;
        self.delete_from(&before, options).await
    }

    /// Like [`Self::delete`], but begins with an object that was read before, as
    /// [`Self::modify_from`] does. Name the uid in the options to be sure of meeting that object.
    pub async fn delete_from(
        &self,
        before: &K,
        options: &DeleteOptions,
    ) -> Result<Deletion<K>, Error> {
        let now = self.store.clock.now();
        self.step_until_done(before.clone(), |before| {
            lifecycle::check_preconditions(before, options.uid.as_deref(), options.revision)?;
            Ok(lifecycle::delete(before, options, now))
        })
        .await
    }

    /// Ends the deletion of an object once nothing is left of what it stood for: for kubelets,
    /// when the containers of a pod are gone. Does nothing when there is no object of that name
    /// and uid any more; one with finalizers stays until those are removed.
    pub async fn finish_delete(&self, key: &ObjectKey, uid: &str) -> Result<(), Error> {
        let options = DeleteOptions {
            uid: Some(uid.to_owned()),
            grace_seconds: Some(0),
            ..DeleteOptions::default()
        };
        match self.delete(key, &options).await {
            Ok(_) | Err(Error::NotFound { .. } | Error::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Watches a scope from the revision after this one on; none: from now on.
    pub fn watch(&self, scope: &Scope, after_revision: Option<i64>) -> WatchStream<K> {
        WatchStream::new(&self.store.client, &scope.prefix(K::kind()), after_revision)
    }

    /// Takes an object from one version to the next, with whatever it is at that moment, until
    /// the step and the swap have met.
    pub(crate) async fn step_until_done(
        &self,
        mut before: K,
        mut step: impl FnMut(&K) -> Result<Step<K>, Error>,
    ) -> Result<Deletion<K>, Error> {
        let key = before.key();
        if before.revision() == 0 {
            before = self.get(&key).await?;
        }
        for _ in 0..MODIFY_TRIES {
            let mut after = match step(&before)? {
                Step::Keep => return Ok(Deletion::Pending(before)),
                Step::Write(after) => Some(after),
                Step::Remove => None,
            };
            match (self.swap(&key, Some(&before), after.as_mut()).await?, after) {
                (Swap::Done(revision), Some(mut after)) => {
                    set_revision(&mut after, revision);
                    return Ok(Deletion::Pending(after));
                }
                (Swap::Done(revision), None) => {
                    set_revision(&mut before, revision);
                    return Ok(Deletion::Removed(before));
                }
                (Swap::Changed(Some(kv)), _) => before = decode(&kv)?,
                (Swap::Changed(None), _) => return Err(not_found::<K>(&key)),
            }
        }
        let reason = format!("{MODIFY_TRIES} attempts met a change by somebody else");
        Err(Error::Conflict { kind: K::kind().plural, key, reason })
    }
}

fn not_found<K: Object>(key: &ObjectKey) -> Error {
    Error::NotFound { kind: K::kind().plural, key: key.clone() }
}

/// Characters without vowels and look-alikes, as Kubernetes draws them.
fn random_suffix() -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = Uuid::new_v4();
    let bytes = random.as_bytes().iter().take(GENERATED_CHARS);
    bytes.map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}
