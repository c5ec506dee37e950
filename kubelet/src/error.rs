//! Why a kubelet could not start, or ended.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::runtime::RuntimeError;

/// Why a kubelet could not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `--runtime docker`, and no engine there.
    #[error(
        "no Docker Engine answers: start it, set DOCKER_HOST to where it is, or run containers in \
         memory only with --runtime fake"
    )]
    NoEngine(#[source] RuntimeError),
    /// A node name that cannot be the name of an object.
    #[error("--node-name {name:?} {reason}")]
    NodeName {
        /// The name as it was given.
        name: String,
        /// What is wrong with it, as the rest of a sentence.
        reason: &'static str,
    },
    /// The address for logs and commands cannot be listened on.
    #[error("cannot listen on {address}: choose another address with --listen")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A flag that makes no sense with real containers.
    #[error("{0} is for containers in memory only: add --runtime fake")]
    OnlyFake(&'static str),
    /// A store that cannot be spoken to at all.
    #[error("the store cannot be used")]
    Store(#[source] api::StoreError),
    /// A part of the kubelet ended that never should.
    #[error("the kubelet's {0} ended unexpectedly")]
    TaskEnded(&'static str),
}

/// An error and its causes on one line, for the log and for a status.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn std::error::Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
