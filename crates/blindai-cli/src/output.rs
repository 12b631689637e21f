//! What commands print: tables for people, JSON for machines.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use blindai_client::{ClientError, ErrorKind as Class};
use blindai_core::{
    Collateral, Evidence, ModelInfo, Signature, Tee, TensorSpec, is_steering, printable,
};
use blindai_verify::Rejection;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

/// The command could not be run at all.
const EXIT_FAILURE: u8 = 2;
/// The server or the evidence was not trusted, the server refused the request, or there are
/// differences.
pub const EXIT_REFUSED: u8 = 1;

/// Prints JSON for machines. What would steer a terminal is escaped: the JSON says the same.
pub fn print_json(value: &Value) {
    write(&escaped_json(value));
}

/// Prints text for people, without what would steer their terminal: names in it were written by
/// servers and files.
pub fn print(text: impl Display) {
    write(&harmless(&text.to_string()));
}

/// Prints a line to standard error, beside the answer.
pub fn warn(text: impl Display) {
    eprintln!("{}", printable(&text.to_string(), LINE_BYTES));
}

fn write(text: &str) {
    match writeln!(std::io::stdout(), "{text}") {
        // Whoever reads may stop: the exit code is the verdict all the same.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("blindai: the answer cannot be written: {error}");
            std::process::exit(EXIT_FAILURE.into());
        }
        _ => {}
    }
}

/// Prints an error in one line, and gives the exit code it has.
pub fn failure(error: &anyhow::Error) -> ExitCode {
    warn(format_args!("blindai: {error:#}"));
    let kind = error.downcast_ref::<ClientError>().map(ClientError::kind);
    ExitCode::from(match kind {
        Some(Class::Attestation | Class::Server(_)) => EXIT_REFUSED,
        _ => EXIT_FAILURE,
    })
}

/// Prints a rejection in one line, and gives the exit code it has.
pub fn refusal(rejection: &Rejection) -> ExitCode {
    warn(format_args!("blindai: {rejection}"));
    ExitCode::from(EXIT_REFUSED)
}

/// A rejection as JSON, with what the evidence says of itself. Nothing of that is known to be true
/// unless `verification` says so.
pub fn rejection_json(
    rejection: &Rejection,
    quote: &[u8],
    collateral: Option<&Collateral>,
    now: u64,
) -> Value {
    let seen = blindai_verify::observe(quote, collateral, now);
    let mut seen = seen.map_or_else(|_| json!({}), |seen| seen.to_json());
    let mut json = rejection.to_json();
    json["tee"] = match Evidence::is_snp_report(quote) {
        true => Tee::SevSnp.as_str().into(),
        false => seen["tee"].take(),
    };
    let or = |value: Value, default: Value| if value.is_null() { default } else { value };
    json["measurements"] = or(seen["values"].take(), json!({}));
    json["tcb_status"] = seen["verification"]["tcb_status"].clone();
    json["advisories"] = or(seen["verification"]["advisories"].clone(), json!([]));
    json["verification"] = seen["verification"].take();
    json
}

/// A table of models.
pub fn models(models: &[ModelInfo]) -> Table {
    let mut table = table(&["name", "version", "size", "digest", "inputs", "outputs"]);
    for model in models {
        table.add_row([
            model.name.to_string(),
            model.version.to_string(),
            indicatif::HumanBytes(model.size_bytes).to_string(),
            format!("{}…", &model.digest.to_hex()[..16]),
            names(&model.signature.inputs),
            names(&model.signature.outputs),
        ]);
    }
    table
}

/// All about one model.
pub fn model(model: &ModelInfo) -> String {
    let slot = model.metrics_slot;
    let slot = slot.map_or(String::new(), |slot| {
        format!("model=\"{slot}\" in the metrics\n")
    });
    let away = match model.loaded {
        true => "",
        false => ", out of memory until the next request",
    };
    let head = format!(
        "{} version {}\n{}, {}, on {}{away}\n{slot}",
        model.name,
        model.version,
        model.digest,
        indicatif::HumanBytes(model.size_bytes),
        model.engine,
    );
    head + &signature(&model.signature).to_string()
}

/// A table with a header and no decoration that would get in the way of reading.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

/// A model as JSON.
pub fn model_json(model: &ModelInfo) -> Value {
    json!(model)
}

/// The lines of a text stay lines.
fn harmless(text: &str) -> String {
    text.replace(|c| c != '\n' && is_steering(c), "?")
}

fn escaped_json(value: &Value) -> String {
    let mut json = String::new();
    for c in format!("{value:#}").chars() {
        match c {
            // Outside of strings JSON knows no other of them.
            c if c != '\n' && is_steering(c) => {
                let units = c.encode_utf16(&mut [0; 2]).to_vec();
                json.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
            }
            c => json.push(c),
        }
    }
    json
}

fn signature(signature: &Signature) -> Table {
    let mut table = table(&["", "name", "type", "shape"]);
    let inputs = signature.inputs.iter().map(|spec| ("input", spec));
    let outputs = signature.outputs.iter().map(|spec| ("output", spec));
    for (kind, spec) in inputs.chain(outputs) {
        table.add_row([kind, &spec.name, spec.dtype.as_str(), &shape(spec)]);
    }
    table
}

fn shape(spec: &TensorSpec) -> String {
    let Some(shape) = &spec.shape else {
        return "any".to_owned();
    };
    let dims: Vec<_> = shape.iter().map(ToString::to_string).collect();
    format!("[{}]", dims.join(", "))
}

fn names(specs: &[TensorSpec]) -> String {
    let names: Vec<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
    names.join(", ")
}

/// Rejections name each check that failed.
const LINE_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const FORGED: &str = "a\u{1b}[2K\u{9b}1A\u{202e}\u{e0041}\u{7f}日";

    #[test]
    fn json_says_the_same_without_steering_a_terminal() {
        let value = json!({ FORGED: [FORGED], "lines": "a\nb" });
        let text = escaped_json(&value);
        assert!(!text.contains(|c| c != '\n' && is_steering(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn text_for_people_keeps_its_lines_and_nothing_that_steers() {
        assert_eq!(harmless("a\nb"), "a\nb");
        assert_eq!(harmless(FORGED), "a?[2K?1A???日");
    }
}
