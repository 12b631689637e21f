use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::http::StatusCode;
use blindai_core::{Code, Error};
use blindai_engine::Stages;

use super::{ModelMetrics, Port, Telemetry, TraceContext};

/// Counts requests by port, route pattern, method and outcome: one cell each, so that counting is one
/// addition. The patterns are the program's own; a path that fits none counts under `-`.
pub struct Requests {
    routes: [OnceLock<Box<str>>; ROUTES],
    cells: Box<[AtomicU64]>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Refused(Code),
    /// An answer, by the hundreds of its status.
    Answered(u8),
}

/// The methods that are told apart; the last stands for any other word.
pub const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", "other"];
/// More patterns than there are. Further ones would count under `-`.
const ROUTES: usize = 48;
const CLASSES: usize = 5;
const NO_ROUTE: &str = "-";

impl Default for Requests {
    fn default() -> Self {
        let outcomes = Code::ALL.len() + CLASSES;
        let cells = Port::ALL.len() * (ROUTES + 1) * METHODS.len() * outcomes;
        Self {
            routes: [const { OnceLock::new() }; ROUTES],
            cells: (0..cells).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

/// One cell that is not zero.
pub struct Cell {
    pub port: &'static str,
    pub route: String,
    pub method: &'static str,
    pub outcome: Outcome,
    pub count: u64,
}

impl Requests {
    /// Counts a request. `route` is the pattern that the router matched.
    pub fn count(&self, port: Port, route: Option<&str>, method: &str, outcome: Outcome) {
        let route = route.map_or(ROUTES, |route| self.route(route));
        let method = METHODS.iter().position(|known| *known == method);
        let method = method.unwrap_or(METHODS.len() - 1);
        let row = (port as usize * (ROUTES + 1) + route) * METHODS.len() + method;
        let cell = row * (Code::ALL.len() + CLASSES) + outcome.index();
        self.cells[cell].fetch_add(1, Ordering::Relaxed);
    }

    /// All cells that are not zero.
    pub fn cells(&self) -> Vec<Cell> {
        let outcomes = Code::ALL.len() + CLASSES;
        let counts = self.cells.iter().map(|cell| cell.load(Ordering::Relaxed));
        let filled = counts.enumerate().filter(|(_, count)| *count > 0);
        filled
            .map(|(cell, count)| {
                let (row, outcome) = (cell / outcomes, cell % outcomes);
                let (row, method) = (row / METHODS.len(), row % METHODS.len());
                let (port, route) = (row / (ROUTES + 1), row % (ROUTES + 1));
                let known = self.routes.get(route).and_then(OnceLock::get);
                Cell {
                    port: Port::ALL[port].as_str(),
                    route: known.map_or(NO_ROUTE, |route| &**route).to_owned(),
                    method: METHODS[method],
                    outcome: Outcome::at(outcome),
                    count,
                }
            })
            .collect()
    }

    /// The place of a pattern; it gets one when it is first seen.
    fn route(&self, pattern: &str) -> usize {
        let place = |route: &OnceLock<Box<str>>| **route.get_or_init(|| pattern.into()) == *pattern;
        self.routes.iter().position(place).unwrap_or(ROUTES)
    }
}

impl Outcome {
    /// Of an answer that carries no code of ours.
    pub fn of(status: StatusCode) -> Self {
        Self::Answered((status.as_u16() / 100).clamp(1, CLASSES as u16) as u8)
    }

    fn index(self) -> usize {
        match self {
            // The codes are counted from 0, in the order of `Code::ALL`.
            Self::Refused(code) => code as usize,
            Self::Answered(class) => Code::ALL.len() + usize::from(class) - 1,
        }
    }

    fn at(index: usize) -> Self {
        match Code::ALL.get(index) {
            Some(code) => Self::Refused(*code),
            None => Self::Answered((index - Code::ALL.len() + 1) as u8),
        }
    }
}

tokio::task_local! {
    // Not an argument of each verb: a spelling that forgot to pass it on would not be counted.
    static WATCHED: RefCell<Watched>;
}

/// A request on its way through the server; dropped when the last byte of its answer was handed to the
/// connection.
#[derive(Default)]
pub struct Watched {
    pub model: Option<Arc<ModelMetrics>>,
    pub decoded: Option<Instant>,
    pub computed: Option<(Stages, Instant)>,
    /// Why a message of a stream was refused, when the stream goes on.
    pub refused: Option<Error>,
    answer: Option<Answer>,
}

struct Answer {
    telemetry: Arc<Telemetry>,
    started: Instant,
    trace: Option<Box<TraceContext>>,
}

/// Works on a request and watches what the service does with it. Elsewhere nobody watches: a body that
/// works while it is sent has each of its pieces watched.
pub async fn watch<T>(work: impl Future<Output = T>) -> (T, Watched) {
    let watched = async {
        let done = work.await;
        (done, WATCHED.with(RefCell::take))
    };
    WATCHED.scope(RefCell::default(), watched).await
}

/// The answer is ready to be sent.
pub fn answered(telemetry: Arc<Telemetry>, started: Instant, trace: Option<Box<TraceContext>>) {
    let _ = WATCHED.try_with(|watched| {
        watched.borrow_mut().answer = Some(Answer {
            telemetry,
            started,
            trace,
        });
    });
}

/// The inputs for this model are read.
pub fn decoded(model: &Arc<ModelMetrics>) {
    let _ = WATCHED.try_with(|watched| {
        let mut watched = watched.borrow_mut();
        watched.model = Some(model.clone());
        watched.decoded = Some(Instant::now());
    });
}

/// A message of a stream was refused, and the stream goes on.
pub fn refused(error: &Error) {
    let _ = WATCHED.try_with(|watched| {
        watched.borrow_mut().refused = Some(error.clone());
    });
}

/// The model has given its outputs.
pub fn computed(stages: Stages) {
    let _ = WATCHED.try_with(|watched| {
        watched.borrow_mut().computed = Some((stages, Instant::now()));
    });
}

impl Watched {
    fn record(&self, started: Instant, ended: Instant) {
        let (Some(model), Some(decoded), Some((stages, computed))) =
            (&self.model, self.decoded, &self.computed)
        else {
            return;
        };
        model.receive.record(decoded - started);
        model.queue.record(stages.queued);
        model.compute.record(stages.computed);
        model.batches.add(stages.batch as u64);
        model.send.record(ended - *computed);
        model.total.record(ended - started);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else {
            return;
        };
        let (started, ended) = (answer.started, Instant::now());
        self.record(started, ended);
        if let (Some(trace), Some(traces)) = (answer.trace, &answer.telemetry.traces) {
            traces.finish(*trace, self, started, ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_has_its_cell() {
        let requests = Requests::default();
        let all = Code::ALL.iter().map(|code| Outcome::Refused(*code));
        let all: Vec<_> = all.chain((1..=5).map(Outcome::Answered)).collect();
        for outcome in &all {
            requests.count(Port::Public, Some("/x/{name}"), "PUT", *outcome);
        }
        requests.count(Port::Attested, None, "BREW", Outcome::of(StatusCode::OK));
        let cells = requests.cells();
        assert_eq!(cells.len(), all.len() + 1);
        let first = &cells[0];
        assert_eq!((first.port, first.route.as_str()), ("attested", "-"));
        assert_eq!(
            (first.method, first.outcome),
            ("other", Outcome::Answered(2))
        );
        for (cell, outcome) in cells[1..].iter().zip(all) {
            assert_eq!((cell.route.as_str(), cell.method), ("/x/{name}", "PUT"));
            assert_eq!((cell.outcome, cell.count), (outcome, 1));
        }
    }

    #[test]
    fn there_are_never_more_routes_than_places() {
        let requests = Requests::default();
        for number in 0..3 * ROUTES {
            let route = format!("/{number}");
            requests.count(Port::Public, Some(&route), "GET", Outcome::Answered(2));
        }
        let cells = requests.cells();
        assert_eq!(cells.len(), ROUTES + 1);
        let rest = cells.iter().find(|cell| cell.route == NO_ROUTE).unwrap();
        assert_eq!(rest.count, 2 * ROUTES as u64);
    }
}
