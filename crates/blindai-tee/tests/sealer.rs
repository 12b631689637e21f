//! What every sealer must do, written once over `&dyn Sealer`; then what is particular to each.

mod emulator;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use blindai_core::Tee;
use blindai_tee::sealer::{
    EnclaveSealer, GuestSealer, NoSealer, SealTo, Sealer, SevGuest, SimulatedSealer,
};
use blindai_tee::{Measurement, Simulation, SimulationOptions, TeeErrorKind};
use emulator::files::Mounted;
use emulator::gramine::{Fault, Gramine};
use emulator::sev_guest::{self, Answer};

/// The contract of [`Sealer`]: `again` is the same platform after a restart, `other` another one.
fn conforms(sealer: &dyn Sealer, again: &dyn Sealer, other: &dyn Sealer) {
    let key = |sealer: &dyn Sealer, purpose: &str| *sealer.sealing_key(purpose).unwrap().expose();
    assert_eq!(key(sealer, "models"), key(sealer, "models"));
    assert_eq!(key(sealer, "models"), key(again, "models"));
    assert_ne!(key(sealer, "models"), key(sealer, "receipts"));
    assert_ne!(key(sealer, "models"), key(sealer, "model"));
    assert_ne!(key(sealer, "models"), key(other, "models"));
    assert_ne!(key(sealer, "models"), [0; 32]);
    for purpose in ["", "a\0b", &"x".repeat(65)] {
        let error = sealer.sealing_key(purpose).unwrap_err();
        assert_eq!(error.kind(), TeeErrorKind::InvalidOption);
    }
    key(sealer, &"x".repeat(64));
    let shown = format!("{:?}", sealer.sealing_key("models").unwrap());
    assert_eq!(shown, "SealingKey(..)");
    let line = sealer.describe();
    assert!(!line.contains('\n'));
    assert_eq!(line.contains("protects nothing"), sealer.is_simulated());
}

#[test]
fn an_enclave_conforms() {
    let enclave = enclave();
    let sealer = |to| EnclaveSealer::at(enclave.path(), to);
    let (code, signer) = (sealer(SealTo::Code), sealer(SealTo::Signer));
    conforms(&code, &sealer(SealTo::Code), &signer);
    conforms(&signer, &sealer(SealTo::Signer), &code);
}

#[test]
fn a_guest_conforms() {
    let devices = [1, 1, 2].map(|byte| sev_guest::SevGuest::mount(Answer::Key(byte)));
    let [one, again, other] = devices.each_ref().map(sealer);
    conforms(&one, &again, &other);
}

#[test]
fn the_simulation_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let sealer =
        |name: &str, code: &[u8]| SimulatedSealer::at(folder.path().join(name), code).unwrap();
    conforms(&sealer("a", b"1"), &sealer("a", b"1"), &sealer("b", b"1"));
    conforms(&sealer("a", b"1"), &sealer("a", b"1"), &sealer("a", b"2"));
    let mode = fs::metadata(folder.path().join("a")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

/// The derivation may never change: what was sealed would be lost. Computed with the Python package
/// `cryptography`: HKDF(SHA256, 32, b"BlindAI sealing v1", b"sgx mrenclave\0models") of 16 × 0x5e.
#[test]
fn the_derivation_stays_as_it_is() {
    let enclave = enclave();
    let sealer = EnclaveSealer::at(enclave.path(), SealTo::Code);
    let key = sealer.sealing_key("models").unwrap();
    assert_eq!(
        hex::encode(key.expose()),
        "80f349e6772b73b1f5828c1f7b0325625878a4640e419c8e72ddaec1f1f5aa15"
    );
}

#[test]
fn enclave_keys_of_another_form_are_refused() {
    let enclave = enclave();
    let sealer = EnclaveSealer::at(enclave.path(), SealTo::Signer);
    for (fault, kind, fact) in [
        (Fault::ShortKeys, TeeErrorKind::Platform, "shorter"),
        (Fault::LongKeys, TeeErrorKind::Platform, "longer"),
        (Fault::ZeroKeys, TeeErrorKind::Platform, "zeros"),
        (Fault::NoKeys, TeeErrorKind::NoSealingKey, "is not there"),
    ] {
        enclave.tree.set(fault);
        let error = sealer.sealing_key("models").unwrap_err();
        assert_eq!(error.kind(), kind, "{fault:?}: {error}");
        assert!(error.fact().contains(fact), "{fault:?}: {error}");
    }
}

#[test]
fn a_guest_asks_for_measurement_and_policy_at_vmpl_0() {
    let device = sev_guest::SevGuest::mount(Answer::Key(1));
    sealer(&device).sealing_key("models").unwrap();
    // The VCEK's root key, reserved, fields 0b1001, VMPL 0, SVN 0, TCB 0.
    let mut request = [0; 32];
    request[0] = 0b010;
    request[8] = 0b1001;
    assert_eq!(device.tree.asked(), [request]);
}

#[test]
fn a_key_that_the_provider_loads_changes_nothing() {
    let devices = [
        Answer::Key(1),
        Answer::Loaded { vlek: 9, vcek: 1 },
        Answer::Loaded { vlek: 1, vcek: 9 },
    ]
    .map(sev_guest::SevGuest::mount);
    let [none, loaded, other] = devices.each_ref().map(sealer);
    conforms(&none, &loaded, &other);
}

#[test]
fn a_guest_says_what_its_measurement_may_not_hold() {
    let line = GuestSealer::new(SevGuest::open()).describe();
    assert!(line.contains("without kernel hashes"), "{line}");
}

#[test]
fn firmware_that_fails_gives_no_key() {
    for (answer, fact) in [
        // It could only be asked for whichever key there is.
        (Answer::Old(1), "firmware status 0x16"),
        (Answer::Error(0x16), "firmware error 0x16"),
        (Answer::Status(0x16), "firmware status 0x16"),
        (Answer::Nothing, "firmware status 0xffffffff"),
        (Answer::Key(0), "all zeros"),
    ] {
        let device = sev_guest::SevGuest::mount(answer);
        let error = sealer(&device).sealing_key("models").unwrap_err();
        assert_eq!(error.kind(), TeeErrorKind::Platform, "{error}");
        assert!(error.fact().contains(fact), "{error}");
    }
}

#[test]
fn no_sealing_key_is_an_answer_of_its_own() {
    let nowhere = GuestSealer::new(SevGuest::at("/nonexistent"));
    let sealers: [&dyn Sealer; 2] = [&NoSealer(Tee::Tdx), &nowhere];
    for sealer in sealers {
        let error = sealer.sealing_key("models").unwrap_err();
        assert_eq!(error.kind(), TeeErrorKind::NoSealingKey);
        assert!(error.remedy().contains("key broker"), "{error}");
        assert!(!sealer.is_simulated());
    }
    // A device that is there but refuses is a fault, and not the absence of a key.
    let refusing = GuestSealer::new(SevGuest::at("/dev/null"));
    let error = refusing.sealing_key("models").unwrap_err();
    assert_eq!(error.kind(), TeeErrorKind::Platform);
}

#[test]
fn a_file_that_is_no_secret_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    for content in [
        "",
        "short",
        "much longer than the secret, which has 32 bytes",
    ] {
        fs::write(&file, content).unwrap();
        let error = SimulatedSealer::at(&file, b"code").unwrap_err();
        assert_eq!(error.kind(), TeeErrorKind::Platform);
        assert_eq!(fs::read_to_string(&file).unwrap(), content);
    }
    SimulatedSealer::at(folder.path().join("no/such/folder"), b"code").unwrap_err();
}

fn sealer(device: &Mounted<sev_guest::SevGuest>) -> GuestSealer<SevGuest> {
    let path = device.file(sev_guest::SevGuest::DEVICE);
    GuestSealer::new(SevGuest::at(path))
}

fn enclave() -> Mounted<Gramine> {
    let options = SimulationOptions::new(Measurement::MrEnclave([0xab; 32]));
    Gramine::mount(Simulation::new(options).unwrap())
}
