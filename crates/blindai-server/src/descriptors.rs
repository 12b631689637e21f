//! Open files: each connection takes one, and each model some. A server that has none left can start
//! no worker and accept nobody, so what does not fit is not promised.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Limits;

/// Of a worker: two sockets and two regions; and two more while it starts. Of a model: its file.
const OF_A_WORKER: u64 = 6;
/// The program itself: ports, library, clocks, log, devices.
const OF_THE_PROGRAM: u64 = 64;

/// Raises the limit of open files as far as the system lets us, and says how many connections each of
/// the two ports can have beside models of so many workers: what is configured, or what fits.
pub fn connections(limits: &Limits, workers: usize) -> usize {
    let files = raise();
    let fit = fit(files, limits, workers);
    if fit < limits.connections {
        tracing::warn!(
            configured = limits.connections,
            possible = fit,
            files,
            "limits.connections does not fit the limit of open files; fewer are taken · raise that \
             limit (ulimit -Hn, LimitNOFILE=), or lower limits.connections or limits.models"
        );
    }
    fit.min(limits.connections)
}

/// The limit of open files, after raising the soft one to the hard one.
fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    files.unwrap_or(u64::MAX)
}

fn fit(files: u64, limits: &Limits, workers: usize) -> usize {
    let of_a_model = (workers as u64).saturating_mul(OF_A_WORKER) + 1;
    let models = (limits.models as u64).saturating_mul(of_a_model);
    let uploads = limits.concurrent_uploads as u64;
    let others = OF_THE_PROGRAM
        .saturating_add(models)
        .saturating_add(uploads);
    // Where not even that fits, some connections are worth more than the last of the models.
    let left = files.saturating_sub(others).max(files / 4);
    // One per port is in hand while it waits for a place.
    usize::try_from(left / 2)
        .unwrap_or(usize::MAX)
        .saturating_sub(1)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn what_fits_leaves_room_for_the_models() {
        let limits = Config::default().limits;
        assert!(fit(1 << 20, &limits, 1) > limits.connections);
        let fits = fit(1024, &limits, 1);
        assert!(fits < limits.connections);
        let used =
            2 * (fits as u64 + 1) + OF_THE_PROGRAM + (OF_A_WORKER + 1) * limits.models as u64;
        assert!(used <= 1024, "{used}");
        assert!(fit(64, &limits, 1) >= 1);
        assert!(fit(u64::MAX, &limits, 1) > 1 << 60);
    }
}
