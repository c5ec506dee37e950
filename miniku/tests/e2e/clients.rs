//! The store as programs use it, through client libraries that others wrote.

use std::path::Path;
use std::process::Command;

use crate::support::prerequisites::leave_out;
use crate::support::scratch::Scratch;
use crate::support::store::Store;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/clients/python.py");
/// etcd3 is no longer kept up; these are what it was made for.
const PACKAGES: [&str; 3] = ["etcd3==0.12.0", "protobuf<=3.20.3", "tenacity==6.3.1"];

/// A Python with the packages, in a directory of its own, or why there is none.
fn python(directory: &Path) -> Result<String, String> {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        let output = output.map_err(|error| format!("{program} cannot be started: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("{program} {arguments:?}: {said}"))
        }
    };
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
    let expected = ["kv", "txn", "watch", "lease", "lock", "members", "maintenance"];
    assert_eq!(parts, expected, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
