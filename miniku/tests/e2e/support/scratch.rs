//! A test's directory: data and logs of its processes. It goes away with the test; when the test
//! fails, the ends of the logs are printed first.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// How much of each log a failed test shows.
const LINES_SHOWN: usize = 60;

/// A directory for one test. Make it before the processes, so that it is dropped after them.
pub(crate) struct Scratch {
    dir: TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let mut dir = tempfile::Builder::new()
            .prefix("miniku-test-")
            .tempdir()
            .expect("a temporary directory");
        dir.disable_cleanup(std::env::var_os("MINIKU_TEST_KEEP").is_some());
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The logs in it, in the order of their names.
    fn logs(&self) -> Vec<(String, String)> {
        let Ok(entries) = fs::read_dir(self.dir.path()) else { return Vec::new() };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        paths.sort();
        let read = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned())
        };
        paths.iter().map(|path| read(path)).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let logs = self.logs();
        if std::thread::panicking() {
            for (name, log) in &logs {
                let lines: Vec<&str> = log.lines().collect();
                let from = lines.len().saturating_sub(LINES_SHOWN);
                println!("---- end of {name}\n{}", lines[from..].join("\n"));
            }
            return;
        }
        // No process may panic, even if the system as a whole got over it.
        for (name, log) in &logs {
            assert!(!log.contains("panicked at"), "a panic in {name}:\n{log}");
        }
    }
}
