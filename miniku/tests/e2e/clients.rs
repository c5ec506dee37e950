//! The store as programs use it, through client libraries that others wrote.

use std::path::Path;
use std::process::Command;

use crate::support::prerequisites::leave_out;
use crate::support::scratch::Scratch;
use crate::support::store::Store;

const CRATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/clients/etcd-client");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/clients/python.py");
/// etcd3 is no longer kept up; these are what it was made for.
const PACKAGES: [&str; 3] = ["etcd3==0.12.0", "protobuf<=3.20.3", "tenacity==6.3.1"];

/// Runs a program to its end, or says why that went wrong.
fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program} cannot be started: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program} {arguments:?}: {said}")) }
}

/// The program over the crate `etcd-client`, or why it cannot be built. It is kept beside the other
/// things that cargo made, so only the first run takes long.
fn rust_program() -> Result<String, String> {
    if run("protoc", &["--version"]).is_err() {
        return Err(
            "there is no protoc: apt-get install protobuf-compiler libprotobuf-dev".to_owned()
        );
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let manifest = format!("{CRATE}/Cargo.toml");
    let target = concat!(env!("CARGO_TARGET_TMPDIR"), "/etcd-client");
    let build = ["build", "--locked", "--quiet", "--manifest-path", &manifest];
    run(&cargo, &[&build[..], &["--target-dir", target]].concat())?;
    Ok(format!("{target}/debug/etcd-client-calls"))
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_client_of_rust() {
    let program = match rust_program() {
        Ok(program) => program,
        Err(reason) => return leave_out(&format!("etcd-client cannot be built: {reason}")),
    };
    let scratch = Scratch::new();
    let store = Store::start(&scratch, 3).await;
    let urls = store.urls();
    let output = Command::new(program).args(urls.split(',')).output().expect("it was just built");
    let said = String::from_utf8_lossy(&output.stdout);
    let parts: Vec<&str> = said.split_whitespace().collect();
    let expected = [
        "kv",
        "txn",
        "watch",
        "lease",
        "lock",
        "election",
        "members",
        "status",
        "snapshot",
        "move_leader",
    ];
    assert_eq!(parts, expected, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A Python with the packages, in a directory of its own, or why there is none.
fn python(directory: &Path) -> Result<String, String> {
    let directory = directory.to_str().expect("a temporary path is UTF-8");
    run("python3", &["-m", "venv", directory])?;
    let python = format!("{directory}/bin/python");
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(&python, &[&install[..], &PACKAGES].concat())?;
    Ok(python)
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd3_of_python() {
    let scratch = Scratch::new();
    let python = match python(&scratch.path("venv")) {
        Ok(python) => python,
        Err(reason) => return leave_out(&format!("Python's etcd3 cannot be installed: {reason}")),
    };
    let store = Store::start(&scratch, 3).await;
    let endpoints = store.urls().replace("http://", "");
    let output = Command::new(python)
        .args([SCRIPT, &endpoints])
        // What the package was generated with cannot be read by today's compiled library.
        .env("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
        .output()
        .expect("it was just installed");
    let said = String::from_utf8_lossy(&output.stdout);
    let parts: Vec<&str> = said.split_whitespace().collect();
    let expected = [
        "kv",
        "txn",
        "watch",
        "lease",
        "lock",
        "members",
        "maintenance",
        "snapshot",
        "move_leader",
    ];
    assert_eq!(parts, expected, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
