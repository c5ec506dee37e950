//! The commands of Debian's etcdctl by which people look after a store, against ours and a real etcd,
//! one member each: endpoints, snapshots, leases, checks, users. The outputs are the same but for
//! addresses, ids, and what is measured.

use std::process::Command;

use crate::support::etcdctl::{Said, etcdctl};
use crate::support::pair::Pair;
use crate::support::prerequisites::{Need, have};
use crate::support::processes::Process;
use crate::support::scratch::Scratch;
use crate::support::store::Store;
use crate::support::wait::{holds, wait_for};

/// What is said by a single member, with all ids and numbers as one letter each.
fn shape(text: &str) -> String {
    // Tables are as wide as what is in them.
    let no_rule = |line: &&str| !line.starts_with("+-");
    let words =
        |line: &str| line.split_whitespace().map(shape_of_word).collect::<Vec<_>>().join(" ");
    text.lines().filter(no_rule).map(words).collect::<Vec<_>>().join("\n")
}

fn shape_of_word(word: &str) -> String {
    let bare = word.trim_end_matches(',');
    // Ids and hashes, which are not padded; and a word such as "added", on both sides alike.
    if bare.len() >= 3 && bare.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return word.replace(bare, "N");
    }
    let mut shape = String::new();
    for letter in word.chars() {
        let is_number = letter.is_ascii_digit() || letter == '.';
        // Ids that are not padded, and units of time.
        let goes_on = shape.ends_with('N')
            && (is_number || matches!(letter, 'a'..='f' | 'm' | 's' | '\u{b5}'));
        if !goes_on {
            shape.push(if is_number { 'N' } else { letter });
        }
    }
    shape
}

/// Runs the same on both; the exit codes and the shapes must be equal.
fn same_shape(pair: &Pair, arguments: &[&str]) -> [Said; 2] {
    let said = [&pair.ours, &pair.etcd].map(|store| etcdctl(&store.urls(), arguments));
    let errors = |said: &Said| {
        let lines = said.error.lines().filter(|line| !line.starts_with('{'));
        lines.map(shape).collect::<Vec<_>>().join("\n")
    };
    let [ours, etcd] = &said;
    let comparable = |said: &Said| (said.code, shape(&said.output), errors(said));
    assert_eq!(comparable(ours), comparable(etcd), "left: ours, right: etcd; {arguments:?}");
    said
}

fn words(command: &str) -> Vec<&str> {
    command.split(' ').collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_and_their_hashes() {
    let Some(pair) = Pair::start_with(1).await else { return };
    for number in 0..20 {
        pair.same(&["put", &format!("key/{}", number % 7), &format!("value {number}")]);
    }
    pair.same(&["del", "key/3"]);
    for command in [
        "endpoint hashkv",
        "endpoint hashkv --rev=9",
        "endpoint hashkv -w json --rev=9",
        "endpoint hashkv --rev=999",
        "endpoint hashkv --cluster",
    ] {
        let [ours, etcd] = same_shape(&pair, &words(command));
        let hash = |said: &Said| said.output.split(", ").nth(1).map(str::to_owned);
        assert_eq!(hash(&ours), hash(&etcd), "{command}: the history is the same, so is its hash");
    }
    pair.same(&["compaction", "12"]);
    for command in [
        "endpoint hashkv",
        "endpoint hashkv --rev=9",
        "endpoint hashkv --rev=15",
        "endpoint health",
        "endpoint health --cluster",
        "endpoint health -w json",
        "endpoint status",
        "endpoint status --cluster",
        "endpoint status -w fields",
        "endpoint status -w table",
        "defrag",
        "defrag --cluster",
        "member list",
        "member list -w table",
        "member list -w fields",
        "alarm list",
        "alarm disarm -w json",
        "move-leader",
        "move-leader zzz",
        "move-leader 1",
        "member promote 1",
        "member remove zzz",
        "member update 1 --peer-urls=http://127.0.0.1:1",
        "member add nobody",
        "check perf --load=nonsense",
        "check datascale --load=nonsense",
        "snapshot status nowhere",
        "snapshot save",
        "endpoint",
        "version",
    ] {
        same_shape(&pair, &words(command));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots() {
    let Some(pair) = Pair::start_with(1).await else { return };
    for number in 0..20 {
        pair.same(&["put", &format!("key/{number}"), "x"]);
    }
    let path = |scratch: &Scratch| {
        scratch.path("backup.db").to_str().expect("a temporary path is UTF-8").to_owned()
    };
    let paths = (path(&pair.scratch), path(&pair.etcd_scratch));
    let with_path = |command: &'static str| {
        let paths = paths.clone();
        move |which: bool| -> Vec<String> {
            let path = if which { &paths.0 } else { &paths.1 };
            words(command).iter().map(|word| word.replace("FILE", path)).collect()
        }
    };
    let run = |command: &'static str| {
        let said = [(&pair.ours, true), (&pair.etcd, false)].map(|(store, which)| {
            let arguments = with_path(command)(which);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            etcdctl(&store.urls(), &arguments)
        });
        let without_path =
            |said: &Said| shape(&said.output.replace(&paths.0, "FILE").replace(&paths.1, "FILE"));
        assert_eq!(without_path(&said[0]), without_path(&said[1]), "{command}");
        assert_eq!(said[0].code, said[1].code, "{command}");
        said
    };
    run("snapshot save FILE");
    for command in
        ["snapshot status FILE", "snapshot status FILE -w table", "snapshot status FILE -w fields"]
    {
        run(command);
    }
    let [ours, etcd] = run("snapshot status FILE -w json");
    let field = |said: &Said, name: &str| {
        let status: serde_json::Value = serde_json::from_str(&said.output).expect("JSON");
        status[name].clone()
    };
    assert_eq!(field(&ours, "revision"), field(&etcd, "revision"));
    assert!(field(&ours, "totalKey").as_u64() >= Some(20));
    // Of several members one has to be chosen.
    let twice = format!("{0},{0}", pair.ours.urls());
    let said = etcdctl(&twice, &["snapshot", "save", &paths.0]);
    assert!(
        said.error.contains("snapshot must be requested to one selected node"),
        "{}",
        said.error
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_in_every_form() {
    let Some(pair) = Pair::start_with(1).await else { return };
    let [ours, etcd] = same_shape(&pair, &["lease", "grant", "600"]);
    let id = |said: &Said| said.output.split(' ').nth(1).expect("an id").to_owned();
    let ids = (id(&ours), id(&etcd));
    for command in [
        "put --lease=ID a 1",
        "lease timetolive ID -w json",
        "lease timetolive ID -w fields",
        "lease timetolive ID --keys -w json",
        "lease timetolive ID --keys -w fields",
        "lease keep-alive --once ID -w json",
        "lease keep-alive --once ID -w fields",
        "lease list -w json",
        "lease list -w fields",
        "lease list -w table",
        "get a -w json",
        "get a -w fields",
        "lease revoke ID -w json",
        "lease revoke ID -w json",
        "get a -w json",
    ] {
        let said = [(&pair.ours, &ids.0), (&pair.etcd, &ids.1)].map(|(store, id)| {
            let decimal = i64::from_str_radix(id, 16).expect("hexadecimal").to_string();
            let arguments: Vec<String> =
                words(command).iter().map(|word| word.replace("ID", id)).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let said = etcdctl(&store.urls(), &arguments);
            let same = |text: &str| shape(&text.replace(&decimal, "ID").replace(id.as_str(), "ID"));
            let errors: Vec<String> =
                said.error.lines().filter(|line| line.starts_with("Error")).map(same).collect();
            (said.code, same(&said.output), errors)
        });
        assert_eq!(said[0], said[1], "left: ours, right: etcd; {command}");
    }
    for command in [
        "lease grant 600 -w json",
        "lease grant 600 -w fields",
        "lease grant 0",
        "lease grant -- -1",
    ] {
        same_shape(&pair, &words(command));
    }
}

/// Without authentication people may ask for users and roles. Adding some is not there yet, and
/// etcdctl's exit code says so.
#[tokio::test(flavor = "multi_thread")]
async fn users_and_roles_of_a_store_without_any() {
    let Some(pair) = Pair::start_with(1).await else { return };
    for command in [
        "user list",
        "user list -w json",
        "user get nobody",
        "user delete nobody",
        "user grant-role nobody nothing",
        "user revoke-role nobody nothing",
        "role list",
        "role list -w json",
        "role get nothing",
        "role delete nothing",
        "role grant-permission nothing read a",
        "role revoke-permission nothing a",
        "auth disable",
        "auth enable",
        "get a --user=root:wrong",
    ] {
        same_shape(&pair, &words(command));
    }
    for command in ["user add somebody:secret", "role add something"] {
        let said = etcdctl(&pair.ours.urls(), &words(command));
        assert!(!said.success && said.error.contains("cannot be added yet"), "{}", said.error);
    }
}

/// A watch that runs a program for each event, and one that is told what to watch as it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn watches_that_run_programs_and_take_commands() {
    let Some(pair) = Pair::start_with(1).await else { return };
    pair.same(&["put", "w", "1"]);
    pair.same(&["put", "w", "2"]);
    pair.same(&["del", "w"]);
    let run = "echo $ETCD_WATCH_REVISION $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE";
    let programs = |store: &Store, scratch: &Scratch| -> Vec<Process> {
        let endpoints = format!("--endpoints={}", store.urls());
        let watch = |name: &str, arguments: &[&str]| {
            let arguments = [endpoints.as_str()].into_iter().chain(arguments.iter().copied());
            Process::start(scratch, name, "etcdctl", arguments)
        };
        // It reads until the pipe's last writer is gone, and the shell holds it open.
        let pipe = scratch.path("commands");
        let pipe = pipe.to_str().expect("a temporary path is UTF-8");
        let made = Command::new("mkfifo").arg(pipe).status().expect("mkfifo starts");
        assert!(made.success());
        let interactive = format!("exec etcdctl {endpoints} watch -i <>{pipe}");
        let interactive = Process::start(scratch, "interactive", "sh", ["-c", &interactive]);
        let commands = "watch w --rev=1\nwatch --prefix x --rev=1 -- echo seen\n";
        std::fs::write(pipe, commands).expect("somebody reads");
        vec![
            watch("exec", &["watch", "w", "--rev=1", "--", "sh", "-c", run]),
            watch("prev-kv", &["watch", "--prefix", "--prev-kv", "--rev=1", "w"]),
            watch("hex", &["watch", "w", "--rev=1", "--hex"]),
            watch("fields", &["watch", "w", "--rev=1", "-w", "fields"]),
            interactive,
        ]
    };
    let ours = programs(&pair.ours, &pair.scratch);
    let etcd = programs(&pair.etcd, &pair.etcd_scratch);
    for (ours, etcd) in ours.iter().zip(&etcd) {
        wait_for(&format!("{} sees the same", ours.name), async || {
            let seen = |process: &Process| {
                let ids = ["\"ClusterID\"", "\"MemberID\"", "\"RaftTerm\""];
                let output = process.output();
                let same = output.lines().filter(|line| !ids.iter().any(|id| line.starts_with(id)));
                same.collect::<Vec<_>>().join("\n")
            };
            let (ours, etcd) = (seen(ours), seen(etcd));
            let is_complete = ours.matches("DELETE").count() > 0;
            holds(is_complete && ours == etcd, format!("ours saw\n{ours}\netcd saw\n{etcd}"))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_datascale() {
    let Some(pair) = Pair::start_with(1).await else { return };
    let check = ["check", "datascale", "--auto-compact", "--auto-defrag", "--command-timeout=60s"];
    for store in [&pair.ours, &pair.etcd] {
        let said = etcdctl(&store.urls(), &check);
        let report = said.output.lines().find(|line| line.contains("Approximate"));
        assert_eq!(said.code, Some(0), "{}{}", said.output, said.error);
        assert!(report.is_some_and(|line| line.contains("PASS")), "{}", said.output);
        let left = etcdctl(
            &store.urls(),
            &["get", "--prefix", "/etcdctl-check-datascale/", "--keys-only"],
        );
        assert_eq!(left.output, "");
    }
}

/// etcd's own measure of whether a cluster is fast enough for many clients.
///
/// ```console
/// $ cargo test --release -p miniku --test e2e -- --ignored check_perf --nocapture
/// ```
#[ignore = "a measurement that takes a minute"]
#[tokio::test(flavor = "multi_thread")]
async fn check_perf() {
    if !have(&[Need::Etcdctl]) {
        return;
    }
    let scratch = Scratch::new();
    let store = Store::start(&scratch, 3).await;
    let check = ["check", "perf", "--load=m", "--auto-compact", "--auto-defrag"];
    let said = etcdctl(&store.urls(), &check);
    let lines = |text: &str| {
        let is_result = |line: &&str| line.contains("PASS") || line.contains("FAIL");
        text.lines().filter(is_result).map(str::to_owned).collect::<Vec<_>>()
    };
    let results = lines(&said.output);
    println!("{}", results.join("\n"));
    assert_eq!(said.code, Some(0), "{}{}", said.output, said.error);
    assert!(!results.is_empty() && results.iter().all(|line| line.contains("PASS")), "{results:?}");
}
