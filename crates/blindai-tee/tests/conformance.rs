//! What every attester must do, written once over `&dyn Attester` and run for each of them; then
//! what is particular to the simulation. The verifier is the one of production, `dcap-qvl`. Attesters
//! that use devices run on emulated ones, which a simulation answers.

mod emulator;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, UNIX_EPOCH};

use blindai_core::simulation::ROOT_CERTIFICATE_DER;
use blindai_core::{Collateral, DcapCollateral, ReportData, Tee};
use blindai_tee::{
    Attester, Gramine, Measurement, SIMULATED_FMSPC, SIMULATED_MRSIGNER,
    SIMULATED_PLATFORM_INSTANCE_ID, SIMULATED_PPID, Simulation, SimulationOptions, TeeErrorKind,
    Tsm, simulated_rtmr,
};
use dcap_qvl::policy::QuoteClaims;
use dcap_qvl::quote::Quote;
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteCollateralV3, QuotePolicy, TcbStatus};

#[test]
fn the_sgx_simulation_conforms() {
    let platform = simulation(MR_ENCLAVE);
    conforms(&platform, &platform, ROOT_CERTIFICATE_DER);
}

#[test]
fn the_tdx_simulation_conforms() {
    let platform = simulation(MR_TD);
    conforms(&platform, &platform, ROOT_CERTIFICATE_DER);
}

#[test]
fn an_enclave_under_gramine_conforms() {
    let enclave = emulator::gramine::Gramine::mount(simulation(MR_ENCLAVE));
    let attester = Gramine::at(enclave.path()).unwrap();
    conforms(&attester, enclave.tree.platform(), ROOT_CERTIFICATE_DER);
}

#[test]
fn a_trust_domain_through_configfs_conforms() {
    let kernel = emulator::tsm::Tsm::mount(simulation(MR_TD));
    let attester = Tsm::at(kernel.path()).unwrap();
    conforms(&attester, kernel.tree.platform(), ROOT_CERTIFICATE_DER);
}

/// The contract of [`Attester`], at the time [`NOW`]. The `vendor` gives the collateral: with the
/// simulation it is the same one, with hardware another.
fn conforms(attester: &dyn Attester, vendor: &dyn Attester, trust_root: &[u8]) {
    let collateral = dcap(vendor);
    signs_what_it_is_given(attester);
    verifies_under_its_root_only(attester, &collateral, trust_root);
    refuses_every_flipped_byte(attester, &collateral, trust_root);
    is_endorsed_for_a_time(attester, &collateral, trust_root);
    describes_itself(attester);
}

fn signs_what_it_is_given(attester: &dyn Attester) {
    let (one, other) = (report_data(1), report_data(2));
    let quotes = [&one, &other].map(|data| attester.quote(data).unwrap());
    assert_ne!(quotes[0], quotes[1]);
    for (quote, data) in quotes.iter().zip([one, other]) {
        assert_eq!(report_data_field(quote), *data.as_bytes());
    }
}

fn verifies_under_its_root_only(
    attester: &dyn Attester,
    collateral: &DcapCollateral,
    trust_root: &[u8],
) {
    let quote = attester.quote(&report_data(1)).unwrap();
    let claims = verify(&quote, collateral, NOW, trust_root).unwrap();
    assert_eq!(claims.tcb.status, TcbStatus::UpToDate);
    assert!(claims.tcb.advisory_ids.is_empty());
    let prod = QuoteVerifier::new_prod();
    let strict = QuotePolicy::strict(NOW);
    let refused = prod.verify_with_policy(&quote, to_dcap(collateral), NOW, &strict);
    assert!(refused.is_err());
}

fn refuses_every_flipped_byte(
    attester: &dyn Attester,
    collateral: &DcapCollateral,
    trust_root: &[u8],
) {
    let quote = attester.quote(&report_data(1)).unwrap();
    // The type of the outer certification data says nothing that its content does not say.
    let unread = match attester.tee() {
        Tee::Tdx => 764..766,
        _ => 0..0,
    };
    for position in (0..end_of_qe_auth_data(attester.tee())).filter(|p| !unread.contains(p)) {
        let mut flipped = quote.clone();
        flipped[position] ^= 1;
        let result = verify(&flipped, collateral, NOW, trust_root);
        assert!(result.is_err(), "byte {position} may be flipped");
    }
    for end in [0, 47, 500, quote.len() / 2, quote.len() - 200] {
        assert!(verify(&quote[..end], collateral, NOW, trust_root).is_err());
    }
}

fn is_endorsed_for_a_time(attester: &dyn Attester, collateral: &DcapCollateral, trust_root: &[u8]) {
    let quote = attester.quote(&report_data(1)).unwrap();
    let claims = verify(&quote, collateral, NOW, trust_root).unwrap();
    let (from, to) = (claims.latest_issue_date, claims.earliest_expiration_date);
    assert!(from <= NOW && NOW < to);
    for accepted in [from, to - 1] {
        verify(&quote, collateral, accepted, trust_root).unwrap();
    }
    for refused in [from - 1, to + 1] {
        assert!(verify(&quote, collateral, refused, trust_root).is_err());
    }
}

fn describes_itself(attester: &dyn Attester) {
    let line = attester.describe();
    assert!(line.contains(attester.tee().as_str()) && !line.contains('\n'));
    assert_eq!(line.contains("protects nothing"), attester.is_simulated());
}

#[test]
fn an_sgx_quote_says_what_the_options_say() {
    let options = SimulationOptions {
        isv_prod_id: 7,
        isv_svn: 9,
        ..options(MR_ENCLAVE)
    };
    let claims = verified(&Simulation::new(options).unwrap());
    let report = claims.report.as_sgx().unwrap();
    assert_eq!(report.mr_enclave, [0xab; 32]);
    assert_eq!(report.mr_signer, SIMULATED_MRSIGNER);
    assert_eq!((report.isv_prod_id, report.isv_svn), (7, 9));
    assert_eq!(claims.header.version, 3);
}

#[test]
fn a_tdx_quote_says_what_the_options_say() {
    let claims = verified(&simulation(MR_TD));
    let report = claims.report.as_td10().unwrap();
    assert_eq!(report.mr_td, [0xcd; 48]);
    let rtmrs = [report.rt_mr0, report.rt_mr1, report.rt_mr2, report.rt_mr3];
    assert_eq!(rtmrs, [0, 1, 2, 3].map(simulated_rtmr));
    assert_eq!(claims.header.version, 4);
}

#[test]
fn the_platform_is_the_documented_one() {
    for measurement in [MR_ENCLAVE, MR_TD] {
        let pck = verified(&simulation(measurement)).platform.pck;
        assert_eq!(pck.ppid, SIMULATED_PPID);
        assert_eq!(pck.fmspc, SIMULATED_FMSPC);
        assert_eq!(
            pck.platform_instance_id,
            Some(SIMULATED_PLATFORM_INSTANCE_ID)
        );
        assert_eq!((pck.pce_svn, pck.sgx_type), (13, 1));
    }
}

#[test]
fn a_debug_quote_is_refused_unless_allowed() {
    for measurement in [MR_ENCLAVE, MR_TD] {
        let options = SimulationOptions {
            debug: true,
            ..options(measurement)
        };
        let attester = Simulation::new(options).unwrap();
        let quote = attester.quote(&report_data(1)).unwrap();
        let collateral = dcap(&attester);
        let error = verify(&quote, &collateral, NOW, ROOT_CERTIFICATE_DER).unwrap_err();
        assert!(error.contains("Debug mode is enabled"), "{error}");
        QuoteVerifier::new(ROOT_CERTIFICATE_DER.to_vec())
            .allow_debug(true)
            .verify_with_policy(&quote, to_dcap(&collateral), NOW, &QuotePolicy::strict(NOW))
            .unwrap();
    }
}

#[test]
fn two_platforms_of_one_root_cannot_be_mixed() {
    let (one, other) = (simulation(MR_ENCLAVE), simulation(MR_ENCLAVE));
    let quote = one.quote(&report_data(1)).unwrap();
    // The other's revocation list is of another platform CA, though of the same name.
    let collateral = dcap(&other);
    assert!(verify(&quote, &collateral, NOW, ROOT_CERTIFICATE_DER).is_err());
}

#[test]
fn changed_collateral_is_refused() {
    let attester = simulation(MR_TD);
    let quote = attester.quote(&report_data(1)).unwrap();
    let genuine = dcap(&attester);
    let changes: [fn(&mut DcapCollateral); 6] = [
        |c| c.tcb_info = c.tcb_info.replace("\"pcesvn\":13", "\"pcesvn\":12"),
        |c| c.qe_identity = c.qe_identity.replace("\"isvsvn\":8", "\"isvsvn\":7"),
        |c| c.tcb_info_signature[0] ^= 1,
        |c| c.qe_identity_signature[63] ^= 1,
        |c| *c.root_ca_crl.last_mut().unwrap() ^= 1,
        |c| *c.pck_crl.last_mut().unwrap() ^= 1,
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut changed = genuine.clone();
        change(&mut changed);
        assert_ne!(changed, genuine, "change {i}");
        let result = verify(&quote, &changed, NOW, ROOT_CERTIFICATE_DER);
        assert!(result.is_err(), "change {i}");
    }
}

#[test]
fn collateral_is_renewed_at_half_time_and_when_the_clock_goes_back() {
    let time = Arc::new(AtomicU64::new(NOW));
    let hand = time.clone();
    let options = SimulationOptions {
        collateral_validity: Duration::from_secs(1000),
        clock: Arc::new(move || UNIX_EPOCH + Duration::from_secs(hand.load(SeqCst))),
        ..options(MR_ENCLAVE)
    };
    let attester = Simulation::new(options).unwrap();
    let quote = attester.quote(&report_data(1)).unwrap();
    let first = dcap(&attester);

    time.store(NOW + 499, SeqCst);
    assert_eq!(dcap(&attester), first);
    time.store(NOW + 500, SeqCst);
    let second = dcap(&attester);
    assert_ne!(second, first);
    let late = NOW + 1400;
    assert!(verify(&quote, &first, late, ROOT_CERTIFICATE_DER).is_err());
    verify(&quote, &second, late, ROOT_CERTIFICATE_DER).unwrap();

    let early = NOW - 100_000;
    time.store(early, SeqCst);
    let third = dcap(&attester);
    verify(&quote, &third, early, ROOT_CERTIFICATE_DER).unwrap();
}

#[test]
fn what_cannot_work_is_refused_at_start() {
    let kind = |options| Simulation::new(options).unwrap_err().kind();
    for collateral_validity in [
        Duration::ZERO,
        Duration::from_millis(999),
        Duration::from_secs(1_000_000_000),
        Duration::MAX,
    ] {
        let options = SimulationOptions {
            collateral_validity,
            ..options(MR_ENCLAVE)
        };
        assert_eq!(kind(options), TeeErrorKind::InvalidOption);
    }
    let before = UNIX_EPOCH - Duration::from_secs(1);
    let after = UNIX_EPOCH + Duration::from_secs(1 << 40);
    for time in [before, UNIX_EPOCH, after] {
        let options = SimulationOptions {
            clock: Arc::new(move || time),
            ..options(MR_TD)
        };
        assert_eq!(kind(options), TeeErrorKind::Clock);
    }
}

fn dcap(attester: &dyn Attester) -> DcapCollateral {
    match attester.collateral().unwrap() {
        Some(Collateral::Dcap(collateral)) => collateral,
        other => panic!("{other:?}"),
    }
}

fn verified(attester: &Simulation) -> QuoteClaims {
    let quote = attester.quote(&report_data(1)).unwrap();
    let collateral = dcap(attester);
    verify(&quote, &collateral, NOW, ROOT_CERTIFICATE_DER).unwrap()
}

fn verify(
    quote: &[u8],
    collateral: &DcapCollateral,
    now: u64,
    trust_root: &[u8],
) -> Result<QuoteClaims, String> {
    let strict = QuotePolicy::strict(now);
    QuoteVerifier::new(trust_root.to_vec())
        .verify_with_policy(quote, to_dcap(collateral), now, &strict)
        .map_err(|e| format!("{e:#}"))
}

fn to_dcap(collateral: &DcapCollateral) -> QuoteCollateralV3 {
    let collateral = collateral.clone();
    QuoteCollateralV3 {
        pck_crl_issuer_chain: collateral.pck_crl_issuer_chain,
        root_ca_crl: collateral.root_ca_crl,
        pck_crl: collateral.pck_crl,
        tcb_info_issuer_chain: collateral.tcb_info_issuer_chain,
        tcb_info: collateral.tcb_info,
        tcb_info_signature: collateral.tcb_info_signature,
        qe_identity_issuer_chain: collateral.qe_identity_issuer_chain,
        qe_identity: collateral.qe_identity,
        qe_identity_signature: collateral.qe_identity_signature,
        pck_certificate_chain: collateral.pck_certificate_chain,
    }
}

fn report_data_field(quote: &[u8]) -> [u8; 64] {
    let report = Quote::parse(quote).unwrap().report;
    match (report.as_sgx(), report.as_td10()) {
        (Some(sgx), _) => sgx.report_data,
        (_, Some(td)) => td.report_data,
        _ => panic!("neither an SGX nor a TDX report"),
    }
}

/// Header, report, length, signature, attestation key, [type, length,] QE report, its signature, QE
/// authentication data. The certificates after them may be re-encoded without changing a meaning.
fn end_of_qe_auth_data(tee: Tee) -> usize {
    match tee {
        Tee::Tdx => 48 + 584 + 4 + 64 + 64 + 6 + 384 + 64 + 2 + 32,
        _ => 48 + 384 + 4 + 64 + 64 + 384 + 64 + 2 + 32,
    }
}

fn simulation(measurement: Measurement) -> Simulation {
    Simulation::new(options(measurement)).unwrap()
}

fn options(measurement: Measurement) -> SimulationOptions {
    SimulationOptions {
        clock: Arc::new(|| UNIX_EPOCH + Duration::from_secs(NOW)),
        ..SimulationOptions::new(measurement)
    }
}

fn report_data(seed: u8) -> ReportData {
    ReportData::of_claims(&[seed])
}

const MR_ENCLAVE: Measurement = Measurement::MrEnclave([0xab; 32]);
const MR_TD: Measurement = Measurement::MrTd([0xcd; 48]);
/// 2027-01-15.
const NOW: u64 = 1_800_000_000;
