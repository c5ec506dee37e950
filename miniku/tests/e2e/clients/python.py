"""What a program does with Python's etcd3 package, against the store at HOST:PORT,HOST:PORT,…

Prints a line for each part that went well. etcd3 speaks to one endpoint; the parts take turns.
The package has no election, no learners, and for hashes at a revision and moving the leader only
what was generated from etcd's definitions.
"""

import io
import sys
import threading

import etcd3

ENDPOINTS = [endpoint.rsplit(":", 1) for endpoint in sys.argv[1].split(",")]


def client(number):
    host, port = ENDPOINTS[number % len(ENDPOINTS)]
    return etcd3.client(host=host, port=int(port), timeout=20)


def same(left, right):
    assert left == right, f"{left!r} is not {right!r}"


def kv(etcd):
    etcd.put("kv/a", "1")
    etcd.put("kv/b", "2")
    value, meta = etcd.get("kv/a")
    same((value, meta.key, meta.version), (b"1", b"kv/a", 1))
    same(etcd.get("kv/missing"), (None, None))
    same([value for value, _ in etcd.get_prefix("kv/")], [b"1", b"2"])
    same([value for value, _ in etcd.get_prefix("kv/", sort_order="descend")], [b"2", b"1"])
    same([value for value, _ in etcd.get_range("kv/a", "kv/b")], [b"1"])
    assert etcd.replace("kv/a", "1", "3") and not etcd.replace("kv/a", "1", "4")
    assert etcd.put_if_not_exists("kv/c", "5") and not etcd.put_if_not_exists("kv/c", "6")
    assert etcd.delete("kv/c") and not etcd.delete("kv/c")
    same(etcd.delete_prefix("kv/").deleted, 2)


def txn(etcd):
    etcd.delete_prefix("txn/")
    etcd.put("txn/a", "1")
    transactions = etcd.transactions
    compare = [transactions.value("txn/a") == "1", transactions.version("txn/b") == 0]
    success = [transactions.put("txn/b", "2"), transactions.get("txn/a")]
    failure = [transactions.delete("txn/a")]
    succeeded, responses = etcd.transaction(compare=compare, success=success, failure=failure)
    assert succeeded
    same(responses[1][0][0], b"1")
    succeeded, _ = etcd.transaction(compare=compare, success=success, failure=failure)
    assert not succeeded
    same(etcd.get("txn/a"), (None, None))


def watch(etcd):
    revision = etcd.put("watch/a", "0").header.revision
    events, cancel = etcd.watch_prefix("watch/", start_revision=revision)
    etcd.put("watch/b", "1")
    etcd.delete("watch/a")
    seen = [next(events) for _ in range(3)]
    same([type(event).__name__ for event in seen], ["PutEvent", "PutEvent", "DeleteEvent"])
    same([event.key for event in seen], [b"watch/a", b"watch/b", b"watch/a"])
    cancel()
    heard = threading.Event()
    watch_id = etcd.add_watch_callback("watch/c", lambda _: heard.set())
    etcd.put("watch/c", "1")
    assert heard.wait(20)
    etcd.cancel_watch(watch_id)


def lease(etcd):
    lease = etcd.lease(600)
    same(lease.granted_ttl, 600)
    etcd.put("lease/a", "1", lease=lease)
    same(list(lease.keys), [b"lease/a"])
    assert 590 < lease.remaining_ttl <= 600
    same([response.TTL for response in lease.refresh()], [600])
    lease.revoke()
    same(etcd.get("lease/a"), (None, None))


def lock(etcd):
    other = client(1)
    with etcd.lock("name", ttl=60) as held:
        assert held.is_acquired()
        assert not other.lock("name", ttl=60).acquire(timeout=1)
    with other.lock("name", ttl=60) as held:
        assert held.is_acquired()


def members(etcd):
    members = list(etcd.members)
    same(len(members), len(ENDPOINTS))
    assert all(member.name and member.client_urls for member in members)
    status = etcd.status()
    assert status.version.startswith("3.") and status.leader.id in {m.id for m in members}
    assert status.db_size > 0
    # Nobody is there: a new member counts once it has caught up.
    added = etcd.add_member(["http://127.0.0.1:1"])
    same(len(list(etcd.members)), len(ENDPOINTS) + 1)
    etcd.update_member(added.id, ["http://127.0.0.1:2"])
    urls = {member.id: list(member.peer_urls) for member in etcd.members}
    same(urls[added.id], ["http://127.0.0.1:2"])
    etcd.remove_member(added.id)
    same(len(list(etcd.members)), len(ENDPOINTS))


def maintenance(etcd):
    same(list(etcd.list_alarms()), [])
    leader = etcd.status().leader.id
    same([alarm.member_id for alarm in etcd.create_alarm(leader)], [leader])
    same([alarm.member_id for alarm in etcd.list_alarms()], [leader])
    same([alarm.member_id for alarm in etcd.disarm_alarm(leader)], [leader])
    same(list(etcd.list_alarms()), [])
    assert etcd.hash() != 0
    revision = etcd.put("compacted", "1").header.revision
    etcd.compact(revision)
    etcd.defragment()
    clients = [client(number) for number in range(len(ENDPOINTS))]
    hash_kv = etcd3.etcdrpc.HashKVRequest(revision=revision)
    hashes = {client.maintenancestub.HashKV(hash_kv, 20).hash for client in clients}
    same(len(hashes), 1)


def snapshot(etcd):
    etcd.put("snapshot/a", "this is in it")
    file = io.BytesIO()
    etcd.snapshot(file)
    database = file.getvalue()
    # Whole pages and a checksum behind them.
    same(len(database) % 512, 32)
    assert b"this is in it" in database


def move_leader(etcd):
    move = etcd3.etcdrpc.MoveLeaderRequest
    for number in range(len(ENDPOINTS)):
        asked = client(number)
        status = asked.maintenancestub.Status(etcd3.etcdrpc.StatusRequest(), 20)
        if status.header.member_id == status.leader:
            target = next(m.id for m in asked.members if m.id != status.leader)
            asked.maintenancestub.MoveLeader(move(targetID=target), 20)
            same(asked.status().leader.id, target)
            return
    raise AssertionError("nobody leads")


PARTS = [kv, txn, watch, lease, lock, members, maintenance, snapshot, move_leader]
for number, part in enumerate(PARTS):
    with client(number) as etcd:
        part(etcd)
    print(part.__name__, flush=True)
