//! Reads the OpenMetrics text.

use std::collections::BTreeMap;

/// Samples by name.
#[derive(Default)]
pub struct Metrics(BTreeMap<String, Vec<Sample>>);

struct Sample {
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Upper bounds, in the unit of the metric, and how many values lie at or below each.
pub type Buckets = Vec<(f64, f64)>;

impl Metrics {
    /// Reads a text; lines that are no samples are passed over.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, sample)) = sample(line) {
                metrics.0.entry(name).or_default().push(sample);
            }
        }
        metrics
    }

    /// The sum of all samples of this name that carry these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.0.get(name).into_iter().flatten();
        let fitting = samples.filter(|sample| sample.carries(labels));
        fitting.map(|sample| sample.value).sum()
    }

    /// The values of a label among the samples of a name, numbers in their order.
    pub fn values(&self, name: &str, label: &str) -> Vec<&str> {
        let samples = self.0.get(name).into_iter().flatten();
        let values = samples.filter_map(|sample| sample.labels.get(label));
        let mut values: Vec<_> = values.map(String::as_str).collect();
        values.sort_by_key(|value| (value.parse::<u64>().unwrap_or(u64::MAX), *value));
        values.dedup();
        values
    }

    /// The buckets of a histogram, less those of an earlier time.
    pub fn buckets(&self, name: &str, labels: &[(&str, &str)], before: Option<&Self>) -> Buckets {
        let name = format!("{name}_bucket");
        let samples = self.0.get(&name).into_iter().flatten();
        let fitting = samples.filter(|sample| sample.carries(labels));
        let bounds = fitting.filter_map(|sample| {
            let bound = sample.labels.get("le")?;
            let earlier = [labels, &[("le", bound.as_str())]].concat();
            let earlier = before.map_or(0.0, |before| before.sum(&name, &earlier));
            // A server that was started anew counts from zero.
            let count = match sample.value >= earlier {
                true => sample.value - earlier,
                false => sample.value,
            };
            Some((bound.parse().ok()?, count))
        });
        let mut buckets: Buckets = bounds.collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets
    }
}

impl Sample {
    fn carries(&self, labels: &[(&str, &str)]) -> bool {
        let carries =
            |(name, value): &(&str, &str)| self.labels.get(*name).is_some_and(|own| own == value);
        labels.iter().all(carries)
    }
}

/// The value below which this share of all lies, evenly spread within its bucket; `None` when there
/// are no values.
pub fn quantile(share: f64, buckets: &[(f64, f64)]) -> Option<f64> {
    let all = buckets.last().filter(|(_, count)| *count > 0.0)?.1;
    let rank = share * all;
    let place = buckets.iter().position(|(_, count)| *count >= rank)?;
    let (lower, below) = match place {
        0 => (0.0, 0.0),
        place => buckets[place - 1],
    };
    let (upper, count) = buckets[place];
    if upper.is_infinite() || count <= below {
        return Some(lower);
    }
    Some(lower + (upper - lower) * (rank - below) / (count - below))
}

/// `name{label="value",…} number`
fn sample(line: &str) -> Option<(String, Sample)> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    let rest = match rest.strip_prefix('{') {
        Some(rest) => read_labels(rest, &mut labels)?,
        None => rest,
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name.to_owned(), Sample { labels, value }))
}

/// What stands behind the labels.
fn read_labels<'a>(mut rest: &'a str, labels: &mut BTreeMap<String, String>) -> Option<&'a str> {
    loop {
        if let Some(rest) = rest.strip_prefix('}') {
            return Some(rest);
        }
        let (name, value) = rest.split_once("=\"")?;
        let mut text = String::new();
        let mut characters = value.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => match characters.next()?.1 {
                    'n' => text.push('\n'),
                    escaped => text.push(escaped),
                },
                (_, character) => text.push(character),
            }
        };
        labels.insert(name.to_owned(), text);
        rest = &value[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# TYPE x counter
x_total{a="1",b="q\"}\n"} 3
x_total{a="10"} 4
x_total{a="2"} 5
plain 1.5
broken{a="
t_bucket{le="0.1"} 2
t_bucket{le="0.2"} 6
t_bucket{le="+Inf"} 8
# EOF
"#;

    #[test]
    fn samples_are_found_by_their_labels() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(metrics.sum("x_total", &[]), 12.0);
        assert_eq!(metrics.sum("x_total", &[("b", "q\"}\n")]), 3.0);
        assert_eq!(metrics.sum("plain", &[]), 1.5);
        assert_eq!(metrics.values("x_total", "a"), ["1", "2", "10"]);
        assert_eq!(metrics.values("broken", "a"), [""; 0]);
    }

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let metrics = Metrics::parse(TEXT);
        let buckets = metrics.buckets("t", &[], None);
        let close = |share, value: f64| {
            let got = quantile(share, &buckets).unwrap();
            assert!((got - value).abs() < 1e-9, "{share}: {got}");
        };
        close(0.25, 0.1);
        close(0.5, 0.15);
        close(0.75, 0.2);
        // Above the last bound nothing more is known.
        close(0.99, 0.2);
        assert_eq!(quantile(0.5, &metrics.buckets("none", &[], None)), None);
        let nothing_new = metrics.buckets("t", &[], Some(&metrics));
        assert_eq!(quantile(0.5, &nothing_new), None);
    }
}
