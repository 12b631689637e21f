//! What the proxy trusts, at `/`: a page for people, JSON for programs.

use std::fmt::{self, Display, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use blindai_client::{Connector, Failure, Trust, VerifiedReport};
use blindai_core::is_steering;
use blindai_verify::Check;
use http::header::{ACCEPT, CONTENT_SECURITY_POLICY, REFERRER_POLICY, VARY};
use http::{HeaderValue, Request, Response};
use serde_json::{Value, json};

use super::refusal::{Answer, whole};
use crate::time::{self, utc};

/// Shows what is known of the server.
pub struct Page {
    connector: Arc<Connector>,
    next: Arc<AtomicU64>,
    policy_id: Option<String>,
    security: HeaderValue,
}

impl Page {
    pub fn new(connector: Arc<Connector>, next: Arc<AtomicU64>, policy_id: Option<String>) -> Self {
        // No script runs and nothing is loaded: what is on the page is of this style or is text.
        let style = BASE64_STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
        let security = format!(
            "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'"
        );
        Self {
            connector,
            next,
            policy_id,
            security: HeaderValue::try_from(security).expect("words and base64"),
        }
    }

    /// HTML for who asks for it by name, JSON for all others.
    pub fn answer<B>(&self, request: &Request<B>) -> Response<Answer> {
        let mut accepted = request.headers().get_all(ACCEPT).iter();
        let html = accepted.any(|kinds| {
            let kinds = kinds.to_str().unwrap_or_default();
            kinds
                .split(',')
                .any(|kind| kind.trim().starts_with("text/html"))
        });
        let mut response = match html {
            true => whole(self.html(), "text/html; charset=utf-8"),
            false => whole(format!("{:#}\n", self.json()), "application/json"),
        };
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from(ACCEPT));
        headers.insert(CONTENT_SECURITY_POLICY, self.security.clone());
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        response
    }

    fn now(&self) -> Seen {
        let trust = self.connector.trust().borrow().clone();
        Seen {
            server: self.connector.address(),
            holds: self.connector.report().is_ok(),
            next: self.next.load(Ordering::Relaxed),
            policy_id: self.policy_id.clone(),
            trust,
        }
    }

    fn json(&self) -> Value {
        self.now().json()
    }

    fn html(&self) -> String {
        self.now().html()
    }
}

/// All that the page shows, as of one moment.
struct Seen {
    server: String,
    trust: Trust,
    /// The report has not ended.
    holds: bool,
    next: u64,
    policy_id: Option<String>,
}

impl Seen {
    fn state(&self) -> State {
        match (self.trust.report(), self.trust.failure()) {
            (Some(report), _) if self.holds && report.simulated() => State::Simulated,
            (Some(_), _) if self.holds => State::Verified,
            (None, Some(_)) => State::Refused,
            _ => State::Waiting,
        }
    }

    fn json(&self) -> Value {
        let report = self.trust.report();
        json!({
            "state": self.state().name(),
            "forwards": self.holds,
            "server": self.server,
            "simulated": report.map(|report| report.simulated()),
            "policy": self.policy_id,
            "verified_at": report.map(|report| report.verified_at()),
            "valid_until": report.map(|report| report.valid_until()),
            "next_verification": self.next,
            "last_failure": self.trust.failure().map(failure_json),
            "report": report.map(|report| report.to_json()),
            "version": env!("CARGO_PKG_VERSION"),
        })
    }

    fn html(&self) -> String {
        let state = self.state();
        let mut page = String::with_capacity(16 * 1024);
        // Writing into a String cannot fail.
        let _ = write!(
            page,
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"refresh\" content=\"15\">\n\
             <title>{title} · {server} · BlindAI proxy</title>\n<style>{STYLE}</style>\n\
             <main>\n<header><p class=\"name\">BlindAI proxy</p>\
             <p class=\"server\">{server}</p></header>\n\
             <section class=\"verdict {class}\"><h1>{title}</h1><p>{means}</p></section>\n",
            title = state.title(),
            class = state.name(),
            means = state.means(),
            server = Text(&self.server),
        );
        self.write_body(&mut page);
        let _ = write!(
            page,
            "<footer>As of {}. The same as JSON: <code>curl</code> this address. \
             Version {}.</footer>\n</main>\n",
            utc(time::now()),
            env!("CARGO_PKG_VERSION")
        );
        page
    }

    fn write_body(&self, page: &mut String) {
        let failure = self.trust.failure();
        if let (None, Some(failure)) = (self.trust.report(), failure) {
            write_failure(page, "Why", failure);
        }
        write_rows(page, "Trust", &self.rows());
        if let Some(report) = self.trust.report() {
            write_rows(page, "What runs there", &measured(report));
            write_checks(page, report.checks());
            if let Some(failure) = failure {
                write_failure(page, "Last failure", failure);
            }
        }
    }

    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = vec![("Server", self.server.clone())];
        if let Some(report) = self.trust.report() {
            rows.push(("TEE", tee(report)));
            rows.push(("Patch level", patch_level(report)));
            let key = hex::encode(report.claims().tls_spki_sha256);
            rows.push(("TLS key, SHA-256", key));
        }
        let none = || "none: what is simulated is accepted, whatever it is".to_owned();
        rows.push(("Policy", self.policy_id.clone().unwrap_or_else(none)));
        if let Some(report) = self.trust.report() {
            rows.push(("Verified", utc(report.verified_at())));
            rows.push(("Valid until", utc(report.valid_until())));
        }
        rows.push(("Next verification", utc(self.next)));
        rows.into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }
}

#[derive(Clone, Copy)]
enum State {
    Verified,
    Simulated,
    Refused,
    Waiting,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Simulated => "simulated",
            Self::Refused => "refused",
            Self::Waiting => "waiting",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Verified => "Verified",
            Self::Simulated => "Simulation: nothing is protected",
            Self::Refused => "Not trusted: nothing is forwarded",
            Self::Waiting => "Not verified yet",
        }
    }

    fn means(self) -> &'static str {
        match self {
            Self::Verified => {
                "What you send to this proxy is encrypted here and read only by the code below, \
                 on the hardware below."
            }
            Self::Simulated => {
                "There is no TEE at the other end. Whoever runs the server can read and change \
                 everything. This is for trying things out."
            }
            Self::Refused => {
                "The server did not prove what the policy asks for. Requests are refused until \
                 it does; it is asked again and again."
            }
            Self::Waiting => "Requests are refused until the server has proved what it is.",
        }
    }
}

fn tee(report: &VerifiedReport) -> String {
    format!("{}, rooted in {}", report.tee(), report.trust_root())
}

fn patch_level(report: &VerifiedReport) -> String {
    match report.advisories() {
        [] => report.tcb_status().to_owned(),
        advisories => format!("{}, with {}", report.tcb_status(), advisories.join(", ")),
    }
}

fn measured(report: &VerifiedReport) -> Vec<(String, String)> {
    let said = report.measurements().iter();
    let mut rows: Vec<_> = said
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    if let Some(digest) = report.claims().config_digest {
        rows.push(("configuration".to_owned(), digest.to_string()));
    }
    rows
}

fn failure_json(failure: &Failure) -> Value {
    let error = &failure.error;
    json!({
        "at": failure.at,
        "code": error.code(),
        "fact": error.fact(),
        "remedy": error.remedy(),
        "checks": error.rejection().map(|rejection| rejection.to_json()["checks"].take()),
    })
}

fn write_failure(page: &mut String, title: &str, failure: &Failure) {
    let error = &failure.error;
    let rows = [
        ("When", utc(failure.at)),
        ("Code", error.code().to_owned()),
        ("Fact", error.fact().to_owned()),
        ("Remedy", error.remedy().to_owned()),
    ];
    let rows = rows.into_iter().filter(|(_, value)| !value.is_empty());
    let rows: Vec<_> = rows.map(|(name, value)| (name.to_owned(), value)).collect();
    write_rows(page, title, &rows);
    if let Some(rejection) = error.rejection() {
        write_checks(page, rejection.checks());
    }
}

fn write_rows(page: &mut String, title: &str, rows: &[(String, String)]) {
    let _ = writeln!(page, "<section><h2>{}</h2><dl>", Text(title));
    for (name, value) in rows {
        let (name, value) = (Text(name), Text(value));
        let _ = writeln!(page, "<dt>{name}</dt><dd>{value}</dd>");
    }
    page.push_str("</dl></section>\n");
}

fn write_checks(page: &mut String, checks: &[Check]) {
    page.push_str("<section><h2>Checks</h2><table>\n");
    for check in checks {
        let outcome = check.outcome().as_str();
        let _ = writeln!(
            page,
            "<tr><td class=\"{outcome}\">{outcome}</td><th scope=\"row\">{}</th><td>{}</td></tr>",
            Text(check.name()),
            Text(check.detail())
        );
    }
    page.push_str("</table></section>\n");
}

/// Text, whatever is in it: evidence and errors hold what a stranger wrote.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Directions of writing would make the page read otherwise than it is.
                c if is_steering(c) => f.write_char('?')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

const STYLE: &str = include_str!("page.css");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_stranger_wrote_becomes_markup() {
        let text = Text("<script>&\"'\u{202e}\u{1b}x</script>").to_string();
        assert_eq!(text, "&lt;script&gt;&amp;&quot;&#39;??x&lt;/script&gt;");
    }

    #[test]
    fn the_style_closes_nothing_that_it_stands_in() {
        assert!(!STYLE.contains('<'));
    }
}
