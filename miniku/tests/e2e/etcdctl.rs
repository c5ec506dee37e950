//! Debian's etcdctl against the store, the same commands against a real etcd beside it: the
//! outputs are the same but for ids and addresses.

use serde_json::Value;

use crate::support::etcdctl::etcdctl;
use crate::support::pair::Pair;
use crate::support::processes::Process;
use crate::support::scratch::Scratch;
use crate::support::store::Store;
use crate::support::wait::{holds, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn put_get_and_del() {
    let Some(pair) = Pair::start().await else { return };
    for number in 1..=5 {
        pair.same(&["put", &format!("key/{number}"), &format!("value {}", 10 - number)]);
    }
    pair.same(&["put", "key/2", "changed"]);
    pair.same(&["put", "other", ""]);
    pair.same(&["put", "--prev-kv", "other", "new"]);
    pair.same(&["put", "--ignore-value", "other"]);
    pair.same(&["put", "--ignore-value", "nothing"]);
    pair.same(&["put", "--lease=1234", "other", "x"]);

    let said = pair.same(&["get", "key/2"]);
    assert_eq!(said.output, "key/2\nchanged");
    for get in [
        "key/2 -w json",
        "key/2 -w fields",
        "key/2 --print-value-only",
        "missing",
        "missing -w json",
        "key/ --prefix",
        "key/ --prefix --keys-only",
        "key/ --prefix --rev=4",
        "key/ --prefix --rev=4 -w json",
        "key/ --prefix --rev=999",
        "key/ --prefix --limit=2",
        "key/ --prefix --limit=2 -w json",
        "key/ --prefix --order=DESCEND",
        "key/ --prefix --order=DESCEND --limit=2 -w json",
        "key/ --prefix --order=ASCEND --sort-by=VALUE",
        "key/ --prefix --order=DESCEND --sort-by=MODIFY",
        "key/ --prefix --sort-by=VERSION",
        "key/ --prefix --sort-by=CREATE --order=DESCEND",
        "key/2 key/4",
        "key/4 --from-key",
        "key/ --prefix --consistency=s",
        "--prefix= --keys-only",
    ] {
        let arguments: Vec<&str> = ["get"].into_iter().chain(get.split(' ')).collect();
        pair.same(&arguments);
    }
    pair.same(&["get", "", "--prefix", "--keys-only"]);
    pair.same(&["get", ""]);

    pair.same(&["del", "missing"]);
    pair.same(&["del", "key/1"]);
    pair.same(&["del", "--prev-kv", "key/2"]);
    pair.same(&["del", "key/3", "key/4"]);
    pair.same(&["get", "", "--prefix", "-w", "json"]);
    pair.same(&["del", "", "--prefix", "--prev-kv"]);
    pair.same(&["get", "", "--prefix", "-w", "json"]);
    pair.same(&["get", "key/2", "--rev=5"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn txn() {
    let Some(pair) = Pair::start().await else { return };
    pair.same(&["put", "a", "1"]);
    for (compares, success, failure) in [
        ("value(\"a\") = \"1\"", "put b 2\nget a\nget b", "put b 3"),
        ("value(\"a\") = \"2\"", "put b 4", "get b"),
        ("version(\"a\") > \"0\"\nmod(\"a\") < \"100\"", "del a", ""),
        ("create(\"a\") = \"0\"", "put a again\nget a --rev=2", ""),
        ("value(\"missing\") = \"\"", "put yes 1", "put no 1"),
        ("", "get a\nget b", ""),
        ("", "put twice 1\nput twice 2", ""),
        ("", "put both 1\ndel both", ""),
        ("", "get a --rev=999", ""),
    ] {
        let input = format!("{compares}\n\n{success}\n\n{failure}\n\n");
        pair.same_with_input(&["txn"], &input);
        pair.same_with_input(&["txn", "-w", "json"], &input);
    }
    pair.same(&["get", "", "--prefix", "-w", "json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction() {
    let Some(pair) = Pair::start().await else { return };
    for number in 1..=6 {
        pair.same(&["put", "a", &number.to_string()]);
    }
    let said = pair.same(&["compaction", "5"]);
    assert_eq!(said.output, "compacted revision 5");
    pair.same(&["compaction", "5"]);
    pair.same(&["compaction", "999"]);
    pair.same(&["compaction", "word"]);
    pair.same(&["get", "a", "--rev=4"]);
    pair.same(&["get", "a", "--rev=5"]);
    pair.same(&["watch", "a", "--rev=3"]);
    pair.same(&["compaction", "--physical", "7"]);
    pair.same(&["get", "a", "-w", "json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn watch() {
    let Some(pair) = Pair::start().await else { return };
    pair.same(&["put", "before", "1"]);
    pair.same(&["put", "w/1", "old"]);
    let watches = [
        vec!["watch", "v", "x"],
        vec!["watch", "--prefix", "w/", "--rev=2"],
        vec!["watch", "--prefix", "w/", "--rev=3", "--prev-kv"],
        vec!["watch", "w/1", "w/3", "--rev=1", "-w", "json"],
        vec!["watch", "w", "--from-key", "--rev=1"],
    ];
    let start = |store: &Store, scratch: &Scratch| -> Vec<Process> {
        let endpoints = format!("--endpoints={}", store.urls());
        let each = watches.iter().enumerate().map(|(number, arguments)| {
            let arguments = [endpoints.as_str()].into_iter().chain(arguments.iter().copied());
            Process::start(scratch, &format!("watch-{number}"), "etcdctl", arguments)
        });
        each.collect()
    };
    let ours = start(&pair.ours, &pair.scratch);
    let etcd = start(&pair.etcd, &pair.etcd_scratch);
    // The first has no revision to begin at: it has begun when it has seen something.
    for (store, watches) in [(&pair.ours, &ours), (&pair.etcd, &etcd)] {
        wait_for("the watch has begun", async || {
            etcdctl(&store.urls(), &["put", "v", "?"]);
            holds(!watches[0].output().is_empty(), "it has seen nothing")
        })
        .await;
    }
    pair.same(&["put", "w/2", "2"]);
    pair.same_with_input(&["txn"], "\n\nput w/1 new\nput w/3 3\ndel w/2\n\n\n\n");
    pair.same(&["del", "--prefix", "w/"]);
    pair.same(&["put", "w/1", "end"]);

    for ((ours, etcd), arguments) in ours.iter().zip(&etcd).zip(&watches) {
        let seen = |watch: &Process| {
            let output = watch.output();
            let lines: Vec<String> = output.lines().flat_map(without_chance).collect();
            // How often the first put was tried until it was seen is chance.
            lines.join("\n").replace("PUT\nv\n?\n", "")
        };
        wait_for(&format!("{arguments:?} sees the same"), async || {
            let (ours, etcd) = (seen(ours), seen(etcd));
            let complete = ours.contains("end") || ours.contains("ZW5k");
            holds(complete && ours == etcd, format!("ours saw\n{ours}\netcd saw\n{etcd}"))
        })
        .await;
    }
}

/// A watch's line without what is chance in this test: ids, the revisions, which depend on how
/// often the beginning was tried, and how many revisions one answer brings.
fn without_chance(line: &str) -> Vec<String> {
    let json: Value = serde_json::from_str(line).unwrap_or_default();
    let Some(events) = json["Events"].as_array() else { return vec![line.to_owned()] };
    let without_revisions = |event: &Value| {
        let mut event = event.clone();
        if let Some(pair) = event["kv"].as_object_mut() {
            pair.remove("mod_revision");
            pair.remove("create_revision");
        }
        event.to_string()
    };
    events.iter().map(without_revisions).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lease() {
    let Some(pair) = Pair::start().await else { return };
    let grant = |store: &Store, ttl: &str| {
        let said = etcdctl(&store.urls(), &["lease", "grant", ttl]);
        assert!(said.success, "{}", said.error);
        let words: Vec<&str> = said.output.split_whitespace().collect();
        assert_eq!((words[0], words[2]), ("lease", "granted"), "{}", said.output);
        assert_eq!(words[4], format!("TTL({ttl}s)"));
        words[1].to_owned()
    };
    let (ours, etcd) = (grant(&pair.ours, "600"), grant(&pair.etcd, "600"));
    let with_id = |arguments: &'static str| {
        let (ours, etcd) = (ours.clone(), etcd.clone());
        move |which: bool| -> Vec<String> {
            let id = if which { &ours } else { &etcd };
            arguments.split(' ').map(|argument| argument.replace("ID", id)).collect()
        }
    };
    pair.same_given(with_id("put --lease=ID leased/1 x"), "");
    pair.same(&["put", "--ignore-lease", "leased/1", "z"]);
    let said = pair.same_given(with_id("lease timetolive ID"), "");
    assert_eq!(said.output, "lease ID granted with TTL(600s), REMAINING");
    // With several keys etcd tells them in any order.
    let said = pair.same_given(with_id("lease timetolive ID --keys"), "");
    assert!(said.output.ends_with(" attached keys([leased/1])"), "{}", said.output);
    pair.same_given(with_id("put --lease=ID leased/2 y"), "");
    pair.same_given(with_id("lease keep-alive --once ID"), "");
    let said = pair.same(&["lease", "list"]);
    assert!(said.output.starts_with("found 1 leases"), "{}", said.output);
    pair.same_given(with_id("lease revoke ID"), "");
    pair.same(&["get", "leased/", "--prefix", "-w", "json"]);
    pair.same_given(with_id("lease revoke ID"), "");
    pair.same_given(with_id("lease timetolive ID"), "");
    pair.same_given(with_id("lease keep-alive --once ID"), "");
    pair.same(&["lease", "grant", "9000000001"]);

    // One that is kept alive stays, one that is not goes, its key with it.
    let (kept, left) = (grant(&pair.ours, "2"), grant(&pair.ours, "2"));
    let urls = pair.ours.urls();
    let endpoints = format!("--endpoints={urls}");
    let _keeper = Process::start(
        &pair.scratch,
        "keep-alive",
        "etcdctl",
        [&endpoints, "lease", "keep-alive", &kept],
    );
    etcdctl(&urls, &["put", &format!("--lease={kept}"), "kept", "1"]);
    etcdctl(&urls, &["put", &format!("--lease={left}"), "left", "1"]);
    wait_for("the lease expires", async || {
        holds(etcdctl(&urls, &["get", "left"]).output.is_empty(), "its key is there")
    })
    .await;
    assert_eq!(etcdctl(&urls, &["get", "kept"]).output, "kept\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_and_endpoints() {
    let Some(pair) = Pair::start().await else { return };
    let urls = pair.ours.urls();

    let said = etcdctl(&urls, &["member", "list"]);
    assert!(said.success, "{}", said.error);
    let mut lines: Vec<&str> = said.output.lines().collect();
    lines.sort_unstable_by_key(|line| line.split(", ").nth(2).map(str::to_owned));
    assert_eq!(lines.len(), 3, "{}", said.output);
    for (line, member) in lines.iter().zip(&pair.ours.members) {
        let [id, state, name, _peer_url, client_url, learner] =
            line.split(", ").collect::<Vec<_>>().try_into().expect("six columns");
        assert!(u64::from_str_radix(id, 16).is_ok_and(|id| id != 0), "{line}");
        assert_eq!((state, learner), ("started", "false"), "{line}");
        assert_eq!(name, member.process.name);
        assert_eq!(client_url, member.client_url);
    }

    let said = etcdctl(&urls, &["endpoint", "health"]);
    assert!(said.success, "{}", said.error);
    // etcdctl 3.4 reports on standard error or output, by release.
    let report = format!("{}{}", said.output, said.error);
    for member in &pair.ours.members {
        let healthy = format!("{} is healthy", member.client_url);
        assert!(report.contains(&healthy), "{report}");
    }

    let said = etcdctl(&urls, &["endpoint", "status", "-w", "json"]);
    assert!(said.success, "{}", said.error);
    let statuses: Value = serde_json::from_str(&said.output).expect("JSON");
    let statuses = statuses.as_array().expect("a list");
    assert_eq!(statuses.len(), 3);
    let leader = &statuses[0]["Status"]["leader"];
    let own_id = |status: &Value| status["Status"]["header"]["member_id"].clone();
    assert_eq!(statuses.iter().filter(|status| own_id(status) == *leader).count(), 1, "one leads");
    for status in statuses {
        assert_eq!(status["Status"]["leader"], *leader, "all know it");
        let version = status["Status"]["version"].as_str().expect("a version");
        let digits_and_dots = |byte: u8| byte.is_ascii_digit() || byte == b'.';
        assert!(version.starts_with("3.") && version.bytes().all(digits_and_dots), "{version}");
    }
    let said = etcdctl(&urls, &["endpoint", "status"]);
    assert_eq!(said.output.lines().filter(|line| line.contains(", true, false, ")).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_output() {
    let Some(pair) = Pair::start().await else { return };
    for key in ["a", "b", "c"] {
        pair.same(&["put", key, &format!("value of {key}")]);
    }
    for command in [
        "get a -w simple",
        "get a -w fields",
        "get a -w json",
        "get a -w table",
        "get a -w nonsense",
        "get a --hex",
        "get a --prefix --print-value-only --keys-only",
        "get a --prefix --from-key",
        "get a --sort-by=NONSENSE",
        "get a --order=NONSENSE",
        "get a --consistency=x",
        "get a c --keys-only -w json",
        "get a z --limit=1 -w fields",
        "get a z --rev=3 -w fields",
        "get a --command-timeout=5s",
        "put x y -w json",
        "put x y -w fields",
        "put x y --prev-kv -w json",
        "put x y --prev-kv -w fields",
        "put x",
        "put x y --lease=zzz",
        "del b -w json",
        "del nothing -w fields",
        "del c --prev-kv -w fields",
        "del",
        "compaction 2 -w json",
        "lease list -w json",
        "lease timetolive 4711 -w json",
        "lease timetolive 4711 -w fields",
        "lease timetolive zzz",
        "lease revoke zzz",
        "lease grant zzz",
        "lease keep-alive zzz",
        "alarm list",
        "alarm disarm",
        "nonsense",
    ] {
        let arguments: Vec<&str> = command.split(' ').collect();
        pair.same(&arguments);
    }
    for format in ["simple", "json", "fields"] {
        pair.same_with_input(&["txn", "-w", format], "\n\nget a\nput b 1\ndel b\n\n\n\n");
    }
    pair.same_with_input(&["txn", "-i"], "value(\"a\") = \"x\"\n\nget x\n\nget a\n\n");
    pair.same_with_input(&["txn", "-i"], "nonsense\n\n");
    pair.same_with_input(&["put", "from-input"], "a value\non two lines");
    pair.same(&["get", "from-input"]);
    // The ids are in it, so only its shape can be compared.
    let lengths = [&pair.ours, &pair.etcd].map(|store| {
        let said = etcdctl(&store.urls(), &["get", "a", "-w", "protobuf"]);
        assert!(said.success, "{}", said.error);
        said.output.contains("value of a")
    });
    assert_eq!(lengths, [true, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_and_elect() {
    let Some(pair) = Pair::start().await else { return };
    pair.same(&["lock", "l", "echo", "held"]);
    pair.same(&["lock", "l", "--ttl=5", "sh", "-c", "exit 3"]);
    pair.same(&["lock"]);
    pair.same(&["elect"]);
    pair.same(&["elect", "-l"]);
    let urls = pair.ours.urls();
    let endpoints = format!("--endpoints={urls}");
    let start = |name: &str, arguments: &[&str]| {
        let arguments = [endpoints.as_str()].into_iter().chain(arguments.iter().copied());
        Process::start(&pair.scratch, name, "etcdctl", arguments)
    };
    let held = start("lock-1", &["lock", "name"]);
    wait_for("the first has the lock", async || {
        holds(held.output().starts_with("name/"), held.output())
    })
    .await;
    let waiting = start("lock-2", &["lock", "name"]);
    wait_for("the second waits", async || {
        let queue = etcdctl(&urls, &["get", "--prefix", "name/", "--keys-only"]).output;
        holds(queue.split_whitespace().count() == 2, queue)
    })
    .await;
    assert_eq!(waiting.output(), "");
    held.signal(rustix::process::Signal::INT);
    wait_for("the second has the lock", async || {
        holds(waiting.output().starts_with("name/"), waiting.output())
    })
    .await;

    let mut leader = start("elect-1", &["elect", "e", "one"]);
    wait_for("the first leads", async || {
        holds(leader.output().ends_with("\none\n"), leader.output())
    })
    .await;
    let next = start("elect-2", &["elect", "e", "two"]);
    let observer = start("elect-3", &["elect", "-l", "e"]);
    wait_for("the leader is observed", async || {
        holds(observer.output().contains("\none\n"), observer.output())
    })
    .await;
    assert_eq!(next.output(), "");
    leader.signal(rustix::process::Signal::INT);
    leader.ended().await;
    wait_for("the second leads and is observed", async || {
        let (next, observer) = (next.output(), observer.output());
        holds(
            next.ends_with("\ntwo\n") && observer.contains("\ntwo\n"),
            format!("{next} {observer}"),
        )
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_and_endpoints() {
    let Some(pair) = Pair::start().await else { return };
    // Into ours from etcd, and from ours into etcd under another prefix.
    let mirror = |name: &str, from: &Store, to: &Store, prefix: &str, as_prefix: &str| {
        let to = to.members[0].client_url.trim_start_matches("http://").to_owned();
        let arguments = [
            format!("--endpoints={}", from.urls()),
            "make-mirror".to_owned(),
            format!("--prefix={prefix}"),
            format!("--dest-prefix={as_prefix}"),
            to,
        ];
        Process::start(&pair.scratch, name, "etcdctl", arguments)
    };
    etcdctl(&pair.etcd.urls(), &["put", "from-etcd/1", "x"]);
    etcdctl(&pair.ours.urls(), &["put", "from-ours/1", "x"]);
    let _mirrors = [
        mirror("mirror-1", &pair.etcd, &pair.ours, "from-etcd/", "from-etcd/"),
        mirror("mirror-2", &pair.ours, &pair.etcd, "from-ours/", "there/"),
    ];
    wait_for("what is there is mirrored", async || {
        let ours = etcdctl(&pair.ours.urls(), &["get", "from-etcd/1"]).output;
        let etcd = etcdctl(&pair.etcd.urls(), &["get", "there/1"]).output;
        holds(!ours.is_empty() && !etcd.is_empty(), "not yet")
    })
    .await;
    etcdctl(&pair.etcd.urls(), &["put", "from-etcd/2", "y"]);
    etcdctl(&pair.etcd.urls(), &["del", "from-etcd/1"]);
    etcdctl(&pair.ours.urls(), &["put", "from-ours/2", "y"]);
    etcdctl(&pair.ours.urls(), &["del", "from-ours/1"]);
    wait_for("what changes is mirrored", async || {
        let ours = etcdctl(&pair.ours.urls(), &["get", "--prefix", "from-etcd/"]).output;
        let etcd = etcdctl(&pair.etcd.urls(), &["get", "--prefix", "there/"]).output;
        holds(ours == "from-etcd/2\ny\n" && etcd == "there/2\ny\n", format!("{ours}{etcd}"))
    })
    .await;

    let urls = pair.ours.urls();
    for arguments in [
        &["endpoint", "hashkv"][..],
        &["endpoint", "hashkv", "-w", "json"],
        &["endpoint", "hashkv", "-w", "table"],
        &["endpoint", "status", "-w", "table"],
        &["endpoint", "status", "-w", "fields"],
        &["endpoint", "health", "-w", "json"],
        &["endpoint", "health", "--cluster"],
        &["member", "list", "-w", "json"],
        &["member", "list", "-w", "fields"],
        &["member", "list", "-w", "table"],
        &["defrag"],
    ] {
        let said = etcdctl(&urls, arguments);
        assert!(said.success, "{arguments:?}: {}", said.error);
    }
    let hashes = etcdctl(&urls, &["endpoint", "hashkv"]).output;
    let hashes: Vec<&str> = hashes.lines().filter_map(|line| line.split(", ").nth(1)).collect();
    assert_eq!(hashes.len(), 3);
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    // One that is not there: the others are told all the same, and the exit code says so.
    let with_nobody = format!("{urls},http://127.0.0.1:1");
    for arguments in [["endpoint", "health"], ["endpoint", "status"]] {
        let said = etcdctl(&with_nobody, &arguments);
        assert_eq!(said.code, Some(1), "{arguments:?}: {}{}", said.output, said.error);
    }
}
