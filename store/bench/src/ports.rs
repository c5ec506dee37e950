//! Ports that nobody listens on.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::bail;

/// Ports from here up to the ones that the system gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Ports of 127.0.0.1 that nobody listens on, below those that outgoing connections get. Fails when there
/// are not so many.
pub fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    // Two of these programs at once should not look at the same ports.
    let offset = u16::try_from(std::process::id() % u32::from(span))?;
    let mut ports = Vec::new();
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let sum = (u32::from(offset) * 7 + u32::from(step)) % u32::from(span);
        let port = PORTS.start + u16::try_from(sum)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.push(port);
        }
        if ports.len() == count {
            return Ok(ports);
        }
    }
    bail!("there are no {count} free ports in {PORTS:?}")
}
