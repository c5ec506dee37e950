use serde_json::json;

use super::*;
use crate::runtime::{Mount, MountSource};

fn pod(spec: &serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": spec,
    }))
    .unwrap()
}

fn host(allow_host_access: bool) -> Host {
    let text = |text: &str| text.to_owned();
    Host { cluster: text("c"), node: text("node-1"), ip: text("192.0.2.1"), allow_host_access }
}

fn life(restart_count: u32, crash_streak: u32) -> Life {
    Life { restart_count, crash_streak, ..Life::default() }
}

/// The only container of a pod, as it is made.
fn made(pod: &Pod) -> Result<ContainerSpec, Refusal> {
    check(pod, &host(false))?;
    container_spec(pod, &containers(pod)[0], &host(false), &life(3, 2))
}

#[test]
fn a_full_spec_is_carried_over() {
    let pod = pod(&json!({
        "terminationGracePeriodSeconds": 5,
        "containers": [{
            "name": "main", "image": "registry.example:5000/nginx:1.2",
            "command": ["/bin/sh"], "args": ["-c", "true"], "workingDir": "/tmp",
            "env": [{"name": "A", "value": "1"}, {"name": "B"}],
        }],
    }));
    let spec = made(&pod).unwrap();
    assert_eq!(spec.name, "web");
    let network = Network::Own { hostname: "web".into(), ports: Vec::new(), hosts: Vec::new() };
    assert_eq!(spec.network, network);
    assert_eq!(spec.image, "registry.example:5000/nginx:1.2");
    assert_eq!(spec.command, ["/bin/sh"]);
    assert_eq!(spec.args, ["-c", "true"]);
    assert_eq!(spec.working_dir.as_deref(), Some("/tmp"));
    assert_eq!(spec.env, [("A".into(), "1".into()), ("B".into(), String::new())]);
    let identity = spec.identity;
    assert_eq!((identity.restart_count, identity.crash_streak), (3, 2));
    assert_eq!((identity.grace_seconds, identity.pod_uid.as_str()), (5, "u1"));
}

#[test]
fn engine_names_never_meet() {
    let name = |namespace: &str, name: &str| engine_name(&ObjectKey::namespaced(namespace, name));
    assert_eq!(name("default", "web"), "web");
    assert_eq!(name("default", "w"), "w_default");
    assert_eq!(name("prod", "web"), "web_prod");
    assert_eq!(name("default", "web.prod"), "web.prod");
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let container = json!({"name": "main", "image": "nginx"});
    let with = |extra: serde_json::Value| {
        let mut container = container.clone();
        container.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"containers": [container]})
    };
    let volume = |kind: serde_json::Value| {
        let mut volume = json!({"name": "v"});
        volume.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
        json!({"containers": [container], "volumes": [volume]})
    };
    let table = [
        (json!({"containers": []}), "spec.containers"),
        (json!({"containers": [container], "shareProcessNamespace": true}), "shareProcess"),
        (volume(json!({"configMap": {"name": "c"}})), "spec.volumes[0] (v)"),
        (volume(json!({"emptyDir": {"medium": "HugePages"}})), "emptyDir.medium"),
        (with(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})), "volumeMounts v"),
        (with(json!({"securityContext": {"runAsNonRoot": true}})), "runAsNonRoot"),
        (with(json!({"resources": {"limits": {"memory": "lots"}}})), "resources.limits.memory"),
        (with(json!({"envFrom": [{"prefix": "A"}]})), "envFrom"),
        (with(json!({"env": [{"name": "A", "valueFrom": {}}]})), "valueFrom"),
        (with(json!({"env": [{"name": "A=B"}]})), "A=B"),
        (
            with(
                json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]}),
            ),
            "spec.x",
        ),
        (with(json!({"image": "../../containers"})), "containers[0].image"),
        (with(json!({"image": "nginx latest"})), "image"),
        (with(json!({"image": ""})), "image"),
        (
            json!({"containers": [container], "initContainers": [{"name": "i", "image": ""}]}),
            "spec.initContainers[0].image",
        ),
    ];
    for (spec, field) in table {
        let refused = made(&pod(&spec)).unwrap_err();
        assert!(refused.message.contains(field), "{field}: {}", refused.message);
        assert_ne!(refused.reason, "Blocked", "{field}");
    }
    let access = [
        (json!({"containers": [container], "hostNetwork": true}), "spec.hostNetwork"),
        (json!({"containers": [container], "hostPID": true}), "spec.hostPID"),
        (json!({"containers": [container], "hostIPC": true}), "spec.hostIPC"),
        (volume(json!({"hostPath": {"path": "/etc"}})), "spec.volumes[0].hostPath"),
        (
            with(json!({"securityContext": {"privileged": true}})),
            "spec.containers[0].securityContext.privileged",
        ),
        (
            with(json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}})),
            "securityContext.capabilities.add",
        ),
    ];
    for (spec, field) in access {
        let refused = check(&pod(&spec), &host(false)).unwrap_err();
        assert!(refused.message.contains(field), "{field}: {}", refused.message);
        assert!(refused.message.contains("--allow-host-access"), "{field}");
        assert_eq!(refused.reason, "Blocked", "{field}");
        assert_eq!(check(&pod(&spec), &host(true)), Ok(()), "{field}");
    }
}

#[test]
fn variables_take_each_others_values_and_the_pods() {
    let from = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let mut pod = pod(&json!({
        "nodeName": "node-1",
        "containers": [{
            "name": "main", "image": "nginx",
            "command": ["/bin/$(B)", "$$(A)", "$(NONE) $ $(A"], "args": ["$(A)$(A)"],
            "resources": {"limits": {"memory": "64Mi"}},
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)2"},
                {"name": "A", "value": "3$(LATER)"},
                {"name": "LATER", "value": "x"},
                {"name": "NAME", "valueFrom": from("metadata.name")},
                {"name": "NODE", "valueFrom": from("spec.nodeName")},
                {"name": "APP", "valueFrom": from("metadata.labels['app']")},
                {"name": "HOST", "valueFrom": from("status.hostIP")},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {
                    "resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "GONE", "valueFrom": {"secretKeyRef": {
                    "name": "s", "key": "k", "optional": true}}},
            ],
        }],
    }));
    pod.metadata.labels = Some([("app".to_owned(), "shop".to_owned())].into());
    let spec = made(&pod).unwrap();
    assert_eq!(spec.command, ["/bin/12", "$(A)", "$(NONE) $ $(A"]);
    assert_eq!(spec.args, ["3$(LATER)3$(LATER)"]);
    let env: Vec<String> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let expected = [
        "A=1",
        "B=12",
        "A=3$(LATER)",
        "LATER=x",
        "NAME=web",
        "NODE=node-1",
        "APP=shop",
        "HOST=192.0.2.1",
        "MEM=64",
    ];
    assert_eq!(env, expected);
}

#[test]
fn who_needs_a_sandbox_and_what_all_are_called() {
    let one = json!({"name": "main", "image": "nginx"});
    let asks = json!({"name": "main", "image": "nginx", "env": [
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]});
    let memory = json!([{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]);
    let disk = json!([{"name": "v", "emptyDir": {}}]);
    let table = [
        (json!({"containers": [one]}), false, "web"),
        (json!({"containers": [one], "volumes": disk}), false, "web"),
        (json!({"containers": [one], "hostNetwork": true}), false, "web"),
        (json!({"containers": [one, {"name": "b"}]}), true, "web__main"),
        (json!({"containers": [one, {"name": "b"}], "hostNetwork": true}), false, "web__main"),
        (json!({"containers": [one], "initContainers": [{"name": "i"}]}), true, "web__main"),
        (json!({"containers": [asks]}), true, "web__main"),
        (json!({"containers": [one], "volumes": memory}), true, "web__main"),
    ];
    for (spec, needed, name) in table {
        let pod = pod(&spec);
        assert_eq!(needs_sandbox(&pod), needed, "{spec}");
        let made = container_spec(&pod, &containers(&pod)[0], &host(true), &life(2, 0)).unwrap();
        assert_eq!(made.name, name, "{spec}");
        assert_eq!(retired_name(&made.identity), "web__main__2");
        assert_eq!(sandbox_spec(&pod, String::new(), &host(true), 0, 0).name, "web");
    }
}

#[test]
fn ports_volumes_and_users_are_carried_over() {
    let pod = pod(&json!({
        "securityContext": {"runAsUser": 7, "fsGroup": 9},
        "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["db", "db.local"]}],
        "volumes": [{"name": "data", "emptyDir": {}}, {"name": "etc", "hostPath": {"path": "/etc"}}],
        "containers": [{
            "name": "main", "image": "nginx",
            "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "protocol": "UDP"}],
            "securityContext": {
                "runAsGroup": 8, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
            },
            "volumeMounts": [
                {"name": "data", "mountPath": "/data"},
                {"name": "etc", "mountPath": "/host", "readOnly": true},
            ],
        }],
    }));
    let spec = container_spec(&pod, &containers(&pod)[0], &host(true), &Life::default()).unwrap();
    let Network::Own { ports, hosts, .. } = spec.network else { panic!("{:?}", spec.network) };
    let found: Vec<_> = ports.iter().map(|p| (p.container, p.protocol, p.host)).collect();
    assert_eq!(found, [(80, "tcp", Some(8080)), (53, "udp", None)]);
    assert_eq!(hosts[1], ("db.local".to_owned(), "10.1.2.3".to_owned()));
    assert_eq!(spec.security.user.as_deref(), Some("7:8"));
    assert_eq!(spec.security.groups, ["9"]);
    assert!(spec.security.read_only_root && spec.security.no_new_privileges);
    let data = "web__data__u1";
    assert_eq!(volumes(&pod)[0].name, data);
    let shown = |mount: &Mount| (mount.target.clone(), mount.source.clone(), mount.read_only);
    let mounts: Vec<_> = spec.mounts.iter().map(shown).collect();
    let host_path = MountSource::HostPath { path: "/etc".into(), must_exist: false };
    let expected = [
        ("/data".to_owned(), MountSource::Volume(data.into()), false),
        ("/host".to_owned(), host_path, true),
    ];
    assert_eq!(mounts, expected);
}

#[test]
fn the_deletion_may_shorten_the_grace_period() {
    let mut pod = pod(&json!({"containers": [], "terminationGracePeriodSeconds": 60}));
    assert_eq!(grace_seconds(&pod), 60);
    pod.metadata.deletion_grace_period_seconds = Some(1);
    assert_eq!(grace_seconds(&pod), 1);
    pod.metadata.deletion_grace_period_seconds = None;
    pod.spec.as_mut().unwrap().termination_grace_period_seconds = None;
    assert_eq!(grace_seconds(&pod), DEFAULT_GRACE_SECONDS);
}
