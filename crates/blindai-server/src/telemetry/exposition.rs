//! The metrics as text. What each means stands in docs/observability.md, which a test holds to this.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blindai_core::CollateralState;
use blindai_engine::ModelStatus;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::histogram::Counted;
use super::movement::{Cause, Counts};
use super::{ModelMetrics, Outcome, Port, Telemetry};

/// What is not counted but looked at: the state of the server at this time.
#[derive(Default)]
pub struct Gauges {
    pub ready: bool,
    pub tee: &'static str,
    pub simulated: bool,
    pub requests: (usize, usize),
    pub uploads: (usize, usize),
    /// Of request bodies and of models: taken, and the limit.
    pub bodies: (u64, u64),
    pub memory: (u64, u64),
    pub models_limit: usize,
    pub models: Vec<ModelGauges>,
    /// Seconds since the evidence was made, and until it ends.
    pub evidence: (u64, u64),
    pub collateral: Option<CollateralState>,
    pub collateral_remaining: Option<u64>,
}

/// The state of one model.
pub struct ModelGauges {
    pub metrics: Arc<ModelMetrics>,
    /// Whether it is in memory.
    pub loaded: bool,
    pub status: ModelStatus,
}

/// The OpenMetrics text.
pub fn exposition(telemetry: &Telemetry, gauges: &Gauges) -> String {
    let mut registry = Registry::with_prefix("blindai");
    registry.register_collector(Box::new(Families(families(telemetry, gauges))));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Families(Vec<Family>);

#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    samples: Vec<(Labels, Sample)>,
    kind: MetricType,
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
enum Sample {
    Counter(u64),
    Gauge(u64),
    Histogram(Counted),
    Info,
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for family in &self.0 {
            let (unit, kind) = (family.unit.as_ref(), family.kind);
            let mut metric = encoder.encode_descriptor(family.name, family.help, unit, kind)?;
            for (labels, sample) in &family.samples {
                match labels.is_empty() || matches!(sample, Sample::Info) {
                    true => sample.encode(labels, &mut metric)?,
                    false => sample.encode(labels, &mut metric.encode_family(labels)?)?,
                }
            }
        }
        Ok(())
    }
}

impl Sample {
    fn encode(&self, labels: &Labels, to: &mut MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Counter(count) => to.encode_counter::<NoLabelSet, _, u64>(count, None),
            Self::Gauge(level) => to.encode_gauge(level),
            Self::Histogram(it) => {
                to.encode_histogram::<NoLabelSet>(it.sum, it.count, &it.buckets, None)
            }
            Self::Info => to.encode_info(labels),
        }
    }
}

fn families(telemetry: &Telemetry, gauges: &Gauges) -> Vec<Family> {
    let mut families = server(gauges);
    families.extend(requests(telemetry, gauges));
    families.extend(ports(telemetry));
    families.extend(models(gauges));
    families.extend(movements(telemetry));
    families.extend(evidence(gauges));
    families.push(traces(telemetry));
    families
}

fn server(gauges: &Gauges) -> Vec<Family> {
    let build = vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("tee", gauges.tee.to_owned()),
        ("simulated", gauges.simulated.to_string()),
    ];
    vec![
        family(
            MetricType::Info,
            "build",
            "The program and what it runs in",
            None,
            [(build, Sample::Info)],
        ),
        gauge("ready", "Whether requests are taken", gauges.ready.into()),
    ]
}

fn requests(telemetry: &Telemetry, gauges: &Gauges) -> Vec<Family> {
    let cells = telemetry.requests.cells().into_iter();
    let counted = cells.map(|cell| {
        let (code, class) = match cell.outcome {
            Outcome::Refused(code) => (code.as_str(), crate::api::status(code).as_u16() / 100),
            Outcome::Answered(class) => ("", class.into()),
        };
        let labels = vec![
            ("port", cell.port.to_owned()),
            ("route", cell.route),
            ("method", cell.method.to_owned()),
            ("class", format!("{class}xx")),
            ("code", code.to_owned()),
        ];
        (labels, Sample::Counter(cell.count))
    });
    let (requests, uploads) = (gauges.requests, gauges.uploads);
    let uploaded = telemetry.uploaded_bytes.load(Ordering::Relaxed);
    let uploaded = [(Vec::new(), Sample::Counter(uploaded))];
    let times = telemetry.load_times.seconds();
    let loads = [(Vec::new(), Sample::Histogram(times))];
    vec![
        family(
            MetricType::Counter,
            "requests",
            "Requests that were answered or refused",
            None,
            counted,
        ),
        gauge(
            "requests_in_progress",
            "Requests in progress",
            requests.0 as u64,
        ),
        gauge(
            "requests_limit",
            "limits.concurrent_requests",
            requests.1 as u64,
        ),
        gauge(
            "uploads_in_progress",
            "Uploads on their way in, or loading",
            uploads.0 as u64,
        ),
        gauge(
            "uploads_limit",
            "limits.concurrent_uploads",
            uploads.1 as u64,
        ),
        family(
            MetricType::Counter,
            "uploaded",
            "Bytes of models that were uploaded and loaded",
            Some(Unit::Bytes),
            uploaded,
        ),
        family(
            MetricType::Histogram,
            "model_load",
            "Loading a model",
            Some(Unit::Seconds),
            loads,
        ),
    ]
}

fn ports(telemetry: &Telemetry) -> Vec<Family> {
    let each = |of: fn(&super::PortCounters) -> &AtomicU64, sample: fn(u64) -> Sample| {
        Port::ALL.map(|port| {
            let labels = vec![("port", port.as_str().to_owned())];
            let value = of(telemetry.port(port)).load(Ordering::Relaxed);
            (labels, sample(value))
        })
    };
    let (count, bytes) = (Sample::Counter, Some(Unit::Bytes));
    vec![
        family(
            MetricType::Gauge,
            "connections",
            "Open connections",
            None,
            each(|p| &p.open, Sample::Gauge),
        ),
        family(
            MetricType::Counter,
            "connections_accepted",
            "Connections that were accepted",
            None,
            each(|p| &p.accepted, count),
        ),
        family(
            MetricType::Counter,
            "handshakes_failed",
            "TLS handshakes that failed",
            None,
            each(|p| &p.handshakes_failed, count),
        ),
        family(
            MetricType::Counter,
            "received",
            "Bytes received, as they stand on the wire",
            bytes.clone(),
            each(|p| &p.received_bytes, count),
        ),
        family(
            MetricType::Counter,
            "sent",
            "Bytes sent, as they stand on the wire",
            bytes,
            each(|p| &p.sent_bytes, count),
        ),
    ]
}

fn models(gauges: &Gauges) -> Vec<Family> {
    let models = &gauges.models;
    let each = |of: fn(&ModelGauges) -> Sample| -> Vec<_> {
        models
            .iter()
            .map(|model| (labels(model), of(model)))
            .collect()
    };
    let budgets = |of: fn((u64, u64)) -> u64| {
        [("bodies", gauges.bodies), ("models", gauges.memory)]
            .map(|(name, budget)| (vec![("budget", name.to_owned())], Sample::Gauge(of(budget))))
    };
    let (bytes, seconds) = (Some(Unit::Bytes), Some(Unit::Seconds));
    vec![
        gauge("models", "Models held", models.len() as u64),
        gauge(
            "models_loaded",
            "Models in memory",
            models.iter().filter(|model| model.loaded).count() as u64,
        ),
        gauge("models_limit", "limits.models", gauges.models_limit as u64),
        family(
            MetricType::Histogram,
            "inference_stage",
            "Answered inferences, by stage",
            seconds,
            stages(models),
        ),
        family(
            MetricType::Histogram,
            "inference_batch_requests",
            "Requests that were computed together",
            None,
            each(|m| Sample::Histogram(m.metrics.batches.read(1.0))),
        ),
        family(
            MetricType::Gauge,
            "inference_waiting",
            "Inferences that wait for a worker",
            None,
            each(|m| Sample::Gauge(m.status.queued as u64)),
        ),
        family(
            MetricType::Gauge,
            "inference_running",
            "Inferences in a worker",
            None,
            each(|m| Sample::Gauge(m.status.running as u64)),
        ),
        family(
            MetricType::Gauge,
            "workers",
            "Worker processes that run",
            None,
            each(|m| Sample::Gauge(m.status.workers as u64)),
        ),
        family(
            MetricType::Counter,
            "worker_restarts",
            "Workers that were started again",
            None,
            restarts(models),
        ),
        family(
            MetricType::Gauge,
            "worker_resident",
            "Resident memory of the workers",
            bytes.clone(),
            each(|m| Sample::Gauge(m.status.resident_bytes)),
        ),
        family(
            MetricType::Gauge,
            "memory_used",
            "Memory taken from a budget",
            bytes.clone(),
            budgets(|budget| budget.0),
        ),
        family(
            MetricType::Gauge,
            "memory_limit",
            "The whole budget",
            bytes,
            budgets(|budget| budget.1),
        ),
    ]
}

fn stages(models: &[ModelGauges]) -> Vec<(Labels, Sample)> {
    let stages = models.iter().flat_map(|model| {
        let it = &model.metrics;
        let all = [
            ("receive", &it.receive),
            ("queue", &it.queue),
            ("compute", &it.compute),
            ("send", &it.send),
            ("total", &it.total),
        ];
        all.map(|(stage, times)| {
            let mut labels = labels(model);
            labels.push(("stage", stage.to_owned()));
            (labels, Sample::Histogram(times.seconds()))
        })
    });
    stages.collect()
}

fn restarts(models: &[ModelGauges]) -> Vec<(Labels, Sample)> {
    let restarts = models.iter().flat_map(|model| {
        let crashes = model.status.crashes;
        let others = model.status.restarts.saturating_sub(crashes);
        [("crash", crashes), ("other", others)].map(|(cause, count)| {
            let mut labels = labels(model);
            labels.push(("cause", cause.to_owned()));
            (labels, Sample::Counter(count))
        })
    });
    restarts.collect()
}

fn labels(model: &ModelGauges) -> Labels {
    vec![("model", model.metrics.slot().to_string())]
}

fn movements(telemetry: &Telemetry) -> Vec<Family> {
    fn by_cause<C: Cause>(counts: &Counts<C>) -> Vec<(Labels, Sample)> {
        let labels = |cause: &str| vec![("cause", cause.to_owned())];
        let counts = counts.read();
        counts
            .map(|(cause, count)| (labels(cause), Sample::Counter(count)))
            .collect()
    }
    vec![
        family(
            MetricType::Counter,
            "model_loads",
            "Models that were loaded",
            None,
            by_cause(&telemetry.loads),
        ),
        family(
            MetricType::Counter,
            "model_unloads",
            "Models that left memory and can be read again",
            None,
            by_cause(&telemetry.unloads),
        ),
    ]
}

fn evidence(gauges: &Gauges) -> Vec<Family> {
    let one = |value: u64| [(Vec::new(), Sample::Gauge(value))];
    let states = [
        ("fresh", CollateralState::Fresh),
        ("stale", CollateralState::Stale),
        ("none", CollateralState::None),
    ];
    let states = states.map(|(name, state)| {
        let is = gauges.collateral == Some(state);
        (vec![("state", name.to_owned())], Sample::Gauge(is.into()))
    });
    let remaining = gauges.collateral_remaining;
    let remaining = remaining.map(|seconds| (Vec::new(), Sample::Gauge(seconds)));
    let seconds = Some(Unit::Seconds);
    vec![
        family(
            MetricType::Gauge,
            "evidence_age",
            "Since the evidence in use was made",
            seconds.clone(),
            one(gauges.evidence.0),
        ),
        family(
            MetricType::Gauge,
            "evidence_remaining",
            "Until the evidence in use ends",
            seconds.clone(),
            one(gauges.evidence.1),
        ),
        family(
            MetricType::Gauge,
            "collateral",
            "How the stapled collateral stands",
            None,
            states,
        ),
        family(
            MetricType::Gauge,
            "collateral_remaining",
            "Until the stapled collateral ends",
            seconds,
            remaining,
        ),
    ]
}

fn traces(telemetry: &Telemetry) -> Family {
    let outcomes = telemetry.traces.iter().flat_map(|traces| traces.outcomes());
    let samples = outcomes.map(|(outcome, count)| {
        (
            vec![("outcome", outcome.to_owned())],
            Sample::Counter(count),
        )
    });
    family(
        MetricType::Counter,
        "traces",
        "Traces by what became of them",
        None,
        samples,
    )
}

fn gauge(name: &'static str, help: &'static str, value: u64) -> Family {
    family(
        MetricType::Gauge,
        name,
        help,
        None,
        [(Vec::new(), Sample::Gauge(value))],
    )
}

fn family(
    kind: MetricType,
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    samples: impl IntoIterator<Item = (Labels, Sample)>,
) -> Family {
    let samples = samples.into_iter().collect();
    Family {
        name,
        help,
        unit,
        samples,
        kind,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../../../docs/observability.md");

    #[test]
    fn the_page_names_every_metric_and_no_other() {
        let text = exposition(&Telemetry::new(true, None), &Gauges::default());
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let told: BTreeSet<_> = types.map(with_suffix).collect();
        let rows = PAGE
            .lines()
            .filter_map(|line| line.strip_prefix("| `blindai_"));
        let names = rows.filter_map(|row| row.split(['`', '{']).next());
        let written: BTreeSet<_> = names.map(|name| format!("blindai_{name}")).collect();
        assert_eq!(told, written);
    }

    // As the samples are called.
    fn with_suffix(line: &str) -> String {
        match line.split_once(' ') {
            Some((name, "counter")) => format!("{name}_total"),
            Some((name, "info")) => format!("{name}_info"),
            Some((name, _)) => name.to_owned(),
            None => panic!("{line}"),
        }
    }
}
