//! `blindai bench`: load, and what became of it.
//!
//! A closed loop sends the next request when the last was answered, so a server that stalls is asked
//! less and its stall is measured once. An open loop sends when a schedule says so and counts latency
//! from that moment: what waited behind a stall has waited, as it would for real users.

mod chart;
mod grpc;
mod inputs;
mod load;
mod peer;
mod record;
mod report;
mod schedule;
mod summary;
mod target;

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use blindai_client::{Connector, InferRequest, PreparedRequest, ReceiptRequest};
use blindai_core::oip::grpc::ModelId;
use blindai_core::{ModelName, ModelVersion};
use clap::{Args, ValueEnum};
use tokio::runtime;

use self::grpc::Grpc;
use self::inputs::Shape;
use self::load::{Plan, Rate};
use self::peer::{Peer, Tensors};
use self::schedule::{Arrivals, Pacer};
use self::summary::{Subject, Summary};
use self::target::{Attested, Target};
use crate::connection::Connection;
use crate::{infer, output, time};

#[derive(Args)]
pub struct Arguments {
    /// The model's name.
    name: ModelName,
    /// The model's version; the newest by default.
    #[arg(long)]
    version: Option<ModelVersion>,
    /// An input and the file that holds it; repeat for each input. The others are random.
    #[arg(long = "input", value_name = "NAME=FILE.npy", value_parser = infer::assignment)]
    inputs: Vec<(String, PathBuf)>,
    /// The shape of a random input, where the model leaves it open.
    #[arg(long = "shape", value_name = "NAME=1,3,224,224")]
    shapes: Vec<Shape>,
    #[command(flatten)]
    load: Load,
    /// Write a report with plots.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// What the requests are spoken in.
    #[arg(long, value_enum, default_value_t = Spoken::Http, conflicts_with = "unattested")]
    protocol: Spoken,
    /// Measure another server of the Open Inference Protocol, which attests nothing: TLS with the
    /// certificate in this file.
    #[arg(long, value_name = "CERTIFICATE.pem", conflicts_with_all = ["policy", "simulation", "collateral"])]
    unattested: Option<PathBuf>,
    /// How tensors travel to a server that attests nothing.
    #[arg(long, value_enum, default_value_t = Tensors::Binary, requires = "unattested")]
    tensors: Tensors,
    /// Ask for a receipt with each request, and do not look at it.
    #[arg(long, conflicts_with = "unattested")]
    receipts: bool,
    #[command(flatten)]
    connection: Connection,
}

/// The spelling of the Open Inference Protocol; tensors are binary in both.
#[derive(Clone, Copy, ValueEnum)]
enum Spoken {
    /// REST over HTTP/1.1.
    Http,
    /// gRPC over HTTP/2.
    Grpc,
}

/// How much is sent, and when.
#[derive(Args)]
struct Load {
    /// Requests in progress at most, each on its own connection [default: 1, with --rate 256]
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,
    /// Requests per second, whatever the server does (open loop). Without it each answer brings the
    /// next request (closed loop).
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// How the requests of --rate are spaced.
    #[arg(long, value_enum, default_value_t = Arrivals::Constant, requires = "rate")]
    arrivals: Arrivals,
    /// How long to measure: 500ms, 10s, 2m [default: 10s, unless --requests is given]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// How long to send before that, unmeasured.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1s")]
    warmup: Duration,
    /// Stop after so many measured requests.
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// How long to wait for one answer.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    timeout: Duration,
    /// What random inputs and Poisson arrivals are drawn from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let plan = arguments.load.plan()?;
    // One thread: a tiny model answers sooner than another thread wakes up.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let summary = runtime.block_on(measure(arguments, &plan))?;
    if let Some(path) = &arguments.report {
        let page = report::page(&summary);
        std::fs::write(path, page)
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    match arguments.json {
        true => output::print_json(&serde_json::to_value(&summary)?),
        false => output::print(summary.table()),
    }
    for warning in summary.warnings() {
        output::warn(format_args!("WARNING: {warning}"));
    }
    Ok(match summary.requests {
        0 => ExitCode::from(output::EXIT_REFUSED),
        _ => ExitCode::SUCCESS,
    })
}

async fn measure(arguments: &Arguments, plan: &Plan) -> Result<Summary> {
    match &arguments.unattested {
        Some(certificate) => {
            let request = InferRequest::new(arguments.given_inputs()?);
            let (name, version) = (&arguments.name, arguments.version.as_ref());
            let server = arguments.connection.server();
            let tensors = arguments.tensors;
            let peer = Peer::new(
                server,
                certificate,
                name,
                version,
                &request,
                tensors,
                plan.timeout,
            )?;
            output::warn(format_args!("WARNING: {server} proves nothing."));
            let subject = Subject::new(server, name, version);
            load(peer, plan, subject).await
        }
        None => Box::pin(attested(arguments, plan)).await,
    }
}

async fn attested(arguments: &Arguments, plan: &Plan) -> Result<Summary> {
    let connection = &arguments.connection;
    let client = connection
        .open_async(plan.concurrency, plan.timeout)
        .await?;
    let (name, version) = (&arguments.name, arguments.version.as_ref());
    let info = client.model(name, version).await?;
    let given = arguments.given_inputs()?;
    let inputs = inputs::complete(&info.signature, given, &arguments.shapes, plan.seed)?;
    info.signature.check_inputs(&inputs)?;
    let version = Some(&info.version);
    let mut subject = Subject::new(connection.server(), name, version);
    subject.attested = true;
    subject.simulated = client.report().simulated();
    let alone = plan.concurrency == 1 && plan.rate.is_none();
    match arguments.protocol {
        Spoken::Http => {
            let mut request = PreparedRequest::new(name, version, &InferRequest::new(inputs));
            if arguments.receipts {
                request = request.with_unchecked_receipt(&ReceiptRequest::default());
            }
            load(Attested::new(client, request, alone), plan, subject).await
        }
        Spoken::Grpc => {
            if arguments.receipts {
                bail!("--receipts is measured over HTTP · leave --protocol out");
            }
            let connector = Rc::new(connection.connector()?);
            connector.attest().await?;
            let model = ModelId {
                name: name.to_string(),
                version: Some(info.version.to_string()),
            };
            let mut target = Grpc::new(connector.clone(), &model, &inputs, plan.timeout, alone)?;
            if let Some(token) = connection.token()? {
                target.authorize(&token);
            }
            tokio::select! {
                summary = load(target, plan, subject) => summary,
                never = keep_verified(&connector) => match never {},
            }
        }
    }
}

/// Verifies the server anew before its report ends, for a load that lasts longer: the client for HTTP
/// does so by itself. When this fails, the connector lets no request through, and this tries again.
async fn keep_verified(connector: &Connector) -> Infallible {
    loop {
        let end = connector.report().map_or(0, |report| report.valid_until());
        let left = end.saturating_sub(time::now());
        tokio::time::sleep(Duration::from_secs((left / 4 * 3).max(1))).await;
        let _ = connector.attest().await;
    }
}

async fn load(target: impl Target + 'static, plan: &Plan, subject: Subject) -> Result<Summary> {
    // One request before all others tells what is wrong with them, in words.
    target
        .send()
        .await
        .context("the first request failed, so no load was put on the server")?;
    let recording = load::run(plan, Rc::new(target), Pacer::new()?).await;
    Ok(Summary::new(subject, plan, recording))
}

impl Arguments {
    fn given_inputs(&self) -> Result<Vec<blindai_core::NamedTensor>> {
        let inputs = self.inputs.iter();
        inputs.map(|(name, path)| infer::read(name, path)).collect()
    }
}

impl Load {
    fn plan(&self) -> Result<Plan> {
        let default = if self.rate.is_some() { 256 } else { 1 };
        let concurrency = self.concurrency.unwrap_or(default);
        if !(1..=MOST_CONNECTIONS).contains(&concurrency) {
            bail!("--concurrency {concurrency} is not between 1 and {MOST_CONNECTIONS}");
        }
        if let Some(rate) = self.rate
            && !(LEAST_RATE..=MOST_RATE).contains(&rate)
        {
            bail!("--rate {rate} is not between {LEAST_RATE} and {MOST_RATE} requests per second");
        }
        let endless = self.duration.is_none() && self.requests.is_none();
        let arrivals = self.arrivals;
        Ok(Plan {
            concurrency,
            rate: self.rate.map(|per_second| Rate {
                per_second,
                arrivals,
            }),
            warmup: self.warmup,
            duration: self.duration.or(endless.then_some(DURATION)),
            requests: self.requests,
            timeout: self.timeout,
            seed: self.seed,
        })
    }
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    let remedy = "write 500ms, 10s or 2m, at most a day";
    let split = text.find(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = text.split_at(split.unwrap_or(text.len()));
    let scale = match unit {
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(remedy),
    };
    let seconds = number.parse::<f64>().map_err(|_| remedy)? * scale;
    match (0.0..=LONGEST_SECONDS).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err(remedy),
    }
}

/// Measured unless something else is said.
const DURATION: Duration = Duration::from_secs(10);
const LONGEST_SECONDS: f64 = 86_400.0;
const MOST_CONNECTIONS: usize = 10_000;
const LEAST_RATE: f64 = 0.001;
const MOST_RATE: f64 = 1e6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_an_end() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("3"), Ok(Duration::from_secs(3)));
        for bad in [
            "",
            "s",
            "-1s",
            "1d",
            "1 fortnight",
            "25h",
            "nan",
            "inf",
            "1ss",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
