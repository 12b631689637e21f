//! What is shown: the same tables as text and on the screen.

use blindai_core::printable;
use indicatif::HumanBytes;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table};

use super::metrics::quantile;
use super::scrape::Scrape;
use crate::output;

/// The tables of one look.
pub struct View {
    tables: Vec<Cells>,
}

struct Cells {
    title: &'static str,
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

const UNVERIFIED: &str =
    "UNVERIFIED: the word of whoever runs the host. Only \"blindai attest\" proves anything.";
const STAGES: [&str; 5] = ["receive", "queue", "compute", "send", "total"];

impl View {
    /// Rates and latencies are of the time since `before`; without it, since the server started.
    pub fn new(now: &Scrape, before: Option<&Scrape>) -> Self {
        let look = Look { now, before };
        Self {
            tables: vec![
                look.server(),
                look.traffic(),
                look.room(),
                look.models(),
                look.latencies(),
                look.outcomes(),
            ],
        }
    }

    /// As text, for scripts and pipes.
    pub fn text(&self) -> String {
        let mut text = format!("{UNVERIFIED}\n");
        for cells in &self.tables {
            let mut table = output::table(&cells.header);
            table.add_rows(&cells.rows);
            text += &format!("\n{}\n{table}\n", cells.title);
        }
        text.trim_end().to_owned()
    }

    /// On the screen.
    pub fn draw(&self, frame: &mut Frame<'_>, server: &str, problem: Option<&str>) {
        let heights = self.tables.iter().map(|it| it.rows.len() as u16 + 3);
        let heights = std::iter::once(2).chain(heights).map(Constraint::Max);
        let areas = Layout::vertical(heights.chain([Constraint::Min(0)])).split(frame.area());
        let problem = problem.map(|problem| printable(problem, 200));
        let head = format!("blindai top · {server} · q leaves");
        let head = [
            Line::from(head).bold(),
            match problem {
                Some(problem) => Line::from(format!("the last look failed: {problem}")).red(),
                None => Line::from(UNVERIFIED).yellow(),
            },
        ];
        frame.render_widget(Paragraph::new(head.to_vec()), areas[0]);
        for (cells, area) in self.tables.iter().zip(areas.iter().skip(1)) {
            frame.render_widget(cells.widget(), *area);
        }
    }
}

impl Cells {
    fn widget(&self) -> Table<'_> {
        let widths = (0..self.header.len()).map(|column| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            let widest = cells.chain([self.header[column].len()]).max();
            Constraint::Length(widest.unwrap_or(0) as u16 + 1)
        });
        let rows = self.rows.iter().map(|row| Row::new(row.clone()));
        Table::new(rows, widths)
            .header(Row::new(self.header.clone()).style(Style::new().bold()))
            .block(Block::bordered().title(self.title))
    }
}

/// Two looks at a server, the second of which may be missing.
struct Look<'a> {
    now: &'a Scrape,
    before: Option<&'a Scrape>,
}

impl Look<'_> {
    fn server(&self) -> Cells {
        let metrics = &self.now.metrics;
        let of = |label| first(metrics.values("blindai_build_info", label));
        let simulated = if of("simulated") == "true" {
            " (simulated)"
        } else {
            ""
        };
        let mut states = metrics.values("blindai_collateral", "state").into_iter();
        let is = |state: &&str| metrics.sum("blindai_collateral", &[("state", *state)]) > 0.0;
        let collateral = printable(states.find(is).unwrap_or("?"), CELL);
        let problem = self.now.collateral_problem.as_deref();
        let problem = problem.map_or(String::new(), |code| {
            format!(" ({})", printable(code, CELL))
        });
        let row = vec![
            of("version"),
            format!("{}{simulated}", of("tee")),
            if self.now.ready { "ready" } else { "not ready" }.to_owned(),
            seconds(self.level("blindai_evidence_age_seconds")),
            seconds(self.level("blindai_evidence_remaining_seconds")),
            collateral + &problem,
        ];
        let header = [
            "version",
            "tee",
            "state",
            "evidence age",
            "ends in",
            "collateral",
        ];
        cells("server", &header, vec![row])
    }

    fn traffic(&self) -> Cells {
        let port = |port: &str| {
            let labels = [("port", port)];
            vec![
                port.to_owned(),
                self.rate("blindai_requests_total", &labels),
                count(self.now.metrics.sum("blindai_connections", &labels)),
                self.bytes_rate("blindai_received_bytes_total", &labels),
                self.bytes_rate("blindai_sent_bytes_total", &labels),
            ]
        };
        let per_second = ["port", "requests/s", "connections", "in/s", "out/s"];
        let all = ["port", "requests", "connections", "in", "out"];
        let header = if self.before.is_some() {
            per_second
        } else {
            all
        };
        cells("traffic", &header, vec![port("attested"), port("public")])
    }

    fn room(&self) -> Cells {
        let row = vec![
            self.of_limit("blindai_requests_in_progress", "blindai_requests_limit"),
            self.of_limit("blindai_uploads_in_progress", "blindai_uploads_limit"),
            self.of_limit("blindai_models", "blindai_models_limit"),
            self.budget("bodies"),
            self.budget("models"),
        ];
        let header = ["requests", "uploads", "models", "bodies", "models' memory"];
        cells("room taken", &header, vec![row])
    }

    fn models(&self) -> Cells {
        let metrics = &self.now.metrics;
        let row = |slot: &str| {
            let labels = [("model", slot)];
            let level = |name| count(metrics.sum(name, &labels));
            let batch = metrics.sum("blindai_inference_batch_requests_sum", &labels)
                / metrics
                    .sum("blindai_inference_batch_requests_count", &labels)
                    .max(1.0);
            vec![
                printable(slot, CELL),
                self.rate("blindai_inference_batch_requests_sum", &labels),
                level("blindai_inference_waiting"),
                level("blindai_inference_running"),
                format!("{batch:.1}"),
                level("blindai_workers"),
                level("blindai_worker_restarts_total"),
                bytes(metrics.sum("blindai_worker_resident_bytes", &labels)),
            ]
        };
        let rows = self.slots().into_iter().map(row).collect();
        let answered = if self.before.is_some() {
            "answered/s"
        } else {
            "answered"
        };
        let header = [
            "model", answered, "waiting", "running", "batch", "workers", "restarts", "resident",
        ];
        cells(
            "models, by the number that their owners know",
            &header,
            rows,
        )
    }

    fn latencies(&self) -> Cells {
        let before = self.before.map(|before| &before.metrics);
        let row = |slot: &str, stage: &str| {
            let labels = [("model", slot), ("stage", stage)];
            let buckets = self.now.metrics.buckets(STAGE, &labels, before);
            let at = |share| quantile(share, &buckets).map_or("-".to_owned(), milliseconds);
            vec![
                printable(slot, CELL),
                stage.to_owned(),
                at(0.5),
                at(0.95),
                at(0.99),
            ]
        };
        let slots = self.slots().into_iter();
        let rows = slots.flat_map(|slot| STAGES.map(|stage| row(slot, stage)));
        let header = ["model", "stage", "p50 ms", "p95 ms", "p99 ms"];
        cells(
            "latency, up to the width of a bucket",
            &header,
            rows.collect(),
        )
    }

    fn outcomes(&self) -> Cells {
        let metrics = &self.now.metrics;
        let codes = metrics.values("blindai_requests_total", "code").into_iter();
        let row = |code: &str| {
            let labels = [("code", code)];
            let name = if code.is_empty() { "answered" } else { code };
            let all = count(metrics.sum("blindai_requests_total", &labels));
            vec![
                printable(name, CELL),
                self.rate("blindai_requests_total", &labels),
                all,
            ]
        };
        let rate = if self.before.is_some() {
            "per second"
        } else {
            "since start"
        };
        cells(
            "outcomes",
            &["code", rate, "in all"],
            codes.map(row).collect(),
        )
    }

    fn slots(&self) -> Vec<&str> {
        self.now.metrics.values("blindai_workers", "model")
    }

    fn level(&self, name: &str) -> f64 {
        self.now.metrics.sum(name, &[])
    }

    fn of_limit(&self, level: &str, limit: &str) -> String {
        format!(
            "{} of {}",
            count(self.level(level)),
            count(self.level(limit))
        )
    }

    fn budget(&self, budget: &str) -> String {
        let labels = [("budget", budget)];
        let used = self.now.metrics.sum("blindai_memory_used_bytes", &labels);
        let limit = self.now.metrics.sum("blindai_memory_limit_bytes", &labels);
        format!("{} of {}", bytes(used), bytes(limit))
    }

    /// What came since the look before, by the second; without one, all of it.
    fn change(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let now = self.now.metrics.sum(name, labels);
        let Some(before) = self.before else {
            return now;
        };
        let time = self.now.at.saturating_duration_since(before.at);
        let earlier = before.metrics.sum(name, labels);
        // A server that was started anew counts from zero.
        let more = if now >= earlier { now - earlier } else { now };
        more / time.as_secs_f64().max(0.001)
    }

    fn rate(&self, name: &str, labels: &[(&str, &str)]) -> String {
        let change = self.change(name, labels);
        match self.before {
            Some(_) => format!("{change:.1}"),
            None => count(change),
        }
    }

    fn bytes_rate(&self, name: &str, labels: &[(&str, &str)]) -> String {
        bytes(self.change(name, labels))
    }
}

const STAGE: &str = "blindai_inference_stage_seconds";
/// A hostile host may send labels of any length.
const CELL: usize = 40;

fn cells(title: &'static str, header: &[&'static str], rows: Vec<Vec<String>>) -> Cells {
    let header = header.to_vec();
    Cells {
        title,
        header,
        rows,
    }
}

fn first(values: Vec<&str>) -> String {
    printable(values.first().unwrap_or(&"?"), CELL)
}

fn count(value: f64) -> String {
    format!("{value:.0}")
}

fn bytes(value: f64) -> String {
    HumanBytes(value as u64).to_string()
}

fn seconds(value: f64) -> String {
    format!("{value:.0} s")
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.2}", seconds * 1e3)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::top::metrics::Metrics;

    fn scrape(at: Instant, requests: u32) -> Scrape {
        let text = format!(
            "blindai_requests_total{{port=\"attested\",code=\"\"}} {requests}\n\
             blindai_workers{{model=\"3\"}} 1\n\
             blindai_build_info{{version=\"\u{1b}[2Jx\",tee=\"tdx\",simulated=\"true\"}} 1\n"
        );
        Scrape {
            at,
            metrics: Metrics::parse(&text),
            ready: true,
            collateral_problem: None,
        }
    }

    #[test]
    fn a_rate_is_by_the_second_and_a_single_look_shows_all() {
        let start = Instant::now();
        let (first, second) = (
            scrape(start, 10),
            scrape(start + Duration::from_secs(2), 40),
        );
        let rate = |view: View| view.tables[1].rows[0][1].clone();
        assert_eq!(rate(View::new(&first, None)), "10");
        assert_eq!(rate(View::new(&second, Some(&first))), "15.0");
        // Started anew in between.
        assert_eq!(
            rate(View::new(
                &first,
                Some(&scrape(start - Duration::from_secs(2), 99))
            )),
            "5.0"
        );
    }

    #[test]
    fn a_host_cannot_steer_the_terminal_and_is_not_believed() {
        let view = View::new(&scrape(Instant::now(), 1), None);
        assert!(view.text().starts_with("UNVERIFIED"));
        assert!(!view.text().contains('\u{1b}'));
        let mut terminal = Terminal::new(TestBackend::new(100, 60)).unwrap();
        terminal
            .draw(|frame| view.draw(frame, "host:1", None))
            .unwrap();
        let screen = terminal.backend().to_string();
        assert!(screen.contains("UNVERIFIED"), "{screen}");
        assert!(screen.contains("tdx (simulated)"), "{screen}");
        assert!(!screen.contains('\u{1b}'));
    }
}
