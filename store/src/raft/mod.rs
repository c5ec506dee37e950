//! Consensus: everything that knows openraft lives below this module.

pub(crate) mod codec;
pub(crate) mod log_store;
pub(crate) mod types;
