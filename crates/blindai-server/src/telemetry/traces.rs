//! Traces, as OTLP over HTTP in its JSON encoding.
//!
//! A span is built from the fields of [`TraceContext`] and from times, and from nothing else: there is
//! no place where a name or a value of a user could stand. A caller's `traceparent` gives ids only;
//! whether a trace is kept is for the server to say, or callers could fill the queue at will.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{HeaderValue, Request, StatusCode, Uri, header};
use blindai_core::Code;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::{Port, Watched};

/// Where spans go: `http://host:port`, without TLS, because the collector is the host's in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    authority: String,
    path: String,
}

impl Endpoint {
    /// Reads `http://host:port[/prefix]`.
    ///
    /// # Errors
    /// When it is something else; the text says what.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let uri: Uri = text.parse().map_err(|_| "not a URL")?;
        if uri.scheme_str() != Some("http") {
            return Err(
                "not http://host:port; put a collector on this machine before one that speaks TLS",
            );
        }
        let authority = uri.authority().ok_or("no host")?;
        if uri.query().is_some() || authority.as_str().contains('@') {
            return Err("no query and no password may stand in it");
        }
        let port = authority.port_u16().unwrap_or(4318);
        Ok(Self {
            authority: format!("{}:{port}", authority.host()),
            path: format!("{}/v1/traces", uri.path().trim_end_matches('/')),
        })
    }
}

/// All that a trace says of a request.
pub struct TraceContext {
    trace: [u8; 16],
    parent: Option<[u8; 8]>,
    pub port: Port,
    /// The pattern, never the path.
    pub route: String,
    pub method: &'static str,
    pub status: u16,
    pub code: Option<Code>,
}

impl TraceContext {
    /// The trace's id, for the log.
    pub fn id(&self) -> String {
        hex::encode(self.trace)
    }
}

/// Takes the spans of finished requests.
pub struct Traces {
    sender: mpsc::Sender<Finished>,
    threshold: u64,
    counters: Arc<Counters>,
}

/// What became of requests that were to be traced.
#[derive(Default)]
struct Counters {
    exported: AtomicU64,
    queue_full: AtomicU64,
    export_failed: AtomicU64,
}

/// Sends spans to the collector.
pub struct Exporter {
    endpoint: Endpoint,
    receiver: mpsc::Receiver<Finished>,
    counters: Arc<Counters>,
    failing: bool,
}

struct Finished {
    context: TraceContext,
    model: Option<u32>,
    started: SystemTime,
    total: Duration,
    /// Name, begin and end, counted from the start.
    stages: Vec<(&'static str, Duration, Duration)>,
}

impl Traces {
    /// Takes this share of all requests, from 0 to 1.
    pub fn new(endpoint: Endpoint, ratio: f64) -> (Self, Exporter) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let counters = Arc::new(Counters::default());
        let traces = Self {
            sender,
            threshold: (ratio * (1u64 << 63) as f64) as u64,
            counters: counters.clone(),
        };
        let exporter = Exporter {
            endpoint,
            receiver,
            counters,
            failing: false,
        };
        (traces, exporter)
    }

    /// The trace of a request, unless it is not among those to be kept. `parent` is the header
    /// `traceparent` that came with it.
    pub fn begin(&self, parent: Option<&HeaderValue>, port: Port) -> Option<Box<TraceContext>> {
        let parent = parent.and_then(|header| traceparent(header.as_bytes()));
        let (trace, parent) = match parent {
            Some((trace, span)) => (trace, Some(span)),
            None => (random(), None),
        };
        // As OpenTelemetry's TraceIdRatioBased decides, so that all servers keep the same traces.
        let (_, low) = trace.split_at(8);
        let low = u64::from_be_bytes(low.try_into().unwrap_or_default()) >> 1;
        (low < self.threshold).then(|| {
            Box::new(TraceContext {
                trace,
                parent,
                port,
                route: String::new(),
                method: "",
                status: 0,
                code: None,
            })
        })
    }

    /// Hands a request over to be exported, or drops it when the queue is full.
    pub fn finish(&self, context: TraceContext, seen: &Watched, started: Instant, ended: Instant) {
        let total = ended - started;
        let finished = Finished {
            context,
            model: seen.model.as_ref().map(|model| model.slot()),
            started: SystemTime::now() - total,
            total,
            stages: stages(seen, started, total),
        };
        if self.sender.try_send(finished).is_err() {
            self.counters.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests by what became of their traces.
    pub fn outcomes(&self) -> [(&'static str, u64); 3] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("exported", read(&self.counters.exported)),
            ("queue-full", read(&self.counters.queue_full)),
            ("export-failed", read(&self.counters.export_failed)),
        ]
    }
}

impl Exporter {
    /// Sends what has gathered, once a second, until `stop` turns true; then once more.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let stopped = tokio::select! {
                () = tokio::time::sleep(PAUSE) => false,
                _ = stop.wait_for(|stop| *stop) => true,
            };
            self.flush().await;
            if stopped {
                return;
            }
        }
    }

    async fn flush(&mut self) {
        loop {
            let mut batch = Vec::new();
            while batch.len() < BATCH
                && let Ok(finished) = self.receiver.try_recv()
            {
                batch.push(finished);
            }
            if batch.is_empty() {
                return;
            }
            let sent = tokio::time::timeout(PATIENCE, post(&self.endpoint, &batch)).await;
            self.count(
                batch.len() as u64,
                sent.unwrap_or(Err("it does not answer")),
            );
        }
    }

    fn count(&mut self, traces: u64, sent: Result<(), &'static str>) {
        match sent {
            Ok(()) => self.counters.exported.fetch_add(traces, Ordering::Relaxed),
            Err(_) => self
                .counters
                .export_failed
                .fetch_add(traces, Ordering::Relaxed),
        };
        // Once each way: a collector that is away must not fill the log.
        match (self.failing, sent) {
            (false, Err(problem)) => tracing::warn!(problem, "traces are not taken"),
            (true, Ok(())) => tracing::info!("traces are taken again"),
            _ => {}
        }
        self.failing = sent.is_err();
    }
}

async fn post(endpoint: &Endpoint, batch: &[Finished]) -> Result<(), &'static str> {
    let body = serde_json::to_vec(&export(batch)).map_err(|_| "no JSON")?;
    let socket = TcpStream::connect(&endpoint.authority).await;
    let socket = socket.map_err(|_| "it cannot be reached")?;
    let handshake = http1::handshake(TokioIo::new(socket)).await;
    let (mut sender, connection) = handshake.map_err(|_| "it does not speak HTTP")?;
    let request = Request::post(&endpoint.path)
        .header(header::HOST, &endpoint.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .map_err(|_| "no request")?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    driver.abort();
    let answer = answer.map_err(|_| "the connection ended")?;
    match answer.status() {
        StatusCode::OK => Ok(()),
        _ => Err("it refuses them"),
    }
}

fn export(batch: &[Finished]) -> Value {
    let resource = [
        attribute("service.name", "blindai".into()),
        attribute("service.version", env!("CARGO_PKG_VERSION").into()),
    ];
    let spans: Vec<_> = batch.iter().flat_map(spans).collect();
    json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{"scope": {"name": "blindai_server"}, "spans": spans}],
    }]})
}

/// The request as a span, and one below it for each stage.
fn spans(finished: &Finished) -> Vec<Value> {
    let context = &finished.context;
    let root: [u8; 8] = random();
    let at = |offset: Duration| {
        let since = finished.started.duration_since(UNIX_EPOCH);
        (since.unwrap_or_default() + offset).as_nanos().to_string()
    };
    let span = |id: [u8; 8], parent: Option<[u8; 8]>, name: &str, kind, begin, end| {
        json!({
            "traceId": hex::encode(context.trace),
            "spanId": hex::encode(id),
            "parentSpanId": parent.map(hex::encode).unwrap_or_default(),
            "name": name, "kind": kind,
            "startTimeUnixNano": at(begin), "endTimeUnixNano": at(end),
        })
    };
    let name = format!("{} {}", context.method, context.route);
    let mut server = span(
        root,
        context.parent,
        &name,
        SERVER,
        Duration::ZERO,
        finished.total,
    );
    server["attributes"] = attributes(finished).into();
    if context.status >= 500 {
        server["status"] = json!({"code": ERROR});
    }
    let stages = finished.stages.iter();
    let stages =
        stages.map(|(name, begin, end)| span(random(), Some(root), name, INTERNAL, *begin, *end));
    std::iter::once(server).chain(stages).collect()
}

fn attributes(finished: &Finished) -> Vec<Value> {
    let context = &finished.context;
    let text = |key, value: &str| attribute(key, value.into());
    let mut attributes = vec![
        text("http.request.method", context.method),
        text("http.route", &context.route),
        attribute("http.response.status_code", context.status.into()),
        text("blindai.port", context.port.as_str()),
    ];
    attributes.extend(context.code.map(|code| text("blindai.code", code.as_str())));
    attributes.extend(
        finished
            .model
            .map(|slot| attribute("blindai.model", slot.into())),
    );
    attributes
}

fn attribute(key: &str, value: Value) -> Value {
    match value {
        // 64-bit numbers are strings in this encoding.
        Value::Number(number) => json!({"key": key, "value": {"intValue": number.to_string()}}),
        text => json!({"key": key, "value": {"stringValue": text}}),
    }
}

fn stages(
    seen: &Watched,
    started: Instant,
    total: Duration,
) -> Vec<(&'static str, Duration, Duration)> {
    let Some(decoded) = seen.decoded else {
        return Vec::new();
    };
    let decoded = decoded - started;
    let mut list = vec![("receive", Duration::ZERO, decoded)];
    if let Some((stages, computed)) = &seen.computed {
        let taken = decoded + stages.queued;
        list.push(("queue", decoded, taken));
        list.push(("compute", taken, taken + stages.computed));
        list.push(("send", *computed - started, total));
    }
    list
}

/// Reads `00-<trace id>-<span id>-<flags>`; ids of zeros are none. The flags are not looked at.
fn traceparent(header: &[u8]) -> Option<([u8; 16], [u8; 8])> {
    let header = std::str::from_utf8(header).ok().filter(|h| h.len() == 55)?;
    let mut parts = header.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version != "00" || parts.next().is_some() || flags.len() != 2 {
        return None;
    }
    let (mut trace_id, mut span_id) = ([0; 16], [0; 8]);
    hex::decode_to_slice(trace, &mut trace_id).ok()?;
    hex::decode_to_slice(span, &mut span_id).ok()?;
    (trace_id != [0; 16] && span_id != [0; 8]).then_some((trace_id, span_id))
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // An id that is not random harms nobody.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes
}

/// Requests that wait to be exported; further ones are dropped and counted.
const QUEUE: usize = 2048;
const BATCH: usize = 512;
const PAUSE: Duration = Duration::from_secs(1);
/// How long the collector may take for one batch.
const PATIENCE: Duration = Duration::from_secs(5);
/// OTLP's numbers for kinds and states of spans.
const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
const ERROR: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn traces(ratio: f64) -> (Traces, Exporter) {
        Traces::new(Endpoint::parse("http://127.0.0.1:1").unwrap(), ratio)
    }

    #[test]
    fn an_endpoint_is_plain_http() {
        let endpoint = Endpoint::parse("http://collector/otel/").unwrap();
        assert_eq!(endpoint.authority, "collector:4318");
        assert_eq!(endpoint.path, "/otel/v1/traces");
        for bad in [
            "",
            "collector:4318",
            "https://x",
            "http://u:p@x",
            "http://x/?q",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_caller_gives_ids_and_nothing_else() {
        let (trace, span) = traceparent(PARENT.as_bytes()).unwrap();
        assert_eq!(hex::encode(trace), PARENT[3..35]);
        assert_eq!(hex::encode(span), PARENT[36..52]);
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-mark2f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(traceparent(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_ratio_decides_whatever_the_caller_says() {
        let parent = HeaderValue::from_static(PARENT);
        let kept = |ratio| traces(ratio).0.begin(Some(&parent), Port::Attested);
        assert!(kept(1.0).is_some());
        assert!(kept(0.0).is_none());
        // 0xa3ce… of 2^64 is 0.64.
        assert!(kept(0.65).is_some());
        assert!(kept(0.63).is_none());
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (traces, _exporter) = traces(1.0);
        let now = Instant::now();
        for _ in 0..QUEUE + 3 {
            let context = traces.begin(None, Port::Attested).unwrap();
            traces.finish(*context, &Watched::default(), now, now);
        }
        assert_eq!(traces.outcomes()[1], ("queue-full", 3));
    }
}
