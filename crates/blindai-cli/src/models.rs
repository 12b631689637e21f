//! `blindai models`

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use blindai_client::Upload;
use blindai_core::{ModelName, ModelVersion};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::connection::Connection;
use crate::output;
use crate::receipt::Keep;

#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Upload a model file.
    Upload {
        /// The ONNX file.
        file: PathBuf,
        /// The model's name; the file's name without its extension by default.
        #[arg(long)]
        name: Option<ModelName>,
        /// The model's version; the next number by default.
        #[arg(long)]
        version: Option<ModelVersion>,
        /// Replace what the version holds, while it goes on answering.
        #[arg(long, requires = "version")]
        replace: bool,
        #[command(flatten)]
        keep: Keep,
        #[command(flatten)]
        common: Common,
    },
    /// List the models.
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Show a model and its signature.
    Show {
        #[command(flatten)]
        model: Selector,
        #[command(flatten)]
        common: Common,
    },
    /// Delete a version of a model, or all of them.
    Delete {
        #[command(flatten)]
        model: Selector,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
struct Common {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Selector {
    /// The model's name.
    name: ModelName,
    /// The model's version; without it show takes the newest and delete all.
    #[arg(long)]
    version: Option<ModelVersion>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Upload {
            file,
            name,
            version,
            replace,
            keep,
            common,
        } => upload(&file, name, version, replace, &keep, &common)?,
        Command::List { common } => list(&common)?,
        Command::Show { model, common } => show(&model, &common)?,
        Command::Delete { model, common } => delete(&model, &common)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn upload(
    file: &Path,
    name: Option<ModelName>,
    version: Option<ModelVersion>,
    replace: bool,
    keep: &Keep,
    common: &Common,
) -> Result<()> {
    let name = match name {
        Some(name) => name,
        None => name_of(file)?,
    };
    let mut upload = Upload::file(&name, file).replace(replace);
    if let Some(version) = version {
        upload = upload.version(version);
    }
    let bar = progress_bar();
    let shown = bar.clone();
    upload = upload.progress(Arc::new(move |sent, total| {
        shown.set_length(total);
        shown.set_position(sent);
        if sent == total {
            shown.set_message("loading");
        }
    }));
    let client = common.connection.open()?;
    let result = match keep.receipt {
        Some(_) => client
            .upload_with_receipt(upload)
            .map(|(info, receipt)| (info, Some(receipt))),
        None => client.upload(upload).map(|info| (info, None)),
    };
    bar.finish_and_clear();
    let (info, receipt) = result?;
    keep.save(receipt.as_ref())?;
    match common.json {
        true => output::print_json(&output::model_json(&info)),
        false => output::print(output::model(&info)),
    }
    Ok(())
}

fn list(common: &Common) -> Result<()> {
    let client = common.connection.open()?;
    let models = client.models()?;
    // Who looks has to see it all; what would be refused when it is called is told beside.
    let refused = models
        .iter()
        .map(|info| client.accepted().accept_model(info));
    for error in refused.filter_map(Result::err) {
        output::warn(format_args!("WARNING: {error}"));
    }
    match common.json {
        true => output::print_json(&json!({ "models": models })),
        false => {
            let (table, warning) = (output::models(&models), output::warning(&models));
            output::print(format!("{table}{warning}"));
        }
    }
    Ok(())
}

fn show(selector: &Selector, common: &Common) -> Result<()> {
    let client = common.connection.open()?;
    let info = client.model(&selector.name, selector.version.as_ref())?;
    match common.json {
        true => output::print_json(&output::model_json(&info)),
        false => output::print(output::model(&info)),
    }
    Ok(())
}

fn delete(selector: &Selector, common: &Common) -> Result<()> {
    let client = common.connection.open()?;
    let deleted = client.delete(&selector.name, selector.version.as_ref())?;
    if common.json {
        output::print_json(&json!({ "deleted": deleted }));
        return Ok(());
    }
    for model in deleted {
        output::print(format!("deleted {} version {}", model.name, model.version));
    }
    Ok(())
}

fn name_of(file: &Path) -> Result<ModelName> {
    let stem = file
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    stem.parse()
        .with_context(|| format!("{} gives no model name, use --name", file.display()))
}

fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {msg}";
    let style = ProgressStyle::with_template(template).expect("the template is fixed");
    ProgressBar::new(0).with_style(style)
}
