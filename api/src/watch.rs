//! The changes of a scope as they happen.

use std::marker::PhantomData;

use store_client::mvccpb::Event;
use store_client::mvccpb::event::EventType;
use store_client::{Client, Watch, WatchOptions};

use crate::swap::{decode, decode_or_warn};
use crate::{Error, Object};

/// One change of one object. The resourceVersion of each object is the revision of the change,
/// also that of a deleted one.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent<K> {
    /// It was created.
    Added(K),
    /// It was changed.
    Modified(K),
    /// It is gone; this is what it was last.
    Deleted(K),
}

impl<K> WatchEvent<K> {
    /// The object.
    pub fn object(&self) -> &K {
        match self {
            Self::Added(object) | Self::Modified(object) | Self::Deleted(object) => object,
        }
    }

    /// `ADDED`, `MODIFIED` or `DELETED`, as in the API.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Added(_) => "ADDED",
            Self::Modified(_) => "MODIFIED",
            Self::Deleted(_) => "DELETED",
        }
    }
}

/// The changes of one or several whole revisions, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchBatch<K> {
    /// Everything up to this revision has been delivered.
    pub revision: i64,
    /// The changes; none when the store only says that nothing happened up to the revision.
    pub events: Vec<WatchEvent<K>>,
}

/// The changes of a scope as they happen: in order, none missing, none twice, whatever becomes of
/// connections and members. From [`Api::watch`](crate::Api::watch); ends when it is dropped.
#[derive(Debug)]
pub struct WatchStream<K> {
    watch: Watch,
    kind: PhantomData<fn() -> K>,
}

impl<K: Object> WatchStream<K> {
    pub(crate) fn new(client: &Client, prefix: &str, after_revision: Option<i64>) -> Self {
        let watch = client.watch(WatchOptions {
            start_revision: after_revision.map_or(0, |revision| revision + 1),
            prev_kv: true,
            ..WatchOptions::prefix(prefix.to_owned())
        });
        Self { watch, kind: PhantomData }
    }

    /// The next changes. Waits as long as it takes, also while the store cannot be reached. Cancel
    /// safe. A watch from now on gives a batch without events first, with the revision after
    /// which it begins.
    ///
    /// # Errors
    /// [`Error::Expired`] when changes after the last batch are compacted: list again.
    pub async fn next(&mut self) -> Result<WatchBatch<K>, Error> {
        let batch = self.watch.next().await?;
        let mut events = Vec::with_capacity(batch.events.len());
        for event in &batch.events {
            events.extend(read_event(event)?);
        }
        Ok(WatchBatch { revision: batch.revision, events })
    }
}

/// What an event of the store means; nothing when no object of the kind is concerned.
///
/// What cannot be read as an object of the kind counts as not there, as it does in a list.
fn read_event<K: Object>(event: &Event) -> Result<Option<WatchEvent<K>>, Error> {
    let Some(kv) = &event.kv else { return Ok(None) };
    let after = match event.r#type() {
        EventType::Put => decode_or_warn::<K>(kv),
        EventType::Delete => None,
    };
    let existed = event.r#type() == EventType::Delete || kv.create_revision != kv.mod_revision;
    if let Some(after) = after {
        return Ok(Some(if existed {
            WatchEvent::Modified(after)
        } else {
            WatchEvent::Added(after)
        }));
    }
    match &event.prev_kv {
        // Gone and compacted before it could be sent.
        None if existed => Err(Error::Expired),
        None => Ok(None),
        Some(before) => Ok(decode::<K>(before).ok().map(|mut before| {
            before.metadata_mut().resource_version = Some(kv.mod_revision.to_string());
            WatchEvent::Deleted(before)
        })),
    }
}
