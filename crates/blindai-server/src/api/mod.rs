//! The protocols: each decodes a request, calls one verb of the [`Service`] and encodes the answer.

mod attestation;
mod body;
mod coding;
mod error;
mod grpc;
mod health;
mod legacy;
mod metrics;
mod models;
mod oip;
mod oip_grpc;
mod oip_http;
mod params;
mod principal;
mod receipt;
mod request_id;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;

pub use error::ApiError;
pub(crate) use error::status;
pub use legacy::LastSent;
pub use request_id::{ANSWERED, Refused};

use crate::service::Service;
use crate::telemetry::Port;
use request_id::Observer;

/// The attested port: all data and all models. `legacy` says whether BlindAI 0.3 is spoken.
pub fn attested(service: Arc<Service>, legacy: bool) -> Router {
    finish(attested_routes(legacy), service, Port::Attested)
}

/// The public port: evidence and health, metrics where they are on, no user data.
pub fn public(service: Arc<Service>, legacy: bool) -> Router {
    let metrics = service.telemetry().metrics;
    finish(public_routes(metrics, legacy), service, Port::Public)
}

fn attested_routes(legacy: bool) -> Router<Arc<Service>> {
    models::routes()
        .merge(oip_http::routes())
        .merge(oip_grpc::routes())
        .merge(legacy::exchange(legacy))
        .merge(attestation::routes())
        .merge(health::routes())
}

fn public_routes(metrics: bool, legacy: bool) -> Router<Arc<Service>> {
    let router = attestation::routes()
        .merge(legacy::attestation(legacy))
        .merge(health::routes());
    match metrics {
        true => router.merge(metrics::routes()),
        false => router,
    }
}

fn finish(router: Router<Arc<Service>>, service: Arc<Service>, port: Port) -> Router {
    let telemetry = service.telemetry().clone();
    let observer = Observer { telemetry, port };
    router
        .fallback(error::route_not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(from_fn_with_state(observer, request_id::observe))
        .with_state(service)
}

/// Runs work on so many bytes; much of it not on the threads that serve connections.
fn busy<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    match bytes > BUSY_BYTES {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}

const BUSY_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// A route that is not in the table has no verb, and no test asks who may call it.
    #[test]
    fn the_tables_of_docs_access_name_every_route() {
        let served = routes_of("attested", &attested_routes(true));
        let served = served
            .into_iter()
            .chain(routes_of("public", &public_routes(true, true)));
        assert_eq!(documented(), served.collect());
    }

    fn documented() -> BTreeSet<String> {
        let docs = include_str!("../../../../docs/access.md");
        let rows = docs
            .lines()
            .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let routes = rows.filter(|row| matches!(row.get(1), Some(&("attested" | "public"))));
        let routes = routes.map(|row| format!("{} {}", row[1], row[3].trim_matches('`')));
        routes.collect()
    }

    /// `port METHOD path` of every route, out of what axum shows of a router.
    fn routes_of(port: &str, router: &Router<Arc<Service>>) -> BTreeSet<String> {
        let shown = format!("{router:?}");
        let shown = shown.split("fallback_router").next().unwrap();
        let (mut methods, mut paths) = (BTreeMap::new(), BTreeMap::new());
        for entry in shown.split("RouteId(").skip(1) {
            let (id, rest) = entry.split_once("): ").unwrap();
            match rest.strip_prefix('"') {
                Some(path) => paths.insert(id, path.split('"').next().unwrap()),
                None => methods.insert(id, between(rest, "allow_header: Bytes(b\"", "\"")),
            };
        }
        assert!(
            !paths.is_empty() && paths.keys().eq(methods.keys()),
            "{shown}"
        );
        let routes = paths.iter().flat_map(|(id, path)| {
            let methods = methods[id].split(',').filter(|method| *method != "HEAD");
            methods.map(move |method| format!("{port} {method} {path}"))
        });
        routes.collect()
    }

    fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
        let after = text.split_once(start).expect("axum shows the methods").1;
        after.split_once(end).expect("axum shows the methods").0
    }
}
