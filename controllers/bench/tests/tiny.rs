//! A run so small that it costs seconds, so that the benchmark works whenever somebody needs it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program to measure: built in the same directory by whoever tests the whole workspace.
fn miniku() -> Option<PathBuf> {
    let miniku = Path::new(env!("CARGO_BIN_EXE_control-plane-bench")).with_file_name("miniku");
    if miniku.exists() {
        return Some(miniku);
    }
    let missing = "there is no miniku: cargo build -p miniku";
    assert!(std::env::var_os("MINIKU_TEST_REQUIRE_ALL").is_none(), "{missing}");
    let _ = writeln!(std::io::stderr(), "skipped: {missing}");
    None
}

fn bench(miniku: &Path, arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/bench-control-plane");
    Command::new(script)
        .args(arguments)
        .env("MINIKU_BIN", miniku)
        .env("MINIKU_BENCH_BIN", env!("CARGO_BIN_EXE_control-plane-bench"))
        .output()
        .unwrap()
}

#[test]
fn a_tiny_run_prints_its_table_and_leaves_nothing_behind() {
    let Some(miniku) = miniku() else { return };
    let dir = tempfile::tempdir().unwrap();
    let size =
        ["--cases", "3:40", "--members", "1", "--sets", "2", "--waiting", "6", "--lone", "3"];
    let output = bench(&miniku, &[&size[..], &["--dir", dir.path().to_str().unwrap()]].concat());
    let table = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{table}{said}");

    let figures = |row: &str| -> Vec<f64> {
        let line = table.lines().find(|line| line.starts_with(&format!("| {row}")));
        let line = line.unwrap_or_else(|| panic!("no row {row:?} in\n{table}"));
        let cell = line.trim_end_matches('|').rsplit('|').next().unwrap();
        cell.split(',').map(|figure| figure.trim().parse().unwrap()).collect()
    };
    for row in ["waiting pods bound", "pods from created to Running", "a lone pod's start"] {
        assert!(figures(row).iter().all(|figure| *figure > 0.0), "{table}");
    }
    for process in ["store:", "apiserver:", "controllers:", "kubelets:"] {
        let [_, mib] = figures(process)[..] else { panic!("{table}") };
        assert!(mib > 1.0, "{table}");
    }

    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the directory is empty again");
    // The members name it in their flags.
    let path = dir.path().to_str().unwrap().as_bytes();
    for process in std::fs::read_dir("/proc").unwrap() {
        let flags = std::fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        let left = flags.windows(path.len()).any(|part| part == path);
        assert!(!left, "still runs: {}", String::from_utf8_lossy(&flags));
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for (arguments, says) in [
        (&["--cases", "1:111"][..], "1 nodes take 110 pods at most"),
        (&["--cases", "many"], "write NODES:PODS"),
        (&["--members", "0"], "--members"),
    ] {
        let output = bench(Path::new("/nonexistent/miniku"), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(says), "{said}");
    }
    let output = bench(Path::new("/nonexistent/miniku"), &["--quick"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--miniku: cannot start"), "{said}");
}
