//! The store under test beside a real etcd: commands run on both and have to say the same.

use serde_json::Value;

use super::etcdctl::{Said, etcdctl_with_input};
use super::prerequisites::{Need, have};
use super::scratch::Scratch;
use super::store::{Kind, Store};

/// The store under test and a real etcd, both fresh.
pub(crate) struct Pair {
    pub(crate) ours: Store,
    pub(crate) etcd: Store,
    // Dropped last: the processes write to it.
    pub(crate) scratch: Scratch,
    pub(crate) etcd_scratch: Scratch,
}

impl Pair {
    /// Three members of ours and one of etcd's; `None` where there is no etcd.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(3).await
    }

    /// The same with so many members of ours.
    pub(crate) async fn start_with(members: usize) -> Option<Self> {
        if !have(&[Need::Etcd, Need::Etcdctl]) {
            return None;
        }
        let (scratch, etcd_scratch) = (Scratch::new(), Scratch::new());
        let ours = Store::start(&scratch, members).await;
        let etcd = Store::start_with(&etcd_scratch, Kind::Etcd, 1, &[]).await;
        Some(Self { ours, etcd, scratch, etcd_scratch })
    }

    /// Runs a command on both; they must say the same.
    pub(crate) fn same(&self, arguments: &[&str]) -> Said {
        self.same_with_input(arguments, "")
    }

    /// The same with something on standard input.
    pub(crate) fn same_with_input(&self, arguments: &[&str], input: &str) -> Said {
        self.same_given(
            |_| arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            input,
        )
    }

    /// The same for arguments that are another's on each, such as lease ids; `true` is ours.
    pub(crate) fn same_given(&self, arguments: impl Fn(bool) -> Vec<String>, input: &str) -> Said {
        let run = |store: &Store, which: bool| {
            let arguments = arguments(which);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            comparable(&etcdctl_with_input(&store.urls(), &arguments, input))
        };
        let (ours, etcd) = (run(&self.ours, true), run(&self.etcd, false));
        assert_eq!(ours, etcd, "left: ours, right: etcd; {:?} {input}", arguments(true));
        ours
    }
}

/// What must be the same: of the errors the sentence at the end, without etcdctl's own log lines;
/// in the output no ids.
fn comparable(said: &Said) -> Said {
    let error: Vec<&str> = said.error.lines().filter(|line| line.starts_with("Error: ")).collect();
    let output: Vec<String> = said.output.lines().map(without_ids).collect();
    let (success, code) = (said.success, said.code);
    Said { success, code, output: output.join("\n"), error: error.join("\n") }
}

/// Words that name a cluster, a member, a term, a lease or a remaining time become one.
fn without_ids(line: &str) -> String {
    if let Ok(mut json) = serde_json::from_str::<Value>(line) {
        drop_ids(&mut json);
        return json.to_string();
    }
    for field in ["ClusterID", "MemberID", "RaftTerm"] {
        if line.starts_with(&format!("\"{field}\"")) {
            return field.to_owned();
        }
    }
    let is_id = |word: &str| word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_remaining = |word: &str| word.starts_with("remaining(");
    let word = |word: &str| match word.trim_end_matches(',') {
        bare if is_id(bare) => "ID".to_owned(),
        bare if is_remaining(bare) => "REMAINING".to_owned(),
        _ => word.to_owned(),
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn drop_ids(json: &mut Value) {
    if let Some(fields) = json.as_object_mut() {
        for id in ["cluster_id", "member_id", "raft_term"] {
            fields.remove(id);
        }
        fields.values_mut().for_each(drop_ids);
    }
}
