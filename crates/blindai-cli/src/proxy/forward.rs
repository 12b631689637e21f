//! What of a message belongs to the connection that it came on, and stays behind (RFC 9110, 7.6).

use blindai_core::pins::MODELS;
use http::header::{AUTHORIZATION, CONNECTION, EXPECT, Entry, HOST, HeaderName, TE, UPGRADE, VIA};
use http::request;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};

use super::refusal::Refusal;

/// Refuses what is more than a request and an answer.
pub fn check<B>(request: &Request<B>) -> Result<(), Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::method(request.method()));
    }
    let headers = request.headers();
    let mut upgrades = headers.get_all(UPGRADE).iter();
    // Java offers HTTP/2 in each first request, and goes on with HTTP/1.1 when nobody takes it up.
    if upgrades.any(|upgrade| !upgrade.as_bytes().eq_ignore_ascii_case(b"h2c")) {
        return Err(Refusal::upgrade());
    }
    let mut expectations = headers.get_all(EXPECT).iter();
    match expectations.any(|expected| !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        true => Err(Refusal::expectation()),
        false => Ok(()),
    }
}

/// The request as it goes to the server at `host`, in the version of HTTP that it came in. Who brings
/// an authorization is who it says; the proxy's own is for those who bring none. Which `models` the
/// policy accepts stands in a line of its own: beside it a caller's can only narrow that.
pub fn to_server<B>(
    request: Request<B>,
    host: &Authority,
    authorization: Option<&HeaderValue>,
    models: Option<&HeaderValue>,
) -> Request<B> {
    let (mut parts, body) = request.into_parts();
    let trailers = parts.headers.get(TE).is_some_and(|te| te == "trailers");
    strip(&mut parts.headers);
    parts.headers.remove(HOST);
    if let (Entry::Vacant(place), Some(own)) = (parts.headers.entry(AUTHORIZATION), authorization) {
        place.insert(own.clone());
    }
    if let Some(models) = models {
        parts.headers.append(MODELS, models.clone());
    }
    match parts.version {
        Version::HTTP_2 => address_http2(&mut parts, host, trailers),
        _ => address_http1(&mut parts, host),
    }
    Request::from_parts(parts, body)
}

/// The answer as it goes to the caller.
pub fn to_caller<B>(mut response: Response<B>) -> Response<B> {
    strip(response.headers_mut());
    response
}

fn address_http1(parts: &mut request::Parts, host: &Authority) {
    parts.version = Version::HTTP_11;
    parts.uri = Uri::from(path(&parts.uri));
    let host = HeaderValue::from_str(host.as_str()).expect("an authority is a header value");
    parts.headers.insert(HOST, host);
    parts
        .headers
        .append(VIA, HeaderValue::from_static(VIA_HTTP1));
}

fn address_http2(parts: &mut request::Parts, host: &Authority, trailers: bool) {
    let mut target = http::uri::Parts::default();
    target.scheme = Some(Scheme::HTTPS);
    target.authority = Some(host.clone());
    target.path_and_query = Some(path(&parts.uri));
    parts.uri = Uri::from_parts(target).expect("scheme, authority and path");
    parts
        .headers
        .append(VIA, HeaderValue::from_static(VIA_HTTP2));
    if trailers {
        // Without it, servers of gRPC refuse to speak.
        parts
            .headers
            .insert(TE, HeaderValue::from_static("trailers"));
    }
}

fn path(uri: &Uri) -> PathAndQuery {
    let path = uri.path_and_query().cloned();
    path.unwrap_or_else(|| PathAndQuery::from_static("/"))
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];
const VIA_HTTP1: &str = "1.1 blindai";
const VIA_HTTP2: &str = "2 blindai";

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri("http://localhost:8080/v2/x?y=1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.version(version).body(()).unwrap()
    }

    fn server() -> Authority {
        Authority::from_static("server.example:50051")
    }

    #[test]
    fn what_belongs_to_the_connection_stays_behind() {
        let sent = request(
            Version::HTTP_11,
            &[
                ("host", "localhost:8080"),
                ("connection", "keep-alive, X-Mine"),
                ("connection", "x-also"),
                ("keep-alive", "timeout=5"),
                ("x-mine", "1"),
                ("x-also", "1"),
                ("te", "trailers"),
                ("transfer-encoding", "chunked"),
                ("proxy-authorization", "Basic eA=="),
                ("upgrade", "h2c"),
                ("http2-settings", "AAMAAABk"),
                ("x-kept", "1"),
                ("expect", "100-continue"),
            ],
        );
        assert!(check(&sent).is_ok());
        let sent = to_server(sent, &server(), None, None);
        let mut left: Vec<_> = sent.headers().keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["expect", "host", "via", "x-kept"]);
        assert_eq!(sent.headers()[HOST], "server.example:50051");
        assert_eq!(sent.uri(), "/v2/x?y=1");
    }

    #[test]
    fn http2_keeps_the_trailers_of_grpc_and_gets_the_servers_authority() {
        let headers = [("te", "trailers"), ("host", "localhost")];
        let sent = to_server(request(Version::HTTP_2, &headers), &server(), None, None);
        assert_eq!(sent.uri(), "https://server.example:50051/v2/x?y=1");
        assert_eq!(sent.headers()[TE], "trailers");
        assert!(!sent.headers().contains_key(HOST));
    }

    #[test]
    fn the_proxys_own_authorization_is_for_requests_without_one() {
        let own = HeaderValue::from_static("Bearer own");
        let sent = |headers: &[(&str, &str)]| {
            let sent = to_server(
                request(Version::HTTP_2, headers),
                &server(),
                Some(&own),
                None,
            );
            let values = sent.headers().get_all(AUTHORIZATION).iter();
            values
                .map(|value| value.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(sent(&[]), ["Bearer own"]);
        assert_eq!(sent(&[("authorization", "")]), [""]);
        assert_eq!(
            sent(&[("authorization", "Bearer theirs")]),
            ["Bearer theirs"]
        );
    }

    #[test]
    fn what_the_policy_says_of_models_goes_with_each_request() {
        let own = HeaderValue::from_static("*=refuse");
        let sent = |headers: &[(&str, &str)]| {
            let request = request(Version::HTTP_11, headers);
            let sent = to_server(request, &server(), None, Some(&own));
            let values = sent.headers().get_all(MODELS).iter();
            values
                .map(|value| value.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(sent(&[]), ["*=refuse"]);
        assert_eq!(sent(&[(MODELS, "m=x")]), ["m=x", "*=refuse"]);
        let dropping = [(MODELS, "m=x"), ("connection", MODELS)];
        assert_eq!(sent(&dropping), ["*=refuse"]);
    }

    #[test]
    fn other_protocols_and_expectations_are_refused() {
        let refused = |headers: &[(&str, &str)]| {
            let refused = check(&request(Version::HTTP_11, headers)).err();
            refused.map(|refused| refused.code())
        };
        assert_eq!(
            refused(&[("upgrade", "websocket")]),
            Some("upgrade-refused")
        );
        assert_eq!(
            refused(&[("upgrade", "h2c, websocket")]),
            Some("upgrade-refused")
        );
        assert_eq!(
            refused(&[("expect", "a-miracle")]),
            Some("expectation-refused")
        );
        let mut connect = request(Version::HTTP_11, &[]);
        *connect.method_mut() = Method::CONNECT;
        assert_eq!(check(&connect).err().unwrap().code(), "method-not-allowed");
    }

    #[test]
    fn answers_lose_what_belonged_to_their_connection() {
        let answer = Response::builder()
            .header("connection", "close, x-mine")
            .header("x-mine", "1")
            .header("transfer-encoding", "chunked")
            .header("content-length", "3")
            .body(())
            .unwrap();
        let answer = to_caller(answer);
        assert_eq!(answer.headers().len(), 1);
        assert_eq!(answer.headers()["content-length"], "3");
    }
}
