//! The KV service.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use store_proto::etcdserverpb::kv_server::Kv;
use store_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use store_proto::peer::command::Op;
use tonic::{Request, Response, Status};

use crate::error::RequestError;
use crate::member::Member;
use crate::mvcc::{Outcome, check_delete_range, check_put, check_range, check_txn, is_read_only};

/// For a client that waits until compacted records are gone; most set a shorter time themselves.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(600);

/// Answers the KV service on behalf of a member.
#[derive(Clone)]
pub(crate) struct KvServer(pub(crate) Arc<Member>);

impl KvServer {
    async fn write(&self, op: Op, bytes: usize) -> Result<Outcome, RequestError> {
        if bytes > self.0.max_request_bytes {
            return Err(RequestError::RequestTooLarge);
        }
        self.0.propose(op).await
    }

    /// The state knows the revision of an answer; who answers is filled in here.
    fn complete(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.0.header_at(revision));
    }
}

fn mismatch(outcome: &Outcome) -> Status {
    Status::internal(format!("the answer is of another kind than the request: {outcome:?}"))
}

#[tonic::async_trait]
impl Kv for KvServer {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        if !request.serializable && self.0.is_learner() {
            return Err(RequestError::NotForLearners.into());
        }
        check_range(&request)?;
        let mut response = self.0.range(&request).await?;
        self.0.metrics.ranges.inc();
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let request = request.into_inner();
        check_put(&request)?;
        let bytes = request.encoded_len();
        match self.write(Op::Put(request), bytes).await? {
            Outcome::Put(mut response) => {
                self.complete(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(mismatch(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        check_delete_range(&request)?;
        let bytes = request.encoded_len();
        match self.write(Op::DeleteRange(request), bytes).await? {
            Outcome::DeleteRange(mut response) => {
                self.complete(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(mismatch(&other)),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        check_txn(&request, self.0.max_txn_ops)?;
        let mut response = if is_read_only(&request) {
            let response = self.0.read_txn(&request).await?;
            self.0.metrics.carried_out_txn(&request, &response);
            response
        } else {
            let bytes = request.encoded_len();
            match self.write(Op::Txn(request), bytes).await? {
                Outcome::Txn(response) => response,
                other => return Err(mismatch(&other)),
            }
        };
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let request = request.into_inner();
        let CompactionRequest { revision, physical } = request;
        match self.0.propose(Op::Compaction(request)).await? {
            Outcome::Compaction(mut response) => {
                if physical {
                    tokio::time::timeout(REMOVAL_TIMEOUT, self.0.mvcc.removed(revision))
                        .await
                        .map_err(|_| RequestError::Timeout)?;
                }
                self.complete(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(mismatch(&other)),
        }
    }
}
