//! The Watch service.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use store_proto::etcdserverpb::watch_server::Watch;
use store_proto::etcdserverpb::{WatchRequest, WatchResponse};
use tonic::{Request, Response, Status, Streaming};

use crate::member::Member;
use crate::mvcc::Failure;
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
        let header = move || member.header();
        let history = Arc::clone(&self.0.history);
        let requests = requests.map(|request| request.map_err(End::Client));
        let responses = watch(&self.0.hub, history, requests, header)?;
        let state = self.0.state.clone();
        let responses = responses.map(move |response| {
            response.map_err(|end| match end {
                End::Client(status) => status,
                End::State(failure) => state.refuse(failure).into(),
            })
        });
        Ok(responses.boxed())
    }
}

/// Why a stream of watches ends early.
enum End {
    Client(Status),
    State(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::State(failure)
    }
}

#[tonic::async_trait]
impl Watch for WatchServer {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.open(request.into_inner()).map(Response::new)
    }
}
