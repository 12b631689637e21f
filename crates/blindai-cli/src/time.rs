//! As of when evidence is judged.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use clap::Args;

/// As of when evidence is judged.
#[derive(Args)]
pub struct Time {
    /// Judge as of this time: 2026-02-01T00:00:00Z, or seconds since 1970 [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse)]
    pub at: Option<u64>,
}

impl Time {
    /// The time that was given, or now. In seconds since 1970.
    pub fn seconds(&self) -> u64 {
        self.at.unwrap_or_else(now)
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    // A clock before 1970 reads as 1970: evidence is then not valid yet, and rejected.
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A time for people; far beyond any calendar it stays a number.
pub fn utc(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    match time.and_then(|seconds| DateTime::from_timestamp(seconds, 0)) {
        Some(time) => time.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
        None => format!("second {seconds}"),
    }
}

/// Reads a date with a zone, or seconds since 1970.
pub fn parse(text: &str) -> Result<u64, &'static str> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let time = DateTime::parse_from_rfc3339(text).ok();
    let seconds = time.and_then(|time| time.timestamp().try_into().ok());
    seconds.ok_or("write 2026-02-01T00:00:00Z, or seconds since 1970")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_with_a_zone_or_seconds() {
        assert_eq!(parse("1772700000"), Ok(1_772_700_000));
        assert_eq!(parse("2026-02-01T00:00:00Z"), Ok(1_769_904_000));
        assert_eq!(parse("2026-02-01T01:00:00+01:00"), Ok(1_769_904_000));
        for bad in ["", "-1", "2026-02-01", "1969-12-31T00:00:00Z", "now", "1e9"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
