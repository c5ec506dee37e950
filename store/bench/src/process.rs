//! What a process has cost so far, as Linux tells it in `/proc`.

use std::time::Duration;

use anyhow::Context as _;

/// What a process takes of the machine's memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident at present, pages of mapped files included.
    pub resident: u64,
    /// The most that was ever resident.
    pub peak: u64,
}

/// The process's memory. Fails when there is no such process.
pub fn memory(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let bytes = |field| kilobytes(&status, field).map(|kib| kib * 1024);
    let resident = bytes("VmRSS:").with_context(|| format!("{path} has no VmRSS"))?;
    let peak = bytes("VmHWM:").with_context(|| format!("{path} has no VmHWM"))?;
    Ok(Memory { resident, peak })
}

fn kilobytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Processor time that the process has used, in user and in kernel mode. Fails when there is no such
/// process.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = ticks(&stat).with_context(|| format!("{path} is not as expected"))?;
    Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
}

/// Fields 14 and 15 of proc(5). The second field is a name in brackets that may hold blanks.
fn ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_behind_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 120 34 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(154));
        assert_eq!(ticks("7 no name"), None);
    }

    #[test]
    fn memory_is_read_in_kilobytes() {
        let status = "Name:\tx\nVmHWM:\t   2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(kilobytes(status, "VmRSS:"), Some(1024));
        assert_eq!(kilobytes(status, "VmSwap:"), None);
    }

    #[test]
    fn this_process_has_memory() {
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.resident > 0 && memory.peak >= memory.resident);
        cpu_time(std::process::id()).unwrap();
    }
}
