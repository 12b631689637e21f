//! What a server says on standard error: events of our own crates, as text or one JSON object a line.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::panic::PanicHookInfo;

use blindai_core::Digest;
use blindai_engine::{Barriers, MODEL_THREAD};
use blindai_server::api::ANSWERED;
use blindai_server::config::{Log, LogFormat};
use tracing_subscriber::EnvFilter;

/// Starts the log.
pub fn start(log: &Log) {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter(log))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match log.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(tell_panic));
}

/// What a server tells of itself when it has started.
pub struct Announcement<'a> {
    pub attested: SocketAddr,
    pub public: SocketAddr,
    pub engine: &'a str,
    pub evidence: &'a str,
    pub workers: Barriers,
    pub access: &'a str,
    pub store: Option<&'a str>,
    pub configuration: Digest,
    pub simulated: bool,
}

/// Tells where the server is and what it proves.
pub fn announce(log: &Log, it: &Announcement<'_>) {
    match log.format {
        LogFormat::Text => announce_text(it),
        LogFormat::Json => announce_event(it),
    }
}

/// Tells why there is no server.
pub fn not_started(log: &Log, message: &str) {
    match log.format {
        LogFormat::Text => eprintln!("blindai: {message}"),
        LogFormat::Json => tracing::error!(fact = message, "not started"),
    }
}

// Only our own events: what libraries log at their finer levels holds frames, and so user data. The
// environment has no say, because the host sets it.
fn filter(log: &Log) -> EnvFilter {
    let level = log.level.as_str();
    let answered = if log.requests { "info" } else { "off" };
    EnvFilter::new(format!(
        "off,blindai={level},blindai_server={level},blindai_engine={level},\
        blindai_store={level},{ANSWERED}={answered}"
    ))
}

// The message of a panic may quote what a user sent; the place in the source does not. Of one that a
// model caused, which its owner is told, a worker that is a process would say nothing here either.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    if thread
        .name()
        .is_some_and(|name| name.starts_with(MODEL_THREAD))
    {
        return;
    }
    let place = panic.location().map(ToString::to_string);
    tracing::error!(place, "panicked");
}

fn announce_text(it: &Announcement<'_>) {
    if it.simulated {
        eprintln!("WARNING: {SIMULATED}");
    }
    eprintln!("blindai {}", env!("CARGO_PKG_VERSION"));
    eprintln!("  attested port  {}  all data and models", it.attested);
    eprintln!("  public port    {}  evidence and health", it.public);
    eprintln!("  engine         {}", it.engine);
    eprintln!("  evidence       {}", it.evidence);
    eprintln!("  workers        {}", it.workers);
    eprintln!("  access         {}", it.access);
    if let Some(store) = it.store {
        eprintln!("  store          {store}");
    }
    eprintln!("  configuration  {}", it.configuration);
}

fn announce_event(it: &Announcement<'_>) {
    if it.simulated {
        tracing::warn!("{SIMULATED}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        attested = %it.attested,
        public = %it.public,
        engine = it.engine,
        evidence = it.evidence,
        workers = %it.workers,
        access = it.access,
        store = it.store,
        configuration = %it.configuration,
        "started"
    );
}

const SIMULATED: &str = "simulation protects nothing: the operator can read all data.";

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn fail() {
        panic!("what a user {}", "sent");
    }

    #[test]
    fn a_panic_tells_its_place_and_not_its_message() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_writer(move || writer.clone())
            .finish();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(tell_panic));
        let panicked =
            tracing::subscriber::with_default(subscriber, || std::panic::catch_unwind(fail));
        std::panic::set_hook(before);
        panicked.unwrap_err();
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(
            text.contains("panicked") && text.contains("log.rs:"),
            "{text}"
        );
        assert!(!text.contains("sent"), "{text}");
    }
}
