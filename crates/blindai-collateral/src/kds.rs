//! What AMD publishes of a chip, from its key distribution service (KDS) or a mirror of it.

use blindai_core::{Collateral, SnpCollateral};
use der::Document;
use der::pem::LineEnding;
use x509_cert::Certificate;

use crate::http::Http;
use crate::platform::{Product, Signer, Snp};
use crate::{CollateralError, CollateralErrorKind};

/// Fetches the chip's certificate unless the platform supplied its signer, then the issuers and their
/// revocation list. One after the other: the service limits how often it is asked.
pub(crate) async fn fetch(
    http: &Http,
    service: &str,
    platform: &Snp,
    supplied: Option<&SnpCollateral>,
) -> Result<Collateral, CollateralError> {
    let service = service.trim_end_matches('/');
    let named = supplied.and_then(issuing_product);
    let fits = |product: &&Product| named.is_none_or(|named| named == **product);
    let mut last = not_found("the signer that was supplied is of another product than the report");
    for &product in platform.products.iter().filter(fits) {
        match of_product(http, service, product, platform, supplied).await {
            // A report before version 3 does not say its product: the next one is tried.
            Err(error) if is_unknown(&error) => last = error,
            done => return done,
        }
    }
    Err(last)
}

/// The product whose authority issued the supplied certificate: the chain and the list to fetch are
/// that authority's. A report before version 3 does not say its product, and where no certificate is
/// asked for, no answer tells that the guess was wrong.
fn issuing_product(supplied: &SnpCollateral) -> Option<Product> {
    let signer = Certificate::load_pem_chain(supplied.signer.as_bytes()).ok()?;
    let issuer = signer.first()?.tbs_certificate().issuer().to_string();
    let common_name = issuer
        .split(',')
        .find_map(|part| part.trim().strip_prefix("CN="))?;
    let product = common_name.strip_prefix("SEV-")?;
    let product = product.strip_prefix("VLEK-").unwrap_or(product);
    let products = [Product::Milan, Product::Genoa, Product::Turin];
    products.into_iter().find(|known| known.as_str() == product)
}

async fn of_product(
    http: &Http,
    service: &str,
    product: Product,
    platform: &Snp,
    supplied: Option<&SnpCollateral>,
) -> Result<Collateral, CollateralError> {
    let kind = platform.signer.as_str();
    let base = format!("{service}/{kind}/v1/{}", product.as_str());
    let signer = match (supplied, platform.signer) {
        (Some(supplied), _) => supplied.signer.clone(),
        (None, Signer::Vcek) => vcek(http, &base, product, platform).await?,
        (None, Signer::Vlek) => return Err(no_vlek()),
    };
    let chain = http.get(&format!("{base}/cert_chain")).await?;
    let chain = String::from_utf8(chain.body.to_vec());
    let chain = chain.map_err(|_| unreadable("the service did not answer with PEM texts"))?;
    let crl = http.get(&format!("{base}/crl")).await?;
    Ok(Collateral::Snp(SnpCollateral {
        signer,
        issuer_chain: Some(chain),
        crl: Some(crl.body.to_vec()),
    }))
}

async fn vcek(
    http: &Http,
    base: &str,
    product: Product,
    platform: &Snp,
) -> Result<String, CollateralError> {
    let url = format!("{base}/{}", chip_and_level(product, platform)?);
    let answer = http.get(&url).await?;
    let pem = Document::try_from(&answer.body[..])
        .and_then(|der| der.to_pem("CERTIFICATE", LineEnding::LF));
    pem.map_err(|_| unreadable("the service did not answer with a certificate"))
}

/// The last part of the path, and the patch level as its query.
fn chip_and_level(product: Product, platform: &Snp) -> Result<String, CollateralError> {
    let chip = match product {
        // From Turin on the identity is shorter, and the field padded with zeros.
        Product::Turin => &platform.chip_id[..8],
        _ => &platform.chip_id[..],
    };
    if chip.iter().all(|&byte| byte == 0) {
        let fact = "the report names no chip: its host masks the identity";
        let remedy = "have the host turn MASK_CHIP_ID off, or supply the signer's certificate";
        let kind = CollateralErrorKind::PlatformUnknown;
        return Err(CollateralError::new(kind, fact).with_remedy(remedy));
    }
    let chip = hex::encode(chip);
    let [a, b, c, d, _, _, snp, microcode] = platform.tcb;
    Ok(match product {
        Product::Turin => format!(
            "{chip}?fmcSPL={a:02}&blSPL={b:02}&teeSPL={c:02}&snpSPL={d:02}&ucodeSPL={microcode:02}"
        ),
        _ => format!("{chip}?blSPL={a:02}&teeSPL={b:02}&snpSPL={snp:02}&ucodeSPL={microcode:02}"),
    })
}

fn is_unknown(error: &CollateralError) -> bool {
    matches!(
        error.kind(),
        CollateralErrorKind::NotFound | CollateralErrorKind::Refused
    )
}

fn no_vlek() -> CollateralError {
    not_found("the report is signed by a key of the cloud provider, whose certificate AMD does not publish")
        .with_remedy("have the platform supply the certificate of its VLEK")
}

fn not_found(fact: &str) -> CollateralError {
    CollateralError::new(CollateralErrorKind::NotFound, fact)
}

fn unreadable(fact: &str) -> CollateralError {
    CollateralError::new(CollateralErrorKind::Unreadable, fact)
}

/// AMD's service.
pub(crate) const AMD_KDS: &str = "https://kdsintf.amd.com";
