//! A real etcd that is asked the same, through its JSON gateway.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use store_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, LeaseLeasesResponse, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, WatchCreateRequest, WatchRequest, WatchResponse,
    alarm_request::AlarmAction, watch_request::RequestUnion,
};

use super::*;

/// One etcd, empty and alone, that ends when it is dropped.
pub(super) struct Etcd {
    process: Child,
    client_port: u16,
    revision: i64,
    _dir: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    /// Starts one and waits until it answers, for ten seconds at most. `None`, after a word on why,
    /// where there is no etcd and none is required.
    pub(super) fn start() -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            let missing = "there is no etcd to compare with (Debian: apt-get install etcd-server)";
            assert!(std::env::var_os("MINIKU_TEST_REQUIRE_ALL").is_none(), "{missing}");
            eprintln!("skipped: {missing}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (client_port, peer_port) = (free_port(), free_port());
        let url = |port| format!("http://127.0.0.1:{port}");
        // Another process may have got the port in between: only our own etcd has this name.
        let name = format!("golden-{client_port}-{}", std::process::id());
        let process = Command::new("etcd")
            .args(["--name", &name, "--data-dir"])
            .arg(dir.path())
            .args(["--listen-client-urls", &url(client_port)])
            .args(["--advertise-client-urls", &url(client_port)])
            .args(["--listen-peer-urls", &url(peer_port)])
            .args(["--initial-advertise-peer-urls", &url(peer_port)])
            .args(["--initial-cluster", &format!("{name}={}", url(peer_port))])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let etcd = Self { process, client_port, revision: 1, _dir: dir };
        for _ in 0..100 {
            if let Ok(members) = etcd.try_post("cluster/member/list", "{}")
                && members.contains(&name)
            {
                return Some(etcd);
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        panic!("etcd does not answer");
    }

    fn connect(&self, path: &str, body: &str) -> std::io::Result<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.client_port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        // HTTP/1.0: the answer ends with the connection, without chunks.
        write!(stream, "POST /v3/{path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(reader)
    }

    fn try_post(&self, path: &str, body: &str) -> std::io::Result<String> {
        let mut answer = String::new();
        self.connect(path, body)?.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn post<Q, A>(&self, path: &str, request: &Q) -> Result<A, String>
    where
        Q: serde::Serialize,
        A: serde::de::DeserializeOwned,
    {
        let answer = self.try_post(path, &serde_json::to_string(request).unwrap()).unwrap();
        let value: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer}"));
        match value.get("error").and_then(Value::as_str) {
            Some(error) => Err(error.to_owned()),
            None => Ok(serde_json::from_value(value).unwrap()),
        }
    }
}

impl Store for Etcd {
    fn write(&mut self, op: Op) -> Result<Outcome, String> {
        let outcome = match op {
            Op::Put(request) => Outcome::Put(self.post("kv/put", &request)?),
            Op::DeleteRange(request) => {
                Outcome::DeleteRange(self.post("kv/deleterange", &request)?)
            }
            Op::Txn(request) => Outcome::Txn(self.post("kv/txn", &request)?),
            Op::Compaction(request) => Outcome::Compaction(self.post("kv/compaction", &request)?),
            Op::LeaseGrant(request) => Outcome::LeaseGrant(self.post("lease/grant", &request)?),
            Op::LeaseRevoke(request) => Outcome::LeaseRevoke(self.post("lease/revoke", &request)?),
            Op::Alarm(AlarmChange { alarm, raised }) => {
                let Alarm { member_id, alarm, .. } = alarm.unwrap();
                let action = if raised { AlarmAction::Activate } else { AlarmAction::Deactivate };
                let request = AlarmRequest { action: action.into(), member_id, alarm };
                let response: AlarmResponse = self.post("maintenance/alarm", &request)?;
                let cause = Cause::Client.into();
                let changed = response.alarms.first();
                let alarm = changed.map(|one| Alarm { member_id: one.member_id, alarm, cause });
                return Ok(Outcome::Alarm(alarm));
            }
            Op::Publish(_) => unreachable!("scripts publish nothing"),
        };
        self.revision = model::revision_of(&outcome);
        Ok(outcome)
    }

    fn range(&mut self, request: RangeRequest) -> Result<RangeResponse, String> {
        self.post("kv/range", &request)
    }

    fn lease(&mut self, id: i64) -> Result<Option<(i64, Vec<Bytes>)>, String> {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let lease: LeaseTimeToLiveResponse = self.post("lease/timetolive", &request)?;
        let mut keys = lease.keys;
        keys.sort();
        Ok((lease.ttl >= 0).then_some((lease.granted_ttl, keys)))
    }

    fn leases(&mut self) -> Result<Vec<i64>, String> {
        let response: LeaseLeasesResponse = self.post("lease/leases", &serde_json::json!({}))?;
        let mut ids: Vec<i64> = response.leases.iter().map(|lease| lease.id).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    fn history(&mut self, from: i64) -> Result<Vec<Event>, i64> {
        let all = Bytes::from_static(b"\0");
        let create = WatchCreateRequest {
            key: all.clone(),
            range_end: all,
            start_revision: from,
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let body = serde_json::to_string(&request).unwrap();
        let mut lines = self.connect("watch", &body).unwrap().lines();
        let mut events: Vec<Event> = Vec::new();
        let mut is_created = false;
        loop {
            let last = events.last().and_then(|event| event.kv.as_ref());
            if is_created && last.map_or(from - 1, |kv| kv.mod_revision) >= self.revision {
                return Ok(events);
            }
            // It never ends a watch, so what does not come for ten seconds is missing.
            let Some(Ok(line)) = lines.next() else { return Ok(events) };
            let value: Value = serde_json::from_str(&line).unwrap();
            let response: WatchResponse = serde_json::from_value(value["result"].clone()).unwrap();
            if response.canceled {
                return Err(response.compact_revision);
            }
            is_created = true;
            events.extend(response.events);
        }
    }
}
