//! Who may use the proxy.
//!
//! The protection ends here, so whoever can send it a request acts as its user. Programs of this
//! machine may. A web page in the user's browser can send requests to localhost, too, and must not:
//!
//! - Browsers say in `Origin` and `Sec-Fetch-Site` whose page sends a request. Programs do not.
//! - A page whose own name was made to resolve to 127.0.0.1 (DNS rebinding) is of the proxy's
//!   origin for the browser. But the browser puts that name into `Host`, and it is not ours.

use std::net::IpAddr;
use std::str::FromStr;

use blindai_core::printable;
use http::header::{self, HOST, HeaderName, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};

use super::refusal::{Answer, Refusal, empty};

/// What is asked of each request before anything else.
pub struct Guard {
    hosts: Vec<String>,
    /// Any address that is a number: no name was resolved to get here.
    any_address: bool,
    origins: Vec<Origin>,
}

/// The origin of web pages that may use the proxy: scheme, host and port.
#[derive(Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const USAGE: &str =
            "write https://app.example.org or http://localhost:3000, without a path";
        let rest = text.strip_prefix("https://");
        let rest = rest.or_else(|| text.strip_prefix("http://")).ok_or(USAGE)?;
        let plain = !rest.contains('@') && rest.parse::<Authority>().is_ok();
        let value = HeaderValue::from_str(&text.to_ascii_lowercase());
        value.ok().filter(|_| plain).map(Self).ok_or(USAGE)
    }
}

impl Guard {
    pub fn new(hosts: &[String], any_address: bool, origins: &[Origin]) -> Self {
        Self {
            hosts: hosts.to_vec(),
            any_address,
            origins: origins.to_vec(),
        }
    }

    /// Lets the request in, with the origin when it comes from a page that is allowed.
    pub fn admit<B>(&self, request: &Request<B>) -> Result<Option<Origin>, Refusal> {
        self.check_host(request)?;
        let headers = request.headers();
        let Some(origin) = headers.get(ORIGIN) else {
            return check_site(headers).map(|()| None);
        };
        let origin = Origin(origin.clone());
        let one = headers.get_all(ORIGIN).iter().count() == 1;
        match one && self.origins.contains(&origin) {
            true => Ok(Some(origin)),
            false => Err(Refusal::origin(&shown(&origin.0))),
        }
    }

    /// The answer to a browser that asks whether a page may send what it is about to send.
    pub fn preflight<B>(request: &Request<B>) -> Option<Response<Answer>> {
        let asked = request.headers();
        let method = asked.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
        if request.method() != Method::OPTIONS {
            return None;
        }
        let mut response = empty(StatusCode::NO_CONTENT);
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, method.clone());
        if let Some(names) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
        }
        Some(response)
    }

    /// Lets a page of this origin read the answer, and other pages embed nothing of it.
    pub fn seal(response: &mut Response<Answer>, origin: Option<Origin>) {
        let headers = response.headers_mut();
        headers.insert(NOSNIFF.0, HeaderValue::from_static(NOSNIFF.1));
        headers.insert(NOT_EMBEDDED.0, HeaderValue::from_static(NOT_EMBEDDED.1));
        if let Some(Origin(origin)) = origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            let all = HeaderValue::from_static("*");
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, all);
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
    }

    // HTTP/2, and HTTP/1.1 to a proxy, name the host in the target; both must be ours.
    fn check_host<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        let target = request
            .uri()
            .authority()
            .map(|host| host.as_str().as_bytes());
        let headers = request.headers().get_all(HOST).iter();
        let mut named = target.into_iter().chain(headers.map(HeaderValue::as_bytes));
        let first = named.next().ok_or_else(|| Refusal::host("none"))?;
        for host in std::iter::once(first).chain(named) {
            if !self.is_ours(host) {
                return Err(Refusal::host(&printable(
                    &String::from_utf8_lossy(host),
                    256,
                )));
            }
        }
        Ok(())
    }

    fn is_ours(&self, authority: &[u8]) -> bool {
        let Ok(authority) = Authority::try_from(authority) else {
            return false;
        };
        let host = authority.host();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if authority.as_str().contains('@') {
            return false;
        }
        match bare.parse::<IpAddr>() {
            Ok(address) => self.any_address || address.is_loopback(),
            Err(_) => {
                let names = self.hosts.iter().map(String::as_str);
                let mut names = names.chain(["localhost"]);
                names.any(|name| name.eq_ignore_ascii_case(host))
            }
        }
    }
}

// Images and links of other pages come without an origin. `same-site` is every other port of this
// machine; `none` is somebody who typed the address.
fn check_site(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut sites = headers.get_all(&SEC_FETCH_SITE).iter();
    match sites.find(|site| *site != "same-origin" && *site != "none") {
        Some(site) => Err(Refusal::site(&shown(site))),
        None => Ok(()),
    }
}

fn shown(value: &HeaderValue) -> String {
    printable(&String::from_utf8_lossy(value.as_bytes()), 256)
}

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const NOSNIFF: (HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");
const NOT_EMBEDDED: (HeaderName, &str) = (
    HeaderName::from_static("cross-origin-resource-policy"),
    "same-origin",
);

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    fn guard() -> Guard {
        let origin = "https://app.example".parse().ok().unwrap();
        Guard::new(&["proxy.internal".to_owned()], false, &[origin])
    }

    #[test]
    fn hosts_are_names_and_addresses_of_this_machine() {
        let ours = [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8080",
            "127.9.9.9",
            "[::1]:8080",
        ];
        for host in ours.into_iter().chain(["proxy.internal:1"]) {
            assert!(
                guard().admit(&request("/", &[("host", host)])).is_ok(),
                "{host}"
            );
        }
        let others = [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[2001:db8::1]",
            "0.0.0.0",
            "evil@localhost",
            "localhost@evil.example",
            "local host",
            "",
            "2130706433",
            "[::ffff:10.0.0.1]",
        ];
        for host in others {
            let refused = guard()
                .admit(&request("/", &[("host", host)]))
                .err()
                .unwrap();
            assert_eq!(refused.code(), "host-refused", "{host}");
        }
    }

    #[test]
    fn every_place_that_names_a_host_counts_and_none_is_too_few() {
        let cases: [(&str, &[(&str, &str)]); 4] = [
            ("/", &[]),
            ("http://evil.example/", &[("host", "localhost")]),
            ("http://localhost/", &[("host", "evil.example")]),
            ("/", &[("host", "localhost"), ("host", "evil.example")]),
        ];
        for (uri, headers) in cases {
            let refused = guard().admit(&request(uri, headers)).err().unwrap();
            assert_eq!(refused.code(), "host-refused", "{uri} {headers:?}");
        }
        assert!(guard().admit(&request("http://localhost:1/x", &[])).is_ok());
    }

    #[test]
    fn an_address_that_was_not_a_name_is_ours_when_others_may_come() {
        let open = Guard::new(&[], true, &[]);
        assert!(
            open.admit(&request("/", &[("host", "10.0.0.1:80")]))
                .is_ok()
        );
        assert!(
            open.admit(&request("/", &[("host", "evil.example")]))
                .is_err()
        );
    }

    #[test]
    fn pages_are_refused_but_those_of_an_allowed_origin() {
        let from = |headers: &[(&str, &str)]| {
            let mut all = vec![("host", "localhost")];
            all.extend(headers);
            guard()
                .admit(&request("/", &all))
                .map_err(|refused| refused.code())
        };
        assert!(from(&[("origin", "https://app.example")]).is_ok_and(|origin| origin.is_some()));
        let cross = [
            ("origin", "https://app.example"),
            ("sec-fetch-site", "cross-site"),
        ];
        assert!(from(&cross).is_ok());
        for origin in [
            "https://evil.example",
            "null",
            "http://app.example",
            "http://localhost:8080",
            "",
        ] {
            assert_eq!(
                from(&[("origin", origin)]).err(),
                Some("origin-refused"),
                "{origin}"
            );
        }
        let two = [
            ("origin", "https://app.example"),
            ("origin", "https://evil.example"),
        ];
        assert_eq!(from(&two).err(), Some("origin-refused"));
        for site in ["cross-site", "same-site", "of-the-future"] {
            assert_eq!(
                from(&[("sec-fetch-site", site)]).err(),
                Some("origin-refused"),
                "{site}"
            );
        }
        for site in ["same-origin", "none"] {
            assert!(from(&[("sec-fetch-site", site)]).is_ok_and(|origin| origin.is_none()));
        }
    }

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        for good in [
            "https://app.example",
            "http://localhost:3000",
            "http://[::1]:1",
        ] {
            assert!(good.parse::<Origin>().is_ok(), "{good}");
        }
        for bad in [
            "*",
            "null",
            "app.example",
            "https://",
            "https://a/",
            "https://a b",
            "ftp://a",
            "http://u@a",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
