//! What both ends of an HTTP/2 connection share, so that many small calls on it cost little: frames
//! leave together ([`Coalesced`]), and the connection's own task carries out its calls ([`Streams`]).
//!
//! Without them a small call costs more in system calls and in threads that wake each other than in
//! what it asks for.

mod coalesced;
mod streams;

pub use coalesced::Coalesced;
pub use streams::{Arrivals, Streams};
