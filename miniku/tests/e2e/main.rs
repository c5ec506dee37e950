//! The whole system, seen from outside: real `miniku` processes, a real etcd and its `etcdctl`
//! beside them, real containers. Processes are killed in the middle of their work, and what was
//! promised before must hold after.
//!
//! One binary, so that the harness in `support` is compiled once. Every test has processes, ports
//! and directories of its own and may run beside others; those with containers take turns. A test
//! whose prerequisites are missing says so and passes, unless `MINIKU_TEST_REQUIRE_ALL` is set, as
//! `scripts/test` does.

#![allow(clippy::print_stdout, reason = "the runner shows it when a test fails")]

mod backup;
mod backup_at_size;
mod clients;
mod compaction_at_size;
mod containers;
mod damage;
mod disk_full;
mod etcdctl;
mod etcdctl_of_operators;
mod failover;
mod flat_api;
mod gateway;
mod locks;
mod logs_and_exec;
mod members;
mod metrics;
mod node_lost;
mod on_etcd;
mod read_only_txns;
mod scripts;
mod several_copies;
mod space;
mod support;
mod watch_tails;
mod watchers_at_size;
