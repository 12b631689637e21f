//! Which server a command talks to, and what it must prove first.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use blindai_client::blocking::Client;
use blindai_client::{
    Client as AsyncClient, ClientCertificate, ClientError, ConnectOptions, Connector, Digest,
    FetchOptions, Fetcher, Policy, Source, Token, VerifiedReport,
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
    #[command(flatten)]
    credentials: Credentials,
}

/// Who calls, where the server wants to know. There is no argument for a token itself: arguments are
/// seen by every program of the machine.
#[derive(Args)]
struct Credentials {
    /// Send the token in this file, to no server before it is verified. Without it, the one in the
    /// environment variable BLINDAI_TOKEN (not so for the proxy).
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Show this client certificate (PEM) to the server.
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
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
        let options = self.trust.options(&self.fetching)?;
        let options = self.credentials.add_to(options)?;
        self.trust.connect(&self.server, options)
    }

    /// What makes connections to the server, once that is verified.
    pub fn connector(&self) -> Result<Connector> {
        let policy = self.trust.policy()?.context(NO_POLICY)?;
        let options = self.fetching.options(policy)?;
        let options = self.credentials.add_certificate(options)?;
        Ok(Connector::new(&self.server, options)?)
    }

    /// The token of who calls, for what does not send it by itself.
    pub fn token(&self) -> Result<Option<Token>> {
        self.credentials.token()
    }

    /// The token in the file that was named.
    pub fn token_in_file(&self) -> Result<Option<Token>> {
        self.credentials.token_in_file()
    }

    /// See [`Trust::policy_id`].
    pub fn policy_id(&self) -> Result<Option<String>> {
        self.trust.policy_id()
    }

    /// The same for async code, which keeps so many connections and waits so long for an answer.
    pub async fn open_async(&self, connections: usize, patience: Duration) -> Result<AsyncClient> {
        let options = self.trust.options(&self.fetching)?;
        let options = self.credentials.add_to(options)?;
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

impl Credentials {
    fn add_to(&self, options: ConnectOptions) -> Result<ConnectOptions> {
        let options = self.add_certificate(options)?;
        Ok(match self.token()? {
            Some(token) => options.token(token),
            None => options,
        })
    }

    fn add_certificate(&self, options: ConnectOptions) -> Result<ConnectOptions> {
        let (Some(certificate), Some(key)) = (&self.client_cert, &self.client_key) else {
            return Ok(options);
        };
        let certificate = ClientCertificate::from_pem_files(certificate, key)?;
        Ok(options.client_certificate(certificate))
    }

    fn token(&self) -> Result<Option<Token>> {
        if let Some(token) = self.token_in_file()? {
            return Ok(Some(token));
        }
        match std::env::var_os(TOKEN) {
            Some(text) if !text.is_empty() => {
                let token = text.to_string_lossy().parse();
                token
                    .with_context(|| format!("{TOKEN} cannot be used"))
                    .map(Some)
            }
            _ => Ok(None),
        }
    }

    fn token_in_file(&self) -> Result<Option<Token>> {
        let Some(path) = &self.token_file else {
            return Ok(None);
        };
        let text = file::read_text(path, TOKEN_BYTES).context("the token cannot be used")?;
        let token = text.trim().parse();
        token
            .with_context(|| format!("{} cannot be used", path.display()))
            .map(Some)
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
    pub fn connect(&self, server: &str, options: ConnectOptions) -> Result<Client> {
        let client = Client::connect(server, options);
        let client = client.map_err(|error| self.explain(error))?;
        warn_of_simulation(server, &client.report());
        Ok(client)
    }

    /// What to connect with.
    pub fn options(&self, fetching: &Fetching) -> Result<ConnectOptions> {
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
/// Holds a token, for those who keep none in a file.
const TOKEN: &str = "BLINDAI_TOKEN";
/// A token has 80.
const TOKEN_BYTES: u64 = 1024;
/// A policy names digests by the dozen, not by the million.
const POLICY_BYTES: u64 = 1024 * 1024;
