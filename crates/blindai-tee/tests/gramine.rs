//! An enclave under Gramine, on an emulation of its files.

mod emulator;

use std::fs;
use std::thread;

use blindai_core::{ReportData, Tee};
use blindai_tee::{Attester, Gramine, Measurement, Simulation, SimulationOptions, TeeErrorKind};
use emulator::files::Mounted;
use emulator::gramine::{self, Fault};

#[test]
fn an_enclave_with_dcap_attests() {
    let enclave = enclave();
    let attester = Gramine::at(enclave.path()).unwrap();
    assert_eq!(attester.tee(), Tee::Sgx);
    assert!(!attester.is_simulated());
    assert_eq!(attester.collateral(), Ok(None));
    attester.quote(&report_data(1)).unwrap();
}

#[test]
fn an_enclave_without_dcap_is_refused_with_the_remedy() {
    for kind in ["none", "epid", "", "dcap2"] {
        let enclave = gramine::Gramine::mount_of_type(platform(), kind);
        let error = Gramine::at(enclave.path()).unwrap_err();
        assert_eq!(error.kind(), TeeErrorKind::Unsupported);
        let shown = if kind.is_empty() { "none" } else { kind };
        assert!(error.fact().contains(&format!("{shown:?}")), "{error}");
        assert!(error.remedy().contains("sgx.remote_attestation"), "{error}");
    }
    let nowhere = tempfile::tempdir().unwrap();
    let error = Gramine::at(nowhere.path()).unwrap_err();
    assert_eq!(error.kind(), TeeErrorKind::Unsupported);
    assert!(error.remedy().contains("gramine-sgx"), "{error}");
}

#[test]
fn threads_do_not_get_each_others_quotes() {
    let enclave = enclave();
    // Two attesters share the one state of the process.
    let attesters = [(); 2].map(|()| Gramine::at(enclave.path()).unwrap());
    thread::scope(|scope| {
        for seed in 0..8 {
            let attester = &attesters[usize::from(seed % 2)];
            scope.spawn(move || {
                for _ in 0..8 {
                    // An error if it were another thread's.
                    attester.quote(&report_data(seed)).unwrap();
                }
            });
        }
    });
}

#[test]
fn whatever_is_wrong_with_the_quote_is_refused() {
    let enclave = enclave();
    let attester = Gramine::at(enclave.path()).unwrap();
    for (fault, fact) in [
        (Fault::NoQuote, "quote: "),
        (Fault::Truncated(0), "0 bytes came"),
        (Fault::Truncated(47), "47 bytes came"),
        (Fault::Truncated(432), "432 bytes came"),
        (Fault::Truncated(2000), "2000 bytes came"),
        (Fault::Endless, "over 65536 bytes"),
        (Fault::Intruder, "other report data"),
        (Fault::LostWrite, "other report data"),
        (Fault::ShortWrite, "32 of 64 bytes"),
    ] {
        enclave.tree.set(fault);
        let error = attester.quote(&report_data(2)).unwrap_err();
        assert_eq!(error.kind(), TeeErrorKind::Platform, "{fault:?}: {error}");
        assert!(error.fact().contains(fact), "{fault:?}: {error}");
    }
    enclave.tree.set(Fault::None);
    attester.quote(&report_data(2)).unwrap();
}

#[test]
fn plain_files_that_hold_an_older_quote_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let old = platform().quote(&report_data(1)).unwrap();
    fs::write(file("attestation_type"), "dcap\n").unwrap();
    fs::write(file("user_report_data"), "").unwrap();
    fs::write(file("quote"), old).unwrap();
    let attester = Gramine::at(folder.path()).unwrap();
    attester.quote(&report_data(1)).unwrap();
    let written = fs::read(file("user_report_data")).unwrap();
    assert_eq!(written, report_data(1).as_bytes());
    let error = attester.quote(&report_data(2)).unwrap_err();
    assert!(error.fact().contains("other report data"), "{error}");
    // A quote of a trust domain is none of an enclave.
    let options = SimulationOptions::new(Measurement::MrTd([0xcd; 48]));
    let other = Simulation::new(options).unwrap().quote(&report_data(1));
    fs::write(file("quote"), other.unwrap()).unwrap();
    let error = attester.quote(&report_data(1)).unwrap_err();
    assert!(error.fact().contains("no whole sgx evidence"), "{error}");
}

/// The emulation keeps Gramine's rules; otherwise the tests above would prove little.
#[test]
fn the_emulated_enclave_cuts_and_fills_without_a_word() {
    let enclave = enclave();
    let file = enclave.file("user_report_data");
    fs::write(&file, [7; 100]).unwrap();
    assert_eq!(fs::read(&file).unwrap(), [7; 64]);
    fs::write(&file, [8; 3]).unwrap();
    assert_eq!(fs::read(&file).unwrap()[..5], [8, 8, 8, 0, 0]);
}

fn enclave() -> Mounted<gramine::Gramine> {
    gramine::Gramine::mount(platform())
}

fn platform() -> Simulation {
    let options = SimulationOptions::new(Measurement::MrEnclave([0xab; 32]));
    Simulation::new(options).unwrap()
}

fn report_data(seed: u8) -> ReportData {
    ReportData::of_claims(&[seed])
}
