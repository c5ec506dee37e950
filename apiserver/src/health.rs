//! `/healthz` and `/version`.

use api::{ListOptions, Scope};
use axum::Json;
use axum::extract::State;
use k8s_openapi::api::core::v1::Node;
use serde::Serialize;

use crate::App;
use crate::problem::Problem;

#[derive(Serialize)]
pub(crate) struct Health {
    status: &'static str,
}

/// 200 when a read of the store is answered, 503 otherwise.
pub(crate) async fn healthz(State(app): State<App>) -> Result<Json<Health>, Problem> {
    let nodes = app.store.api::<Node>();
    let one = ListOptions { limit: 1, ..ListOptions::default() };
    app.within(async { Ok(nodes.list_page(&Scope::All, one).await?) }).await?;
    Ok(Json(Health { status: "ok" }))
}

#[derive(Serialize)]
pub(crate) struct Version {
    version: &'static str,
}

/// The version of this program.
pub(crate) async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}
