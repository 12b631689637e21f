//! What stands between a worker and the machine, and how much of it there must be.

use std::fmt;

use blindai_core::{Code, Error, Result};
use serde::{Deserialize, Serialize};

use crate::worker::confine::Left;

/// How much must stand between a worker and the rest of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Nothing: workers are threads of this process. A model that takes its engine over has every key
    /// and every other model, one that crashes ends the process, none has a memory limit, and what does
    /// not stop when it is told to cannot be stopped. For an SGX enclave, where there is but one process.
    None,
    /// A process of its own is enough: where the kernel has nothing else.
    Process,
    /// The kernel must filter the worker's system calls.
    #[default]
    Filtered,
    /// It must moreover give the worker a user, or namespaces, of its own.
    Full,
}

/// What the kernel gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barriers {
    /// Workers are processes of their own.
    pub process: bool,
    /// System calls are filtered (seccomp).
    pub filtered: bool,
    pub left: Left,
}

impl Barriers {
    /// Whether this is enough.
    ///
    /// # Errors
    /// [`Code::Internal`], with what is missing.
    pub fn require(&self, isolation: Isolation) -> Result<()> {
        let missing = match isolation {
            Isolation::None | Isolation::Process => return Ok(()),
            _ if !self.filtered => "filters system calls of workers",
            Isolation::Filtered => return Ok(()),
            Isolation::Full if self.left.user || self.left.namespaces => return Ok(()),
            Isolation::Full => "gives workers a user or namespaces of their own",
        };
        let fact = format!("nothing here {missing}, which engine.isolation asks for");
        let remedy = "use a kernel and a container that allow it, or set engine.isolation lower";
        Err(Error::new(Code::Internal, fact).with_remedy(remedy))
    }
}

impl fmt::Display for Barriers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.process {
            return f.write_str(NO_BARRIER);
        }
        let barriers = [
            (self.filtered, "filtered system calls"),
            (self.left.user, "a user of their own"),
            (self.left.namespaces, "namespaces of their own"),
        ];
        let with = |there| {
            let named = barriers
                .iter()
                .filter(move |(is_there, _)| *is_there == there);
            named.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
        };
        match (with(true), with(false)) {
            (have, lack) if lack.is_empty() => f.write_str(&have),
            (have, lack) if have.is_empty() => write!(f, "without {lack}"),
            (have, lack) => write!(f, "{have}; without {lack}"),
        }
    }
}

const NO_BARRIER: &str = "none: models run in the server's own process, among its keys, without a \
                          memory limit; one that crashes ends the server";

#[cfg(test)]
mod tests {
    use super::*;

    fn barriers(filtered: bool, user: bool, namespaces: bool) -> Barriers {
        let left = Left { user, namespaces };
        Barriers {
            process: true,
            filtered,
            left,
        }
    }

    #[test]
    fn what_is_missing_is_refused_and_named() {
        use Isolation::{Filtered, Full, None, Process};
        let all = vec![None, Process, Filtered, Full];
        for (there, enough) in [
            (barriers(true, true, true), all.clone()),
            (barriers(true, true, false), all.clone()),
            (barriers(true, false, true), all.clone()),
            (barriers(true, false, false), vec![None, Process, Filtered]),
            (barriers(false, true, true), vec![None, Process]),
            (barriers(false, false, false), vec![None, Process]),
        ] {
            for &isolation in &all {
                let accepted = there.require(isolation).is_ok();
                assert_eq!(
                    accepted,
                    enough.contains(&isolation),
                    "{there} {isolation:?}"
                );
            }
        }
        let error = barriers(true, false, false).require(Full).unwrap_err();
        assert!(error.fact().contains("a user or namespaces"), "{error}");
    }

    #[test]
    fn it_says_what_there_is_and_what_not() {
        let some = barriers(true, false, true).to_string();
        assert_eq!(
            some,
            "filtered system calls, namespaces of their own; without a user of their own"
        );
        assert!(!barriers(true, true, true).to_string().contains("without"));
        let none = Barriers::default().to_string();
        assert!(none.starts_with("none: models run in the server's own"));
    }
}
