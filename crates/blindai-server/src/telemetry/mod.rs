//! What may be seen from outside: shapes and times, never contents.
//!
//! Whoever runs the machine reads the metrics, the logs and the traces. So each label and each field
//! comes from a closed set: ports, route patterns, methods, codes, stages. A model is a small number,
//! because its name belongs to its owner. Recording is a few atomic additions; nothing is locked and
//! nothing allocated that other requests wait for.

mod exposition;
mod histogram;
mod model;
mod movement;
mod port;
mod request;
mod throttle;
mod traces;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use exposition::{Gauges, ModelGauges, exposition};
use histogram::{Durations, durations};
pub use model::{ModelMetrics, Slots};
pub use movement::{Counts, LoadCause, UnloadCause};
pub use port::{Metered, Port, PortCounters};
pub use request::{Outcome, Requests, Watched, answered, computed, decoded, refused, watch};
pub use throttle::Throttle;
pub use traces::{Endpoint, Exporter, TraceContext, Traces};

/// All that is counted.
pub struct Telemetry {
    pub requests: Requests,
    pub refusals: Throttle,
    pub slots: Slots,
    pub attested: Arc<PortCounters>,
    pub public: Arc<PortCounters>,
    pub load_times: Durations,
    pub loads: Counts<LoadCause>,
    pub unloads: Counts<UnloadCause>,
    pub uploaded_bytes: AtomicU64,
    pub traces: Option<Traces>,
    /// Whether anybody may ask for the metrics.
    pub metrics: bool,
}

impl Telemetry {
    /// Nothing has been counted yet.
    pub fn new(metrics: bool, traces: Option<Traces>) -> Self {
        Self {
            requests: Requests::default(),
            refusals: Throttle::default(),
            slots: Slots::default(),
            attested: Arc::default(),
            public: Arc::default(),
            load_times: durations(),
            loads: Counts::default(),
            unloads: Counts::default(),
            uploaded_bytes: AtomicU64::new(0),
            traces,
            metrics,
        }
    }

    /// The counters of a port.
    pub fn port(&self, port: Port) -> &Arc<PortCounters> {
        match port {
            Port::Attested => &self.attested,
            Port::Public => &self.public,
        }
    }

    /// A model was loaded in this time.
    pub fn loaded(&self, cause: LoadCause, took: Duration) {
        self.loads.add(cause);
        self.load_times.record(took);
    }

    /// A model was uploaded and can answer.
    pub fn uploaded(&self, bytes: u64) {
        self.uploaded_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A model that can be read again has left memory.
    pub fn unloaded(&self, cause: UnloadCause) {
        self.unloads.add(cause);
    }
}
