//! Who may do what.
//!
//! 1. A request shows a bearer token, or comes over a connection whose client certificate has a key
//!    that the configuration names. [`Access::authenticate`] makes a [`Principal`] of it, before
//!    anything of the body is read or any place is taken.
//! 2. Every verb of the [service](crate::service::Service) that touches a model takes a `&Principal`.
//!    Nothing else makes one, so a route that forgets to ask who calls does not compile.
//! 3. The [registry](crate::registry::Registry) shows a principal only models that it may use. Names of
//!    models are secrets: what one may not use is not there.
//!
//! What is *not* protected: the one who writes the configuration hands out the rights. Its digest is
//! in the evidence, so a client that pins it knows which rights there are.

mod certificate;
mod config;
mod principal;
mod quota;

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::http::{HeaderMap, header};
use blindai_core::{Code, Digest, Error, Result, Token};
use blindai_engine::Caller;

pub use certificate::{PeerKey, PinnedClients};
pub use config::{AccessConfig, Entry, Expiry, Pattern, Quota, Role};
pub use principal::{Owner, Principal, Right};
pub use quota::{Held, QuotaPlace};

use crate::identity::unix_now;
use principal::Member;

/// Everybody who is known, and what the others may do.
pub struct Access {
    anonymous: Arc<Member>,
    tokens: Vec<Known>,
    clients: Vec<Known>,
}

/// The SHA-256 of a token or of a certificate's key, and whose it is.
struct Known {
    sha256: Digest,
    member: Arc<Member>,
}

impl Access {
    /// What the configuration says.
    pub fn new(config: &AccessConfig) -> Self {
        let tokens = config.tokens.iter().zip(0..);
        let clients = config.clients.iter().zip(config.tokens.len() as u64..);
        Self {
            anonymous: Arc::new(Member::anonymous(&config.anonymous)),
            tokens: tokens.map(Known::new).collect(),
            clients: clients.map(Known::new).collect(),
        }
    }

    /// Who sends a request with these headers, over a connection with this client key.
    ///
    /// A token says more than the connection that it came on, so it decides; one that is not known is
    /// refused even where nobody needs one: who sends it counts on it.
    ///
    /// # Errors
    /// [`Code::Unauthenticated`], which repeats nothing of what was sent.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        key: Option<PeerKey>,
        connection: Caller,
    ) -> Result<Principal> {
        let member = match (bearer(headers)?, key) {
            (Some(token), _) => find(&self.tokens, token.digest()).ok_or("the token is not known"),
            (None, Some(key)) => {
                find(&self.clients, key.sha256()).ok_or("the client certificate is not known")
            }
            (None, None) => Ok(&self.anonymous),
        };
        let member = member.map_err(|fact| Error::new(Code::Unauthenticated, fact))?;
        let principal = Principal::new(member.clone(), connection);
        principal.check_expiry(unix_now())?;
        Ok(principal)
    }

    /// What checks client certificates in the handshake, where any are configured.
    pub fn pinned_clients(&self) -> Option<Arc<PinnedClients>> {
        let keys = self.clients.iter().map(|known| known.sha256).collect();
        (!self.clients.is_empty()).then(|| Arc::new(PinnedClients::new(keys)))
    }
}

impl Known {
    fn new((entry, number): (&Entry, u64)) -> Self {
        Self {
            sha256: entry.sha256,
            member: Arc::new(Member::new(entry, number)),
        }
    }
}

// Each is compared in constant time, and all of them whatever is found: how long it takes says
// nothing of what is configured.
fn find(known: &[Known], sha256: Digest) -> Option<&Arc<Member>> {
    let mut found = None;
    for one in known {
        if verify_slices_are_equal(one.sha256.as_bytes(), sha256.as_bytes()).is_ok() {
            found = Some(&one.member);
        }
    }
    found
}

fn bearer(headers: &HeaderMap) -> Result<Option<Token>> {
    let mut sent = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = sent.next() else {
        return Ok(None);
    };
    let unusable = |fact| Error::new(Code::Unauthenticated, fact);
    if sent.next().is_some() {
        return Err(unusable("there is more than one authorization header"));
    }
    let (_, token) = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .ok_or_else(|| unusable("the authorization header is not a bearer token"))?;
    let token = token.trim_matches(' ').parse();
    token
        .map(Some)
        .map_err(|_| unusable("the bearer token is not in the form of this program's tokens"))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::Config;

    fn token(number: u8) -> Token {
        Token::from_random(&[number; 32])
    }

    fn access(more: &str) -> Access {
        let text = format!(
            "[[access.tokens]]\nname = 'a'\nsha256 = '{}'\nroles = ['infer']\n\
             [[access.tokens]]\nname = 'old'\nsha256 = '{}'\nroles = ['admin']\n\
             expires = '2020-01-01'\n{more}",
            token(1).digest().to_hex(),
            token(2).digest().to_hex(),
        );
        Access::new(&Config::from_toml(&text).unwrap().access)
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(header::AUTHORIZATION, value);
        }
        headers
    }

    fn refusal(access: &Access, values: &[&str]) -> Error {
        let connection = Caller(1);
        let refused = access.authenticate(&headers(values), None, connection);
        refused.err().expect("it is refused")
    }

    #[test]
    fn a_known_token_is_one_caller_on_every_connection() {
        let access = access("");
        let caller = |connection, scheme: &str| {
            let sent = format!("{scheme} {}", token(1).expose());
            let known = access.authenticate(&headers(&[&sent]), None, Caller(connection));
            known.unwrap().caller()
        };
        assert_eq!(caller(1, "Bearer"), caller(2, "bearer"));
        let anonymous = |connection| {
            let known = access.authenticate(&HeaderMap::new(), None, Caller(connection));
            known.unwrap().caller()
        };
        assert_eq!(anonymous(1), Caller(1));
        assert_ne!(anonymous(1), anonymous(2));
        assert_ne!(caller(0, "Bearer"), anonymous(0));
    }

    #[test]
    fn what_is_no_known_token_is_refused_without_being_repeated() {
        let access = access("[access]\nanonymous = ['infer']");
        let (good, other) = (token(1), token(3));
        let good = format!("Bearer {}", good.expose());
        let other = format!("Bearer {}", other.expose());
        for values in [
            &[other.as_str()][..],
            &["Bearer"],
            &["Bearer "],
            &["Basic dXNlcjpwYXNz"],
            &[&good, &good],
            &[&good, &other],
            &["Bearer pässword"],
        ] {
            let error = refusal(&access, values);
            assert_eq!(error.code(), Code::Unauthenticated, "{values:?}");
            let told = error.to_string();
            for secret in ["blindai_", "dXNlcjpwYXNz", "pässword"] {
                assert!(!told.contains(secret), "{told}");
            }
        }
    }

    #[test]
    fn a_token_that_has_expired_is_refused() {
        let sent = format!("Bearer {}", token(2).expose());
        let error = refusal(&access(""), &[&sent]);
        assert!(error.fact().contains("expired"), "{error}");
    }

    #[test]
    fn a_key_that_is_not_pinned_is_refused() {
        let key = PeerKey::from_sha256(Digest::of(b"key"));
        let refused = access("").authenticate(&HeaderMap::new(), Some(key), Caller(1));
        assert_eq!(refused.err().unwrap().code(), Code::Unauthenticated);
    }

    #[test]
    fn a_token_decides_over_the_key_of_its_connection() {
        let key = Digest::of(b"key");
        let client = format!(
            "[[access.clients]]\nname = 'c'\nspki_sha256 = '{}'\nroles = ['admin']",
            key.to_hex()
        );
        let access = access(&client);
        let key = Some(PeerKey::from_sha256(key));
        let caller = |values: &[&str]| {
            let known = access.authenticate(&headers(values), key, Caller(1));
            known.map(|principal| principal.caller())
        };
        let good = format!("Bearer {}", token(1).expose());
        assert_ne!(caller(&[&good]).unwrap(), caller(&[]).unwrap());
        assert!(caller(&["Bearer x"]).is_err());
    }
}
