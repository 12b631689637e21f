//! What a report says, without judging it, and the policy and the differences that come of it.

use blindai_core::{Collateral, SnpCollateral, Tee};

use super::chain::Chain;
use super::report::{Component, Report, Tcb};
use super::{Product, TCB_STATUS, check_guest, check_versions, steps, values};
use crate::check::{Check, Outcome, Table, checks, printable};
use crate::dcap::Refused;
use crate::draft::Draft;
use crate::observe::{Observation, Verification, Verified};
use crate::policy::Policy;
use crate::{Rejection, RejectionCode as Code};

/// What a policy can ask beside the fields.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    report: Vec<u8>,
    product: Option<Product>,
    has_crl: bool,
}

pub(crate) fn observe(
    bytes: &[u8],
    collateral: Option<&Collateral>,
    now: u64,
) -> Result<Observation, Refused> {
    let report = Report::parse(bytes)?;
    let (product, has_crl, verification) = match collateral {
        None => (None, false, Verification::NotTried),
        Some(Collateral::Snp(own)) => verify(report, own, now),
        Some(Collateral::Dcap(_)) => {
            let code = Code::CollateralMismatch;
            let fact = "the collateral is of SGX and TDX, the report is not".to_owned();
            (None, false, Verification::Refused { code, fact })
        }
    };
    let of_cpu = || {
        Product::ALL
            .into_iter()
            .find(|p| p.includes_some(report.cpu()))
    };
    Ok(Observation {
        tee: Tee::SevSnp,
        values: values(report),
        report_data: report.report_data(),
        debug: report.guest_policy().allows_debug(),
        verification,
        observed_at: now,
        config_digest: None,
        snp: Some(Seen {
            report: bytes.to_vec(),
            product: product.or_else(of_cpu),
            has_crl,
        }),
        models: None,
    })
}

fn verify(
    report: Report<'_>,
    collateral: &SnpCollateral,
    now: u64,
) -> (Option<Product>, bool, Verification) {
    let has_crl = collateral.crl.is_some();
    let refused = |refused: Refused| Verification::Refused {
        code: refused.code,
        fact: printable(&refused.text),
    };
    let chain = match Chain::read(collateral) {
        Ok(chain) => chain,
        Err(error) => return (None, has_crl, refused(error)),
    };
    let verified = || {
        for (_, result) in steps(report, &chain, now) {
            result?;
        }
        let crl = collateral.crl.as_ref();
        let crl = crl
            .map(|crl| chain.check_revocation(crl, now))
            .transpose()?;
        Ok(Verified {
            root: chain.root,
            tcb_status: TCB_STATUS.to_owned(),
            advisories: Vec::new(),
            evaluation_number: None,
            collateral_until: chain.ends_at().min(crl.unwrap_or(u64::MAX)),
        })
    };
    let verification = verified().map_or_else(refused, Verification::Verified);
    (Some(chain.product), has_crl, verification)
}

impl Seen {
    /// In what it is not as a policy asks: check, what is asked, what was seen.
    pub fn differences(&self, policy: &Policy) -> Vec<(&'static str, String, String)> {
        let Ok(report) = Report::parse(&self.report) else {
            return Vec::new();
        };
        let mut table = Table::default();
        if policy.snp.require_crl && !self.has_crl {
            table.fail(checks::REVOCATION, Code::CrlMissing, "none");
        }
        check_guest(report, policy, &mut table);
        check_versions(report, self.product, policy, &mut table);
        let checks = table.finish();
        let rejected = checks.as_ref().err().map_or(&[][..], Rejection::checks);
        let failed = rejected.iter().filter(|c| c.outcome() == Outcome::Fail);
        let difference = |c: &Check| (c.name(), asked(c.name(), policy), c.detail().to_owned());
        failed.map(difference).collect()
    }

    /// The lines that pin it.
    pub fn draft(&self, draft: &mut Draft) {
        let Ok(report) = Report::parse(&self.report) else {
            return;
        };
        self.draft_crl(draft);
        draft_guest(report, draft);
        let Some(product) = self.product else {
            return draft.comment("The product is not known, so no security version is pinned.");
        };
        draft.comment(
            "The least security versions. Raise them after updates of the machines' firmware, so \
             that nobody goes back. Each product that is accepted needs its own table.",
        );
        draft_tcb("min_reported_tcb", report.reported_tcb(), product, draft);
        draft_tcb("min_committed_tcb", report.committed_tcb(), product, draft);
        draft.comment("With which the guest was started.");
        draft_tcb("min_launch_tcb", report.launch_tcb(), product, draft);
    }

    fn draft_crl(&self, draft: &mut Draft) {
        match self.has_crl {
            true => draft.comment("The vendor's revocation list has to be there."),
            false => draft.comment(
                "TO BE JUDGED: no revocation list came with the evidence, so this policy refuses it. \
                 Fetch the list. The next line would accept the evidence, and machines whose keys \
                 are known to be compromised.",
            ),
        }
        let offered = if self.has_crl { "" } else { "# " };
        draft.line(&format!("{offered}require_crl = {}", self.has_crl));
    }
}

fn draft_guest(report: Report<'_>, draft: &mut Draft) {
    let guest = report.guest_policy();
    if guest.allows_migration_agent() {
        draft.comment(
            "A MIGRATION AGENT IS ALLOWED, which can read everything inside, so this policy refuses \
             the evidence that it was written from. The next line would accept it.",
        );
        draft.line("# dangerous_allow_migration_agent = true");
    }
    draft.comment(
        "Whether the guest must not share cores with strangers (SMT), who could listen. Changes with \
         the guest's policy.",
    );
    let offered = if guest.allows_smt() { "# " } else { "" };
    draft.line(&format!("{offered}forbid_smt = true"));
    draft.comment("The oldest firmware interface that the guest accepts.");
    let (major, minor) = guest.abi();
    let offered = match (major, minor) {
        (0, 0) => {
            draft.comment("TO BE JUDGED: the guest accepts any, so there is nothing to ask for.");
            "# "
        }
        _ => "",
    };
    draft.line(&format!("{offered}min_abi = \"{major}.{minor}\""));
    draft.comment(
        "The privilege levels inside the guest that may ask for reports. What runs at a level can \
         read the levels with higher numbers.",
    );
    draft_vmpl(report.vmpl(), draft);
}

fn draft_vmpl(vmpl: u32, draft: &mut Draft) {
    match vmpl {
        0 => draft.line("vmpl = [0]"),
        1..=3 => {
            draft.comment(&format!(
                "TO BE JUDGED: the report was asked for at level {vmpl}, so this policy refuses the \
                 evidence that it was written from. The next line would accept it, and whatever \
                 runs at the lower numbers, which can read everything.",
            ));
            draft.line(&format!("# vmpl = [{vmpl}]"));
        }
        _ => draft.comment("The host asked for this report, not the guest: no policy accepts it."),
    }
}

fn draft_tcb(key: &str, tcb: Tcb, product: Product, draft: &mut Draft) {
    draft.line(&format!("[{}.{key}.{}]", Tee::SevSnp, product.key()));
    for component in product.components() {
        if let Some(version) = tcb.version(product, component) {
            draft.line(&format!("{} = {version}", component.name()));
        }
    }
}

fn asked(name: &str, policy: &Policy) -> String {
    let snp = &policy.snp;
    let minimum = |minimum: &[(Product, Vec<(Component, u8)>)]| {
        let of = |(product, least): &(Product, Vec<(Component, u8)>)| {
            let least = least
                .iter()
                .map(|(c, version)| format!("{} {version}", c.name()));
            let least: Vec<_> = least.collect();
            format!("{} with {} or more", product.name(), least.join(", "))
        };
        minimum.iter().map(of).collect::<Vec<_>>().join(" or ")
    };
    match name {
        checks::REVOCATION => "a revocation list".to_owned(),
        checks::VMPL => format!("{:?}", snp.vmpls),
        checks::ABI => {
            let (major, minor) = snp.min_abi.unwrap_or_default();
            format!("{major}.{minor} or more")
        }
        checks::SMT => "no SMT".to_owned(),
        checks::MIGRATION_AGENT => "no migration agent".to_owned(),
        checks::REPORTED_TCB => minimum(&snp.min_reported_tcb),
        checks::COMMITTED_TCB => minimum(&snp.min_committed_tcb),
        checks::LAUNCH_TCB => minimum(snp.launch_minimum()),
        _ => "what is known".to_owned(),
    }
}
