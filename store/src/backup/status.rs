//! What a backup holds, in the numbers that `etcdctl snapshot status` tells.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::file::{BackupFile, Checksum};
use super::{Error, OutputFormat, schema};

/// The numbers; their names in JSON are etcd's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    /// CRC-32C over all buckets: their names, keys and values.
    hash: u32,
    /// The last revision of which there is a record.
    revision: i64,
    /// Keys of all buckets.
    total_key: u64,
    /// Bytes of the database, without the checksum.
    total_size: u64,
}

/// Reads all of a file. Blocks on the disk.
pub(super) fn status(path: &Path, stop: &CancellationToken) -> Result<Status, Error> {
    let file = BackupFile::open(path, Checksum::Optional, stop)?;
    let (mut hash, mut total_key, mut revision) = (0, 0, 0);
    for bucket in file.buckets() {
        hash = crc32c::crc32c_append(hash, &bucket.name);
        file.walk(bucket, |entry| {
            if stop.is_cancelled() {
                return Err(Error::Stopped);
            }
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, &entry.key), &entry.value);
            total_key += 1;
            Ok(())
        })?;
    }
    if let Some(bucket) = file.bucket(schema::KEY)
        && let Some(key) = file.last_key(bucket)?
    {
        let (last, _) = schema::parse_revision_key(&key)
            .ok_or_else(|| file.damaged(format!("{key:02x?} is no revision")))?;
        revision = last.main;
    }
    Ok(Status { hash, revision, total_key, total_size: file.database_bytes() })
}

impl Status {
    /// The text that etcdctl prints for it.
    pub(super) fn print(&self, format: OutputFormat) -> String {
        let Self { hash, revision, total_key, total_size } = self;
        let row = [
            format!("{hash:x}"),
            revision.to_string(),
            total_key.to_string(),
            Size(*total_size).to_string(),
        ];
        match format {
            OutputFormat::Simple => row.join(", "),
            OutputFormat::Fields => format!(
                "\"Hash\" : {hash}\n\"Revision\" : {revision}\n\"Keys\" : {total_key}\n\"Size\" : {total_size}"
            ),
            OutputFormat::Json => serde_json::to_string(self).unwrap_or_default(),
            OutputFormat::Table => table(["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"], &row),
        }
    }
}

fn table(head: [&str; 4], row: &[String; 4]) -> String {
    let (mut rule, mut first, mut second) = ("+".to_owned(), "|".to_owned(), "|".to_owned());
    for (head, cell) in head.iter().zip(row) {
        let width = head.len().max(cell.len());
        rule += &format!("{:-<1$}+", "", width + 2);
        first += &format!(" {head:^width$} |");
        second += &format!(" {cell:>width$} |");
    }
    [rule.as_str(), &first, &rule, &second, &rule].join("\n")
}

/// Bytes for a person, as etcdctl rounds them: powers of 1000, one decimal below 10.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
        if self.0 < 10 {
            return write!(f, "{} B", self.0);
        }
        let power = self.0.ilog(1000);
        let value = (self.0 as f64 / 1000_f64.powi(power as i32) * 10.0 + 0.5).floor() / 10.0;
        let digits = usize::from(value < 10.0);
        write!(f, "{value:.digits$} {}", UNITS[power as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_as_etcdctl_does() {
        let cases = [
            (0, "0 B"),
            (9, "9 B"),
            (10, "10 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (20_480, "20 kB"),
            (20_512, "20 kB"),
            (20_560, "21 kB"),
            (1_253_376, "1.3 MB"),
            (25_000_000, "25 MB"),
            (u64::MAX, "18 EB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Size(bytes).to_string(), expected);
        }
    }
}
