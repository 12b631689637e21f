//! `blindai infer`

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use blindai_client::{Digest, InferRequest, ModelPins};
use blindai_core::{ModelName, ModelVersion, NamedTensor};
use clap::Args;
use serde_json::json;

use crate::connection::Connection;
use crate::receipt::Keep;
use crate::{npy, output};

#[derive(Args)]
pub struct Arguments {
    /// The model's name.
    name: ModelName,
    /// The model's version; the newest by default.
    #[arg(long)]
    version: Option<ModelVersion>,
    /// An input and the file that holds it; repeat for each input.
    #[arg(long = "input", value_name = "NAME=FILE.npy", required = true, value_parser = assignment)]
    inputs: Vec<(String, PathBuf)>,
    /// Where to write each output as NAME.npy; made when absent.
    #[arg(long, value_name = "FOLDER")]
    output_dir: PathBuf,
    /// Accept no other model than the one of this digest: sha256:<64 HEX DIGITS>.
    #[arg(long, value_name = "DIGEST")]
    digest: Option<Digest>,
    #[command(flatten)]
    keep: Keep,
    #[command(flatten)]
    connection: Connection,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let inputs = arguments.inputs.iter().map(|(name, path)| read(name, path));
    let request = InferRequest::new(inputs.collect::<Result<_>>()?);
    let (name, version) = (&arguments.name, arguments.version.as_ref());
    let client = arguments.connection.open()?;
    let client = client.accepting(ModelPins::digest(name, arguments.digest));
    let (response, receipt) = match arguments.keep.receipt {
        Some(_) => {
            let (response, receipt) = client.infer_with_receipt(name, version, &request)?;
            (response, Some(receipt))
        }
        None => (client.infer(name, version, &request)?, None),
    };
    arguments.keep.save(receipt.as_ref())?;
    fs::create_dir_all(&arguments.output_dir)
        .with_context(|| format!("{} cannot be made", arguments.output_dir.display()))?;
    let names: Vec<&str> = response.outputs.iter().map(|o| o.name.as_str()).collect();
    let written = response
        .outputs
        .iter()
        .zip(file_names(&names))
        .map(|(output, file)| write(arguments.output_dir.join(file), output));
    let files: Vec<PathBuf> = written.collect::<Result<_>>()?;
    report(arguments.json, &response.outputs, &files);
    Ok(ExitCode::SUCCESS)
}

/// Reads `NAME=FILE.npy`.
pub fn assignment(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), path.into()))
        }
        _ => Err("write it as NAME=FILE.npy".to_owned()),
    }
}

/// Reads an input from a `.npy` file.
///
/// # Errors
/// When the file cannot be read, or holds no tensor.
pub fn read(name: &str, path: &Path) -> Result<NamedTensor> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let tensor = npy::read(BufReader::new(file))
        .with_context(|| format!("{} is no tensor", path.display()))?;
    Ok(NamedTensor::new(name, tensor))
}

fn write(path: PathBuf, output: &NamedTensor) -> Result<PathBuf> {
    if path.is_symlink() {
        bail!(
            "{} is a link, and will not be written through",
            path.display()
        );
    }
    let file = File::create(&path).with_context(|| format!("{}", path.display()))?;
    npy::write(BufWriter::new(file), &output.tensor)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(path)
}

// The names come from a model that somebody else may have made: none may leave the folder, and none
// may take the file of another.
fn file_names(names: &[&str]) -> Vec<String> {
    let kept = names.iter().copied().filter(|name| harmless(name));
    let mut taken: HashSet<String> = kept.map(str::to_owned).collect();
    let stem = |(index, name): (usize, &&str)| {
        if harmless(name) {
            return (*name).to_owned();
        }
        let mut free = format!("output_{index}");
        while !taken.insert(free.clone()) {
            free.push('_');
        }
        free
    };
    let stems = names.iter().enumerate().map(stem);
    stems.map(|stem| stem + ".npy").collect()
}

fn harmless(name: &str) -> bool {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(harmless)
}

fn report(json: bool, outputs: &[NamedTensor], files: &[PathBuf]) {
    if json {
        let outputs = outputs.iter().zip(files).map(|(output, file)| {
            json!({
                "name": output.name,
                "datatype": output.tensor.dtype(),
                "shape": output.tensor.shape(),
                "file": file,
            })
        });
        return output::print_json(&json!({ "outputs": outputs.collect::<Vec<_>>() }));
    }
    let mut table = output::table(&["output", "type", "shape", "file"]);
    for (output, file) in outputs.iter().zip(files) {
        table.add_row([
            output.name.clone(),
            output.tensor.dtype().to_string(),
            format!("{:?}", output.tensor.shape()),
            file.display().to_string(),
        ]);
    }
    output::print(table);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_cannot_leave_the_folder() {
        assert_eq!(file_names(&["logits"]), ["logits.npy"]);
        for name in ["../x", "/etc/passwd", "", ".hidden", "a\0b"] {
            assert_eq!(file_names(&["a", "b", name])[2], "output_2.npy");
        }
    }

    #[test]
    fn no_output_takes_the_file_of_another() {
        let names = [
            "output_1",
            "scores:0",
            "output_3",
            "output_3_",
            "a/b",
            "x:0",
        ];
        let files = file_names(&names);
        assert_eq!(files[0], "output_1.npy");
        assert_eq!(files[1], "output_1_.npy");
        assert_eq!(files.iter().collect::<HashSet<_>>().len(), names.len());
        let names = ["output_2", "output_2_", "x:0"];
        assert_eq!(file_names(&names)[2], "output_2__.npy");
    }
}
