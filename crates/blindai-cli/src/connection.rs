//! Which server a command talks to, and what it must prove first.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use blindai_client::blocking::Client;
use blindai_client::{ClientError, ConnectOptions, Policy};
use clap::Args;

#[derive(Args)]
pub struct Connection {
    /// The server's attested port.
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:50051")]
    server: String,
    #[command(flatten)]
    trust: Trust,
}

/// What a server must prove.
#[derive(Args)]
pub struct Trust {
    /// Accept a simulated server, which protects nothing.
    #[arg(long)]
    simulation: bool,
    /// The appraisal policy that the server must satisfy.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

impl Connection {
    /// A client of the server, which is verified.
    pub fn open(&self) -> Result<Client> {
        self.trust.connect(&self.server)
    }
}

impl Trust {
    /// A client of `server`, which is verified.
    pub fn connect(&self, server: &str) -> Result<Client> {
        let client = Client::connect(server, ConnectOptions::new(self.policy()?));
        let client = client.map_err(|error| self.explain(error))?;
        if client.report().simulated() {
            eprintln!("WARNING: {server} is a simulation. It protects nothing.");
        }
        Ok(client)
    }

    // Without a policy every measurement is a mismatch; what is missing is the policy.
    fn explain(&self, error: ClientError) -> anyhow::Error {
        let missing = self.policy.is_none() && error.code() == "measurement-mismatch";
        let error = anyhow::Error::new(error);
        match missing {
            true => error.context("no policy says what the server must prove · give --policy FILE"),
            false => error,
        }
    }

    fn policy(&self) -> Result<Policy> {
        let Some(path) = &self.policy else {
            if self.simulation {
                return Ok(Policy::dangerous().accept_simulation());
            }
            // The server is asked all the same: its refusal says what it is.
            return Ok(Policy::accept_nothing());
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the policy {} cannot be read", path.display()))?;
        let policy = Policy::from_toml(&text)?;
        Ok(match self.simulation {
            true => policy.dangerous_accept_simulation(),
            false => policy,
        })
    }
}
