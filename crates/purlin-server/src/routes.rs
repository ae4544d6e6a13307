//! The table of routes, and the router and API description made from it.
//!
//! A route exists by standing in [`TABLE`], beside the trust it asks for. Its description comes from
//! the handler's own attributes; a test holds that the two agree, so nothing is served undescribed
//! and nothing described is missing.

mod caches;
mod cluster;
mod ephemeral;
mod events;
mod flags;
mod follow;
mod inspect;
mod names;
mod operate;
mod presence;
mod state;
mod supervised;
mod supervisors;
mod topics;
mod watch;

use std::sync::Arc;

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware,
    response::{IntoResponse as _, Response},
    routing::{MethodRouter, delete, get, post, put},
};
use utoipa::OpenApi;

use self::state::{counters, maps, registers, sets, switches, texts};

use crate::{
    access::Access,
    app::{App, Guarded, guard, harden},
    problem::Problem,
    shapes,
};

/// One row of the table.
struct Route {
    /// The path as clients and the API description know it.
    template: &'static str,
    /// The same as the router matches it; differs where a topic may hold slashes.
    path: &'static str,
    access: Access,
    handler: fn() -> MethodRouter<Arc<App>>,
}

const fn route(
    template: &'static str,
    access: Access,
    handler: fn() -> MethodRouter<Arc<App>>,
) -> Route {
    Route { template, path: template, access, handler }
}

/// A route whose last segment may hold slashes, so that the router matches another path.
const fn wide(
    template: &'static str,
    path: &'static str,
    access: Access,
    handler: fn() -> MethodRouter<Arc<App>>,
) -> Route {
    Route { template, path, access, handler }
}

/// Every route there is.
const TABLE: &[Route] = &[
    route("/v1/node", Access::Read, || get(cluster::node)),
    route("/v1/members", Access::Read, || get(cluster::members)),
    route("/v1/links", Access::Read, || get(cluster::links)),
    route("/v1/ping/{node}", Access::Read, || get(cluster::ping)),
    route("/v1/drain", Access::Admin, || post(cluster::drain)),
    route("/v1/events", Access::Read, || get(events::events)),
    route("/v1/live", Access::Read, || get(events::live)),
    route("/v1/topics", Access::Read, || get(topics::list)),
    Route {
        template: "/v1/topics/{topic}",
        path: "/v1/topics/{*rest}",
        access: Access::Write,
        handler: || post(topics::publish),
    },
    Route {
        template: "/v1/topics/{pattern}/stream",
        path: "/v1/topics/{*rest}",
        access: Access::Read,
        handler: || get(topics::stream),
    },
    route("/v1/state", Access::Read, || get(state::status)),
    route("/v1/state/{set}/keys", Access::Read, || get(state::catalogue)),
    route("/v1/state/{set}/watch", Access::Read, || get(state::watch)),
    wide("/v1/counters/{name}", "/v1/counters/{*rest}", Access::Read, || get(counters::counter)),
    wide("/v1/counters/{name}", "/v1/counters/{*rest}", Access::Write, || {
        post(counters::add).delete(counters::remove_counter)
    }),
    route("/v1/sets/{name}", Access::Read, || get(sets::set)),
    route("/v1/sets/{name}", Access::Write, || delete(sets::remove_set)),
    wide("/v1/sets/{name}/{element}", "/v1/sets/{name}/{*rest}", Access::Read, || {
        get(sets::element)
    }),
    wide("/v1/sets/{name}/{element}", "/v1/sets/{name}/{*rest}", Access::Write, || {
        put(sets::insert).delete(sets::remove_element)
    }),
    route("/v1/maps/{name}", Access::Read, || get(maps::map)),
    route("/v1/maps/{name}", Access::Write, || delete(maps::remove_map)),
    wide("/v1/maps/{name}/{key}", "/v1/maps/{name}/{*rest}", Access::Read, || get(maps::field)),
    wide("/v1/maps/{name}/{key}", "/v1/maps/{name}/{*rest}", Access::Write, || {
        put(maps::put_field).delete(maps::remove_field)
    }),
    wide("/v1/registers/{name}", "/v1/registers/{*rest}", Access::Read, || {
        get(registers::register)
    }),
    wide("/v1/registers/{name}", "/v1/registers/{*rest}", Access::Write, || {
        put(registers::put_register).delete(registers::remove_register)
    }),
    wide("/v1/values/{name}", "/v1/values/{*rest}", Access::Read, || get(registers::values)),
    wide("/v1/values/{name}", "/v1/values/{*rest}", Access::Write, || {
        put(registers::put_value).delete(registers::remove_values)
    }),
    wide("/v1/switches/{name}", "/v1/switches/{*rest}", Access::Read, || get(switches::switch)),
    wide("/v1/switches/{name}", "/v1/switches/{*rest}", Access::Write, || {
        put(switches::put_switch).delete(switches::remove_switch)
    }),
    wide("/v1/texts/{name}", "/v1/texts/{*rest}", Access::Read, || get(texts::text)),
    wide("/v1/texts/{name}", "/v1/texts/{*rest}", Access::Write, || {
        put(texts::put_text).post(texts::splice).delete(texts::remove_text)
    }),
    route("/v1/ephemeral", Access::Read, || get(ephemeral::list)),
    route("/v1/ephemeral-watch", Access::Read, || get(ephemeral::watch)),
    wide("/v1/ephemeral/{key}", "/v1/ephemeral/{*rest}", Access::Read, || get(ephemeral::get)),
    wide("/v1/ephemeral/{key}", "/v1/ephemeral/{*rest}", Access::Write, || {
        put(ephemeral::put).delete(ephemeral::remove)
    }),
    route("/v1/flags", Access::Read, || get(flags::list)),
    wide("/v1/flags/{name}", "/v1/flags/{*rest}", Access::Read, || get(flags::get)),
    wide("/v1/flags/{name}", "/v1/flags/{*rest}", Access::Write, || {
        put(flags::put).delete(flags::remove)
    }),
    // Serves BESIDE too: the router cannot tell the two apart when names hold slashes.
    wide("/v1/flags/{name}/evaluate", "/v1/flags/{*rest}", Access::Write, || post(flags::act)),
    route("/v1/caches", Access::Read, || get(caches::list)),
    route("/v1/caches/{cache}", Access::Read, || get(caches::stats)),
    route("/v1/caches/{cache}", Access::Write, || delete(caches::clear)),
    wide("/v1/caches/{cache}/{key}", "/v1/caches/{cache}/{*rest}", Access::Read, || {
        get(caches::get)
    }),
    wide("/v1/caches/{cache}/{key}", "/v1/caches/{cache}/{*rest}", Access::Write, || {
        put(caches::put).post(caches::change).delete(caches::remove)
    }),
    route("/v1/registry", Access::Read, || get(names::registry)),
    route("/v1/registry-scopes", Access::Read, || get(names::scopes)),
    route("/v1/registry-watch", Access::Read, || get(names::watch_registry)),
    wide("/v1/registry/{name}", "/v1/registry/{*rest}", Access::Read, || get(names::name)),
    route("/v1/groups", Access::Read, || get(names::groups)),
    route("/v1/groups-watch", Access::Read, || get(names::watch_groups)),
    wide("/v1/groups/{group}", "/v1/groups/{*rest}", Access::Read, || get(names::members)),
    route("/v1/presence", Access::Read, || get(presence::topics)),
    route("/v1/presence-watch", Access::Read, || get(presence::watch)),
    route("/v1/presence-sync", Access::Read, || get(presence::sync)),
    route("/v1/presence-counts", Access::Read, || get(presence::counts)),
    route("/v1/presence/{topic}", Access::Read, || get(presence::list)),
    wide("/v1/presence/{topic}/{key}", "/v1/presence/{topic}/{*rest}", Access::Read, || {
        get(presence::get)
    }),
    wide("/v1/presence/{topic}/{key}", "/v1/presence/{topic}/{*rest}", Access::Write, || {
        put(presence::put).delete(presence::remove)
    }),
    route("/v1/supervised", Access::Read, || get(supervised::list)),
    route("/v1/supervised/{name}", Access::Read, || get(supervised::get)),
    route("/v1/supervised/{name}", Access::Admin, || {
        put(supervised::put).delete(supervised::remove)
    }),
    route("/v1/supervised/{name}/logs", Access::Admin, || get(supervised::logs)),
    route("/v1/supervisors", Access::Read, || get(supervisors::list)),
    route("/v1/supervisors/{name}/children", Access::Read, || get(supervisors::children)),
    route("/v1/supervisors/{name}/plan", Access::Read, || get(supervisors::plan)),
    route("/v1/supervisors/{name}/rebalance", Access::Admin, || post(supervisors::rebalance)),
    route("/v1/supervisors/{name}/pause", Access::Admin, || post(supervisors::pause)),
    route("/v1/supervisors/{name}/resume", Access::Admin, || post(supervisors::resume)),
    route("/v1/supervisors/{name}/events", Access::Read, || get(supervisors::events)),
    route("/v1/processes", Access::Read, || get(inspect::processes)),
    route("/v1/config", Access::Read, || get(inspect::config)),
    route("/v1/health/live", Access::Open, || get(operate::live)),
    route("/v1/health/ready", Access::Open, || get(operate::ready)),
    route("/metrics", Access::Read, || get(operate::metrics)),
    route("/openapi.json", Access::Read, || get(operate::openapi)),
    route("/", Access::Open, || get(operate::console)),
    route("/console/{file}", Access::Open, || get(operate::asset)),
];

/// Described routes that a row of another template serves.
#[cfg(test)]
const BESIDE: &[&str] = &["/v1/flags/{name}/kill"];

/// The router over [`TABLE`], guarded and hardened.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let mut router = Router::new();
    for row in TABLE {
        let guarded = Guarded { app: Arc::clone(app), template: row.template, access: row.access };
        let handler = (row.handler)().route_layer(middleware::from_fn_with_state(guarded, guard));
        router = router.route(row.path, handler);
    }
    router
        .fallback(no_such_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(harden))
        .with_state(Arc::clone(app))
}

async fn no_such_route(uri: Uri) -> Response {
    let detail = format!("no route is at {}; /openapi.json lists them all", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "no_such_route", "There is nothing at this path", detail)
        .about("path", uri.path(), "a path of /openapi.json")
        .into_response()
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let detail =
        format!("{} does not take {method}; the allow header says what it takes", uri.path());
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "This path does not take this method",
        detail,
    )
    .about("method", method.as_str(), "the methods of the allow header")
    .into_response()
}

/// The description served at `/openapi.json`.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Purlin node",
        description = "One node of a Purlin cluster: membership, publish and subscribe, replicated state, flags, introspection.\n\n\
            Every error is a problem document (RFC 9457) whose `outcome` says whether anything may have been done. \
            Streams are Server-Sent Events; each ends with an `end` event that says why. \
            The last name in a path may hold slashes as they are or as %2F; other names hold them as %2F.\n\n\
            Reads on loopback are open to callers that address the node by a loopback name or its own; writes on \
            loopback must also have no foreign Origin; from elsewhere both need the bearer token, and `drain` always does.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT"),
    ),
    paths(
        cluster::node, cluster::members, cluster::links, cluster::ping, cluster::drain,
        events::events, events::live,
        topics::list, topics::publish, topics::stream,
        state::status, state::catalogue, state::watch,
        counters::counter, counters::add, counters::remove_counter,
        sets::set, sets::remove_set, sets::element, sets::insert, sets::remove_element,
        maps::map, maps::remove_map, maps::field, maps::put_field, maps::remove_field,
        registers::register, registers::put_register, registers::remove_register,
        registers::values, registers::put_value, registers::remove_values,
        switches::switch, switches::put_switch, switches::remove_switch,
        texts::text, texts::put_text, texts::splice, texts::remove_text,
        ephemeral::list, ephemeral::watch, ephemeral::get, ephemeral::put, ephemeral::remove,
        flags::list, flags::get, flags::put, flags::remove, flags::kill, flags::evaluate,
        caches::list, caches::stats, caches::clear,
        caches::get, caches::put, caches::change, caches::remove,
        names::registry, names::scopes, names::name, names::watch_registry,
        names::groups, names::members, names::watch_groups,
        supervised::list, supervised::get, supervised::put, supervised::remove, supervised::logs,
        supervisors::list, supervisors::children, supervisors::plan, supervisors::rebalance,
        supervisors::pause, supervisors::resume, supervisors::events,
        presence::topics, presence::list, presence::get, presence::put, presence::remove,
        presence::watch, presence::sync, presence::counts,
        inspect::processes, inspect::config,
        operate::live, operate::ready, operate::metrics, operate::openapi, operate::console, operate::asset,
    ),
    components(schemas(
        shapes::EventReport, shapes::GapReport, shapes::MessageReport, shapes::LagReport,
        shapes::LinksReport, shapes::TopicsReport, shapes::End,
        shapes::WatchReport, shapes::FlagsChanged, shapes::ValueReport, shapes::ReadyReport,
        shapes::PresenceDiff, shapes::LogSourceReport,
    )),
    modifiers(&BearerToken),
)]
pub(crate) struct Description;

struct BearerToken;

impl utoipa::Modify for BearerToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The node's token; `purlin up` keeps it in DIR/admin.token"))
            .build();
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_described_and_every_description_is_served() {
        let json = serde_json::to_value(Description::openapi()).unwrap();
        let described: BTreeSet<String> =
            json["paths"].as_object().unwrap().keys().cloned().collect();
        let templates = TABLE.iter().map(|row| row.template).chain(BESIDE.iter().copied());
        let served: BTreeSet<String> = templates.map(str::to_owned).collect();
        assert_eq!(described, served);
    }

    #[test]
    fn every_answer_has_a_described_body_and_every_refusal_is_a_problem_document() {
        let json = serde_json::to_value(Description::openapi()).unwrap();
        for (path, methods) in json["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let at = format!("{method} {path}");
                assert!(
                    operation["summary"].is_string() || operation["description"].is_string(),
                    "{at} says nothing"
                );
                let responses = operation["responses"].as_object().unwrap();
                assert!(
                    responses.keys().any(|status| status.starts_with('2')),
                    "{at} never succeeds"
                );
                for (status, response) in responses {
                    if status.starts_with('4') || status.starts_with('5') {
                        let is_problem =
                            response["content"].get("application/problem+json").is_some();
                        assert!(
                            is_problem || path.starts_with("/v1/health"),
                            "{at} {status}: {response}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn no_reference_of_the_description_leads_nowhere() {
        fn references(value: &serde_json::Value, found: &mut BTreeSet<String>) {
            match value {
                serde_json::Value::Object(map) => {
                    map.iter().for_each(|(key, value)| match value.as_str() {
                        Some(target) if key == "$ref" => {
                            found.insert(target.to_owned());
                        }
                        _ => references(value, found),
                    })
                }
                serde_json::Value::Array(items) => {
                    items.iter().for_each(|item| references(item, found))
                }
                _ => {}
            }
        }
        let json = serde_json::to_value(Description::openapi()).unwrap();
        let mut found = BTreeSet::new();
        references(&json, &mut found);
        assert!(!found.is_empty());
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(json.pointer(pointer).is_some(), "{target}");
        }
    }
}
