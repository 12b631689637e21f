//! Names that a model chooses and others read, on their terminals.

use blindai_core::{Code, Dim, Error, Result, Signature};

/// Checks the names of a model's inputs, outputs and dimensions.
///
/// # Errors
/// [`Code::ModelUnsupported`] when one is long or could do something to a terminal.
pub(crate) fn check_names(signature: &Signature) -> Result<()> {
    let inputs = signature.inputs.iter().map(|spec| ("an input", spec));
    let outputs = signature.outputs.iter().map(|spec| ("an output", spec));
    for (role, spec) in inputs.chain(outputs) {
        check(role, &spec.name)?;
        for dim in spec.shape.iter().flatten() {
            if let Dim::Symbolic(name) = dim {
                check("a dimension", name)?;
            }
        }
    }
    Ok(())
}

/// Whether a terminal would show the character, and show it in its place: control sequences can
/// rewrite a screen, and marks of direction can turn a text around.
pub(crate) fn printable(c: char) -> bool {
    let direction = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !direction && !matches!(c, '\u{2028}' | '\u{2029}')
}

const LONGEST_NAME_BYTES: usize = 512;

fn check(role: &str, name: &str) -> Result<()> {
    let why = if name.len() > LONGEST_NAME_BYTES {
        format!("is longer than {LONGEST_NAME_BYTES} bytes")
    } else if !name.chars().all(printable) {
        "holds control characters".to_owned()
    } else {
        return Ok(());
    };
    let start: String = name.chars().take(32).collect();
    let fact = format!("the name of {role}, {start:?}, {why}");
    Err(Error::new(Code::ModelUnsupported, fact)
        .with_remedy("rename it and export the model again"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blindai_core::{DType, TensorSpec};

    fn signature(name: &str, dim: &str) -> Signature {
        let spec = |name: &str, dim: &str| TensorSpec {
            name: name.to_owned(),
            dtype: DType::F32,
            shape: Some(vec![Dim::Fixed(1), Dim::Symbolic(dim.to_owned())]),
            optional: false,
        };
        Signature {
            inputs: vec![spec("x", "n")],
            outputs: vec![spec("y", "n"), spec(name, dim)],
        }
    }

    #[test]
    fn ordinary_names_pass() {
        let longest = "n".repeat(LONGEST_NAME_BYTES);
        for name in [
            "",
            "input_ids:0",
            "model/Größe (千)",
            "e\u{301}🤖",
            &longest,
        ] {
            check_names(&signature(name, name)).unwrap_or_else(|e| panic!("{e}"));
        }
    }

    #[test]
    fn names_that_reach_for_the_terminal_are_refused_and_shown_harmless() {
        let long = "n".repeat(LONGEST_NAME_BYTES + 1);
        for name in [
            "\u{1b}[2Jx",
            "a\nb",
            "\u{7f}",
            "\u{9b}31m",
            "a\u{202e}b",
            "\u{2028}",
            &long,
        ] {
            for (signature, role) in [
                (signature(name, "n"), "an output"),
                (signature("z", name), "a dimension"),
            ] {
                let error = check_names(&signature).unwrap_err();
                assert_eq!(error.code(), Code::ModelUnsupported);
                assert!(error.fact().contains(role), "{error}");
                assert!(error.fact().chars().all(printable), "{error}");
                assert!(error.fact().len() < 200, "{error}");
            }
        }
    }
}
