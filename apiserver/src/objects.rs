//! The handlers of `/pods`, `/replicasets` and `/nodes`, one for each method, the same for all kinds.

use api::{Api, DeleteOptions, Error, Invalid, Object, ObjectKey, Scope, validation};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use k8s_openapi::Metadata;

use crate::App;
use crate::flat::{Flat, FlatWrite};
use crate::problem::Problem;
use crate::request::{DeleteQuery, ListQueryFor, PathName, WholeBody};
use crate::watch::{self, RESOURCE_VERSION};

/// The namespace that the flat API shows.
const NAMESPACE: &str = "default";
/// How often a PUT tries again when the object comes and goes between its looking and its writing.
const REPLACE_TRIES: usize = 8;

/// Where the flat API's objects of a kind are.
pub(crate) fn scope<F: Flat>() -> Scope {
    if F::Object::kind().namespaced { Scope::Namespace(NAMESPACE.to_owned()) } else { Scope::All }
}

fn key<F: Flat>(name: &str) -> ObjectKey {
    if F::Object::kind().namespaced {
        ObjectKey::namespaced(NAMESPACE, name)
    } else {
        ObjectKey::cluster(name)
    }
}

/// The key of the object that a path names, which may be one that cannot exist.
pub(crate) fn existing_key<F: Flat>(name: &str) -> Result<ObjectKey, Problem> {
    validation::dns_subdomain(name)
        .map(|()| key::<F>(name))
        .map_err(|_| Problem::not_found(F::Object::kind().singular, name))
}

fn access<F: Flat>(app: &App) -> Api<F::Object> {
    app.store.api()
}

fn shown<F: Flat>(status: StatusCode, object: &F::Object) -> Response {
    (status, Json(F::form(object))).into_response()
}

/// `GET /pods`: the list, or with `watch=true` the stream of changes.
pub(crate) async fn list<F: Flat>(
    State(app): State<App>,
    ListQueryFor(query, _): ListQueryFor<F>,
) -> Result<Response, Problem> {
    let api = access::<F>(&app);
    if query.watch {
        return watch::stream::<F>(&app, &api, query).await;
    }
    let (forms, revision) = app
        .within(async {
            let list = api.list(&scope::<F>()).await?;
            let wanted = list.items.iter().filter(|object| query.wants::<F>(object));
            let mut forms: Vec<F::Form> = wanted.map(F::form).collect();
            F::complete(&app.store, &mut forms).await?;
            F::arrange(&mut forms);
            Ok((forms, list.revision))
        })
        .await?;
    Ok(([(RESOURCE_VERSION, revision.to_string())], Json(forms)).into_response())
}

/// `POST /pods`.
pub(crate) async fn create<F: FlatWrite>(
    State(app): State<App>,
    WholeBody(body): WholeBody,
) -> Result<Response, Problem> {
    let wanted = in_namespace::<F>(F::parse(&body, None)?);
    let created = app.within(async { Ok(access::<F>(&app).create(wanted).await?) }).await?;
    Ok(shown::<F>(StatusCode::CREATED, &created))
}

/// `GET /pods/{name}`.
pub(crate) async fn read<F: Flat>(
    State(app): State<App>,
    PathName(name): PathName,
) -> Result<Response, Problem> {
    let key = existing_key::<F>(&name)?;
    let [form] = app
        .within(async {
            let mut forms = [F::form(&access::<F>(&app).get(&key).await?)];
            F::complete(&app.store, &mut forms).await?;
            Ok(forms)
        })
        .await?;
    Ok(Json(form).into_response())
}

/// `PUT /pods/{name}`: replaces what is there, or creates it.
pub(crate) async fn replace<F: FlatWrite>(
    State(app): State<App>,
    PathName(name): PathName,
    WholeBody(body): WholeBody,
) -> Result<Response, Problem> {
    let wanted = in_namespace::<F>(F::parse(&body, Some(&name))?);
    app.within(async {
        let (api, kind) = (access::<F>(&app), F::Object::kind());
        let key = wanted.key();
        for _ in 0..REPLACE_TRIES {
            let changed = api.modify(&key, |stored| {
                if stored.is_deleting() {
                    let reason = "it is being deleted".to_owned();
                    return Err(Error::Conflict { kind: kind.plural, key: key.clone(), reason });
                }
                F::replace(stored, wanted.clone()).map_err(|cause| {
                    let (kind, name) = (kind.kind, name.clone());
                    Error::Invalid(Invalid { kind, name, causes: vec![cause] })
                })
            });
            match changed.await {
                Ok(object) => return Ok(shown::<F>(StatusCode::OK, &object)),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            match api.create(wanted.clone()).await {
                Ok(object) => return Ok(shown::<F>(StatusCode::CREATED, &object)),
                Err(Error::AlreadyExists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Problem::conflict(kind.singular, &name, "it comes and goes"))
    })
    .await
}

/// `DELETE /pods/{name}`, with `propagationPolicy` if need be.
pub(crate) async fn delete<F: Flat>(
    State(app): State<App>,
    PathName(name): PathName,
    query: DeleteQuery,
) -> Result<StatusCode, Problem> {
    let key = existing_key::<F>(&name)?;
    let options = DeleteOptions { propagation: query.propagation, ..DeleteOptions::default() };
    app.within(async { Ok(access::<F>(&app).delete(&key, &options).await?) }).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn in_namespace<F: Flat>(mut object: F::Object) -> F::Object {
    if F::Object::kind().namespaced {
        object.metadata_mut().namespace = Some(NAMESPACE.to_owned());
    }
    object
}
