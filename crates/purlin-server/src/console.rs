//! The console's files: one page, its styles, its modules. Embedded, so that the binary is enough.
//!
//! They are public because a browser cannot send a token when it loads a page, and they hold
//! nothing about the cluster: every fact comes through the API, with whatever token the page has.

use askama::Template;
use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use rust_embed::RustEmbed;

use crate::problem::Problem;

#[derive(RustEmbed)]
#[folder = "assets/"]
struct Assets;

#[derive(Template)]
#[template(path = "console.html")]
struct Page {
    version: &'static str,
}

/// What a browser may do on behalf of this page: run and fetch what this node serves, nothing
/// else. No inline script, no other origin, no frame around it.
pub(crate) const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page itself.
pub(crate) fn page() -> Response {
    let text = Page { version: env!("CARGO_PKG_VERSION") }
        .render()
        .expect("the template writes one string into memory");
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// One of the page's files, or 304 if the browser has this very version.
pub(crate) fn asset(name: &str, request: &HeaderMap) -> Response {
    let Some(file) = Assets::get(name) else {
        return Problem::new(
            StatusCode::NOT_FOUND,
            "no_such_route",
            "There is nothing at this path",
            format!("the console has no file {name:?}"),
        )
        .into_response();
    };
    let hash: String =
        file.metadata.sha256_hash()[..12].iter().map(|byte| format!("{byte:02x}")).collect();
    let tag = HeaderValue::try_from(format!("\"{hash}\""))
        .expect("hex digits in quotes are a header value");
    let is_known = request.get(header::IF_NONE_MATCH) == Some(&tag);
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Response::new(Body::from(match file.data {
            std::borrow::Cow::Borrowed(data) => Bytes::from_static(data),
            std::borrow::Cow::Owned(data) => Bytes::from(data),
        }))
    };
    let headers = response.headers_mut();
    let media =
        HeaderValue::try_from(file.metadata.mimetype()).expect("a media type is a header value");
    headers.insert(header::CONTENT_TYPE, media);
    headers.insert(header::ETAG, tag);
    // Always ask whether it is still current: modules import each other by bare names.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> String {
        String::from_utf8(
            Assets::get(name).unwrap_or_else(|| panic!("no asset {name}")).data.into_owned(),
        )
        .unwrap()
    }

    /// The texts between `before` and the next quote.
    fn quoted_after<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
        text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
    }

    #[test]
    fn every_file_the_page_and_its_modules_name_exists() {
        let page = Page { version: "0" }.render().unwrap();
        let named =
            [quoted_after(&page, "href=\"/console/"), quoted_after(&page, "src=\"/console/")]
                .concat();
        assert!(named.len() >= 4, "{named:?}");
        named.into_iter().for_each(|name| assert!(Assets::get(name).is_some(), "{name}"));
        for module in Assets::iter().filter(|name| name.ends_with(".js")) {
            for imported in quoted_after(&text(&module), "from \"./") {
                assert!(Assets::get(imported).is_some(), "{module} imports {imported}");
            }
        }
    }

    #[test]
    fn every_element_a_module_looks_up_is_on_the_page() {
        let page = Page { version: "0" }.render().unwrap();
        for module in Assets::iter().filter(|name| name.ends_with(".js")) {
            for id in quoted_after(&text(&module), "byId(\"") {
                assert!(page.contains(&format!("id=\"{id}\"")), "{module} looks for #{id}");
            }
        }
    }

    #[test]
    fn nothing_needs_another_origin_or_what_the_content_policy_forbids() {
        let page = Page { version: "0" }.render().unwrap();
        for forbidden in
            [" style=\"", " onclick", " onload", "<style", "javascript:", "//cdn", "https://"]
        {
            assert!(!page.contains(forbidden), "the page holds {forbidden}");
        }
        assert!(!page.contains("<script>"), "an inline script");
        for name in Assets::iter() {
            let text = text(&name).replace("http://www.w3.org/", "");
            for forbidden in [
                "innerHTML",
                "eval(",
                "insertAdjacentHTML",
                "document.write",
                "@import",
                "url(http",
                "https://",
            ] {
                assert!(!text.contains(forbidden), "{name} holds {forbidden}");
            }
        }
    }

    #[test]
    fn a_browser_that_has_the_file_is_told_so() {
        let first = asset("console.css", &HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(first.headers()[header::CONTENT_TYPE], "text/css");
        let mut request = HeaderMap::new();
        request.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(asset("console.css", &request).status(), StatusCode::NOT_MODIFIED);
        for wrong in ["nothing.js", "../Cargo.toml", "", "/etc/passwd"] {
            assert_eq!(
                asset(wrong, &HeaderMap::new()).status(),
                StatusCode::NOT_FOUND,
                "{wrong:?}"
            );
        }
    }
}
