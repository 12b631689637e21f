//! A policy for people to judge, from what was observed.

use std::fmt::Write as _;

use blindai_core::ModelInfo;
use chrono::{DateTime, Utc};

use crate::field::{Field, Form, Group, Init, Value};
use crate::observe::{Observation, Verified};
use crate::report::utc;

/// How long what is not up to date is accepted before somebody has to judge it again.
const EXCEPTION_SECONDS: u64 = 30 * 24 * 3600;
const COLUMNS: usize = 98;

impl Observation {
    /// A policy file that pins what was seen, with a comment on each line: what it is, when it
    /// changes, and in comments what would be weaker or stronger. It is a draft: a person has to
    /// judge each line.
    ///
    /// What is not up to date is accepted for 30 days from the time of the observation. Debug, a
    /// missing revocation list and a privilege level but 0 are not accepted: the lines for them
    /// stand in comments, because evidence that nobody judged must not weaken the policy.
    pub fn to_policy_toml(&self) -> String {
        let mut draft = Draft(String::new());
        self.draft_head(&mut draft);
        draft.comment("The kinds of TEE that are accepted. Each needs its section.");
        draft.line(&format!("tee = [\"{}\"]", self.tee));
        self.draft_debug(&mut draft);
        self.draft_config(&mut draft);
        draft.line(&format!("\n[{}]", self.tee));
        for field in Field::of(self.tee) {
            if let Some(value) = self.value(field) {
                draft_field(field, value, &mut draft);
            }
        }
        if let Some(seen) = &self.snp {
            seen.draft(&mut draft);
        } else if let Some(verified) = self.verified() {
            self.draft_tcb(verified, &mut draft);
        }
        self.draft_models(&mut draft);
        draft.0
    }

    fn draft_head(&self, draft: &mut Draft) {
        let at = utc(self.observed_at);
        draft.comment(&format!(
            "What one piece of evidence ({}) says, as a policy. Written at {at}. Judge each line: it \
             says what ran then, not that it is good.",
            self.tee
        ));
        draft.comment(&format!("The evidence: {}.", self.verification));
        draft.0.push('\n');
    }

    fn draft_debug(&self, draft: &mut Draft) {
        if self.debug {
            draft.comment(
                "DEBUG IS ON: the host can read everything inside, so this policy refuses the \
                 evidence that it was written from. The next line would accept it.",
            );
            draft.line("# dangerous_allow_debug = true");
        }
    }

    fn draft_config(&self, draft: &mut Draft) {
        if let Some(digest) = self.config_digest {
            draft.0.push('\n');
            draft.comment("The server's configuration. Changes with each setting.");
            draft.line(&format!("config_digest = [\"{digest}\"]"));
        }
    }

    fn draft_models(&self, draft: &mut Draft) {
        draft.0.push('\n');
        let Some(models) = self.models.as_deref().filter(|models| !models.is_empty()) else {
            draft.comment(
                "No models are pinned. Without a table [models], which says which digests may \
                 answer under a name, whoever holds the server's store can put an old one back.",
            );
            return;
        };
        draft.line("[models]");
        draft.comment(
            "What may answer under these names, as the server listed it. Of each name the newest \
             version: with an older one beside it, a store that holds nothing newer would pass.",
        );
        for (model, newest) in with_newest(models) {
            let ModelInfo {
                name,
                version,
                digest,
                ..
            } = model;
            draft.line(&match newest {
                true => format!("\"{name}\" = [\"{digest}\"]"),
                false => format!("# \"{name}/{version}\" = [\"{digest}\"]"),
            });
        }
        draft.comment("Other names may hold anything, unless this line counts.");
        draft.line("# \"*\" = \"refuse\"");
    }

    fn draft_tcb(&self, verified: &Verified, draft: &mut Draft) {
        draft.line("\n[tcb]");
        draft.comment("The platform's patch levels that are accepted without an end.");
        draft.line("allowed = [\"UpToDate\"]");
        if let Some(number) = verified.evaluation_number {
            draft.comment(
                "The vendor's evaluation that the collateral has to be of, at least. It only grows: \
                 with it, nobody can present what was known of the platform before.",
            );
            draft.line(&format!("min_evaluation_number = {number}"));
        }
        let status = Some(&verified.tcb_status).filter(|status| *status != "UpToDate");
        let status = status.map(|status| ("status", status));
        let advisories = verified.advisories.iter().map(|id| ("advisory", id));
        for (what, of) in status.into_iter().chain(advisories) {
            draft.comment(
                "TO BE JUDGED: read what it says, and shorten or delete this. Afterwards the \
                 evidence is refused, until the platform is updated or somebody judges again.",
            );
            draft.line("[[tcb.exceptions]]");
            // Strangers may have chosen the text: a quotation mark in it must not end it.
            draft.line(&format!("{what} = {}", toml::Value::from(of.as_str())));
            draft.line(&format!(
                "until = \"{}\"",
                day(self.observed_at.saturating_add(EXCEPTION_SECONDS))
            ));
        }
    }
}

/// Models in the order of a list, and whether each is the newest of its name.
pub(crate) fn with_newest(models: &[ModelInfo]) -> impl Iterator<Item = (&ModelInfo, bool)> {
    let newest = |i: usize| {
        let mut later = models[i + 1..].iter();
        !later.any(|later| later.name == models[i].name)
    };
    let models = models.iter().enumerate();
    models.map(move |(i, model)| (model, newest(i)))
}

fn draft_field(field: &Field, value: &Value, draft: &mut Draft) {
    let line = line(field, value).filter(|_| !field.is_absent(value));
    let Some(line) = line else {
        return;
    };
    draft.comment(field.meaning);
    let pinned = match field.init {
        Init::Pin => true,
        Init::PinUnlessZero => !value.is_zero(),
        Init::Offer => false,
    };
    if pinned && value.is_zero() && field.group == Group::Code {
        draft.comment("ZEROS: nothing was measured here, so this line does not tell one program from another.");
    }
    if !pinned && field.form == Form::Flag {
        draft.comment(&format!("Here: {value}."));
    }
    draft.line(&format!("{}{line}", if pinned { "" } else { "# " }));
}

fn line(field: &Field, value: &Value) -> Option<String> {
    let key = field.key();
    Some(match field.form {
        Form::OneOf(_) => format!("{key} = [\"{value}\"]"),
        Form::EachAtLeast(_) => format!("{key} = \"{value}\""),
        Form::Bits(bytes) => {
            let mask = "ff".repeat(bytes);
            format!("{key} = {{ value = \"{value}\", mask = \"{mask}\" }}")
        }
        Form::Exactly | Form::AtLeast => format!("{key} = {value}"),
        // To ask for the risk would make no sense.
        Form::Flag => format!("{key} = false"),
        Form::Shown => return None,
    })
}

fn day(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|seconds| DateTime::<Utc>::from_timestamp(seconds, 0));
    time.unwrap_or_default().format("%Y-%m-%d").to_string()
}

pub(crate) struct Draft(String);

impl Draft {
    pub fn line(&mut self, line: &str) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.0, "{line}");
    }

    pub fn comment(&mut self, text: &str) {
        let mut line = String::from("#");
        for word in text.split_whitespace() {
            if line.len() + word.len() >= COLUMNS {
                self.line(&line);
                line = String::from("#");
            }
            line = format!("{line} {word}");
        }
        self.line(&line);
    }
}
