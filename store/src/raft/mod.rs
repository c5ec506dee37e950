//! Consensus: everything that implements openraft's traits lives below this module.
//!
//! | module                | is                                                        |
//! |-----------------------|-----------------------------------------------------------|
//! | [`types`]             | the types that openraft is configured with                 |
//! | [`codec`]             | those types as messages, for the wire and the disk         |
//! | [`log_store`]         | the log as openraft writes and reads it                    |
//! | [`network`]           | the calls to other members                                 |
//! | [`peer_service`]      | the answers to them                                        |
//! | [`state_machine`]     | entries into the applied state, snapshots out of it        |
//! | [`snapshot_transfer`] | snapshots on their way between members                     |

pub(crate) mod codec;
pub(crate) mod log_store;
pub(crate) mod network;
pub(crate) mod peer_service;
pub(crate) mod snapshot_transfer;
pub(crate) mod state_machine;
pub(crate) mod types;
