//! Lists of objects, in pages of one revision.

use std::fmt;
use std::str::FromStr;

use store_client::etcdserverpb::RangeRequest;
use store_client::request;

use crate::swap::decode_or_warn;
use crate::{Api, Error, Object, Scope};

/// Objects read with one request when a list is read as a whole.
const PAGE_OBJECTS: i64 = 500;
/// Objects, and the revision at which they were read: a watch goes on from there.
#[derive(Clone, Debug, PartialEq)]
pub struct List<K> {
    /// The objects, by namespace and name.
    pub items: Vec<K>,
    /// The list's resourceVersion.
    pub revision: i64,
    /// Where the next page begins; none when this is the last one.
    pub next: Option<Continue>,
    /// How many objects come after these.
    pub remaining: i64,
}

/// How much of a list to read.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// The most objects to read; 0: all.
    pub limit: i64,
    /// Where a page before this one ended.
    pub next: Option<Continue>,
    /// The revision to read at; none: the newest. A page after the first is read at the revision
    /// of the first, whatever this says.
    pub revision: Option<i64>,
}

/// Where a list goes on, and at which revision. As text it is `REVISION:KEY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continue {
    revision: i64,
    /// What the scope's prefix is followed by in the first key of the page.
    start: String,
}

impl fmt::Display for Continue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.revision, self.start)
    }
}

impl FromStr for Continue {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (revision, start) = text.split_once(':').ok_or(Error::BadContinue)?;
        let revision = revision.parse().map_err(|_| Error::BadContinue)?;
        if revision <= 0 {
            return Err(Error::BadContinue);
        }
        Ok(Self { revision, start: start.to_owned() })
    }
}

impl<K: Object> Api<K> {
    /// Reads all objects of a scope at one revision, in pages. What is not an object of the kind
    /// is left out, with a warning in the log.
    pub async fn list(&self, scope: &Scope) -> Result<List<K>, Error> {
        let mut page = ListOptions { limit: PAGE_OBJECTS, ..ListOptions::default() };
        let mut all = self.list_page(scope, page.clone()).await?;
        while let Some(next) = all.next.take() {
            page.next = Some(next);
            let more = self.list_page(scope, page.clone()).await?;
            all.items.extend(more.items);
            all.next = more.next;
            all.remaining = more.remaining;
        }
        Ok(all)
    }

    /// Reads a page of a scope. [`Error::Expired`] when its revision is compacted.
    pub async fn list_page(&self, scope: &Scope, options: ListOptions) -> Result<List<K>, Error> {
        let prefix = scope.prefix(K::kind());
        let (start, revision) = match &options.next {
            Some(next) => (format!("{prefix}{}", next.start), Some(next.revision)),
            None => (prefix.clone(), options.revision),
        };
        let response = self
            .client()
            .range(RangeRequest {
                key: start.into(),
                range_end: request::prefix_end(prefix.as_bytes()),
                limit: options.limit,
                revision: revision.unwrap_or(0),
                ..RangeRequest::default()
            })
            .await?;
        let header = response.header.unwrap_or_default();
        let revision = revision.unwrap_or(header.revision);
        let next = match response.kvs.last() {
            Some(last) if response.more => {
                let key = String::from_utf8_lossy(&last.key);
                let after = key.strip_prefix(&prefix).unwrap_or_default();
                Some(Continue { revision, start: format!("{after}\0") })
            }
            _ => None,
        };
        let remaining = response.count - i64::try_from(response.kvs.len()).unwrap_or(i64::MAX);
        let items = response.kvs.iter().filter_map(decode_or_warn).collect();
        Ok(List { items, revision, next, remaining: remaining.max(0) })
    }
}
