//! Whether the node is short of memory or disk, as its conditions tell; who is short gets no new pods
//! (the node lifecycle controller taints it).
//!
//! | condition | holds while |
//! | --- | --- |
//! | `MemoryPressure` | less than 100 MiB of memory are available (Kubernetes' default) |
//! | `DiskPressure` | less than 5 % of the disk with the engine's data is free, or of its inodes (Kubernetes has 10 to 15 % for disks of servers) |
//! | `PIDPressure` | never: as in Kubernetes, nothing is asked for by default |
//!
//! A condition that held goes on for five minutes after it last did, so that a node on the brink does
//! not flap. Nothing is measured for an engine that is not on this machine.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

/// Less is pressure.
const MEMORY_MIN_BYTES: u64 = 100 << 20;
/// The same of disks, in hundredths.
const DISK_MIN_PERCENT: u64 = 5;
/// How long pressure is told of after it was last seen; Kubernetes' default.
const TRANSITION_PERIOD: SignedDuration = SignedDuration::from_mins(5);

/// What is left on the machine, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    memory_available_bytes: Option<u64>,
    disk: Option<Disk>,
}

/// The file system with the engine's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Disk {
    bytes: u64,
    bytes_available: u64,
    inodes: u64,
    inodes_available: u64,
}

/// A condition of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pressure {
    pub(super) type_: &'static str,
    pub(super) holds: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Remembers when pressure was last seen, and what it was.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    memory: Option<(Timestamp, String)>,
    disk: Option<(Timestamp, String)>,
}

impl Room {
    /// Looks at this machine, if it is the one that the engine's data are on.
    pub(super) async fn measure(engine_dir: Option<PathBuf>) -> Self {
        let Some(dir) = engine_dir else { return Self::default() };
        let measured = tokio::task::spawn_blocking(move || Self::of(&dir)).await;
        measured.unwrap_or_default()
    }

    fn of(dir: &Path) -> Self {
        let Ok(found) = rustix::fs::statvfs(dir) else { return Self::default() };
        let disk = Disk {
            bytes: found.f_blocks.saturating_mul(found.f_frsize),
            bytes_available: found.f_bavail.saturating_mul(found.f_frsize),
            inodes: found.f_files,
            inodes_available: found.f_favail,
        };
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self { memory_available_bytes: available(&memory), disk: Some(disk) }
    }
}

/// `MemAvailable:   8056 kB` in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

impl Gauge {
    /// The conditions that what is left amounts to.
    pub(super) fn read(&mut self, room: &Room, now: Timestamp) -> [Pressure; 3] {
        let memory = short_of_memory(room);
        let disk = room.disk.and_then(short_of_disk);
        [
            condition(
                "MemoryPressure",
                ("KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
                "kubelet has sufficient memory available",
                hold(&mut self.memory, memory, now),
            ),
            condition(
                "DiskPressure",
                ("KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
                "kubelet has no disk pressure",
                hold(&mut self.disk, disk, now),
            ),
            condition(
                "PIDPressure",
                ("KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
                "kubelet has sufficient PID available",
                None,
            ),
        ]
    }
}

fn short_of_memory(room: &Room) -> Option<String> {
    let available = room.memory_available_bytes.filter(|bytes| *bytes < MEMORY_MIN_BYTES)?;
    Some(format!("{} MiB of memory are available, less than 100 MiB", available >> 20))
}

fn short_of_disk(disk: Disk) -> Option<String> {
    let is_short = |available: u64, all: u64| {
        // A file system without a fixed number of inodes tells of none.
        all > 0 && u128::from(available) * 100 < u128::from(all) * u128::from(DISK_MIN_PERCENT)
    };
    if is_short(disk.bytes_available, disk.bytes) {
        let (available, all) = (disk.bytes_available >> 20, disk.bytes >> 20);
        return Some(format!(
            "{available} of {all} MiB are free where the container engine keeps its data, less \
             than {DISK_MIN_PERCENT} %"
        ));
    }
    if is_short(disk.inodes_available, disk.inodes) {
        let (available, all) = (disk.inodes_available, disk.inodes);
        return Some(format!(
            "{available} of {all} inodes are free where the container engine keeps its data, less \
             than {DISK_MIN_PERCENT} %"
        ));
    }
    None
}

/// The pressure that is to be told of: the present one, or one that was seen lately.
fn hold(
    last: &mut Option<(Timestamp, String)>,
    present: Option<String>,
    now: Timestamp,
) -> Option<String> {
    match present {
        Some(why) => *last = Some((now, why)),
        None => {
            last.take_if(|(seen_at, _)| now.duration_since(*seen_at) >= TRANSITION_PERIOD);
        }
    }
    last.as_ref().map(|(_, why)| why.clone())
}

fn condition(
    type_: &'static str,
    (bad, good): (&'static str, &'static str),
    fine: &str,
    pressure: Option<String>,
) -> Pressure {
    let holds = pressure.is_some();
    let reason = if holds { bad } else { good };
    Pressure { type_, holds, reason, message: pressure.unwrap_or_else(|| fine.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Disk =
        Disk { bytes: 1000 << 20, bytes_available: 50 << 20, inodes: 1000, inodes_available: 50 };

    fn holds(gauge: &mut Gauge, room: &Room, second: i64) -> [bool; 3] {
        let conditions = gauge.read(room, Timestamp::from_second(second).unwrap());
        assert_eq!(
            conditions.each_ref().map(|one| one.type_),
            ["MemoryPressure", "DiskPressure", "PIDPressure"]
        );
        conditions.map(|one| one.holds)
    }

    #[test]
    fn who_has_too_little_left_is_under_pressure() {
        let memory = |mib: u64| Room { memory_available_bytes: Some(mib << 20), disk: Some(FREE) };
        let disk = |disk| Room { memory_available_bytes: None, disk: Some(disk) };
        for (room, expected) in [
            (Room::default(), [false, false, false]),
            (memory(100), [false, false, false]),
            (memory(99), [true, false, false]),
            (disk(Disk { bytes_available: 49 << 20, ..FREE }), [false, true, false]),
            (disk(Disk { inodes_available: 49, ..FREE }), [false, true, false]),
            (disk(Disk { inodes: 0, inodes_available: 0, ..FREE }), [false, false, false]),
        ] {
            assert_eq!(holds(&mut Gauge::default(), &room, 0), expected, "{room:?}");
        }
    }

    #[test]
    fn pressure_is_told_of_for_five_minutes_after_it_was_last_seen() {
        let mut gauge = Gauge::default();
        let short = Room { memory_available_bytes: Some(1), disk: None };
        let table = [(0, &short, true), (200, &short, true), (499, &Room::default(), true)];
        for (second, room, expected) in table {
            assert_eq!(holds(&mut gauge, room, second)[0], expected, "{second}");
        }
        let [memory, ..] = gauge.read(&Room::default(), Timestamp::from_second(500).unwrap());
        assert!(!memory.holds, "{memory:?}");
        assert_eq!(memory.reason, "KubeletHasSufficientMemory");
    }

    #[test]
    fn the_machine_is_measured_where_the_engine_is_on_it() {
        let room = Room::of(Path::new("/"));
        assert!(room.disk.is_some_and(|disk| disk.bytes >= disk.bytes_available));
        assert_eq!(room.memory_available_bytes.is_some(), Path::new("/proc/meminfo").exists());
        assert_eq!(Room::of(Path::new("/no/such/place")), Room::default());
        assert_eq!(available("MemTotal: 1 kB\nMemAvailable:    8056 kB\n"), Some(8056 * 1024));
        assert_eq!(available("MemFree: 1 kB\n"), None);
    }
}
