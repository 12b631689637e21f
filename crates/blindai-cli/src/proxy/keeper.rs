//! When the server is verified: at the start, before each report ends, and after each failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blindai_client::{Connector, Trust, VerifiedReport};

use crate::{output, time};

/// Verifies one server again and again.
pub struct Keeper {
    connector: Arc<Connector>,
    reverify: u64,
    next: Arc<AtomicU64>,
}

impl Keeper {
    /// One that verifies anew `reverify` seconds after each verification at the latest.
    pub fn new(connector: Arc<Connector>, reverify: u64) -> Self {
        let next = Arc::default();
        Self {
            connector,
            reverify,
            next,
        }
    }

    /// The time of the next verification, in seconds since 1970.
    pub fn next(&self) -> Arc<AtomicU64> {
        self.next.clone()
    }

    /// Never ends by itself.
    pub async fn keep(&self) {
        let mut trust = self.connector.trust();
        let mut told = Told::default();
        loop {
            // Either way the outcome is in `trust`, with those of verifications that a request
            // caused which met a new key.
            let _ = self.connector.attest().await;
            loop {
                let now_known = trust.borrow_and_update().clone();
                told.tell(&self.connector.address(), &now_known);
                let due = self.due(&now_known, told.failures);
                self.next.store(due, Ordering::Relaxed);
                tokio::select! {
                    () = reached(due) => break,
                    _ = trust.changed() => {}
                }
            }
        }
    }

    fn due(&self, trust: &Trust, failures: u32) -> u64 {
        match (trust.report(), trust.failure()) {
            (Some(report), _) => before_its_end(report, self.reverify),
            (None, Some(failure)) => failure.at + backoff(failures),
            (None, None) => time::now() + backoff(1),
        }
    }
}

/// After three quarters of the report's life there is still time to try again.
fn before_its_end(report: &VerifiedReport, reverify: u64) -> u64 {
    let life = report.valid_until().saturating_sub(report.verified_at());
    // Not at once, even when the report lives for a moment.
    report.verified_at() + reverify.min(life / 4 * 3).max(1)
}

/// 1, 2, 4 … 60 seconds.
fn backoff(failures: u32) -> u64 {
    1u64.checked_shl(failures.saturating_sub(1))
        .unwrap_or(60)
        .clamp(1, 60)
}

/// Looks at the clock now and then: a machine that slept wakes up to a report that has ended.
async fn reached(due: u64) {
    loop {
        match due.saturating_sub(time::now()) {
            0 => return,
            left => tokio::time::sleep(Duration::from_secs(left.min(1))).await,
        }
    }
}

/// What the operator was told last. Each change is a line on standard error, repetitions are not.
#[derive(Default)]
struct Told {
    key: Option<[u8; 32]>,
    failed: bool,
    failures: u32,
}

impl Told {
    fn tell(&mut self, server: &str, trust: &Trust) {
        match (trust.report(), trust.failure()) {
            (Some(report), _) => self.verified(server, report),
            (None, Some(failure)) => {
                self.failures = self.failures.saturating_add(1);
                if !std::mem::replace(&mut self.failed, true) {
                    let error = &failure.error;
                    output::warn(format_args!("blindai proxy: nothing is forwarded: {error}"));
                }
            }
            (None, None) => {}
        }
    }

    fn verified(&mut self, server: &str, report: &VerifiedReport) {
        let key = Some(report.claims().tls_spki_sha256);
        let news = self.failed || self.key != key;
        (self.key, self.failed, self.failures) = (key, false, 0);
        if !news {
            return;
        }
        if report.simulated() {
            output::warn(format_args!(
                "WARNING: {server} is a simulation. It protects nothing."
            ));
        }
        output::warn(format_args!(
            "blindai proxy: {server} is verified ({}, {}) until {}",
            report.tee(),
            report.tcb_status(),
            time::utc(report.valid_until())
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_followed_by_ever_longer_waits_up_to_a_minute() {
        let waits: Vec<_> = (0..9).map(backoff).collect();
        assert_eq!(waits, [1, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff(u32::MAX), 60);
    }
}
