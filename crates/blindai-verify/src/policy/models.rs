//! The table `[models]`: which digests may answer under which names.

use blindai_core::pins::{MODELS_BYTES, ModelPin, ModelPins, OTHERS};
use toml::Value;

use super::Section;

pub(super) fn read(top: &mut Section<'_>) -> ModelPins {
    let Some(mut section) = top.section("models") else {
        return ModelPins::default();
    };
    let only_listed = section.take(OTHERS, "\"refuse\" or \"accept\"", others);
    let mut keys: Vec<String> = section.table.keys().cloned().collect();
    keys.sort_unstable();
    if keys.is_empty() {
        section.problem("", "lists no model");
    }
    let pins = keys.iter().flat_map(|key| read_pins(key, &mut section));
    let pins = ModelPins::new(pins.collect(), only_listed.unwrap_or(false));
    let bytes = pins.to_string().len();
    if bytes > MODELS_BYTES {
        let what = format!("takes {bytes} bytes of a request, at most {MODELS_BYTES} are sent");
        section.problem("", &what);
    }
    section.finish();
    pins
}

fn others(value: Value) -> Option<bool> {
    match value.as_str() {
        Some("refuse") => Some(true),
        Some("accept") => Some(false),
        _ => None,
    }
}

fn read_pins(key: &str, section: &mut Section<'_>) -> Vec<ModelPin> {
    let digests = section.parsed(key, FORM, |digest| digest.parse().ok());
    let Ok((name, version)) = ModelPin::parse_key(key) else {
        section.problem(key, "is neither a model's NAME nor \"NAME/VERSION\"");
        return Vec::new();
    };
    let pin = |digest| ModelPin {
        name: name.clone(),
        version: version.clone(),
        digest,
    };
    digests.unwrap_or_default().into_iter().map(pin).collect()
}

// A dot without quotes makes a table, and of its key a name that nobody meant.
const FORM: &str =
    "a list of digests, sha256:<64 hex>; a name with a dot or a version stands in quotes";

#[cfg(test)]
mod tests {
    use blindai_core::{Code, Digest};

    use crate::Policy;

    fn policy(models: &str) -> String {
        let enclave = "aa".repeat(32);
        let models = models.replace("BB", &format!("sha256:{}", "bb".repeat(32)));
        format!("tee = [\"sgx\"]\n[sgx]\nmrenclave = [\"{enclave}\"]\n{models}")
    }

    fn accepts(models: &str, name: &str, digest: u8) -> bool {
        let policy = Policy::from_toml(&policy(models)).unwrap();
        let digest = Digest::from_bytes([digest; 32]);
        let (name, version) = (name.parse().unwrap(), "1".parse().unwrap());
        let accepted = policy.models().accept(&name, &version, &digest);
        if let Err(error) = &accepted {
            assert_eq!(error.code(), Code::ModelNotAccepted);
        }
        accepted.is_ok()
    }

    #[test]
    fn only_the_listed_are_pinned_unless_the_others_are_refused() {
        assert!(accepts("", "m", 1));
        let pinned = "[models]\nm = [\"BB\"]\n\"n.onnx/2\" = [\"BB\"]";
        assert!(accepts(pinned, "m", 0xbb) && !accepts(pinned, "m", 1));
        assert!(!accepts(pinned, "n.onnx", 0xbb), "of another version");
        assert!(accepts(pinned, "o", 1));
        let strict = format!("{pinned}\n\"*\" = \"refuse\"");
        assert!(accepts(&strict, "m", 0xbb) && !accepts(&strict, "o", 1));
        assert!(accepts(&format!("{pinned}\n\"*\" = \"accept\""), "o", 1));
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = r#"
            [models]
            "*" = "deny"
            empty = []
            text = "BB"
            short = ["sha256:bb"]
            m.onnx = ["BB"]
            "a b" = ["BB"]
            "m/" = ["BB"]
            digest = { sha256 = "BB" }
        "#;
        let error = Policy::from_toml(&policy(text)).unwrap_err();
        let problems = error.problems().join("\n");
        for word in [
            "models.* is \"refuse\" or",
            "models.empty is a list",
            "models.text is a list",
            "models.short is a list",
            "models.m is a list of digests, sha256:<64 hex>; a name with a dot",
            "models.a b is neither",
            "models.m/ is neither",
            "models.digest is a list",
        ] {
            assert!(problems.contains(word), "{word}:\n{problems}");
        }
        assert_eq!(error.problems().len(), 8, "{problems}");
    }

    #[test]
    fn a_table_without_a_model_is_refused() {
        for text in ["[models]", "[models]\n\"*\" = \"refuse\""] {
            let error = Policy::from_toml(&policy(text)).unwrap_err();
            assert_eq!(error.problems(), ["models lists no model"], "{text}");
        }
    }

    #[test]
    fn a_list_that_fits_into_no_request_is_refused() {
        let lines = |count| {
            let lines = (0..count).map(|i| format!("model-{i:03} = [\"BB\"]"));
            policy(&format!(
                "[models]\n{}",
                lines.collect::<Vec<_>>().join("\n")
            ))
        };
        assert!(Policy::from_toml(&lines(190)).is_ok());
        let error = Policy::from_toml(&lines(200)).unwrap_err();
        assert!(error.problems()[0].contains("at most 16384"), "{error}");
    }
}
