//! What benchmarks on one machine have in common: what a process costs, what the machine is like, free
//! ports, and quantiles.

pub mod latencies;
pub mod machine;
pub mod ports;
pub mod process;
