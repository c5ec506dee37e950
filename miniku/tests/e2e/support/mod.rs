//! What the tests stand on: processes and how to end them, clients, and waiting.

pub(crate) mod control_plane;
pub(crate) mod docker;
pub(crate) mod etcdctl;
pub(crate) mod flat;
pub(crate) mod history;
pub(crate) mod http;
pub(crate) mod many_keys;
pub(crate) mod pair;
pub(crate) mod ports;
pub(crate) mod prerequisites;
pub(crate) mod processes;
pub(crate) mod scratch;
pub(crate) mod store;
pub(crate) mod tail;
pub(crate) mod wait;
pub(crate) mod writers;
