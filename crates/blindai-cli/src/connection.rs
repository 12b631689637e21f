//! Which server a command talks to, and what it must prove first.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use blindai_client::blocking::Client;
use blindai_client::{
    Client as AsyncClient, ClientError, ConnectOptions, Connector, Digest, FetchOptions, Fetcher,
    Policy, Source, VerifiedReport,
};
use clap::Args;

use crate::file;

#[derive(Args)]
pub struct Connection {
    /// The server's attested port.
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:50051")]
    server: String,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    fetching: Fetching,
}

/// What a server must prove.
#[derive(Args)]
pub struct Trust {
    /// Accept what is simulated, which protects nothing.
    #[arg(long)]
    simulation: bool,
    /// The appraisal policy that must be satisfied.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

/// Whose collateral a server is verified with.
#[derive(Args)]
pub struct Fetching {
    /// Fetch collateral instead of taking the server's: from "vendor" (Intel or AMD), the URL of a
    /// PCCS or of a mirror of AMD's service, a file or a folder.
    #[arg(long, value_name = "SOURCE")]
    collateral: Option<String>,
}

impl Connection {
    /// A client of the server, which is verified.
    pub fn open(&self) -> Result<Client> {
        self.trust.connect(&self.server, &self.fetching)
    }

    /// What makes connections to the server, once that is verified.
    pub fn connector(&self) -> Result<Connector> {
        let policy = self.trust.policy()?.context(NO_POLICY)?;
        let options = self.fetching.options(policy)?;
        Ok(Connector::new(&self.server, options)?)
    }

    /// See [`Trust::policy_id`].
    pub fn policy_id(&self) -> Result<Option<String>> {
        self.trust.policy_id()
    }

    /// The same for async code, which keeps so many connections and waits so long for an answer.
    pub async fn open_async(&self, connections: usize, patience: Duration) -> Result<AsyncClient> {
        let options = self.trust.options(&self.fetching)?;
        let options = options
            .idle_connections(connections)
            .request_timeout(patience);
        let client = AsyncClient::connect(&self.server, options).await;
        let client = client.map_err(|error| self.trust.explain(error))?;
        warn_of_simulation(&self.server, &client.report());
        Ok(client)
    }

    /// The server's address, as it was given.
    pub fn server(&self) -> &str {
        &self.server
    }
}

fn warn_of_simulation(server: &str, report: &VerifiedReport) {
    if report.simulated() {
        eprintln!("WARNING: {server} is a simulation. It protects nothing.");
    }
}

impl Fetching {
    fn options(&self, policy: Policy) -> Result<ConnectOptions> {
        let options = ConnectOptions::new(policy);
        let Some(source) = &self.collateral else {
            return Ok(options);
        };
        let patience = FetchOptions::default();
        let fetcher = Fetcher::new(Source::parse(source)?, &patience)?;
        let options = options.collateral(fetcher);
        Ok(options.connect_timeout(2 * patience.timeout))
    }
}

impl Trust {
    /// A client of `server`, which is verified.
    pub fn connect(&self, server: &str, fetching: &Fetching) -> Result<Client> {
        let client = Client::connect(server, self.options(fetching)?);
        let client = client.map_err(|error| self.explain(error))?;
        warn_of_simulation(server, &client.report());
        Ok(client)
    }

    fn options(&self, fetching: &Fetching) -> Result<ConnectOptions> {
        // Without one the server is asked all the same: its refusal says what it is.
        let policy = self.policy()?.unwrap_or_else(Policy::accept_nothing);
        fetching.options(policy)
    }

    // Without a policy every measurement is a mismatch; what is missing is the policy.
    fn explain(&self, error: ClientError) -> anyhow::Error {
        let missing = self.policy.is_none() && error.code() == "measurement-mismatch";
        let error = anyhow::Error::new(error);
        match missing {
            true => error.context(NO_POLICY),
            false => error,
        }
    }

    /// The policy, when one was named.
    ///
    /// # Errors
    /// When the file cannot be read, or is no policy.
    pub fn policy(&self) -> Result<Option<Policy>> {
        match &self.policy {
            Some(path) => read_policy(path, self.simulation).map(Some),
            None if self.simulation => Ok(Some(Policy::dangerous().accept_simulation())),
            None => Ok(None),
        }
    }

    /// The digest of the policy file, by which others can know it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn policy_id(&self) -> Result<Option<String>> {
        let text = |path| file::read(path, POLICY_BYTES);
        let text = self.policy.as_deref().map(text).transpose()?;
        Ok(text.map(|text| Digest::of(&text).to_string()))
    }
}

/// Reads a policy file, and lets it accept simulated evidence beside.
///
/// # Errors
/// When the file cannot be read, or is no policy.
pub fn read_policy(path: &Path, simulation: bool) -> Result<Policy> {
    let text = file::read_text(path, POLICY_BYTES).context("the policy cannot be used")?;
    let policy = Policy::from_toml(&text)?;
    Ok(match simulation {
        true => policy.dangerous_accept_simulation(),
        false => policy,
    })
}

const NO_POLICY: &str = "no policy says what the server must prove · give --policy FILE";
/// A policy names digests by the dozen, not by the million.
const POLICY_BYTES: u64 = 1024 * 1024;
