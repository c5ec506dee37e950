//! Which crate may know which: the arrows of the design, held by the build's own description, so
//! that a dependency added in a hurry is noticed. And what no file of the project may hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Each crate with the crates of the project that it is built from. Nothing else is allowed.
const ARROWS: [(&str, &[&str]); 13] = [
    ("miniku", &["apiserver", "controllers", "kubelet", "store"]),
    ("control-plane-bench", &["store-bench", "store-client"]),
    ("apiserver", &["api"]),
    ("controllers", &["api"]),
    ("kubelet", &["api"]),
    ("api", &["store-client"]),
    ("store-client", &["store-proto"]),
    ("store-differential", &["store", "store-proto"]),
    ("store", &["store-proto", "store-transport"]),
    ("store-bench", &["store-proto", "store-transport"]),
    ("store-proto", &[]),
    ("store-transport", &[]),
    // In the place of a crate of openraft's.
    ("base2histogram", &[]),
];

/// Libraries that only these crates may touch, so that others can take their place some day.
const CONFINED: [(&str, &[&str]); 4] = [
    ("openraft", &["store"]),
    ("sled", &["store"]),
    ("bollard", &["kubelet"]),
    ("axum", &["apiserver", "kubelet", "store"]),
];

type Graph = BTreeMap<String, BTreeSet<String>>;

#[test]
fn crates_depend_on_each_other_as_designed() {
    let designed: Graph = ARROWS
        .iter()
        .map(|(from, to)| ((*from).to_owned(), to.iter().map(|to| (*to).to_owned()).collect()))
        .collect();
    let found = dependencies(|kind| kind != Some("dev"));
    let inside: Graph = found
        .into_iter()
        .map(|(from, to)| (from, to.into_iter().filter(|to| designed.contains_key(to)).collect()))
        .collect();
    assert_eq!(inside, designed);
}

#[test]
fn tests_depend_on_nothing_above_them() {
    let below = reachable();
    for (from, to) in dependencies(|kind| kind == Some("dev")) {
        // A crate's own tests may ask for it once more, with a feature for tests.
        for to in to.iter().filter(|to| below.contains_key(*to) && **to != from) {
            assert!(below[&from].contains(to), "the tests of {from} depend on {to}");
        }
    }
}

#[test]
fn libraries_stay_where_they_may_be_exchanged() {
    for (from, to) in dependencies(|kind| kind != Some("dev")) {
        for (library, allowed) in CONFINED {
            assert!(
                !to.contains(library) || allowed.contains(&from.as_str()),
                "{from} depends on {library}, which belongs into {allowed:?}"
            );
        }
    }
}

/// Paths of somebody's machine mean nothing on another.
#[test]
fn no_file_names_a_home_directory() {
    // Put together here so that this file does not name them.
    let homes = ["home", "Users", "root"].map(|parent| format!("/{parent}/"));
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let Some(listed) = listed.ok().filter(|output| output.status.success()) else {
        eprintln!("not a git work tree: the files are not looked at");
        return;
    };
    let files = String::from_utf8(listed.stdout).expect("file names are UTF-8");
    for file in files.split('\0').filter(|file| !file.is_empty()) {
        let Ok(text) = std::fs::read_to_string(root().join(file)) else { continue };
        for (number, line) in text.lines().enumerate() {
            for home in &homes {
                assert!(!line.contains(home), "{file}:{}: {line}", number + 1);
            }
        }
    }
}

/// All crates below each crate, however far.
fn reachable() -> Graph {
    let mut below = Graph::new();
    // The arrows are listed from the top down.
    for (from, to) in ARROWS.iter().rev() {
        let mut all = BTreeSet::new();
        for to in *to {
            all.insert((*to).to_owned());
            all.extend(below[*to].iter().cloned());
        }
        below.insert((*from).to_owned(), all);
    }
    below
}

/// The direct dependencies of every crate of the workspace whose kind (`None`: normal, or "build",
/// "dev") is wanted.
fn dependencies(wanted: impl Fn(Option<&str>) -> bool) -> Graph {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo speaks JSON");
    let array = |value: &Value| value.as_array().cloned().expect("an array");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    array(&metadata["packages"])
        .iter()
        .map(|package| {
            let direct = array(&package["dependencies"])
                .iter()
                .filter(|dependency| wanted(dependency["kind"].as_str()))
                .map(name)
                .collect();
            (name(package), direct)
        })
        .collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}
