//! Decides whether evidence of a trusted execution environment (TEE) is to be trusted.
//!
//! One pure function, [`verify`], takes the evidence, the collateral, what the evidence must be
//! bound to, a [`Policy`] and a time. It reads no clock, no socket, no file and no environment. Only
//! it can make a [`VerifiedReport`]; a client asks for one before it sends a byte of data.
//!
//! ```no_run
//! use blindai_core::{Collateral, Evidence};
//! use blindai_verify::{Binding, Policy, Rejection, read_certificate, verify};
//!
//! fn trusted(
//!     certificate_der: &[u8],
//!     collateral: &Collateral,
//!     policy: &Policy,
//!     now_unix_seconds: u64,
//! ) -> Result<(), Rejection> {
//!     let certificate = read_certificate(certificate_der)?;
//!     // Inside a handshake: cheap, and no verification.
//!     certificate.check_binding()?;
//!     let binding = Binding {
//!         tls_spki_sha256: Some(certificate.tls_spki_sha256()),
//!         nonce: None,
//!     };
//!     let evidence = certificate.evidence();
//!     let report = verify(evidence, collateral, &binding, policy, now_unix_seconds)?;
//!     println!("{report}");
//!     Ok(())
//! }
//! ```
//!
//! # What is checked
//! Each check ends pass, fail or skipped, and the whole table is in the report and in the
//! [`Rejection`]; a check that was required and had to be skipped is a failure.
//!
//! - **The quote** (SGX, TDX) or **report** (SEV-SNP): its signature, the chains of certificates up to
//!   the root of Intel or AMD, revocation, the dates of everything; not in debug; the platform's
//!   patch level (TCB).
//! - **SEV-SNP** beside that: the certificate of the key that signed is of this chip, product and patch
//!   level; the guest's policy allows no migration agent and nothing unknown; the report was asked for
//!   at VMPL 0.
//! - **The code**: the measurements that the policy pins.
//! - **The binding**: the quote signs the claims (report data = SHA-256 of the claims, then zeros),
//!   the claims name the TLS key of the connection, carry the nonce when one was sent, and are in
//!   their time (5 minutes of clock skew are tolerated).
//! - **The configuration**, when the policy names its digest.
//!
//! # What is not
//! - Whether the code is good. A measurement says *which* code runs.
//! - Whether the operator is honest about anything outside the TEE, or keeps the service running.
//! - Physical attacks and side channels that Intel has not published an advisory for.
//! - For SEV-SNP, whether a patch level is good: AMD publishes no verdict as Intel does, so
//!   `tcb_status` is `reported`, and only the policy's minimum says what is too old. Nor the kernel,
//!   when the launch was measured without kernel hashes.
//! - Hyper-threading, unless the policy asks for `smt_enabled = false`, and where the machine stands.
//!
//! # Receipts
//! [`verify_receipt`] decides whether a receipt holds under a [`VerifiedReport`]: the key that signed
//! it stands in the claims that the quote signs. It names each thing that does not match.
//!
//! # The policy file
//! ```
//! # use blindai_verify::Policy;
//! let policy = Policy::from_toml(r#"
//!     tee = ["sgx", "tdx", "sev-snp"]  # required: the kinds that are accepted; each needs its section
//!     ## Digests of server configurations. Default: any.
//!     config_digest = ["sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"]
//!     ## Default false. With true the host can read everything inside.
//!     dangerous_allow_debug = false
//!
//!     ## All that is named must hold; of a list, one. mrenclave, or mrsigner with isv_prod_id and
//!     ## min_isv_svn, is required: a signer alone would let its other products and old versions pass.
//!     [sgx]
//!     mrenclave = ["8f173e4613ff05c52aaf04162d234edae8c9977eae47eb2299ae16a553011c68"]
//!     mrsigner = ["83d719e77deaca1470f6baf62a4d774303c899db69020f9c70ee1dfc08c7ce9e"]
//!     isv_prod_id = 1
//!     min_isv_svn = 1
//!     ## Each field that [`observe`] shows can be pinned. Bits, with a mask of those that count:
//!     attributes = { value = "05000000000000000000000000000000", mask = "ffffffffffffffff0000000000000000" }
//!     ## The machine, and what its certificate says of it.
//!     ppid = ["d04ec06d4e6d92dc90d0ad3cf5ee2ddf"]
//!     smt_enabled = false
//!
//!     ## mrtd, rtmr1 and rtmr2 are required: MRTD alone measures the firmware, not the kernel.
//!     ## rtmr0 and rtmr3 may be added.
//!     [tdx]
//!     mrtd = ["bbf7209c1a756b2747bba45f37c0244e5d5e9d03231528d52223b7303d0d157a209a54370f245c3fedc3f3bd96795e95"]
//!     rtmr1 = ["e1685b6426d9c5be8691ff8f95eacdc11753355667394aa23124570b14baf68ab322a3aaeb3c599c448ad5016c709a49"]
//!     rtmr2 = ["5950b00ff874d6babe6fa92b1d579e25e2b410ee9fe1ce6139fd879dd40330bc2b67979dba24da5353fd0b4af09effaa"]
//!
//!     ## measurement is required, or id_key_digest (or author_key_digest) with family_id, image_id and
//!     ## min_guest_svn. host_data and chip_id may be added.
//!     [sev-snp]
//!     measurement = ["5feee30d6d7e1a29f403d70a4198237ddfb13051a2d6976439487c609388ed7f98189887920ab2fa0096903a0c23fca1"]
//!     vmpl = [0]                  # the default: the levels that may have asked for the report
//!     require_crl = true          # the default: without AMD's revocation list nothing passes
//!     forbid_smt = true           # default false: the guest may share cores with strangers
//!     min_abi = "0.31"            # default any: the oldest firmware interface that the guest accepts
//!     ## Bits of PLATFORM_INFO and of the guest's policy, least significant byte first. Default any.
//!     ## Here: the memory was checked for aliases (BadRAM).
//!     platform_info = { value = "2000000000000000", mask = "2000000000000000" }
//!     dangerous_allow_migration_agent = false  # the default; such an agent can read everything
//!     ## Security versions, for each product (milan, genoa, turin). Default: any; once one product is
//!     ## named, the others are refused. Of bootloader, tee, snp, microcode and, for turin, fmc.
//!     [sev-snp.min_reported_tcb.milan]
//!     snp = 24
//!     microcode = 219
//!     [sev-snp.min_committed_tcb.milan]
//!     snp = 24
//!     ## Of the guest's start. Default: min_committed_tcb, or else min_reported_tcb.
//!     [sev-snp.min_launch_tcb.milan]
//!     snp = 24
//!
//!     ## Intel's patch level. Default: UpToDate, without open advisories.
//!     [tcb]
//!     allowed = ["UpToDate"]
//!     min_evaluation_number = 17  # default: any
//!
//!     ## What is accepted to the end of a day (UTC) although it is not up to date: one advisory or
//!     ## one status each. A verdict that needed an exception ends with it.
//!     [[tcb.exceptions]]
//!     advisory = "INTEL-SA-00615"
//!     until = "2026-12-31"
//!     [[tcb.exceptions]]
//!     status = "SWHardeningNeeded"
//!     until = "2026-12-31"
//!
//!     ## Which digests may answer under a name, or under one version of it. Default: any. Evidence
//!     ## does not name models: a client tells the server with each request.
//!     [models]
//!     resnet50 = ["sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"]
//!     "bert.onnx/2" = ["sha256:fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9"]
//!     "*" = "refuse"              # default "accept": what of names that are not listed
//! "#)?;
//! assert!(!policy.accepts_simulation());
//! # Ok::<(), blindai_verify::PolicyError>(())
//! ```
//! [`Observation::to_policy_toml`] writes such a file from evidence, with all fields that can be
//! pinned and what each means. Unknown keys are refused, all mistakes are reported at once, and a policy that would let code run
//! that nobody named does not compile.
//!
//! # What is malleable
//! A flipped bit in what is signed or bound is refused: header and report, signatures, keys, the
//! certificates of the platform and of its issuer. Evidence still has bytes that anybody can change
//! without an effect, so **the bytes of a quote or report are no name for it**: never key a cache on
//! them.
//!
//! Of all three kinds: each ECDSA signature, a pair of numbers (r, s), has a second form (r, n − s),
//! which verifies as well. So a report of SEV-SNP has two forms, whose bytes differ in s alone.
//!
//! Of SGX and TDX beside that; tests flip a bit of every byte, and no other flip is accepted:
//! - All that stands behind the quote. Some platforms pad with zeros.
//! - Line breaks in the text (PEM) of the certificates.
//! - The text of the third certificate, Intel's root: the one that is built in is used instead. So
//!   the lengths around the text may be cut, as long as only that certificate is.
//! - In versions 4 and 5, the outer type of the certification data, which has but one form.
//! - The whole text of the quote's own chain, when the collateral brings the platform's certificates
//!   (`pck_certificate_chain`): those are used instead.
//!
//! # Simulation
//! Simulated evidence takes the same path and differs in its trust root only, whose private key is
//! public ([`blindai_core::simulation`]). It protects nothing and is refused as
//! [`RejectionCode::TrustRootSimulation`] unless it was asked for by name:
//! [`Policy::dangerous`]`().accept_simulation()` takes any code under that root and no hardware;
//! [`Policy::dangerous_accept_simulation`] holds the pins of a policy file, and takes both.
#![forbid(unsafe_code)]

mod appraise;
mod certificate;
mod check;
mod code;
mod crypto;
mod dcap;
mod difference;
mod draft;
mod field;
mod foreign;
mod observe;
mod policy;
mod receipt;
mod refusals;
mod report;
mod snp;

pub use appraise::{Binding, appraise_quote, verify};
pub use certificate::{CertificateEvidence, read_certificate};
pub use check::{Check, Outcome, Rejection, checks};
pub use code::RejectionCode;
pub use difference::Difference;
pub use foreign::{ForeignCertificate, read_foreign_certificate};
pub use observe::{Observation, Verification, Verified, observe};
pub use policy::{DangerousPolicy, Policy, PolicyError};
pub use receipt::{ExpectedReceipt, VerifiedReceipt, verify_kept_receipt, verify_receipt};
pub use report::{QuoteReport, VerifiedReport};
