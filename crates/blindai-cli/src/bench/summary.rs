//! What a run says, for people and for machines.

use std::collections::BTreeMap;
use std::time::Duration;

use blindai_client::{ModelName, ModelVersion};
use comfy_table::{Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::load::Plan;
use super::record::{LATE, Recording, Slice};
use super::schedule::Arrivals;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Subject {
    pub server: String,
    pub model: String,
    pub version: Option<String>,
    /// It proved what it is.
    pub attested: bool,
    pub simulated: bool,
}

impl Subject {
    /// A server that proved nothing.
    pub fn new(server: &str, model: &ModelName, version: Option<&ModelVersion>) -> Self {
        Self {
            server: server.to_owned(),
            model: model.to_string(),
            version: version.map(ToString::to_string),
            attested: false,
            simulated: false,
        }
    }
}

/// The result of a run. Its JSON is stable.
#[derive(Serialize)]
pub struct Summary {
    #[serde(flatten)]
    pub subject: Subject,
    /// `closed` or `open`.
    #[serde(rename = "loop")]
    pub kind: &'static str,
    pub concurrency: usize,
    /// Of an open loop, in requests per second.
    pub rate: Option<f64>,
    pub arrivals: Option<Arrivals>,
    pub warmup_s: f64,
    pub elapsed_s: f64,
    /// Those that succeeded.
    pub requests: u64,
    pub failed: u64,
    pub errors: BTreeMap<String, u64>,
    /// Of an open loop: sent more than a millisecond after they were due.
    pub late: u64,
    /// Of an open loop: due and not sent.
    pub unsent: u64,
    pub requests_per_second: f64,
    pub latency_ms: Option<Quantiles>,
    /// Of an open loop: how long after it was due a request was sent.
    pub delay_ms: Option<Quantiles>,
    /// The generator's processor time, as a share of one core.
    pub generator_cpu: f64,
    #[serde(skip)]
    pub histogram: Histogram<u64>,
    #[serde(skip)]
    pub slices: Vec<Slice>,
    #[serde(skip)]
    pub slice: Duration,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Quantiles {
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    #[serde(rename = "p99.9")]
    pub p999: f64,
    pub max: f64,
}

impl Quantiles {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        (!histogram.is_empty()).then(|| Self {
            min: histogram.min() as f64 / 1e6,
            mean: histogram.mean() / 1e6,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1e6,
        })
    }

    /// With their names, from the shortest to the longest.
    pub fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("min", self.min),
            ("p50", self.p50),
            ("p90", self.p90),
            ("p99", self.p99),
            ("p99.9", self.p999),
            ("max", self.max),
        ]
    }
}

impl Summary {
    /// Sums up a recording.
    pub fn new(subject: Subject, plan: &Plan, recording: Recording) -> Self {
        let elapsed_s = recording.elapsed.as_secs_f64();
        let requests = recording.latency.len();
        let open = plan.rate.is_some();
        Self {
            subject,
            kind: if open { "open" } else { "closed" },
            concurrency: plan.concurrency,
            rate: plan.rate.map(|rate| rate.per_second),
            arrivals: plan.rate.map(|rate| rate.arrivals),
            warmup_s: plan.warmup.as_secs_f64(),
            elapsed_s,
            requests,
            failed: recording.errors.values().sum(),
            errors: recording.errors,
            late: if open { recording.late } else { 0 },
            unsent: recording.unsent,
            requests_per_second: recording.per_second,
            latency_ms: Quantiles::of(&recording.latency),
            delay_ms: Quantiles::of(&recording.delay).filter(|_| open),
            generator_cpu: recording.generator_cpu,
            histogram: recording.latency,
            slices: recording.slices,
            slice: recording.slice,
        }
    }

    /// How the load was made, in words.
    pub fn load(&self) -> String {
        let most = self.concurrency;
        match (self.rate, self.arrivals) {
            (Some(rate), Some(Arrivals::Poisson)) => {
                format!(
                    "open loop, {} requests/s at random, {most} in progress at most",
                    number(rate)
                )
            }
            (Some(rate), _) => {
                format!(
                    "open loop, {} requests/s, {most} in progress at most",
                    number(rate)
                )
            }
            (None, _) => format!("closed loop, {most} in progress"),
        }
    }

    /// The table for people.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let mut row = |name: &str, value: String| {
            table.add_row([name, &value]);
        };
        row("model", self.subject.model.clone());
        row("load", self.load());
        row(
            "measured",
            format!("{:.1} s after {:.1} s", self.elapsed_s, self.warmup_s),
        );
        row(
            "throughput",
            format!("{} requests/s", number(self.requests_per_second)),
        );
        row("succeeded", number(self.requests as f64));
        for (code, count) in &self.errors {
            row(&format!("failed: {code}"), number(*count as f64));
        }
        if self.kind == "open" {
            row("sent late", number(self.late as f64));
            row("not sent", number(self.unsent as f64));
        }
        for (name, value) in self.latency_ms.iter().flat_map(Quantiles::named) {
            row(&format!("latency {name}"), milliseconds(value));
        }
        row(
            "generator",
            format!("{:.0} % of a core", 100.0 * self.generator_cpu),
        );
        table
    }

    /// What keeps the numbers from meaning what they seem to.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.unsent > 0 {
            warnings.push(format!(
                "{} requests could not be sent in time and are in no percentile, which are too good \
                 · lower --rate, or raise --concurrency",
                number(self.unsent as f64)
            ));
        }
        if self.generator_cpu > 0.9 {
            warnings.push(format!(
                "the generator used {:.0} % of a core: it was the limit, not the server · use several",
                100.0 * self.generator_cpu
            ));
        }
        if self.failed > 0 {
            warnings.push(format!(
                "{} requests failed and are in no percentile",
                number(self.failed as f64)
            ));
        }
        let late = LATE.as_secs_f64() * 1e3;
        if self.delay_ms.is_some_and(|delay| delay.p50 > late) {
            warnings
                .push("most requests were sent late: the rate is more than can be served".into());
        }
        warnings
    }
}

/// A time in the unit that fits it.
pub fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 10_000.0 => format!("{:.1} s", ms / 1e3),
        ms if ms >= 1000.0 => format!("{:.2} s", ms / 1e3),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms if ms >= 10.0 => format!("{ms:.1} ms"),
        ms if ms >= 1.0 => format!("{ms:.2} ms"),
        ms => format!("{ms:.3} ms"),
    }
}

/// A number with commas between thousands; two digits after the point below ten, one below 100.
pub fn number(value: f64) -> String {
    let digits = match value {
        v if v.fract() == 0.0 || v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (i, digit) in whole.char_indices() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let written = [0.0, 3.25, 12.34, 999.6, 15_234.5, 1_000_000.0].map(number);
        assert_eq!(
            written,
            ["0", "3.25", "12.3", "1,000", "15,234", "1,000,000"]
        );
        let times = [0.1234, 1.234, 12.34, 123.4, 1234.0, 12_345.0].map(milliseconds);
        assert_eq!(
            times,
            [
                "0.123 ms", "1.23 ms", "12.3 ms", "123 ms", "1.23 s", "12.3 s"
            ]
        );
    }
}
