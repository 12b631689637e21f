//! The section `[sev-snp]`.

use super::{Pin, Section, list};
use crate::field::Allowed;
use crate::snp::{Component, Product};

/// What is asked of a guest of SEV-SNP beside its measurements.
#[derive(Clone, Debug)]
pub(crate) struct SnpPolicy {
    pub require_crl: bool,
    pub allow_migration_agent: bool,
    pub forbid_smt: bool,
    pub min_abi: Option<(u8, u8)>,
    pub vmpls: Vec<u32>,
    pub min_reported_tcb: Minimum,
    pub min_committed_tcb: Minimum,
    pub min_launch_tcb: Minimum,
}

impl SnpPolicy {
    /// What the guest's start is held to: a guest that was started on firmware with a hole stays
    /// lost when its machine is updated beneath it, so who asks for the one asks for the other.
    pub fn launch_minimum(&self) -> &Minimum {
        let minima = [
            &self.min_launch_tcb,
            &self.min_committed_tcb,
            &self.min_reported_tcb,
        ];
        let named = minima.into_iter().find(|minimum| !minimum.is_empty());
        named.unwrap_or(&self.min_launch_tcb)
    }
}

/// The least security versions of each product; of none, any.
pub(crate) type Minimum = Vec<(Product, Vec<(Component, u8)>)>;

impl Default for SnpPolicy {
    fn default() -> Self {
        Self {
            require_crl: true,
            allow_migration_agent: false,
            forbid_smt: false,
            min_abi: None,
            vmpls: vec![0],
            min_reported_tcb: Vec::new(),
            min_committed_tcb: Vec::new(),
            min_launch_tcb: Vec::new(),
        }
    }
}

pub(super) fn read(section: &mut Section<'_>) -> SnpPolicy {
    let strict = SnpPolicy::default();
    SnpPolicy {
        require_crl: section.flag("require_crl").unwrap_or(strict.require_crl),
        allow_migration_agent: section
            .flag("dangerous_allow_migration_agent")
            .unwrap_or(strict.allow_migration_agent),
        forbid_smt: section.flag("forbid_smt").unwrap_or(strict.forbid_smt),
        min_abi: section.take("min_abi", "a version written \"1.51\"", |value| {
            let (major, minor) = value.as_str()?.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        }),
        vmpls: read_vmpls(section).unwrap_or(strict.vmpls),
        min_reported_tcb: read_minimum(section, "min_reported_tcb"),
        min_committed_tcb: read_minimum(section, "min_committed_tcb"),
        min_launch_tcb: read_minimum(section, "min_launch_tcb"),
    }
}

fn read_vmpls(section: &mut Section<'_>) -> Option<Vec<u32>> {
    section.take("vmpl", "a list of numbers from 0 to 3", |value| {
        let level =
            |value: toml::Value| u32::try_from(value.as_integer()?).ok().filter(|l| *l <= 3);
        let levels = list(value)?.into_iter().map(level);
        let levels: Vec<_> = levels.collect::<Option<_>>()?;
        (!levels.is_empty()).then_some(levels)
    })
}

// The numbers of one product say nothing about another, so each has its own.
fn read_minimum(section: &mut Section<'_>, key: &str) -> Minimum {
    let Some(mut products) = section.section(key) else {
        return Vec::new();
    };
    let mut minimum = Minimum::new();
    for product in Product::ALL {
        if let Some(mut versions) = products.section(product.key()) {
            let components = product.components().into_iter();
            // Any version of the product would pass.
            if versions.table.is_empty() {
                versions.problem("", "names no version");
            }
            let least = components.filter_map(|c| Some((c, versions.integer(c.name())?)));
            minimum.push((product, least.collect()));
            versions.finish();
        }
    }
    if minimum.is_empty() {
        products.problem("", "names no version");
    }
    products.finish();
    minimum
}

/// The launch measurement names what runs. So does the signer of the guest's identity block with
/// product and version, because the firmware starts nothing that the block does not measure; but a
/// digest of zeros only says that there was no such block.
pub(super) fn require_guest(section: &Section<'_>, pins: &[Pin], named: impl Fn(&str) -> bool) {
    for pin in pins {
        if let Allowed::OneOf(values) = &pin.allowed
            && values.iter().any(|value| pin.field.is_absent(value))
        {
            section.problem(pin.field.name, "must not be zeros: that names none");
        }
    }
    let signer = named("id_key_digest") || named("author_key_digest");
    let version = named("family_id") && named("image_id") && named("guest_svn");
    match (named("measurement"), signer) {
        (true, _) => {}
        (false, false) => section.problem("measurement", "is missing, so any code would pass"),
        (false, true) if version => {}
        (false, true) => section.problem(
            "",
            "names a signer without family_id, image_id and min_guest_svn beside it",
        ),
    }
}
