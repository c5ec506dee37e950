//! A few sequences, as a part of all tests. `scripts/differential` runs many, and longer ones.

use std::process::{Command, Stdio};

#[test]
fn the_store_answers_as_etcd_does() {
    if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
        let missing = "there is no etcd to compare with (Debian: apt-get install etcd-server)";
        assert!(std::env::var_os("MINIKU_TEST_REQUIRE_ALL").is_none(), "{missing}");
        eprintln!("skipped: {missing}");
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_store-differential"))
        .args(["--seeds", "3", "--calls", "300", "--members", "1,3", "--jobs", "4"])
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
}
