//! What a quote or report can say, and what a policy can ask of it.
//!
//! One list, [`FIELDS`]: the policy file, the checks, `observe`, the policy that is written from an
//! observation and the differences between the two all go by it.

use std::fmt;

use blindai_core::Tee::{self, SevSnp, Sgx, Tdx};

use crate::RejectionCode;

/// One thing that evidence says.
pub(crate) struct Field {
    pub tees: &'static [Tee],
    /// In the policy, in the table of checks and in JSON.
    pub name: &'static str,
    pub form: Form,
    pub group: Group,
    pub init: Init,
    /// For the person who judges a policy: what it is, and when it changes.
    pub meaning: &'static str,
}

/// What a policy can ask of a field. Lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One of a list of hexadecimal texts.
    OneOf(usize),
    /// This number.
    Exactly,
    /// `min_…`: this number or more.
    AtLeast,
    /// `min_…`: each byte this or more.
    EachAtLeast(usize),
    /// `{ value, mask }`: these bits of those.
    Bits(usize),
    /// True or false.
    Flag,
    /// Nothing: it is only shown.
    Shown,
}

/// What a field is about, which decides the code when it is not as the policy asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Code,
    Signer,
    /// How the TEE was set up by who started it.
    Setup,
    Hardware,
}

/// How a field stands in a policy that is written from an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Init {
    Pin,
    /// As a line of the policy, unless all bytes are zero: then in a comment.
    PinUnlessZero,
    /// In a comment, for who wants it.
    Offer,
}

impl Field {
    /// The fields of a kind of TEE, in reading order.
    pub fn of(tee: Tee) -> impl Iterator<Item = &'static Field> {
        FIELDS.iter().filter(move |field| field.tees.contains(&tee))
    }

    /// The key in the policy file.
    pub fn key(&self) -> String {
        match self.form {
            Form::AtLeast | Form::EachAtLeast(_) => format!("min_{}", self.name),
            _ => self.name.to_owned(),
        }
    }

    pub fn code(&self) -> RejectionCode {
        match self.group {
            Group::Code => RejectionCode::MeasurementMismatch,
            Group::Signer => RejectionCode::SignerMismatch,
            Group::Setup => RejectionCode::SetupMismatch,
            Group::Hardware => RejectionCode::HardwareMismatch,
        }
    }

    /// Whether zeros say that there is none, so that a pin of zeros would name nobody.
    pub fn is_absent(&self, value: &Value) -> bool {
        let optional = matches!(self.name, "id_key_digest" | "author_key_digest" | "chip_id");
        optional && value.is_zero()
    }

    /// Whether it belongs to the measurements, in the narrow sense: what code runs.
    pub fn is_measurement(&self) -> bool {
        matches!(self.group, Group::Code | Group::Signer)
    }
}

/// What evidence says in one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Bytes(Vec<u8>),
    Number(u64),
    Flag(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bytes(bytes) => f.write_str(&hex::encode(bytes)),
            Value::Number(number) => number.fmt(f),
            Value::Flag(flag) => flag.fmt(f),
        }
    }
}

impl Value {
    pub fn is_zero(&self) -> bool {
        match self {
            Value::Bytes(bytes) => bytes.iter().all(|byte| *byte == 0),
            Value::Number(number) => *number == 0,
            Value::Flag(flag) => !flag,
        }
    }
}

/// Fields with what was found in them.
pub(crate) type Values = Vec<(&'static str, Value)>;

/// What a policy asks of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// One of these; of none, nothing holds.
    OneOf(Vec<Value>),
    AtLeast(u64),
    EachAtLeast(Vec<u8>),
    Bits {
        value: Vec<u8>,
        mask: Vec<u8>,
    },
}

impl Allowed {
    pub fn holds(&self, seen: &Value) -> bool {
        match (self, seen) {
            (Allowed::OneOf(values), seen) => values.contains(seen),
            (Allowed::AtLeast(least), Value::Number(seen)) => seen >= least,
            (Allowed::EachAtLeast(least), Value::Bytes(seen)) => {
                least.len() == seen.len() && least.iter().zip(seen).all(|(l, s)| s >= l)
            }
            (Allowed::Bits { value, mask }, Value::Bytes(seen)) => {
                let mut bits = seen.iter().zip(mask).map(|(seen, mask)| seen & mask);
                seen.len() == mask.len() && value.iter().all(|v| bits.next() == Some(*v))
            }
            _ => false,
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Allowed::OneOf(values) if values.is_empty() => f.write_str("none"),
            Allowed::OneOf(values) => {
                let values: Vec<_> = values.iter().map(Value::to_string).collect();
                f.write_str(&values.join(" or "))
            }
            Allowed::AtLeast(least) => write!(f, "{least} or more"),
            Allowed::EachAtLeast(least) => {
                write!(f, "{} or more in each byte", hex::encode(least))
            }
            Allowed::Bits { value, mask } => {
                let (value, mask) = (hex::encode(value), hex::encode(mask));
                write!(f, "{value} in the bits {mask}")
            }
        }
    }
}

const fn field(
    tees: &'static [Tee],
    group: Group,
    name: &'static str,
    form: Form,
    init: Init,
    meaning: &'static str,
) -> Field {
    Field {
        tees,
        name,
        form,
        group,
        init,
        meaning,
    }
}

const SGX: &[Tee] = &[Sgx];
const TDX: &[Tee] = &[Tdx];
const INTEL: &[Tee] = &[Sgx, Tdx];
const SNP: &[Tee] = &[SevSnp];

/// In reading order: first what code runs, then how it was started, then where.
#[rustfmt::skip] // A table: one entry, two or three lines.
pub(crate) static FIELDS: &[Field] = {
    use Form::{AtLeast, Bits, EachAtLeast, Exactly, Flag, OneOf, Shown};
    use Group::{Code, Hardware, Setup, Signer};
    use Init::{Offer, Pin, PinUnlessZero};
    &[
        field(SGX, Code, "mrenclave", OneOf(32), Pin,
            "The enclave's code and first data. Changes with every build of the server."),
        field(SGX, Signer, "mrsigner", OneOf(32), Offer,
            "Who signed the enclave. With isv_prod_id and min_isv_svn, and without the line \
             mrenclave, this is weaker: whatever that key signs later passes as well."),
        field(SGX, Signer, "isv_prod_id", Exactly, Offer,
            "Which of the signer's products it is."),
        field(SGX, Signer, "isv_svn", AtLeast, Offer,
            "The enclave's security version. Raise it when an older version must not pass any more."),
        field(TDX, Code, "mrtd", OneOf(48), Pin,
            "The virtual firmware. Changes when the cloud or the host updates it."),
        field(TDX, Code, "rtmr0", OneOf(48), Pin,
            "The firmware's configuration: secure boot keys, the host's ACPI tables. Changes with the \
             number of vCPUs and the memory. Without this line the host chooses the ACPI tables, \
             whose code the kernel runs."),
        field(TDX, Code, "rtmr1", OneOf(48), Pin,
            "The kernel, or the boot loader that loads it. Changes with every new image."),
        field(TDX, Code, "rtmr2", OneOf(48), Pin,
            "The kernel's command line and initial disk. Changes with every new image."),
        field(TDX, Code, "rtmr3", OneOf(48), PinUnlessZero,
            "What the system measured while it ran: often the application itself. Zeros when nothing \
             did. Some systems write an id of the instance into it, which changes with each start."),
        field(TDX, Setup, "mr_config_id", OneOf(48), PinUnlessZero,
            "What the host named when it started the TD: some systems bind their application here."),
        field(TDX, Setup, "mr_owner", OneOf(48), PinUnlessZero,
            "The owner that the host named."),
        field(TDX, Setup, "mr_owner_config", OneOf(48), PinUnlessZero,
            "The owner's configuration that the host named."),
        field(TDX, Setup, "td_attributes", Bits(8), Pin,
            "How the TD was made: debug, migration, performance counters. Changes with the host's \
             settings. Whatever stands here, debug needs dangerous_allow_debug, and a TD that can be \
             migrated or does not disable #VE on pages that the host took away never passes."),
        field(TDX, Setup, "xfam", Bits(8), Offer,
            "The CPU features that the TD may use. Changes with the kind of CPU."),
        field(SGX, Setup, "attributes", Bits(16), Offer,
            "How the enclave was started, and the CPU features that it may use. Changes with the \
             kind of CPU."),
        field(SGX, Setup, "misc_select", Bits(4), Offer,
            "What the CPU tells the enclave of its exceptions."),
        field(SGX, Setup, "config_id", OneOf(64), PinUnlessZero,
            "What the host named when it started the enclave; zeros without key separation (KSS)."),
        field(SGX, Setup, "config_svn", AtLeast, Offer,
            "The version of what config_id names."),
        field(SGX, Setup, "isv_ext_prod_id", OneOf(16), Offer,
            "The longer id of the signer's product; zeros without key separation (KSS)."),
        field(SGX, Setup, "isv_family_id", OneOf(16), Offer,
            "The family of the signer's products; zeros without key separation (KSS)."),
        field(TDX, Hardware, "mr_seam", OneOf(48), Offer,
            "Intel's TDX module. Changes with every update of it; the patch level judges it already."),
        field(TDX, Hardware, "mr_signer_seam", OneOf(48), Offer,
            "Who signed the TDX module; zeros for Intel."),
        field(TDX, Hardware, "seam_attributes", Shown, Offer, "Zeros for a module in production."),
        field(TDX, Hardware, "tee_tcb_svn", EachAtLeast(16), Offer,
            "The versions of the TDX module and microcode that the TD was started with; the patch \
             level judges them already."),
        field(TDX, Hardware, "tee_tcb_svn2", EachAtLeast(16), Offer,
            "The same, as they are now."),
        field(TDX, Setup, "mr_service_td", Shown, Offer,
            "The service TDs that are bound to the TD. Evidence with any is refused."),
        field(INTEL, Hardware, "fmspc", OneOf(6), Offer,
            "The kind of platform: CPU family, model and package."),
        field(INTEL, Hardware, "ppid", OneOf(16), Offer,
            "The machine itself. With this line only this machine passes."),
        field(INTEL, Hardware, "platform_instance_id", OneOf(16), Offer,
            "The machine's registration with Intel. Changes when it is set up again."),
        field(INTEL, Hardware, "pce_svn", AtLeast, Offer,
            "The version of Intel's certification enclave; the patch level judges it already."),
        field(INTEL, Hardware, "cpu_svn", Shown, Offer,
            "The machine's microcode versions; the patch level judges them."),
        field(INTEL, Hardware, "smt_enabled", Flag, Offer,
            "Whether hyper-threading is on, which lets the other thread of a core listen. Certificates \
             of older platforms do not say: with this line they do not pass."),
        field(INTEL, Hardware, "dynamic_platform", Flag, Offer,
            "Whether packages can be added to the machine later."),
        field(INTEL, Hardware, "cached_keys", Flag, Offer,
            "Whether Intel keeps the machine's root keys."),
        field(INTEL, Hardware, "qe_vendor_id", Shown, Offer,
            "Who made the quoting enclave; only Intel's passes."),
        field(SNP, Code, "measurement", OneOf(48), Pin,
            "The memory that the guest was started with: the virtual firmware, and with kernel hashes \
             the kernel, its command line and initial disk. Without kernel hashes any kernel passes. \
             Changes with each of them, and with the number of vCPUs."),
        field(SNP, Signer, "id_key_digest", OneOf(48), Offer,
            "Who signed the guest's identity block. With family_id, image_id and min_guest_svn, and \
             without the line measurement, this is weaker: whatever that key signs later passes as \
             well. Zeros without such a block."),
        field(SNP, Signer, "author_key_digest", OneOf(48), Offer,
            "Who vouched for the key that signed the identity block. Zeros when nobody did."),
        field(SNP, Signer, "family_id", OneOf(16), Offer,
            "The family of guests that the identity block names."),
        field(SNP, Signer, "image_id", OneOf(16), Offer,
            "The image that the identity block names."),
        field(SNP, Signer, "guest_svn", AtLeast, Offer,
            "The security version that the identity block names. Raise it when an older version must \
             not pass any more."),
        field(SNP, Setup, "host_data", OneOf(32), PinUnlessZero,
            "What the host named when it started the guest: some systems bind their configuration \
             here."),
        field(SNP, Setup, "guest_policy", Bits(8), Offer,
            "What the guest was started with as allowed, least significant byte first."),
        field(SNP, Setup, "vmpl", Shown, Offer,
            "The privilege level inside the guest that asked for the report; 0 may do most."),
        field(SNP, Hardware, "chip_id", OneOf(64), Offer,
            "The machine itself. With this line only this machine passes. Zeros when its host masks it."),
        field(SNP, Hardware, "cpu", Shown, Offer,
            "Family, model and stepping."),
        field(SNP, Hardware, "platform_info", Bits(8), Offer,
            "How the machine is set up, least significant byte first. Of the first byte: 01 SMT, 02 \
             TSME, 04 ECC, 08 RAPL disabled, 10 ciphertext hiding, 20 memory checked for aliases \
             (BadRAM), 80 TIO. To ask for one alone, name it in value and mask."),
        field(SNP, Hardware, "current_tcb", Shown, Offer,
            "The security versions that run."),
        field(SNP, Hardware, "reported_tcb", Shown, Offer,
            "The security versions that the signer's certificate is for."),
        field(SNP, Hardware, "committed_tcb", Shown, Offer,
            "The security versions that the machine cannot go behind any more."),
        field(SNP, Hardware, "launch_tcb", Shown, Offer,
            "The security versions with which the guest was started."),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_on_policies_names_every_key() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/policy.md");
        let page = std::fs::read_to_string(page).unwrap();
        for field in FIELDS.iter().filter(|field| field.form != Form::Shown) {
            // Of the five RTMRs the table shows the first and the last.
            let key = field.key();
            let named = page.contains(&format!("`{key}`")) || key.starts_with("rtmr");
            assert!(named, "{key}");
        }
    }

    #[test]
    fn names_are_distinct_for_each_kind() {
        for tee in [Sgx, Tdx, SevSnp] {
            let names: Vec<_> = Field::of(tee).map(|field| field.name).collect();
            for (i, name) in names.iter().enumerate() {
                assert!(!names[..i].contains(name), "{tee} {name}");
            }
        }
    }

    #[test]
    fn what_holds() {
        let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
        let bits = Allowed::Bits {
            value: vec![0x10, 0],
            mask: vec![0xf0, 1],
        };
        let each = Allowed::EachAtLeast(vec![2, 0]);
        let one = Allowed::OneOf(vec![bytes(&[1]), Value::Number(1)]);
        for (allowed, seen, holds) in [
            (&bits, bytes(&[0x1f, 2]), true),
            (&bits, bytes(&[0x0f, 2]), false),
            (&bits, bytes(&[0x1f, 3]), false),
            (&bits, bytes(&[0x1f]), false),
            (&bits, bytes(&[0x1f, 2, 0]), false),
            (&bits, Value::Number(0x1f), false),
            (&each, bytes(&[2, 0]), true),
            (&each, bytes(&[3, 9]), true),
            (&each, bytes(&[1, 9]), false),
            (&each, bytes(&[2]), false),
            (&one, bytes(&[1]), true),
            (&one, bytes(&[2]), false),
            (&one, Value::Number(1), true),
            (&one, Value::Flag(true), false),
            (&Allowed::OneOf(Vec::new()), bytes(&[]), false),
            (&Allowed::AtLeast(2), Value::Number(2), true),
            (&Allowed::AtLeast(2), Value::Number(1), false),
            (&Allowed::AtLeast(0), Value::Flag(true), false),
        ] {
            assert_eq!(allowed.holds(&seen), holds, "{allowed} {seen}");
        }
    }
}
