//! What the figures were measured on.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::latencies::Latencies;

/// Syncs in each look.
const SYNCS: usize = 20;
const SYNC_BYTES: usize = 4096;

/// A line for below the table.
#[derive(Debug)]
pub struct Machine {
    cores: usize,
    file_system: String,
    syncs: Vec<Duration>,
}

impl Machine {
    /// Looks at the machine, and at the file system that holds `dir`.
    pub fn look(dir: &Path) -> anyhow::Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            file_system: file_system(&mounts, &dir.canonicalize()?).unwrap_or("unknown").to_owned(),
            syncs: Vec::new(),
        })
    }

    /// Measures how long a sync takes at present: a disk may be another one at the end of the run.
    pub fn measure_syncs(&mut self, dir: &Path) -> anyhow::Result<()> {
        self.syncs.extend(syncs(dir)?);
        Ok(())
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let syncs = Latencies::new(self.syncs.clone());
        let ms = |fraction| syncs.quantile(fraction).as_secs_f64() * 1000.0;
        write!(
            f,
            "Measured on {} cores, {}; `fdatasync` of 4 KiB in the same run: median {:.2} ms, p99 {:.2} ms.",
            self.cores,
            self.file_system,
            ms(0.5),
            ms(0.99)
        )
    }
}

/// The type of the mount whose path is the longest prefix of `dir`.
fn file_system<'a>(mounts: &'a str, dir: &Path) -> Option<&'a str> {
    let mount = |line: &'a str| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    };
    let holding = mounts.lines().filter_map(mount).filter(|(path, _)| dir.starts_with(path));
    // Of two mounts on one path the later one is seen.
    holding.max_by_key(|(path, _)| path.len()).map(|(_, file_system)| file_system)
}

/// Overwrites a block of a file that is there already, as both write-ahead logs do, and syncs.
fn syncs(dir: &Path) -> anyhow::Result<Vec<Duration>> {
    let file: File = tempfile::tempfile_in(dir)?;
    let block = [1; SYNC_BYTES];
    for at in 0..SYNCS {
        file.write_all_at(&block, (at * SYNC_BYTES) as u64)?;
    }
    file.sync_all()?;
    let mut took = Vec::with_capacity(SYNCS);
    for at in 0..SYNCS {
        let began = Instant::now();
        file.write_all_at(&block, (at * SYNC_BYTES) as u64)?;
        file.sync_data()?;
        took.push(began.elapsed());
    }
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_counts() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\ndev /tmp/x xfs rw 0 0\n";
        let found = |dir| file_system(mounts, Path::new(dir));
        assert_eq!(found("/var/lib"), Some("ext4"));
        assert_eq!(found("/tmp/a"), Some("tmpfs"));
        assert_eq!(found("/tmp/x/y"), Some("xfs"));
    }
}
