//! The Watch service.

use std::pin::Pin;
use std::sync::Arc;

use futures::stream::{self, Stream, StreamExt as _};
use store_proto::etcdserverpb::watch_server::Watch;
use store_proto::etcdserverpb::{WatchRequest, WatchResponse};
use tonic::{Request, Response, Status, Streaming};

use super::too_large;
use crate::error::RequestError;
use crate::member::Member;
use crate::watch::watch;

/// Answers the Watch service on behalf of a member.
#[derive(Clone)]
pub(crate) struct WatchServer(pub(crate) Arc<Member>);

impl WatchServer {
    /// One stream of watches. It works when it is polled, and ends when it is dropped.
    pub(crate) fn open(
        &self,
        requests: impl Stream<Item = Result<WatchRequest, Status>> + Send + 'static,
    ) -> Result<<Self as Watch>::WatchStream, Status> {
        let member = Arc::clone(&self.0);
        let history = Arc::new(self.0.state.clone());
        let responses = watch(&self.0.hub, history, requests, move || member.header())?;
        // Watches never end by themselves: a member that stops says so, and its clients go on
        // elsewhere at once.
        let stop = self.0.stop.clone();
        let until_stopped = responses.take_until(stop.clone().cancelled_owned());
        let farewell = stream::once(async move { stop.is_cancelled() })
            .filter_map(async |stopped| stopped.then(|| Err(Status::from(RequestError::Stopped))));
        Ok(until_stopped.chain(farewell).boxed())
    }
}

#[tonic::async_trait]
impl Watch for WatchServer {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let requests = request.into_inner().map(|request| request.map_err(too_large::as_etcd));
        self.open(requests).map(Response::new)
    }
}
