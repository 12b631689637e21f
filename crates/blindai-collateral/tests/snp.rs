//! SEV-SNP, from a service that answers as AMD's, for the certificates of real chips.

mod support;

use blindai_collateral::{CollateralError, CollateralErrorKind as Kind, Fetched, Fetcher, Source};
use blindai_core::{Collateral, SnpCollateral};
use blindai_verify::{Verification, observe};
use der::asn1::ObjectIdentifier;
use der::{Decode as _, DecodePem as _, Encode as _};
use http::StatusCode;
use support::*;
use x509_cert::Certificate;

/// A report, its signer and its product.
const ROWS: &[(&str, &str, &str)] = &[
    ("ms_milan", "ms_milan_vcek.pem", "Milan"),
    ("ms_genoa", "ms_genoa_vcek.pem", "Genoa"),
    ("ms_turin", "ms_turin_vcek.pem", "Turin"),
    // Of version 2, which does not say its product.
    ("trustee_milan_v2", "trustee_milan_v2_vcek.der", "Milan"),
];
/// When all of it holds.
const NOW: u64 = 1_790_000_000;

fn report(name: &str) -> Vec<u8> {
    file(&format!("snp/{name}.report"))
}

fn certificate(name: &str) -> Certificate {
    let bytes = file(&format!("snp/{name}"));
    match bytes.first() {
        Some(b'-') => Certificate::from_pem(bytes).unwrap(),
        _ => Certificate::from_der(&bytes).unwrap(),
    }
}

/// The issuers as AMD sends them: ASK, then ARK.
fn chain(product: &str) -> String {
    let product = product.to_lowercase();
    text(&format!("snp/{product}_ask.pem")) + &text(&format!("snp/{product}_ark.pem"))
}

/// Some revocation list. That it is not AMD's is the verifier's to find.
fn crl() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2027, 1, 1),
        crl_number: rcgen::SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&rcgen::Issuer::new(params, key)).unwrap();
    list.der().to_vec()
}

/// What the certificate itself says of its chip and patch level, as AMD spells it in its URL.
fn path_of(vcek: &Certificate, product: &str) -> String {
    let value = |oid: &str| {
        let oid = ObjectIdentifier::new_unwrap(oid);
        let extensions = vcek.tbs_certificate().extensions().unwrap();
        let found = extensions.iter().find(|e| e.extn_id == oid).unwrap();
        found.extn_value.as_bytes().to_vec()
    };
    let level = |part: u8| u8::from_der(&value(&format!("1.3.6.1.4.1.3704.1.3.{part}"))).unwrap();
    let chip = hex::encode(value("1.3.6.1.4.1.3704.1.4"));
    let levels = format!(
        "blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}",
        level(1),
        level(2),
        level(3),
        level(8)
    );
    let levels = match product {
        "Turin" => format!("fmcSPL={:02}&{levels}", level(9)),
        _ => levels,
    };
    format!("/vcek/v1/{product}/{chip}?{levels}")
}

async fn kds(row: &'static (&str, &str, &str), crl: Vec<u8>) -> Service {
    let &(_, signer, product) = row;
    let vcek = certificate(signer);
    let (path, der) = (path_of(&vcek, product), vcek.to_der().unwrap());
    Service::start(move |asked, _| {
        Some(match asked {
            asked if asked == path => ok(der.clone()),
            asked if asked == format!("/vcek/v1/{product}/cert_chain") => ok(chain(product)),
            asked if asked == format!("/vcek/v1/{product}/crl") => ok(crl.clone()),
            "/vlek/v1/Milan/cert_chain" => ok(chain("Milan")),
            "/vlek/v1/Milan/crl" => ok(crl.clone()),
            _ => status(StatusCode::NOT_FOUND),
        })
    })
    .await
}

async fn fetch(
    service: &Service,
    report: &[u8],
    supplied: Option<&Collateral>,
) -> Result<Fetched, CollateralError> {
    let fetcher = Fetcher::new(Source::parse(&service.url)?, &options())?;
    fetcher.fetch(report, supplied).await
}

#[tokio::test]
async fn the_chip_is_asked_for_as_its_certificate_names_it_and_what_comes_verifies() {
    for row in ROWS {
        let (crl, report) = (crl(), report(row.0));
        let service = kds(row, crl.clone()).await;
        let fetched = fetch(&service, &report, None).await.unwrap();
        let Collateral::Snp(mut collateral) = fetched.collateral else {
            panic!("{}: not of SEV-SNP", row.0)
        };
        let signer = Certificate::from_pem(&collateral.signer).unwrap();
        assert_eq!(signer, certificate(row.1), "{}", row.0);
        assert_eq!(collateral.issuer_chain, Some(chain(row.2)));
        assert_eq!(collateral.crl.take(), Some(crl));
        assert_eq!(fetched.validity.not_after, 1_798_761_600, "the list's");

        let seen = observe(&report, Some(&collateral.into()), NOW).unwrap();
        assert!(
            matches!(seen.verification(), Verification::Verified(_)),
            "{}: {:?}",
            row.0,
            seen.to_json()
        );
    }
}

fn supplied(name: &str) -> Collateral {
    let signer = certificate(name);
    let der = der::Document::try_from(signer.to_der().unwrap()).unwrap();
    let signer = der.to_pem("CERTIFICATE", der::pem::LineEnding::LF).unwrap();
    Collateral::Snp(SnpCollateral {
        signer,
        issuer_chain: None,
        crl: None,
    })
}

#[tokio::test]
async fn a_supplied_certificate_says_whose_issuers_to_ask_for() {
    let service = Service::start(move |asked, _| {
        Some(match asked {
            "/vcek/v1/Milan/cert_chain" => ok(chain("Milan")),
            "/vcek/v1/Genoa/cert_chain" => ok(chain("Genoa")),
            asked if asked.ends_with("/crl") => ok(crl()),
            _ => status(StatusCode::NOT_FOUND),
        })
    });
    let service = service.await;
    // Of version 2, which leaves Milan and Genoa open.
    let unsaid = report("trustee_milan_v2");
    for row in &ROWS[..2] {
        let fetched = fetch(&service, &unsaid, Some(&supplied(row.1))).await;
        let Collateral::Snp(collateral) = fetched.unwrap().collateral else {
            panic!("not of SEV-SNP")
        };
        assert_eq!(collateral.issuer_chain, Some(chain(row.2)));
    }
    let turin = supplied(ROWS[2].1);
    let error = fetch(&service, &unsaid, Some(&turin)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.fact().contains("another product"), "{error}");
}

#[tokio::test]
async fn what_the_platform_supplied_is_not_asked_for() {
    let service = kds(&ROWS[0], crl()).await;
    let own = supplied(ROWS[0].1);
    fetch(&service, &report(ROWS[0].0), Some(&own))
        .await
        .unwrap();
    assert_eq!(
        service.asked(),
        ["/vcek/v1/Milan/cert_chain", "/vcek/v1/Milan/crl"]
    );

    let service = kds(&ROWS[0], crl()).await;
    let vlek = report("trustee_milan_vlek");
    let error = fetch(&service, &vlek, None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.remedy().contains("VLEK"), "{error}");
    assert_eq!(service.asked(), [""; 0]);
    let own = supplied("trustee_milan_vlek.der");
    fetch(&service, &vlek, Some(&own)).await.unwrap();
    assert_eq!(
        service.asked(),
        ["/vlek/v1/Milan/cert_chain", "/vlek/v1/Milan/crl"]
    );
}

#[tokio::test]
async fn a_chip_that_is_masked_or_unknown_is_said_so() {
    let service = kds(&ROWS[0], crl()).await;
    let mut masked = report(ROWS[0].0);
    masked[0x1a0..0x1e0].fill(0);
    let error = fetch(&service, &masked, None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::PlatformUnknown);

    let mut other = report(ROWS[0].0);
    other[0x1a0] ^= 1;
    let error = fetch(&service, &other, None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);

    let mut future = report(ROWS[0].0);
    future[0x188] = 0x7f;
    let error = fetch(&service, &future, None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::PlatformUnknown);
}

#[tokio::test]
async fn other_content_than_was_asked_for_is_refused() {
    for part in ["SPL=", "/cert_chain", "/crl"] {
        let honest = path_of(&certificate(ROWS[0].1), "Milan");
        let service = Service::start(move |asked, _| {
            Some(match asked {
                asked if asked.contains(part) => ok("<html>Please log in</html>"),
                asked if asked == honest => ok(certificate(ROWS[0].1).to_der().unwrap()),
                asked if asked.ends_with("/cert_chain") => ok(chain("Milan")),
                _ => ok(crl()),
            })
        });
        let error = fetch(&service.await, &report(ROWS[0].0), None).await;
        assert_eq!(error.unwrap_err().kind(), Kind::Unreadable, "{part}");
    }
}
