//! The report: one HTML file that loads nothing and runs nothing.

use std::fmt::Write as _;

use super::chart::{Axis, Plot, escape};
use super::record::Slice;
use super::summary::{Quantiles, Summary, milliseconds, number};

/// The page.
pub fn page(summary: &Summary) -> String {
    let model = escape(&summary.subject.model);
    let (server, load) = (escape(&summary.subject.server), escape(&summary.load()));
    let (cards, plots, details) = (cards(summary), plots(summary), details(summary));
    let badge = badge(summary);
    let warnings: String = summary
        .warnings()
        .iter()
        .map(|warning| format!(r#"<p class="warning">{}</p>"#, escape(warning)))
        .collect();
    let version = env!("CARGO_PKG_VERSION");
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{model} under load</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header><h1>{model} {badge}</h1><p>{server} · {load}</p></header>
{warnings}
<section class="cards">{cards}</section>
<section class="plots">{plots}</section>
<section class="details">{details}</section>
<footer>blindai bench {version}</footer>
</main>
</body>
</html>
"#
    )
}

fn badge(summary: &Summary) -> &'static str {
    match (summary.subject.attested, summary.subject.simulated) {
        (true, false) => r#"<span class="badge good">attested</span>"#,
        (true, true) => r#"<span class="badge warn">simulation</span>"#,
        (false, _) => r#"<span class="badge warn">not attested</span>"#,
    }
}

fn cards(summary: &Summary) -> String {
    let latency = |of: fn(&Quantiles) -> f64| {
        let value = summary.latency_ms.as_ref().map(of);
        value.map_or("–".to_owned(), milliseconds)
    };
    let failed = summary.failed + summary.unsent;
    let failed_class = if failed > 0 { "bad" } else { "" };
    let throughput = number(summary.requests_per_second);
    let cards = [
        ("", "throughput", throughput, "requests/s"),
        ("p50", "p50", latency(|q| q.p50), "half are faster"),
        ("p99", "p99", latency(|q| q.p99), "1 of 100 is slower"),
        ("max", "p99.9", latency(|q| q.p999), "1 of 1000 is slower"),
        (
            failed_class,
            "failed or not sent",
            number(failed as f64),
            "requests",
        ),
    ];
    let mut out = String::new();
    for (class, name, value, unit) in cards {
        let (name, value, unit) = (escape(name), escape(&value), escape(unit));
        let _ = write!(
            out,
            r#"<div class="card {class}"><h3>{name}</h3><b>{value}</b><small>{unit}</small></div>"#
        );
    }
    out
}

fn plots(summary: &Summary) -> String {
    if summary.histogram.is_empty() {
        return r#"<p class="warning">No request succeeded: there is nothing to plot.</p>"#
            .to_owned();
    }
    [
        percentiles(summary),
        distribution(summary),
        latency_over_time(summary),
        throughput_over_time(summary),
    ]
    .concat()
}

fn percentiles(summary: &Summary) -> String {
    let histogram = &summary.histogram;
    // Beyond one request there is nothing to tell apart.
    let nines = (histogram.len() as f64).log10().clamp(1.0, 6.0);
    let points: Vec<_> = (0..=240)
        .map(|i| f64::from(i) / 240.0 * nines)
        .map(|x| (x, ms(histogram.value_at_quantile(1.0 - 10f64.powf(-x)))))
        .collect();
    let named = [
        (0.5, "50 %"),
        (0.9, "90 %"),
        (0.99, "99 %"),
        (0.999, "99.9 %"),
    ];
    let further = [
        (0.9999, "99.99 %"),
        (0.99999, "99.999 %"),
        (0.999_999, "99.9999 %"),
    ];
    let place = |quantile: f64| -(1.0 - quantile).log10();
    let ticks = named.into_iter().chain(further);
    let mut ticks: Vec<_> = ticks.map(|(q, name)| (place(q), name.to_owned())).collect();
    ticks.insert(0, (0.0, "0".to_owned()));
    let x = Axis::marked(nines, "percentile", ticks);
    let y = Axis::linear(ms(histogram.max()), "latency", milliseconds_short);
    let mut plot = Plot::new(x, y).area("p50", &points);
    let marks = [
        ("p50", 0.5, "p50"),
        ("p99", 0.99, "p99"),
        ("max", 0.999, "p99.9"),
    ];
    for (class, quantile, name) in marks {
        if place(quantile) <= nines {
            let value = ms(histogram.value_at_quantile(quantile));
            let name = format!("{name} {}", milliseconds(value));
            plot = plot.point(class, place(quantile), value, &name);
        }
    }
    let note = match summary.kind {
        "open" => "From when each request was due: what waited behind a stall counts in full.",
        _ => "From when each request was sent. A closed loop asks a stalled server less often.",
    };
    plot.figure("Latency by percentile", note)
}

fn distribution(summary: &Summary) -> String {
    let histogram = &summary.histogram;
    let (min, max) = (ms(histogram.min().max(1)), ms(histogram.max().max(2)));
    let x = Axis::decades(min, max, "latency, logarithmic", milliseconds_short);
    let (low, width) = (min.log10(), ((max / min).log10()).max(1e-3) / BINS as f64);
    let mut bins = [0u64; BINS];
    for value in histogram.iter_recorded() {
        let place = (ms(value.value_iterated_to().max(1)).log10() - low) / width;
        bins[(place.max(0.0) as usize).min(BINS - 1)] += value.count_at_value();
    }
    let share = |count: u64| 100.0 * count as f64 / histogram.len() as f64;
    let highest = share(bins.iter().copied().max().unwrap_or(0));
    let y = Axis::linear(highest, "share of requests", |value| {
        format!("{} %", short(value))
    });
    let mut plot = Plot::new(x, y);
    for (i, &count) in bins.iter().enumerate().filter(|(_, count)| **count > 0) {
        let (left, right) = (low + width * i as f64, low + width * (i + 1) as f64);
        let range = [left, right].map(|edge| milliseconds(10f64.powf(edge)));
        let hint = format!("{} to {}: {}", range[0], range[1], number(count as f64));
        plot = plot.bar(left, right, share(count), &hint);
    }
    for (row, (name, quantile)) in [("p50", 0.5), ("p99", 0.99)].into_iter().enumerate() {
        let value = ms(histogram.value_at_quantile(quantile).max(1));
        plot = plot.mark(
            value.log10(),
            &format!("{name} {}", milliseconds(value)),
            row as u32,
        );
    }
    plot.figure(
        "Distribution of latency",
        "Several humps are several ways through the server.",
    )
}

fn latency_over_time(summary: &Summary) -> String {
    let seconds = summary.slice.as_secs_f64();
    let answered = || {
        summary
            .slices
            .iter()
            .enumerate()
            .filter(|(_, slice)| slice.requests > 0)
    };
    let line = |of: fn(&Slice) -> u64| -> Vec<(f64, f64)> {
        let point = |(i, slice): (usize, &Slice)| {
            ((i as f64 + 0.5) * seconds, ms(of(slice).max(1)).log10())
        };
        answered().map(point).collect()
    };
    let least = answered()
        .map(|(_, slice)| slice.p50)
        .min()
        .unwrap_or(1)
        .max(1);
    let most = answered()
        .map(|(_, slice)| slice.max)
        .max()
        .unwrap_or(2)
        .max(2);
    let y = Axis::decades(
        ms(least),
        ms(most),
        "latency, logarithmic",
        milliseconds_short,
    );
    let plot = Plot::new(time_axis(summary), y)
        .line("max", &line(|slice| slice.max))
        .line("p99", &line(|slice| slice.p99))
        .line("p50", &line(|slice| slice.p50))
        .key("max", "max")
        .key("p99", "p99")
        .key("p50", "p50");
    let note = format!(
        "By when requests ended, each {}.",
        milliseconds(seconds * 1e3)
    );
    plot.figure("Latency over time", &note)
}

fn throughput_over_time(summary: &Summary) -> String {
    let seconds = summary.slice.as_secs_f64();
    // The last slice is not a whole one.
    let whole = ((summary.elapsed_s / seconds + 1e-6) as usize).max(1);
    let slices = &summary.slices[..whole.min(summary.slices.len())];
    let per_second = |count: u64| count as f64 / seconds;
    let line = |of: fn(&Slice) -> u64| -> Vec<(f64, f64)> {
        let point =
            |(i, slice): (usize, &Slice)| ((i as f64 + 0.5) * seconds, per_second(of(slice)));
        slices.iter().enumerate().map(point).collect()
    };
    let highest = slices
        .iter()
        .map(|slice| per_second(slice.requests.max(slice.errors)));
    let highest = highest.fold(summary.rate.unwrap_or(0.0), f64::max);
    let y = Axis::linear(highest, "requests/s", short);
    let mut plot = Plot::new(time_axis(summary), y)
        .area("p50", &line(|slice| slice.requests))
        .key("p50", "succeeded");
    if summary.failed > 0 {
        plot = plot
            .line("bad", &line(|slice| slice.errors))
            .key("bad", "failed");
    }
    if let Some(rate) = summary.rate {
        plot = plot.level(rate).key("mark", "asked for");
    }
    plot.figure(
        "Throughput over time",
        "Dips are stalls, of the server or of this machine.",
    )
}

fn time_axis(summary: &Summary) -> Axis {
    Axis::tight(summary.elapsed_s, "seconds", short)
}

fn details(summary: &Summary) -> String {
    let mut rows = vec![
        ("server".to_owned(), summary.subject.server.clone()),
        ("model".to_owned(), summary.subject.model.clone()),
        (
            "version".to_owned(),
            summary
                .subject
                .version
                .clone()
                .unwrap_or("newest".to_owned()),
        ),
        ("load".to_owned(), summary.load()),
        ("warm-up".to_owned(), format!("{:.1} s", summary.warmup_s)),
        ("measured".to_owned(), format!("{:.1} s", summary.elapsed_s)),
        ("succeeded".to_owned(), number(summary.requests as f64)),
        ("failed".to_owned(), number(summary.failed as f64)),
    ];
    let errors = summary.errors.iter();
    rows.extend(errors.map(|(code, count)| (format!("failed: {code}"), number(*count as f64))));
    if summary.kind == "open" {
        rows.push((
            "sent over 1 ms late".to_owned(),
            number(summary.late as f64),
        ));
        rows.push(("not sent in time".to_owned(), number(summary.unsent as f64)));
    }
    let quantiles = |what: &'static str, of: &Option<Quantiles>| {
        let named = of.iter().flat_map(Quantiles::named).collect::<Vec<_>>();
        let row = move |(name, value)| (format!("{what} {name}"), milliseconds(value));
        named.into_iter().map(row)
    };
    rows.extend(quantiles("latency", &summary.latency_ms));
    rows.extend(quantiles("delay in sending", &summary.delay_ms));
    let busy = format!("{:.0} % of a core", 100.0 * summary.generator_cpu);
    rows.push(("generator".to_owned(), busy));
    let row = |(name, value): &(String, String)| {
        format!(
            "<div><dt>{}</dt><dd>{}</dd></div>",
            escape(name),
            escape(value)
        )
    };
    format!(
        "<h2>Details</h2><dl>{}</dl>",
        rows.iter().map(row).collect::<String>()
    )
}

fn ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// A time for an axis: no digits that say nothing.
fn milliseconds_short(ms: f64) -> String {
    match ms {
        0.0 => "0".to_owned(),
        ms if ms >= 1000.0 => format!("{} s", short(ms / 1e3)),
        ms if ms < 0.1 => format!("{} µs", short(ms * 1e3)),
        ms => format!("{} ms", short(ms)),
    }
}

fn short(value: f64) -> String {
    match value {
        v if v >= 10_000.0 => format!("{}k", short(v / 1e3)),
        v => format!("{}", (v * 1e3).round() / 1e3),
    }
}

const BINS: usize = 64;

const STYLE: &str = include_str!("report.css");

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::load::{Plan, Rate};
    use super::super::peer::PeerError;
    use super::super::record::Recorder;
    use super::super::schedule::Arrivals;
    use super::super::summary::Subject;
    use super::*;

    const FORGED: &str = "<script>alert(\"1\")</script>&'";

    fn summary(latencies_ms: &[u64], open: bool) -> Summary {
        let plan = Plan {
            concurrency: 4,
            rate: open.then_some(Rate {
                per_second: 100.0,
                arrivals: Arrivals::Poisson,
            }),
            warmup: Duration::from_secs(1),
            duration: Some(Duration::from_secs(2)),
            requests: None,
            timeout: Duration::from_secs(30),
            seed: 0,
        };
        let begin = Instant::now();
        let mut recorder = Recorder::new(begin, None, Duration::from_millis(100));
        for (i, &latency) in latencies_ms.iter().enumerate() {
            let due = begin + Duration::from_millis(10 * i as u64);
            recorder.note(due, due, due + Duration::from_millis(latency), &Ok(()));
        }
        let failed = Err(PeerError::connection("<b>", "x").into());
        let last = begin + Duration::from_secs(20);
        recorder.note(begin, begin, last, &failed);
        let subject = Subject {
            server: FORGED.to_owned(),
            model: FORGED.to_owned(),
            version: Some(FORGED.to_owned()),
            attested: true,
            simulated: true,
        };
        Summary::new(subject, &plan, recorder.finish(None, 7, 0.95))
    }

    #[test]
    fn nothing_that_somebody_named_becomes_markup() {
        let page = page(&summary(&[5; 50], true));
        assert!(!page.contains("<script"));
        assert!(!page.contains("failed: <b>"));
        assert!(page.contains("&lt;script&gt;"));
        assert!(!page.contains("://"), "it loads nothing");
    }

    #[test]
    fn every_number_of_requests_makes_a_page_without_a_gap() {
        let ramp: Vec<u64> = (1..1000).collect();
        for latencies in [&[][..], &[1], &[1, 1], &[1, 900_000], &ramp] {
            for open in [false, true] {
                let page = page(&summary(latencies, open));
                for hole in ["NaN", "inf ", "inf\"", "-inf"] {
                    assert!(!page.contains(hole), "{hole} with {}", latencies.len());
                }
                let plots = if latencies.is_empty() { 0 } else { 4 };
                assert_eq!(page.matches("</svg>").count(), plots);
            }
        }
    }

    #[test]
    fn what_spoils_the_numbers_stands_above_them() {
        let page = page(&summary(&[5; 50], true));
        let first_number = page.find("class=\"cards\"").unwrap();
        for words in [
            "could not be sent in time",
            "failed and are in no percentile",
            "95 %",
        ] {
            assert!(page.find(words).unwrap() < first_number, "{words}");
        }
    }
}
