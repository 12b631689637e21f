//! The collateral that is stapled to the evidence: from the platform where it has it, else fetched.
//!
//! It is not verified here, clients do that. What is stapled may end and its source fail: then the
//! document and the log say so, and serving goes on.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use blindai_collateral::{CollateralError, FetchOptions, Fetched, Fetcher, Validity};
use blindai_core::{Code, Collateral, CollateralState, CollateralStatus, Error, Result};

use crate::config::CollateralConfig;

/// What is stapled, and where the next comes from.
pub struct Stapling {
    fetcher: Option<Fetcher>,
    interval: Duration,
    held: ArcSwap<Held>,
}

#[derive(Clone, Default)]
struct Held {
    stapled: Option<(Fetched, u64)>,
    /// How often in a row no news came, and the code of the last time.
    failures: u32,
    problem: Option<&'static str>,
}

impl Stapling {
    /// Holds nothing yet.
    ///
    /// # Errors
    /// When the file of authorities cannot be read.
    pub fn new(config: &CollateralConfig) -> Result<Self> {
        let unusable = |error: CollateralError| {
            let remedy = error.remedy().to_owned();
            Error::new(Code::InvalidRequest, error.fact()).with_remedy(remedy)
        };
        let options = FetchOptions {
            timeout: Duration::from_secs(config.timeout_seconds),
            authorities: config.authorities.clone(),
            ..FetchOptions::default()
        };
        let source = config.source().map_err(unusable)?;
        let fetcher = source.map(|source| Fetcher::new(source, &options));
        Ok(Self {
            fetcher: fetcher.transpose().map_err(unusable)?,
            interval: Duration::from_secs(config.refresh_seconds),
            held: ArcSwap::default(),
        })
    }

    /// What to put beside evidence, and how it stands at this time.
    pub fn staple(&self, now: u64) -> (Option<Collateral>, CollateralStatus) {
        let held = self.held.load();
        let stapled = held.stapled.as_ref();
        let status = CollateralStatus {
            state: match stapled {
                Some((fetched, _)) if fetched.validity.contains(now) => CollateralState::Fresh,
                Some(_) => CollateralState::Stale,
                None => CollateralState::None,
            },
            fetched_at: stapled.map(|(_, at)| *at),
            expires_at: stapled.map(|(fetched, _)| fetched.validity.not_after),
            problem: held.problem.map(str::to_owned),
        };
        (
            stapled.map(|(fetched, _)| fetched.collateral.clone()),
            status,
        )
    }

    /// Looks for newer collateral for this quote or report, and says in the log how it stands.
    /// `supplied` is what the platform has itself. What is held stays where nothing better is found.
    pub async fn refresh(&self, quote: &[u8], supplied: Option<Collateral>, now: u64) {
        let (found, problem) = self.find(quote, supplied, now).await;
        let mut held = Held::clone(&self.held.load());
        held.take(found, problem, now);
        self.held.store(held.into());
        self.tell(now);
    }

    /// How long to wait for the next look: the interval, half of what the collateral has left, and
    /// after failures less. Up to a tenth is left to chance, so that servers that were started
    /// together do not ask together.
    pub fn pause(&self, now: u64) -> Duration {
        let held = self.held.load();
        let end = held
            .stapled
            .as_ref()
            .map(|(fetched, _)| fetched.validity.not_after);
        let limit = match (held.failures, end) {
            (0, Some(end)) => Duration::from_secs(end.saturating_sub(now) / 2).max(FIRST_RETRY),
            // Nothing was found, and nothing failed: nobody was named who could be asked.
            (0, None) => self.interval,
            (failures, _) => FIRST_RETRY.saturating_mul(1 << (failures - 1).min(10)),
        };
        let pause = self.interval.min(limit);
        pause.mul_f64(1.0 - chance() / 10.0)
    }

    async fn find(
        &self,
        quote: &[u8],
        supplied: Option<Collateral>,
        now: u64,
    ) -> (Option<Fetched>, Option<&'static str>) {
        // A host that hands over an old list, or no list at all under its name, must not keep a
        // source from being asked.
        let enough = supplied.as_ref().is_some_and(|supplied| {
            is_whole(supplied) && Validity::of(supplied).is_ok_and(|v| v.contains(now))
        });
        let fetcher = self.fetcher.as_ref().filter(|_| !enough);
        let fetched = match fetcher {
            Some(fetcher) => fetcher.fetch(quote, supplied.as_ref()).await.map(Some),
            None => Ok(None),
        };
        let asked = fetched.and_then(|fetched| match (fetched, supplied.clone()) {
            (Some(fetched), _) => Ok(Some(fetched)),
            (None, supplied) => supplied.map(as_fetched).transpose(),
        });
        asked.map_or_else(
            |error| {
                let (code, fact) = (error.code(), error.fact());
                tracing::warn!(code, fact, "no new collateral");
                // A part is better than nothing: the policy decides what it needs.
                let part = supplied.and_then(|part| as_fetched(part).ok());
                (part, Some(code))
            },
            |found| (found, None),
        )
    }

    fn tell(&self, now: u64) {
        let (_, status) = self.staple(now);
        let (expires_at, problem) = (status.expires_at, status.problem);
        match status.state {
            CollateralState::Fresh => tracing::info!(expires_at, "collateral is fresh"),
            CollateralState::Stale => tracing::error!(
                expires_at,
                problem,
                "collateral is stale: clients without their own refuse this server"
            ),
            CollateralState::None => tracing::error!(
                problem,
                "there is no collateral: clients without their own refuse this server"
            ),
        }
    }
}

impl Held {
    /// Takes what was found unless what is held is better.
    fn take(&mut self, found: Option<Fetched>, problem: Option<&'static str>, now: u64) {
        let worth = |it: &Fetched| (it.validity.contains(now), is_whole(&it.collateral));
        let held = self.stapled.as_ref().map(|(fetched, _)| worth(fetched));
        if let Some(found) = found
            && held.is_none_or(|held| held <= worth(&found))
        {
            self.stapled = Some((found, now));
        }
        let ended = self.stapled.as_ref().is_some_and(|(it, _)| !worth(it).0);
        self.problem = problem.or(ended.then_some(SOURCE_IS_STALE));
        self.failures = match self.problem {
            Some(_) => self.failures.saturating_add(1),
            None => 0,
        };
    }
}

/// A host of SEV-SNP hands over certificates, and no revocation list.
fn is_whole(collateral: &Collateral) -> bool {
    match collateral {
        Collateral::Dcap(_) => true,
        Collateral::Snp(collateral) => collateral.crl.is_some(),
    }
}

fn as_fetched(collateral: Collateral) -> std::result::Result<Fetched, CollateralError> {
    let validity = Validity::of(&collateral)?;
    Ok(Fetched {
        collateral,
        validity,
    })
}

/// The time in seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |age| age.as_secs())
}

/// From 0 to 1; nothing secret hangs on it.
fn chance() -> f64 {
    f64::from(RandomState::new().hash_one(()) as u32) / f64::from(u32::MAX)
}

/// Before asking again after a failure; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// What came has already ended, or not begun.
const SOURCE_IS_STALE: &str = "collateral-stale";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blindai_collateral::Source;
    use blindai_core::{ReportData, SnpCollateral};
    use blindai_tee::{Attester as _, Measurement, Simulation, SimulationOptions};

    use super::*;

    const NOW: u64 = 1000;

    fn stapling(interval: u64) -> Stapling {
        Stapling {
            fetcher: None,
            interval: Duration::from_secs(interval),
            held: ArcSwap::default(),
        }
    }

    fn fetched(not_after: u64, crl: Option<Vec<u8>>) -> Fetched {
        Fetched {
            collateral: Collateral::Snp(SnpCollateral {
                signer: not_after.to_string(),
                issuer_chain: None,
                crl,
            }),
            validity: Validity {
                not_before: 0,
                not_after,
            },
        }
    }

    #[tokio::test]
    async fn a_source_is_asked_unless_what_the_host_supplied_holds() {
        let (now, folder) = (
            unix_seconds(SystemTime::now()),
            tempfile::tempdir().unwrap(),
        );
        let at = |time: u64| {
            let mut options = SimulationOptions::new(Measurement::Launch([1; 48]));
            options.clock = Arc::new(move || UNIX_EPOCH + Duration::from_secs(time));
            let platform = Simulation::new(options).unwrap();
            let collateral = platform.collateral().unwrap().unwrap();
            let report = platform.quote(&ReportData::of_claims(b"")).unwrap();
            (report, collateral)
        };
        let (report, own) = at(now);
        let (_, stale) = at(now - 100 * 24 * 3600);
        let mut garbage = own.clone();
        let Collateral::Snp(part) = &mut garbage else {
            panic!("not of SEV-SNP")
        };
        part.crl = Some(b"no list".to_vec());
        let path = folder.path().join("collateral.json");
        std::fs::write(&path, serde_json::to_vec(&own).unwrap()).unwrap();
        let source = Source::Path(path.clone());
        let stapled = async |supplied| {
            let mut stapling = stapling(100);
            let fetcher = Fetcher::new(source.clone(), &FetchOptions::default());
            stapling.fetcher = Some(fetcher.unwrap());
            stapling.refresh(&report, Some(supplied), now).await;
            let (collateral, status) = stapling.staple(now);
            (collateral, status.state, status.problem)
        };
        let fresh = (Some(own.clone()), CollateralState::Fresh, None);
        for supplied in [stale, garbage] {
            assert_eq!(stapled(supplied).await, fresh);
        }
        // Where it holds, nobody is asked: there is nobody.
        std::fs::remove_file(path).unwrap();
        assert_eq!(stapled(own).await, fresh);
    }

    #[test]
    fn nothing_takes_the_place_of_something_better() {
        let stale = fetched(NOW, Some(vec![]));
        let part = fetched(NOW + 900, None);
        let whole = fetched(NOW + 10, Some(vec![]));
        let newer = fetched(NOW + 20, Some(vec![]));
        let mut held = Held::default();
        for (found, kept) in [
            (Some(&stale), &stale),
            (None, &stale),
            (Some(&part), &part),
            (Some(&stale), &part),
            (Some(&whole), &whole),
            (Some(&part), &whole),
            (Some(&newer), &newer),
            (Some(&whole), &whole),
        ] {
            held.take(found.cloned(), None, NOW);
            assert_eq!(&held.stapled.as_ref().unwrap().0, kept);
            assert_eq!(held.problem.is_some(), kept == &stale);
        }
        held.take(None, Some("collateral-unreachable"), NOW);
        assert_eq!(held.problem, Some("collateral-unreachable"));
    }

    #[test]
    fn the_next_look_comes_before_the_end_and_soon_after_failures() {
        let stapling = stapling(100);
        let within = |most: u64| {
            let (pause, most) = (stapling.pause(NOW), Duration::from_secs(most));
            assert!(
                most.mul_f64(0.9) <= pause && pause <= most,
                "{pause:?}, {most:?}"
            );
        };
        within(100);
        let mut held = Held::default();
        for (found, problem, most) in [
            (Some(fetched(NOW + 1000, None)), None, 100),
            (Some(fetched(NOW + 60, None)), None, 30),
            (None, Some("x"), 1),
            (None, Some("x"), 2),
            (None, Some("x"), 4),
            (Some(fetched(NOW, None)), None, 30),
        ] {
            held.take(found, problem, NOW);
            stapling.held.store(Arc::new(held.clone()));
            within(most);
        }
        for _ in 0..100 {
            held.take(None, Some("x"), NOW);
        }
        stapling.held.store(Arc::new(held));
        within(100);
    }
}
