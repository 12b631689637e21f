//! `[access]`: read, checked and told.

use std::collections::HashSet;
use std::fmt;

use blindai_core::{Digest, ModelName};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use toml::Value;

use crate::config::{BYTES, COUNT, Section};

/// `[access]`: who may do what.
#[derive(Clone, Debug, Serialize)]
pub struct AccessConfig {
    /// What callers without a credential may do. Default: everything when neither tokens nor clients
    /// are configured, else nothing.
    pub anonymous: Vec<Role>,
    /// `[[access.tokens]]`: bearer tokens, by the SHA-256 of their text.
    pub tokens: Vec<Entry>,
    /// `[[access.clients]]`: client certificates, by the SHA-256 of their SubjectPublicKeyInfo.
    pub clients: Vec<Entry>,
}

/// One principal.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// The operator's label. It owns what the principal uploads.
    pub name: String,
    /// Of the token's text (`sha256`), or of the certificate's key (`spki_sha256`).
    pub sha256: Digest,
    pub roles: Vec<Role>,
    /// The names that the roles are for, a `*` at the end standing for any. Default `["*"]`.
    pub models: Vec<Pattern>,
    /// From when on the credential is refused. Default never.
    pub expires: Option<Expiry>,
    pub quota: Quota,
}

/// What a principal may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Run models and read about them.
    Infer,
    /// Upload models; list, run, replace and delete its own.
    Upload,
    /// Everything, with all models.
    Admin,
}

impl Role {
    /// As the configuration names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Upload => "upload",
            Self::Admin => "admin",
        }
    }
}

/// `quota`: how much one principal may do and hold. What is not set is bounded by `[limits]` only.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Quota {
    /// Requests a second, uploads included, over time.
    pub requests_per_second: Option<f64>,
    /// Requests that may come at once after a pause. Default: those of one second, and at least one.
    pub burst: Option<usize>,
    /// Requests and uploads in progress at one time.
    pub concurrent_requests: Option<usize>,
    /// Models held, each version counted.
    pub models: Option<usize>,
    /// The bytes of the files of all models held.
    pub model_bytes: Option<u64>,
}

impl Quota {
    fn read(s: &mut Section) -> Self {
        Self {
            requests_per_second: s.optional_within("requests_per_second", 0.001..=1e6),
            burst: s.optional_within("burst", 1..=COUNT),
            concurrent_requests: s.optional_within("concurrent_requests", 1..=COUNT),
            models: s.optional_within("models", 0..=COUNT),
            model_bytes: s.optional_within("model_bytes", 0..=BYTES),
        }
    }

    /// The most requests at once.
    pub fn burst(&self) -> f64 {
        let own = self.burst.map(|burst| burst as f64);
        own.unwrap_or_else(|| self.requests_per_second.unwrap_or_default().ceil().max(1.0))
    }
}

/// A model's name, or the beginning of names with a `*` behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl Pattern {
    /// Every name.
    pub fn all() -> Self {
        Self("*".to_owned())
    }

    /// Whether the name is one of these.
    pub fn covers(&self, name: &ModelName) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.as_str().starts_with(beginning),
            None => name.as_str() == self.0,
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = blindai_core::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let beginning = text.strip_suffix('*').unwrap_or(&text);
        if text != "*" {
            beginning.parse::<ModelName>()?;
        }
        Ok(Self(text))
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

/// A time as RFC 3339 writes it; a day stands for its begin in UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct Expiry {
    text: String,
    unix_seconds: u64,
}

impl Expiry {
    /// Seconds since 1970.
    pub fn unix_seconds(&self) -> u64 {
        self.unix_seconds
    }

    fn parse(text: &str) -> Option<Self> {
        let day = text.len() == "2030-01-01".len();
        let full = if day {
            format!("{text}T00:00:00Z")
        } else {
            text.to_owned()
        };
        let time = OffsetDateTime::parse(&full, &Rfc3339).ok()?;
        Some(Self {
            text: text.to_owned(),
            unix_seconds: time.unix_timestamp().try_into().ok()?,
        })
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Expiry> for String {
    fn from(expiry: Expiry) -> Self {
        expiry.text
    }
}

impl AccessConfig {
    pub(crate) fn read(s: &mut Section) -> Self {
        let tokens = s.list("tokens", |s| Some(Entry::read(s, "sha256")));
        let clients = s.list("clients", |s| Some(Entry::read(s, "spki_sha256")));
        let open = tokens.is_empty() && clients.is_empty();
        let default = if open { ALL.to_vec() } else { Vec::new() };
        Self {
            anonymous: s.get("anonymous", default),
            tokens,
            clients,
        }
    }

    pub(crate) fn contradictions(&self) -> Vec<String> {
        let entries = || self.tokens.iter().chain(&self.clients);
        let mut errors = Vec::new();
        let mut seen = HashSet::new();
        for name in entries().map(|entry| &entry.name) {
            if !seen.insert(name) {
                errors.push(format!("access: two entries have the name {name:?}"));
            }
        }
        let mut seen = HashSet::new();
        for entry in entries() {
            if !seen.insert(entry.sha256) {
                errors.push(format!(
                    "access: {:?} has the digest of another entry",
                    entry.name
                ));
            }
            let limited = entry.models != [Pattern::all()];
            if limited && entry.roles.contains(&Role::Admin) {
                let name = &entry.name;
                errors.push(format!(
                    "access: {name:?} is admin, which is for all models"
                ));
            }
        }
        errors
    }

    /// Who may do what, in one line.
    pub fn describe(&self) -> String {
        let anonymous = words(&self.anonymous);
        if self.tokens.is_empty() && self.clients.is_empty() {
            return format!("no tokens or clients are configured: everybody may {anonymous}");
        }
        let entries = self.tokens.iter().chain(&self.clients);
        let named = entries.map(|entry| format!("{} may {}", entry.name, words(&entry.roles)));
        let others = format!("others may {anonymous}");
        named.chain([others]).collect::<Vec<_>>().join("; ")
    }
}

impl Entry {
    fn read(s: &mut Section, sha256: &str) -> Self {
        let name: String = s.required("name").unwrap_or_default();
        if !is_label(&name) {
            s.refuse("name", "1 to 64 letters, digits, '.', '_' or '-'");
        }
        let models = s.get("models", vec![Pattern::all()]);
        Self {
            name,
            sha256: digest(s, sha256),
            roles: s.required("roles").unwrap_or_default(),
            models,
            expires: expiry(s),
            quota: s.section("quota", Quota::read),
        }
    }
}

/// What is written there by mistake may be the token itself: it is not repeated.
fn digest(s: &mut Section, key: &str) -> Digest {
    let text = s.take(key);
    let read = text.as_ref().and_then(Value::as_str).map(str::parse);
    match read {
        Some(Ok(digest)) => digest,
        _ => {
            s.refuse(
                key,
                "64 hexadecimal digits are needed: a SHA-256, and never a token",
            );
            Digest::of(b"")
        }
    }
}

fn expiry(s: &mut Section) -> Option<Expiry> {
    let text = match s.take("expires")? {
        Value::Datetime(time) => time.to_string(),
        other => other.as_str().unwrap_or_default().to_owned(),
    };
    let expiry = Expiry::parse(&text);
    if expiry.is_none() {
        s.refuse(
            "expires",
            "a time as 2030-01-31T12:00:00Z, or a day as 2030-01-31",
        );
    }
    expiry
}

// They stand in the log.
fn is_label(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

fn words(roles: &[Role]) -> String {
    match roles {
        [] => "do nothing".to_owned(),
        roles => roles
            .iter()
            .map(|role| role.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    }
}

const ALL: [Role; 3] = [Role::Infer, Role::Upload, Role::Admin];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn entry(more: &str) -> String {
        let sha256 = "ab".repeat(32);
        format!("[[access.tokens]]\nname = 'a'\nsha256 = '{sha256}'\nroles = ['infer']\n{more}")
    }

    fn refused(text: &str) -> String {
        Config::from_toml(text).unwrap_err().to_string()
    }

    #[test]
    fn without_credentials_everybody_may_everything_and_with_some_nobody_else_anything() {
        let anonymous = |text: &str| Config::from_toml(text).unwrap().access.anonymous;
        assert_eq!(anonymous(""), ALL);
        assert_eq!(anonymous("[access]\nanonymous = ['infer']"), [Role::Infer]);
        assert_eq!(anonymous(&entry("")), []);
        let listed = format!("[access]\nanonymous = ['infer']\n{}", entry(""));
        assert_eq!(anonymous(&listed), [Role::Infer]);
    }

    #[test]
    fn an_entry_is_read_whole() {
        let more = "models = ['m', 'team-*']\nexpires = 2030-01-31\n\
                    quota = {requests_per_second = 5, models = 3, model_bytes = 100}";
        let config = Config::from_toml(&entry(more)).unwrap().access;
        let read = &config.tokens[0];
        assert_eq!(read.sha256, "ab".repeat(32).parse().unwrap());
        assert_eq!(read.models.len(), 2);
        assert_eq!(read.expires.as_ref().unwrap().unix_seconds(), 1_896_048_000);
        assert_eq!(read.quota.burst(), 5.0);
        assert_eq!(read.quota.models, Some(3));
        let told = config.describe();
        assert_eq!(told, "a may infer; others may do nothing");
    }

    #[test]
    fn errors_name_their_entry_and_not_what_may_be_a_token() {
        let secret = "blindai_0123";
        let text = format!(
            "[[access.tokens]]\nname = 'a b'\nsha256 = '{secret}'\nroles = ['root']\ncolour = 1\n\
             [[access.clients]]\nspki_sha256 = 7\nexpires = 'soon'\nroles = []\n\
             quota = {{requests_per_second = 0, model_byte = 1}}"
        );
        let told = refused(&text);
        assert!(!told.contains(secret), "{told}");
        for part in [
            "access.tokens[0].name: 1 to 64",
            "access.tokens[0].sha256: 64 hexadecimal digits",
            "access.tokens[0].roles = [\"root\"]",
            "access.tokens[0].colour: unknown key",
            "access.clients[0].name: missing",
            "access.clients[0].spki_sha256: 64 hexadecimal digits",
            "access.clients[0].expires: a time",
            "access.clients[0].quota.requests_per_second = 0: from",
            "access.clients[0].quota.model_byte: unknown key",
        ] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let twice = format!("{}\n{}", entry(""), entry(""));
        let told = refused(&twice);
        assert!(told.contains("two entries have the name \"a\""), "{told}");
        assert!(told.contains("has the digest of another"), "{told}");
        let admin = entry("models = ['m']").replace("infer", "admin");
        assert!(refused(&admin).contains("is admin, which is for all models"));
        for more in ["models = ['a/b']", "models = ['*a']", "models = ['.*']"] {
            assert!(
                refused(&entry(more)).contains("access.tokens[0].models"),
                "{more}"
            );
        }
    }

    #[test]
    fn times_are_read() {
        let seconds = |text: &str| Expiry::parse(text).map(|expiry| expiry.unix_seconds());
        assert_eq!(seconds("2030-01-31"), Some(1_896_048_000));
        assert_eq!(seconds("2030-01-31T01:00:00+01:00"), Some(1_896_048_000));
        for text in [
            "",
            "2030",
            "2030-13-01",
            "2030-01-31T00:00:00",
            "1969-01-01",
            "tomorrow.",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
