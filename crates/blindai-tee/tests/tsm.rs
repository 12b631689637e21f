//! Guests through configfs-tsm, on an emulation of the kernel's interface.

mod emulator;

use std::collections::BTreeSet;
use std::fs;
use std::thread;

use blindai_core::{Collateral, Evidence, ReportData, SnpCollateral, Tee};
use blindai_tee::{
    Attester, Measurement, Simulation, SimulationOptions, TeeError, TeeErrorKind, Tsm,
};
use emulator::files::Mounted;
use emulator::tsm::{self, ARK, ASK, Fault, VCEK, VLEK, certificate_table, host_table};

#[test]
fn a_trust_domain_is_recognised_by_its_provider() {
    let kernel = trust_domain();
    let attester = Tsm::at(kernel.path()).unwrap();
    assert_eq!(attester.tee(), Tee::Tdx);
    assert!(!attester.is_simulated());
    assert_eq!(attester.collateral(), Ok(None));
}

#[test]
fn every_request_has_an_entry_of_its_own_and_removes_it() {
    let kernel = trust_domain();
    let attester = Tsm::at(kernel.path()).unwrap();
    for seed in 0..3 {
        attester.quote(&report_data(seed)).unwrap();
    }
    // One at the start.
    assert_eq!(kernel.tree.entries_made(), 4);
    assert_eq!(kernel.tree.entries_left(), 0);
}

#[test]
fn concurrent_requests_get_their_own_answers() {
    let kernel = trust_domain();
    let attester = Tsm::at(kernel.path()).unwrap();
    let quotes: BTreeSet<Vec<u8>> = thread::scope(|scope| {
        let ask = |seed| attester.quote(&report_data(seed)).unwrap();
        let asking: Vec<_> = (0..8).map(|seed| scope.spawn(move || ask(seed))).collect();
        asking
            .into_iter()
            .map(|asked| asked.join().unwrap())
            .collect()
    });
    assert_eq!(quotes.len(), 8);
    assert_eq!(kernel.tree.entries_left(), 0);
}

#[test]
fn a_busy_kernel_is_asked_again_but_not_for_ever() {
    let kernel = trust_domain();
    let attester = Tsm::at(kernel.path()).unwrap();
    kernel.tree.be_busy(3);
    attester.quote(&report_data(1)).unwrap();
    assert_eq!(kernel.tree.entries_made(), 1 + 4);

    kernel.tree.be_busy(u32::MAX);
    let error = attester.quote(&report_data(1)).unwrap_err();
    assert_eq!(error.kind(), TeeErrorKind::Platform);
    assert!(error.fact().contains("busy"), "{error}");
    assert_eq!(kernel.tree.entries_made(), 5 + 11);
    assert_eq!(kernel.tree.entries_left(), 0);
}

#[test]
fn whatever_is_wrong_with_the_answer_is_refused() {
    let kernel = trust_domain();
    let attester = Tsm::at(kernel.path()).unwrap();
    attester.quote(&report_data(1)).unwrap();
    for (fault, fact) in [
        (Fault::EmptyOutblob, "outblob is empty"),
        (Fault::TruncatedOutblob(47), "47 bytes came"),
        (Fault::TruncatedOutblob(632), "632 bytes came"),
        (Fault::TruncatedOutblob(1184), "1184 bytes came"),
        (Fault::EndlessOutblob, "over 65536 bytes"),
        (Fault::StaleOutblob, "other report data"),
        (Fault::Intruder, "somebody else wrote"),
        (Fault::Swapped, "other report data"),
        (Fault::LostWrite, "our write was lost"),
        (Fault::ShortWrite, "32 of 64 bytes"),
        (Fault::NoGeneration, "generation is not a number"),
    ] {
        kernel.tree.set(fault);
        let error = attester.quote(&report_data(2)).unwrap_err();
        assert_eq!(error.kind(), TeeErrorKind::Platform, "{fault:?}: {error}");
        assert!(error.fact().contains(fact), "{fault:?}: {error}");
        assert_eq!(kernel.tree.entries_left(), 0, "{fault:?}");
    }
    kernel.tree.set(Fault::None);
    attester.quote(&report_data(2)).unwrap();
}

#[test]
fn a_kernel_without_a_guest_driver_is_unsupported() {
    let kernel = trust_domain();
    for (fault, fact) in [
        (Fault::NoDriver, "no entry can be made"),
        (Fault::OtherProvider, "arm_cca_guest"),
    ] {
        kernel.tree.set(fault);
        let error = refused(&kernel);
        assert_eq!(error.kind(), TeeErrorKind::Unsupported, "{error}");
        assert!(error.fact().contains(fact), "{error}");
        assert_eq!(kernel.tree.entries_left(), 0);
    }
    let nowhere = tempfile::tempdir().unwrap();
    let error = Tsm::at(nowhere.path().join("report")).unwrap_err();
    assert_eq!(error.kind(), TeeErrorKind::Unsupported, "{error}");
    // A folder that is no configfs: nothing appears in a new entry.
    let error = Tsm::at(nowhere.path()).unwrap_err();
    assert!(error.fact().contains("provider"), "{error}");
    assert_eq!(fs::read_dir(nowhere.path()).unwrap().count(), 0);
}

#[test]
fn a_guest_hands_over_the_certificates_that_its_host_gave() {
    let platform = guest_platform();
    let expected = snp(&platform);
    let table = host_table(&expected);
    let kernel = tsm::Tsm::mount_with(platform, table);
    let attester = Tsm::at(kernel.path()).unwrap();
    assert_eq!(attester.tee(), Tee::SevSnp);
    let report = attester.quote(&report_data(1)).unwrap();
    assert!(Evidence::is_snp_report(&report));
    assert_eq!(report[0x50..0x90], *report_data(1).as_bytes());
    let got = attester.collateral().unwrap();
    assert!(got == Some(Collateral::Snp(expected)));
}

#[test]
fn a_host_may_give_no_certificates_or_only_some() {
    let platform = guest_platform();
    let chip = der(&snp(&platform).signer);
    for (auxblob, expected) in [
        (Vec::new(), None),
        (certificate_table(&[]), None),
        (certificate_table(&[(ASK, &chip), (ARK, &chip)]), None),
        // The report is signed by the chip's key, not by the provider's.
        (certificate_table(&[(VLEK, &chip)]), None),
        (
            certificate_table(&[(VCEK, &chip), (ARK, &chip)]),
            Some(&chip),
        ),
    ] {
        let kernel = tsm::Tsm::mount_with(guest_platform(), auxblob);
        let attester = Tsm::at(kernel.path()).unwrap();
        let collateral = attester.collateral().unwrap();
        let Some(Collateral::Snp(collateral)) = collateral else {
            assert_eq!((collateral, expected), (None, None));
            continue;
        };
        assert_eq!(Some(&der(&collateral.signer)), expected);
        assert_eq!((collateral.issuer_chain, collateral.crl), (None, None));
    }
}

#[test]
fn a_malformed_certificate_table_is_told_and_no_report_is_lost() {
    let certificate = [0x30, 0];
    let good = certificate_table(&[(VCEK, &certificate)]);
    let with = |place: usize, value: u32| {
        let mut table = good.clone();
        table[place..place + 4].copy_from_slice(&value.to_le_bytes());
        table
    };
    let unterminated = [[7; 16], [0; 16]].concat().repeat(40);
    for table in [
        good[..10].to_vec(),
        good[..24].to_vec(),
        unterminated,
        with(16, u32::MAX),
        with(16, good.len() as u32),
        with(20, 3),
        with(20, u32::MAX),
        with(20, 0),
        certificate_table(&[(VCEK, &certificate), (VCEK, &certificate)]),
        certificate_table(&[(VCEK, b"-----BEGIN NOTHING")]),
    ] {
        let kernel = tsm::Tsm::mount_with(guest_platform(), table);
        let attester = Tsm::at(kernel.path()).unwrap();
        attester.quote(&report_data(1)).unwrap();
        let error = attester.collateral().unwrap_err();
        assert_eq!(error.kind(), TeeErrorKind::Platform);
        assert!(error.fact().contains("certificate table"), "{error}");
    }
}

#[test]
fn a_guest_under_a_paravisor_names_the_privilege_it_has() {
    let kernel = tsm::Tsm::mount(guest_platform());
    kernel.tree.set(Fault::Floor);
    Tsm::at(kernel.path())
        .unwrap()
        .quote(&report_data(1))
        .unwrap();
}

#[test]
fn a_report_of_another_length_is_refused() {
    let kernel = tsm::Tsm::mount(guest_platform());
    let attester = Tsm::at(kernel.path()).unwrap();
    for length in [0x90, 1183] {
        kernel.tree.set(Fault::TruncatedOutblob(length));
        let error = attester.quote(&report_data(1)).unwrap_err();
        assert!(
            error.fact().contains("no whole sev-snp evidence"),
            "{error}"
        );
    }
}

/// The emulation keeps the kernel's rules; otherwise the tests above would prove little.
#[test]
fn the_emulated_kernel_insists_on_64_bytes() {
    let kernel = trust_domain();
    fs::create_dir(kernel.file("x")).unwrap();
    let generation = || fs::read_to_string(kernel.file("x/generation")).unwrap();
    assert_eq!(generation(), "0\n");
    fs::read(kernel.file("x/outblob")).unwrap_err();
    fs::write(kernel.file("x/inblob"), [1; 65]).unwrap_err();
    fs::write(kernel.file("x/inblob"), [1; 63]).unwrap();
    assert_eq!(generation(), "1\n");
    let error = fs::read(kernel.file("x/outblob")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    fs::write(kernel.file("x/inblob"), [1; 64]).unwrap();
    assert_eq!(generation(), "2\n");
    assert!(!fs::read(kernel.file("x/outblob")).unwrap().is_empty());
    fs::remove_dir(kernel.file("x")).unwrap();
    assert!(!kernel.file("x/outblob").exists());
}

fn refused(kernel: &Mounted<tsm::Tsm>) -> TeeError {
    Tsm::at(kernel.path()).unwrap_err()
}

fn trust_domain() -> Mounted<tsm::Tsm> {
    let options = SimulationOptions::new(Measurement::MrTd([0xcd; 48]));
    tsm::Tsm::mount(Simulation::new(options).unwrap())
}

fn report_data(seed: u8) -> ReportData {
    ReportData::of_claims(&[seed])
}

fn guest_platform() -> Simulation {
    let options = SimulationOptions::new(Measurement::Launch([0xef; 48]));
    Simulation::new(options).unwrap()
}

fn snp(platform: &Simulation) -> SnpCollateral {
    match platform.collateral().unwrap() {
        Some(Collateral::Snp(collateral)) => collateral,
        other => panic!("{other:?}"),
    }
}

fn der(pem: &str) -> Vec<u8> {
    pem::parse(pem).unwrap().into_contents()
}
