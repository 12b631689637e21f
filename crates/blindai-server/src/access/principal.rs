use std::sync::Arc;

use blindai_core::pins::ModelPins;
use blindai_core::{Code, Digest, Error, ModelName, ModelVersion, Result};
use blindai_engine::Caller;
use serde::{Deserialize, Serialize};

use super::config::{Entry, Expiry, Pattern, Role};
use super::quota::{Allowance, Held, QuotaPlace};

/// Who sends a request. Only [`Access::authenticate`](super::Access::authenticate) makes one.
#[derive(Clone)]
pub struct Principal {
    member: Arc<Member>,
    caller: Caller,
    accepted: Arc<ModelPins>,
}

/// Whose a model is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// Of nobody who could be told from others.
    #[default]
    Anonymous,
    /// Of the one who runs the server: the configuration names its file.
    Operator,
    /// Of the one whom the configuration names so.
    Named(String),
}

/// What a verb asks for, before it is known of which model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// To run models and to read about them.
    Use,
    /// To upload, to replace and to delete them.
    Manage,
}

/// What is known of a principal, the same for all of its requests.
pub(super) struct Member {
    owner: Owner,
    roles: Vec<Role>,
    models: Vec<Pattern>,
    expires: Option<Expiry>,
    allowance: Allowance,
    /// For fair turns and strict batches; those who are anonymous are told apart by connection.
    caller: Option<Caller>,
}

impl Member {
    /// One of the configuration's entries, which are numbered.
    pub fn new(entry: &Entry, number: u64) -> Self {
        Self {
            owner: Owner::Named(entry.name.clone()),
            roles: entry.roles.clone(),
            models: entry.models.clone(),
            expires: entry.expires.clone(),
            allowance: Allowance::new(&entry.quota),
            caller: Some(Caller(NOT_A_CONNECTION | number)),
        }
    }

    /// Everybody else.
    pub fn anonymous(roles: &[Role]) -> Self {
        Self {
            owner: Owner::Anonymous,
            roles: roles.to_vec(),
            models: vec![Pattern::all()],
            expires: None,
            allowance: Allowance::default(),
            caller: None,
        }
    }
}

impl Principal {
    pub(super) fn new(member: Arc<Member>, connection: Caller) -> Self {
        let caller = member.caller.unwrap_or(connection);
        let accepted = Arc::default();
        Self {
            member,
            caller,
            accepted,
        }
    }

    /// The same, for a request that asks for these models and no others.
    pub(crate) fn accepting(mut self, models: ModelPins) -> Self {
        self.accepted = Arc::new(models);
        self
    }

    /// Whether its request says which models it accepts.
    pub fn is_choosy(&self) -> bool {
        !self.accepted.is_empty()
    }

    /// Checks that its request accepts this model.
    ///
    /// # Errors
    /// [`Code::ModelNotAccepted`]
    pub fn accept(&self, name: &ModelName, version: &ModelVersion, digest: &Digest) -> Result<()> {
        self.accepted.accept(name, version, digest)
    }

    /// The one who runs the server, for what the configuration has it do by itself.
    pub(crate) fn operator() -> Self {
        let member = Member {
            owner: Owner::Operator,
            roles: vec![Role::Admin],
            ..Member::anonymous(&[])
        };
        Self::new(Arc::new(member), Caller::default())
    }

    /// Who takes turns with others, and meets only itself in a strict batch: the principal on all of
    /// its connections, or the connection of somebody who is anonymous.
    pub fn caller(&self) -> Caller {
        self.caller
    }

    /// Whose the models are that it uploads.
    pub fn owner(&self) -> &Owner {
        &self.member.owner
    }

    /// Takes a place among its own requests, which is free again when it is dropped.
    ///
    /// # Errors
    /// [`Code::QuotaExceeded`]
    pub fn take_place(&self) -> Result<QuotaPlace> {
        self.member.allowance.take_place()
    }

    /// Checks that one more model of so many bytes is within its quota.
    ///
    /// # Errors
    /// [`Code::QuotaExceeded`]
    pub fn check_room(&self, held: Held, bytes: u64) -> Result<()> {
        self.member.allowance.check_room(held, bytes)
    }

    /// Checks what can be known before a model is named: so much the refused are told before they
    /// send anything.
    ///
    /// # Errors
    /// [`Code::Unauthenticated`] when a credential would help, [`Code::Forbidden`].
    pub fn require(&self, right: Right) -> Result<()> {
        self.check_expiry(crate::identity::unix_now())?;
        let enough = self.has(Role::Admin)
            || self.has(Role::Upload)
            || (self.has(Role::Infer) && right == Right::Use);
        match (enough, self.owner()) {
            (true, _) => Ok(()),
            (false, Owner::Anonymous) => {
                let fact = "no token was sent, and without one this is not allowed";
                Err(Error::new(Code::Unauthenticated, fact))
            }
            (false, _) => Err(forbidden("the caller has no role that allows this")),
        }
    }

    /// Whether it may use this model of this owner, and so know that it exists.
    pub fn sees(&self, name: &ModelName, owner: &Owner) -> bool {
        let uses = self.has(Role::Infer) || (self.has(Role::Upload) && owner == self.owner());
        self.has(Role::Admin) || (uses && self.covers(name))
    }

    /// Checks that it may upload under this name, which is free or of `owner`, or delete what is there.
    ///
    /// # Errors
    /// [`Code::Forbidden`], with the same words for a name that is another's and for one that is out
    /// of its range.
    pub fn check_manages(&self, name: &ModelName, owner: Option<&Owner>) -> Result<()> {
        self.require(Right::Manage)?;
        let own = owner.is_none_or(|owner| owner == self.owner());
        match self.has(Role::Admin) || (own && self.covers(name)) {
            true => Ok(()),
            false => Err(forbidden(&format!("the name {name:?} is not the caller's"))
                .with_remedy("choose another name, or ask the server's operator")),
        }
    }

    pub(super) fn check_expiry(&self, now: u64) -> Result<()> {
        match &self.member.expires {
            Some(expires) if expires.unix_seconds() <= now => {
                let fact = format!("the credential has expired, at {expires}");
                Err(Error::new(Code::Unauthenticated, fact)
                    .with_remedy("ask the server's operator for a new one"))
            }
            _ => Ok(()),
        }
    }

    fn has(&self, role: Role) -> bool {
        self.member.roles.contains(&role)
    }

    fn covers(&self, name: &ModelName) -> bool {
        let mut patterns = self.member.models.iter();
        patterns.any(|pattern| pattern.covers(name))
    }
}

fn forbidden(fact: &str) -> Error {
    Error::new(Code::Forbidden, fact)
}

/// Connections are counted from 0 and never come this far.
const NOT_A_CONNECTION: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn principal(name: &str, entry: &str) -> Principal {
        let sha256 = "00".repeat(32);
        let text = format!("[[access.tokens]]\nname = '{name}'\nsha256 = '{sha256}'\n{entry}");
        let access = Config::from_toml(&text).unwrap().access;
        Principal::new(Arc::new(Member::new(&access.tokens[0], 0)), Caller(1))
    }

    fn anonymous(roles: &[Role]) -> Principal {
        Principal::new(Arc::new(Member::anonymous(roles)), Caller(1))
    }

    /// What each role may do with a model of its own, of another, and under a free name.
    #[test]
    fn roles_give_these_rights_and_no_others() {
        let name: ModelName = "m".parse().unwrap();
        let other = Owner::Named("other".into());
        let rights = |who: &Principal| {
            let own = who.owner().clone();
            let bits = [
                who.require(Right::Use).is_ok(),
                who.sees(&name, &own),
                who.sees(&name, &other),
                who.require(Right::Manage).is_ok(),
                who.check_manages(&name, None).is_ok(),
                who.check_manages(&name, Some(&own)).is_ok(),
                who.check_manages(&name, Some(&other)).is_ok(),
            ];
            bits.map(|bit| if bit { '1' } else { '0' })
                .iter()
                .collect::<String>()
        };
        for (roles, want) in [
            ("", "0000000"),
            ("'infer'", "1110000"),
            ("'upload'", "1101110"),
            ("'infer', 'upload'", "1111110"),
            ("'admin'", "1111111"),
        ] {
            let who = principal("a", &format!("roles = [{roles}]"));
            assert_eq!(rights(&who), want, "{roles}");
        }
        for (roles, want) in [
            (&[][..], "0000000"),
            (&[Role::Infer], "1110000"),
            (&[Role::Upload], "1101110"),
            (&[Role::Admin], "1111111"),
        ] {
            assert_eq!(rights(&anonymous(roles)), want, "{roles:?}");
        }
    }

    #[test]
    fn a_role_holds_for_the_models_of_its_patterns_only() {
        let who = principal(
            "a",
            "roles = ['infer', 'upload']\nmodels = ['one', 'team-*']",
        );
        let other = Owner::Named("other".into());
        let both = |name: &str| {
            let name = name.parse().unwrap();
            (
                who.sees(&name, &other),
                who.check_manages(&name, None).is_ok(),
            )
        };
        for name in ["one", "team-", "team-x"] {
            assert_eq!(both(name), (true, true), "{name}");
        }
        for name in ["on", "ones", "team", "my-team-x"] {
            assert_eq!(both(name), (false, false), "{name}");
        }
    }

    #[test]
    fn a_credential_ends_when_it_expires() {
        let who = principal("a", "roles = ['infer']\nexpires = '2030-01-01T00:00:00Z'");
        assert!(who.check_expiry(1_893_455_999).is_ok());
        let error = who.check_expiry(1_893_456_000).unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated);
    }

    #[test]
    fn who_is_anonymous_is_asked_for_a_credential_and_others_are_forbidden() {
        let code = |who: &Principal| who.require(Right::Manage).unwrap_err().code();
        assert_eq!(code(&anonymous(&[Role::Infer])), Code::Unauthenticated);
        assert_eq!(code(&principal("a", "roles = ['infer']")), Code::Forbidden);
    }
}
