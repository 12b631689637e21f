use std::fmt;

use blindai_core::{Digest, ModelInfo, ModelName, ModelVersion};

use crate::check::checks;
use crate::draft::with_newest;
use crate::observe::{Observation, Verified};
use crate::policy::{Excepted, Policy};

/// One thing in which an observation is not as a policy asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    name: &'static str,
    policy: String,
    seen: String,
}

impl Difference {
    /// The name of the check that fails for it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What the policy asks, for people.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// What was seen, for people.
    pub fn seen(&self) -> &str {
        &self.seen
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, policy, seen } = self;
        write!(f, "{name}: the policy allows {policy}, seen is {seen}")
    }
}

impl Policy {
    /// Everything in which an observation is not as this policy asks, at the time of the
    /// observation: what changed after an upgrade. None when the evidence would be accepted, as far
    /// as it needs no connection.
    ///
    /// Of the models that were listed, what would answer is compared with what is pinned: of each
    /// pinned name the newest version, and the versions that are pinned by themselves.
    pub fn differences(&self, seen: &Observation) -> Vec<Difference> {
        let mut found = List(Vec::new());
        if !self.tees.contains(&seen.tee) {
            let tees: Vec<_> = self.tees.iter().map(|tee| tee.as_str()).collect();
            found.add(checks::TEE, tees.join(" or "), seen.tee.to_string());
        }
        match seen.verified() {
            Some(verified) => self.compare_verified(verified, seen.observed_at, &mut found),
            None => found.add(
                checks::QUOTE,
                "what verifies".to_owned(),
                seen.verification.to_string(),
            ),
        }
        if seen.debug && !self.allow_debug {
            found.add(checks::DEBUG, "off".to_owned(), "on".to_owned());
        }
        for pin in self.pins.iter().filter(|pin| pin.tee == seen.tee) {
            let value = seen.value(pin.field);
            if !value.is_some_and(|value| pin.allowed.holds(value)) {
                let value = value.map_or("nothing".to_owned(), ToString::to_string);
                found.add(pin.field.name, pin.allowed.to_string(), value);
            }
        }
        for (name, policy, value) in seen.snp.iter().flat_map(|snp| snp.differences(self)) {
            found.add(name, policy, value);
        }
        self.compare_config(seen.config_digest, &mut found);
        if let Some(models) = &seen.models {
            self.compare_models(models, &mut found);
        }
        found.0
    }

    fn compare_verified(&self, verified: &Verified, now: u64, found: &mut List) {
        if !self.accepts_root(verified.root) {
            let root = match self.hardware_roots {
                true => "hardware",
                false => "the simulation",
            };
            let seen = verified.trust_root().to_owned();
            found.add(checks::TRUST_ROOT, root.to_owned(), seen);
        }
        // AMD names no status.
        if verified.root.is_amd() {
            return;
        }
        let names: Vec<_> = self
            .allowed_statuses
            .iter()
            .map(ToString::to_string)
            .collect();
        let status = &verified.tcb_status;
        let excepted = |e: &Excepted| self.excepted_until(e, now).is_some();
        let status_excepted = self.exceptions.iter().any(|exception| match &exception.of {
            Excepted::Status(s) => s.to_string() == *status && excepted(&exception.of),
            Excepted::Advisory(_) => false,
        });
        if !names.contains(status) && !status_excepted {
            found.add(checks::TCB_STATUS, names.join(" or "), status.clone());
        }
        for id in &verified.advisories {
            if !excepted(&Excepted::Advisory(id.clone())) {
                let asked = "no advisory without an exception".to_owned();
                found.add(checks::TCB_ADVISORIES, asked, id.clone());
            }
        }
        let number = verified.evaluation_number;
        if let Some(minimum) = self.min_evaluation_number
            && number.is_none_or(|number| number < minimum)
        {
            let number = number.map_or("nothing".to_owned(), |number| number.to_string());
            found.add(checks::TCB_EVALUATION, format!("{minimum} or more"), number);
        }
    }

    fn compare_config(&self, seen: Option<Digest>, found: &mut List) {
        let allowed = &self.config_digests;
        if !allowed.is_empty() && !seen.is_some_and(|digest| allowed.contains(&digest)) {
            let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
            let seen = seen.map_or("nothing".to_owned(), |digest| digest.to_string());
            found.add(checks::CONFIG_DIGEST, allowed.join(" or "), seen);
        }
    }

    fn compare_models(&self, seen: &[ModelInfo], found: &mut List) {
        let pinned = |model: &ModelInfo, newest| {
            let mut pins = self.models.pins().filter(|pin| pin.name == model.name);
            pins.any(|pin| newest || pin.version.as_ref() == Some(&model.version))
        };
        for (model, newest) in with_newest(seen) {
            if pinned(model, newest) && self.models.accept_model(model).is_err() {
                let version = Some(&model.version);
                let seen = pin_text(&model.name, version, &model.digest);
                found.add(checks::MODEL, self.pinned(&model.name), seen);
            }
        }
        let mut missing: Vec<_> = self.models.pins().map(|pin| &pin.name).collect();
        missing.sort_unstable();
        missing.dedup();
        missing.retain(|name| !seen.iter().any(|model| model.name == **name));
        for name in missing {
            found.add(checks::MODEL, self.pinned(name), "nothing".to_owned());
        }
    }

    fn pinned(&self, name: &ModelName) -> String {
        let pins = self.models.pins().filter(|pin| pin.name == *name);
        let pins = pins.map(|pin| pin_text(name, pin.version.as_ref(), &pin.digest));
        pins.collect::<Vec<_>>().join(" or ")
    }
}

fn pin_text(name: &ModelName, version: Option<&ModelVersion>, digest: &Digest) -> String {
    match version {
        Some(version) => format!("{name}/{version} = {digest}"),
        None => format!("{name} = {digest}"),
    }
}

struct List(Vec<Difference>);

impl List {
    fn add(&mut self, name: &'static str, policy: String, seen: String) {
        self.0.push(Difference { name, policy, seen });
    }
}
