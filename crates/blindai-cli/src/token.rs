//! `blindai token`

use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use blindai_core::Token;
use blindai_server::Config;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::output;

#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a token: it goes to standard output, once, and its entry for the server's configuration to
    /// standard error. The entry holds only a hash.
    New(New),
}

#[derive(Args)]
struct New {
    /// The name of who gets it, which owns what it uploads; made up of the hash by default.
    #[arg(long)]
    name: Option<String>,
    /// What it may do: infer, upload, admin.
    #[arg(long, value_delimiter = ',', default_value = "infer")]
    roles: Vec<String>,
    /// The names of the models that it is for, a * at the end standing for any; all by default.
    #[arg(long, value_delimiter = ',')]
    models: Vec<String>,
    /// When it ends: 2030-01-31, or 2030-01-31T12:00:00Z; never by default.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// Print token, hash and entry as JSON, all to standard output.
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Command::New(new) = &arguments.command;
    let mut random = [0; 32];
    let drawn = aws_lc_rs::rand::fill(&mut random);
    drawn.map_err(|_| anyhow!("the system gives no random numbers"))?;
    let token = Token::from_random(&random);
    let entry = new.entry(&token);
    Config::from_toml(&entry).context("no server would take this token")?;
    if new.json {
        let sha256 = token.digest().to_hex();
        output::print_json(&json!({ "token": token.expose(), "sha256": sha256, "entry": entry }));
    } else {
        output::print(token.expose());
        eprint!("{entry}");
    }
    Ok(ExitCode::SUCCESS)
}

impl New {
    fn entry(&self, token: &Token) -> String {
        let sha256 = token.digest().to_hex();
        let name = self.name.clone();
        let name = name.unwrap_or_else(|| format!("token-{}", &sha256[..8]));
        let mut entry = format!(
            "[[access.tokens]]\nname = {}\nsha256 = \"{sha256}\"\nroles = {}\n",
            quoted(&name),
            list(&self.roles)
        );
        if !self.models.is_empty() {
            entry += &format!("models = {}\n", list(&self.models));
        }
        if let Some(expires) = &self.expires {
            entry += &format!("expires = {}\n", quoted(expires));
        }
        entry
    }
}

fn list(texts: &[String]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}

/// As TOML writes it; JSON's texts are TOML's.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}
