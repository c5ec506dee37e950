//! Ports for processes that must be told theirs, and that keep them over restarts.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the range from which systems take the ports of outgoing connections, as such a connection
/// could otherwise take a process's port between its death and its restart.
const FIRST: u32 = 23_000;
const COUNT: u32 = 9_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port of 127.0.0.1 on which nobody listens; never the same twice in one test run.
pub(crate) fn free_port() -> u16 {
    // Test runs at the same time begin at different places.
    let base = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let offset = base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("the range ends below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} to {}", FIRST + COUNT);
}

/// A number that can be added to the usual ports, so that `scripts/cluster` runs beside another.
pub(crate) fn free_shift() -> u16 {
    const USUAL: [u16; 7] = [2379, 2380, 22379, 22380, 32379, 32380, 8080];
    // Up to where the highest of them would be among the ports of outgoing connections.
    const STEPS: u32 = 190;
    for _ in 0..STEPS {
        let step = std::process::id().wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % STEPS;
        let shift = u16::try_from(2 * (step + 1)).expect("it is small");
        if USUAL.iter().all(|port| TcpListener::bind(("127.0.0.1", port + shift)).is_ok()) {
            return shift;
        }
    }
    panic!("no free ports near {USUAL:?}");
}
