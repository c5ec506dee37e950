//! Defragment: the state moves into fresh files while the member goes on serving.

use std::sync::Arc;

use tonic::Status;

use crate::member::Member;
use crate::mvcc::Moved;
use crate::space::rewritten_bytes;

impl Member {
    /// Rewrites the state's files. It goes on to its end also if nobody waits for it any more; who
    /// asks meanwhile waits, and has it done once more, as with etcd.
    pub(crate) async fn defragment(&self) -> Result<(), Status> {
        let turn = Arc::clone(&self.defragmenting).lock_owned().await;
        let (mvcc, state_dir, stop) =
            (self.mvcc.clone(), Arc::clone(&self.state_dir), self.stop.clone());
        let needed_bytes = rewritten_bytes(self.mvcc.in_use_bytes());
        let space = Arc::clone(&self.space);
        let check = tokio::task::spawn_blocking(move || space.check_rewrite(needed_bytes));
        check
            .await
            .map_err(|_| crate::RequestError::Stopped)?
            .map_err(|refused| Status::resource_exhausted(refused.to_string()))?;
        let before_bytes = self.mvcc.size_bytes().unwrap_or(0);
        let moved = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            tracing::info!(before_bytes, "defragmenting the state");
            let moved = state_dir.defragment(&mvcc, || stop.is_cancelled());
            match &moved {
                Ok(moved) => {
                    let after_bytes = mvcc.size_bytes().unwrap_or(0);
                    tracing::info!(?moved, after_bytes, "defragmented the state");
                }
                Err(error) => {
                    let error: &dyn std::error::Error = error;
                    tracing::warn!(error, "the state cannot be defragmented");
                }
            }
            moved
        });
        match moved.await {
            Ok(Ok(Moved::Done | Moved::Replaced)) => Ok(()),
            Ok(Ok(Moved::Stopped)) => Err(crate::RequestError::Stopped.into()),
            Ok(Err(error)) => Err(Status::internal(format!("cannot defragment: {error}"))),
            Err(_) => Err(crate::RequestError::Stopped.into()),
        }
    }
}
