//! The library's refusals, which are texts, in our codes.

use crate::RejectionCode::{self, *};
use crate::dcap::Refused;
use crate::report::utc;

/// An unknown text is a refusal all the same.
pub(crate) fn refused(text: &str) -> Refused {
    let own = own_words(text);
    let known = REFUSALS
        .iter()
        .find(|(_, words)| words.iter().any(|words| own.contains(words)));
    Refused {
        code: known.map_or(AppraisalFailed, |(code, _)| *code),
        text: with_dates(text),
    }
}

/// The text up to where it repeats what a stranger wrote: whoever writes `CertRevoked` into a
/// document that cannot be read must not decide what the refusal says.
fn own_words(text: &str) -> &str {
    let ends = QUOTING
        .iter()
        .filter_map(|head| Some(text.find(head)? + head.len()));
    ends.min().map_or(text, |end| &text[..end])
}

/// Behind these the library repeats what it could not read: texts of JSON, labels of PEM.
const QUOTING: &[&str] = &[
    "Failed to decode TcbInfo",
    "Failed to decode QeIdentity",
    "Unsupported QE Identity id/version",
    "Failed to parse certs",
];

/// `UnixTime(1800000000)`, which the library prints, as a date.
fn with_dates(text: &str) -> String {
    let mut parts = text.split("UnixTime(");
    let mut readable = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) => {
                readable += &number.parse().map_or_else(|_| number.to_owned(), utc);
                readable += rest;
            }
            None => readable += part,
        }
    }
    readable
}

/// The first line of which words stand in the library's own text gives the code. The tests hold the words to the
/// library's source, so that an upgrade that says something else is seen.
const REFUSALS: &[(RejectionCode, &[&str])] = &[
    // Before the lines on debug and on the collateral, whose words this text contains too.
    (QuotingEnclave, &["QE report validation failed"]),
    (CertificateRevoked, &["CertRevoked"]),
    (CrlExpired, &["CrlExpired"]),
    (CertificateExpired, &["CertExpired"]),
    (CertificateNotYetValid, &["CertNotValidYet"]),
    // The root's revocation list is the first that the root's key checks.
    (
        TrustRootUnknown,
        &[
            "UnknownIssuer",
            "Failed to parse root CA CRL: InvalidCrlSignatureForPublicKey",
            "Failed to parse root CA CRL: InvalidSignatureForPublicKey",
        ],
    ),
    (CollateralNotYetValid, &["issue date is in the future"]),
    (
        CollateralExpired,
        &["TCBInfo expired", "QE Identity expired"],
    ),
    (
        CollateralSignature,
        &[
            "Signature is invalid for tcb_info",
            "Signature is invalid for qe_identity",
            "Invalid key length",
        ],
    ),
    (
        QuoteSignature,
        &[
            "Signature is invalid for qe_report",
            "QE report hash mismatch",
            "Invalid QE auth data length",
            "ISV enclave report signature is invalid",
        ],
    ),
    (
        QuotingEnclave,
        &[
            "QE MRSIGNER mismatch",
            "QE ISVPRODID mismatch",
            "QE MISCSELECT mismatch",
            "QE ATTRIBUTES mismatch",
            "QE ISVSVN",
        ],
    ),
    (
        CollateralMismatch,
        &[
            "Fmspc mismatch",
            // A revocation list of another issuer: it says nothing on this certificate.
            "UnknownRevocationStatus",
            "TCB info in the collateral",
            "Unsupported QE Identity id/version",
        ],
    ),
    (
        TcbUnknown,
        &[
            "No matching TCB level found",
            "Failed to evaluate the current TDX TCB",
        ],
    ),
    (TcbRevoked, &["TCB status is invalid: Revoked"]),
    (Debug, &["Debug mode is enabled", "TD profiling is enabled"]),
    (
        TdAttributes,
        &[
            "SEPT_VE_DISABLE is not enabled",
            "TD migration is enabled",
            "SERVTD_EXT is enabled",
            "Invalid MR service TD",
            "Reserved bits in TD attributes",
        ],
    ),
    // Before the line on the TDX module, whose words stand around these texts.
    (
        CollateralMalformed,
        &[
            "tcbDate",
            "has invalid length",
            "as hex",
            "is missing tdxModule field",
            "Unrecognized TCB status",
            "component count mismatch",
        ],
    ),
    (TdxModule, &["TDX module"]),
    (
        QuoteUnsupported,
        &[
            "Unsupported DCAP",
            "quote must have version",
            "Unknown QE vendor ID",
            "Unsupported TEE type",
        ],
    ),
    (
        QuoteMalformed,
        &[
            "Failed to decode quote",
            "Failed to decode QE report",
            "Failed to get signed quote scope",
            "Failed to get TD10 report",
            "Failed to parse TD attributes",
        ],
    ),
    (
        CollateralMalformed,
        &[
            "Failed to decode TcbInfo",
            "Failed to decode QeIdentity",
            "Failed to decode TCB FMSPC",
            "Failed to parse TCB Info",
            "Failed to parse QE Identity",
            "Failed to parse root CA CRL",
            "Failed to parse PCK CRL",
            "Failed to parse CRL",
            "Failed to parse platform TCB date",
            "Failed to parse RFC3339 datetime",
            "is before Unix epoch",
            "issueDate",
            "nextUpdate",
            "CRL number",
            "too short for",
            "No TCB levels found in QE Identity",
        ],
    ),
    (
        ChainInvalid,
        &[
            "Failed to verify certificate chain",
            "Too many intermediate certificates",
            "must be issued directly by the root CA",
            "Certificate chain is too short",
            "Empty PCK certificate chain",
            "No certificates found in PEM chain",
            "Failed to extract PCK certificates",
            "Failed to parse PCK certificate",
            "Failed to parse certificate for time window",
            "Failed to parse certs",
            "Failed to decode certificate",
            "Certification data type",
            "appears more than once",
            // The extension of the platform's certificate.
            "Intel extension",
            "Fmspc",
            "CpuSvn",
            "PceSvn",
            "DER object",
            "DER recursion depth",
            "subobject",
            "sequence",
            "Failed to get entry",
            "Failed to get name",
            "Failed to get value",
            "Failed to read OID",
            "Failed to read value",
            "OID is missing",
            "Unexpected BOOLEAN length",
            "Unexpected ENUMERATED length",
        ],
    ),
    // What cannot go wrong, because it is about this library's own constants and arithmetic.
    (
        AppraisalFailed,
        &[
            "Failed to load root ca",
            "Failed to parse root CA certificate",
            "Failed to create RevocationOptionsBuilder",
            "INTEGER",
            "encode_ecdsa_sig",
            "ECDSA signature",
            "Invalid OID encoding",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    /// Where the sources of the library and of its reader of chains lie.
    fn sources() -> [PathBuf; 2] {
        let arguments = [
            "metadata",
            "--format-version=1",
            "--locked",
            "--filter-platform",
        ];
        let output = Command::new(env!("CARGO"))
            .args(arguments)
            .arg("x86_64-unknown-linux-gnu")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let packages = metadata["packages"].as_array().unwrap();
        ["dcap-qvl", "dcap-qvl-webpki"].map(|name| {
            let package = packages
                .iter()
                .find(|package| package["name"] == name)
                .unwrap();
            let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap());
            manifest.parent().unwrap().join("src")
        })
    }

    /// The texts that a file of the library refuses with, with `0` for what they fill in.
    fn texts(source: &str) -> Vec<String> {
        let makers = ["bail!(", "ensure!(", "anyhow!(", "context("];
        let code = source.split("\nmod tests").next().unwrap();
        let starts = makers.iter().flat_map(|maker| code.match_indices(maker));
        let text = |(at, maker): (usize, &str)| {
            let call = &code[at + maker.len()..];
            let (before, text) = call.split_once('"')?;
            if before.contains([';', '?']) {
                return None;
            }
            let mut parts = text[..text.find('"')?].split('{');
            let first = parts.next()?.to_owned();
            let filled = parts.map(|part| format!("0{}", part.split_once('}').unwrap().1));
            Some(first + &filled.collect::<String>())
        };
        starts.filter_map(text).collect()
    }

    #[test]
    fn every_text_of_the_library_has_its_code_and_every_line_its_text() {
        let [library, chains] = sources();
        let read = |file: &str| texts(&fs::read_to_string(library.join(file)).unwrap());
        let files = [
            "verify.rs",
            "utils.rs",
            "tcb_info.rs",
            "intel.rs",
            "signature.rs",
            "x509.rs",
        ];
        let texts: Vec<_> = files.into_iter().flat_map(read).collect();
        assert!(texts.len() > 100, "{}: the source is not read", texts.len());

        for head in QUOTING {
            let said = texts.iter().any(|text| text.starts_with(head));
            assert!(said, "no text begins with {head:?}");
        }
        let words = || REFUSALS.iter().flat_map(|(_, words)| words.iter());
        for text in &texts {
            assert!(
                words().any(|words| text.contains(words)),
                "no line for {text:?}"
            );
        }
        let variants = fs::read_to_string(chains.join("error.rs")).unwrap();
        let variants: Vec<_> = variants.split(|c: char| !c.is_alphanumeric()).collect();
        for words in words() {
            for part in words.split(": ") {
                let said = texts.iter().any(|text| text.contains(part));
                assert!(said || variants.contains(&part), "no text for {words:?}");
            }
        }
    }

    #[test]
    fn the_inner_text_decides_where_it_says_more() {
        let chain = "Failed to verify certificate chain";
        for (text, code) in [
            (&*format!("{chain}: CertRevoked"), CertificateRevoked),
            (&format!("{chain}: CaUsedAsEndEntity"), ChainInvalid),
            (
                &format!("{chain}: UnknownRevocationStatus"),
                CollateralMismatch,
            ),
            ("Failed to parse root CA CRL: BadDer", CollateralMalformed),
            (
                "Failed to parse root CA CRL: InvalidCrlSignatureForPublicKey",
                TrustRootUnknown,
            ),
            (
                "QE report validation failed: Debug mode is enabled",
                QuotingEnclave,
            ),
            (
                "TDX module identity check: TDX module MRSIGNER mismatch",
                TdxModule,
            ),
            (
                "TDX module identity check: 0 has invalid length 1",
                CollateralMalformed,
            ),
            (
                "something that no version of the library says today",
                AppraisalFailed,
            ),
        ] {
            assert_eq!(refused(text).code, code, "{text}");
        }
    }

    #[test]
    fn what_the_library_repeats_decides_nothing() {
        for (head, code) in [
            ("Failed to decode TcbInfo", CollateralMalformed),
            ("Failed to decode QeIdentity", CollateralMalformed),
            ("Failed to parse certs", ChainInvalid),
            (
                "Failed to extract PCK certificates from quote: Failed to parse certs",
                ChainInvalid,
            ),
            (
                "Unsupported QE Identity id/version for the quote TEE type",
                CollateralMismatch,
            ),
        ] {
            for words in REFUSALS.iter().flat_map(|(_, words)| words.iter()) {
                let text = format!("{head}: invalid: \"x: {words}\"");
                assert_eq!(refused(&text).code, code, "{text}");
            }
        }
    }

    #[test]
    fn times_are_dates() {
        let text = refused("CrlExpired { time: UnixTime(2), next_update: UnixTime(1) }").text;
        let want =
            "CrlExpired { time: 1970-01-01 00:00:02 UTC, next_update: 1970-01-01 00:00:01 UTC }";
        assert_eq!(text, want);
    }
}
