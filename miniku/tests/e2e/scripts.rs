//! The scripts that a person plays with: `scripts/cluster` and `scripts/demo-failover`.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::ports::free_shift;
use crate::support::prerequisites::{Need, have};
use crate::support::processes::MINIKU;
use crate::support::scratch::Scratch;

/// The scripts, with a cluster of their own beside any other on this machine.
struct Scripts {
    shift: u16,
    scratch: Scratch,
}

impl Scripts {
    fn new() -> Option<Self> {
        // The scripts talk to the cluster with it.
        have(&[Need::Curl]).then(|| Self { shift: free_shift(), scratch: Scratch::new() })
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Output {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
        Command::new(scripts.join(script))
            .args(arguments)
            .env("MINIKU_BIN", MINIKU)
            .env("MINIKU_CLUSTER_DIR", self.scratch.path("cluster"))
            .env("MINIKU_CLUSTER_PORT_SHIFT", self.shift.to_string())
            .output()
            .expect("the script starts")
    }

    /// Runs `scripts/cluster`; its output, and whether it succeeded.
    fn cluster(&self, arguments: &[&str]) -> (String, bool) {
        let output = self.run("cluster", arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("cluster {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        (said, output.status.success())
    }
}

impl Drop for Scripts {
    fn drop(&mut self) {
        self.cluster(&["stop"]);
    }
}

#[test]
fn a_cluster_is_started_killed_and_restarted_by_name() {
    let Some(scripts) = Scripts::new() else { return };
    let (_, started) = scripts.cluster(&["start", "--nodes", "3", "--runtime", "fake"]);
    assert!(started);
    let (status, all_up) = scripts.cluster(&["status"]);
    assert!(all_up, "{status}");
    assert_eq!(status.lines().filter(|line| line.contains(" up ")).count(), 8, "{status}");
    assert_eq!(status.lines().filter(|line| line.contains(" leader ")).count(), 1, "{status}");
    assert_eq!(status.lines().filter(|line| line.contains(" Ready ")).count(), 3, "{status}");

    let (leader, _) = scripts.cluster(&["leader"]);
    let leader = leader.trim();
    for name in [leader, "apiserver", "controllers", "node-2"] {
        assert!(scripts.cluster(&["kill", name]).1, "{name} can be killed");
        let (status, all_up) = scripts.cluster(&["status"]);
        let row = status.lines().find(|line| line.starts_with(&format!("{name} ")));
        let row = row.unwrap_or_else(|| panic!("{name} has no row in {status}"));
        assert!(!all_up && row.contains(" down "), "{row}");
        assert!(scripts.cluster(&["start", name]).1, "{name} can be started again");
    }
    let (status, all_up) = scripts.cluster(&["status"]);
    assert!(all_up, "{status}");
    assert!(scripts.cluster(&["logs", "controllers"]).1);
    assert!(!scripts.cluster(&["kill", "nobody"]).1, "a name that is none is refused");
    assert!(scripts.cluster(&["stop"]).1);
    assert!(!scripts.cluster(&["status"]).1, "nothing is up");
}

#[test]
fn the_failover_demo_runs_to_its_end() {
    let Some(scripts) = Scripts::new() else { return };
    let output = scripts.run("demo-failover", &["--runtime", "fake", "--image", "i"]);
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{error}");
}
