//! `miniku up` and a person with curl: the session of the README to the letter, and what a mistake
//! gets for an answer.

use crate::support::control_plane::Up;
use crate::support::flat::{pods_are_gone, pods_run, replicaset, spread};
use crate::support::http::{Answer, Http};
use crate::support::scratch::Scratch;
use crate::support::wait::{holds, wait_for};

const NGINX: &str = r#"{"name":"nginx","desiredCount":4,"selector":{"app":"nginx"},"template":{"image":"nginx:latest"}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_session_of_the_readme() {
    let scratch = Scratch::new();
    let mut up = Up::start(&scratch, "fake").await;

    let created = up.api.post("/replicasets", NGINX).await;
    assert_eq!(created.status, 201);
    assert_eq!(created.content_type, "application/json");
    assert_eq!(
        created.body.trim_end(),
        r#"{"name":"nginx","desiredCount":4,"currentCount":0,"selector":{"app":"nginx"},"template":{"name":"","image":"nginx:latest"}}"#
    );
    let pods = pods_run(&up.api, "nginx-", 4).await;
    assert_eq!(spread(&pods, &["node-1", "node-2"]), [2, 2]);
    let all = r#"[{"name":"nginx","desiredCount":4,"currentCount":4,"selector":{"app":"nginx"},"template":{"name":"","image":"nginx:latest"}}]"#;
    wait_for("the replicaset counts its pods", async || {
        let listed = up.api.get("/replicasets").await.body;
        holds(listed.trim_end() == all, listed)
    })
    .await;
    let log = up.process.log();
    for pod in &pods {
        let suffix = pod.name.strip_prefix("nginx-").expect("it is named after its set");
        assert!(
            suffix.len() == 8 && suffix.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{suffix}"
        );
        let line = format!("scheduler: assigning pod {} to node {}", pod.name, pod.node);
        assert!(log.contains(&line), "the log does not say: {line}");
        let expected = format!(
            r#"{{"spec":{{"name":"{}","image":"nginx:latest","node_name":"{}","labels":{{"app":"nginx"}}}},"status":"Running","containerId":"{}","retry_count":0,"next_retry_at":"0001-01-01T00:00:00Z"}}"#,
            pod.name, pod.node, pod.container_id
        );
        assert_eq!(up.api.get(&format!("/pods/{}", pod.name)).await.body.trim_end(), expected);
    }

    up.process.kill();
    up.process.start_again();
    up.is_ready().await;
    let after: Vec<String> =
        pods_run(&up.api, "nginx-", 4).await.into_iter().map(|pod| pod.name).collect();
    let before: Vec<String> = pods.into_iter().map(|pod| pod.name).collect();
    assert_eq!(after, before, "the same pods after a SIGKILL");

    assert_eq!(up.api.delete("/replicasets/nginx").await.status, 204);
    pods_are_gone(&up.api, "nginx-").await;
    assert_eq!(up.api.get("/replicasets").await.body.trim_end(), "[]");
    assert!(up.process.terminate().await.success(), "SIGTERM ends it in good order");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_get_clear_answers_and_leave_nothing() {
    let scratch = Scratch::new();
    let up = Up::start(&scratch, "fake").await;
    let api = &up.api;
    assert_eq!(api.post("/replicasets", NGINX).await.status, 201);
    pods_run(api, "nginx-", 4).await;
    let before = stored(api).await;

    for (mistake, field, body) in [
        ("broken JSON", None, NGINX[..40].to_owned()),
        ("no object", None, "[]".to_owned()),
        ("nothing at all", None, String::new()),
        ("no name", Some("name"), NGINX.replace(r#""name":"nginx","#, "")),
        ("bad characters", Some("name"), NGINX.replace(r#""name":"nginx""#, r#""name":"Ng inx/""#)),
        ("a negative count", Some("desiredCount"), NGINX.replace('4', "-4")),
        ("a huge count", Some("desiredCount"), NGINX.replace('4', "4000000000")),
        ("a count of another kind", Some("desiredCount"), NGINX.replace('4', "\"4\"")),
        (
            "labels that the selector does not match",
            Some("template.labels"),
            NGINX.replace(r#""image""#, r#""labels":{"app":"other"},"image""#),
        ),
        (
            "an unknown field",
            Some("colour"),
            NGINX.replace(r#""name""#, r#""colour":"red","name""#),
        ),
        (
            "an unknown field inside",
            Some("template.colour"),
            NGINX.replace(r#""image""#, r#""colour":"red","image""#),
        ),
        ("no image", Some("template.image"), NGINX.replace(r#""image":"nginx:latest""#, "")),
    ] {
        assert_problem(mistake, &api.post("/replicasets", &body).await, 400, field);
    }
    let bad_pod = api.post("/pods", r#"{"name":"bad pod","image":"i"}"#).await;
    assert_problem("a bad pod name", &bad_pod, 400, Some("name"));
    let elsewhere = api.put("/replicasets/other", NGINX).await;
    assert_problem("another name in the path", &elsewhere, 400, Some("name"));

    for path in ["/replicasets/unknown", "/pods/unknown", "/nodes/unknown", "/nothing"] {
        assert_problem(path, &api.get(path).await, 404, None);
        assert_problem(path, &api.delete(path).await, 404, None);
    }
    assert_problem("a name that exists", &api.post("/replicasets", NGINX).await, 409, None);
    let huge = NGINX.replace("latest", &"x".repeat(4 << 20));
    assert_problem("a body over the limit", &api.post("/replicasets", &huge).await, 413, None);

    assert_eq!(stored(api).await, before, "nothing was stored");
    // And it still works.
    let more = replicaset("nginx", 5, "nginx:latest");
    assert_eq!(api.put("/replicasets/nginx", &more).await.status, 200);
    pods_run(api, "nginx-", 5).await;
}

/// What the mistakes must not change.
async fn stored(api: &Http) -> (String, Vec<String>) {
    let pods = pods_run(api, "", 4).await.into_iter().map(|pod| pod.name).collect();
    (api.get("/replicasets").await.body, pods)
}

/// The status, and a JSON body that says why, with the field at fault if it is one.
fn assert_problem(mistake: &str, answer: &Answer, status: u16, field: Option<&str>) {
    assert_eq!(answer.status, status, "{mistake}: {}", answer.body);
    let error = &answer.json()["error"];
    assert!(
        error["reason"].as_str().is_some_and(|reason| !reason.is_empty()),
        "{mistake}: {error}"
    );
    if let Some(field) = field {
        assert_eq!(error["field"], field, "{mistake}: {error}");
    }
}
