//! SGX and TDX, from a service that gives Intel's recorded answers and one that misbehaves.

mod support;

use std::sync::Arc;
use std::time::Duration;

use blindai_collateral::{
    CollateralError, CollateralErrorKind as Kind, FetchOptions, Fetched, Fetcher, Source,
};
use blindai_core::Collateral;
use blindai_verify::Policy;
use http::StatusCode;
use support::*;

/// A quote, its collateral, a time, and what the platform is called.
const ROWS: &[(&str, &str, u64, &str)] = &[
    (
        "sgx/dcapqvl_00a067110000",
        "sgx_00a067110000_2025-06",
        1751600000,
        "sgx-00a067110000-processor.json",
    ),
    (
        "tdx/dcapqvl_v4_b0c06f",
        "tdx_b0c06f_2025-06",
        1751600000,
        "tdx-b0c06f000000-platform.json",
    ),
    (
        "tdx/gotdx_v5_td15_90c06f",
        "tdx_90c06f_2026-02",
        1772700000,
        "tdx-90c06f000000-platform.json",
    ),
    (
        "tdx/flashbots_v4_gcp_00806f_2026",
        "tdx_00806f_2026-06",
        1784100000,
        "tdx-00806f050000-platform.json",
    ),
];

fn quote(name: &str) -> Vec<u8> {
    file(&format!("{name}.quote"))
}

fn pcs(name: &str) -> Pcs {
    Pcs {
        collateral: recorded(name),
        old_headers: false,
        hex: false,
    }
}

async fn fetch_from(
    url: &str,
    quote: &[u8],
    options: &FetchOptions,
) -> Result<Fetched, CollateralError> {
    let source = Source::parse(url)?;
    Fetcher::new(source, options)?.fetch(quote, None).await
}

/// The first row's answers, except for what `change` says.
async fn spoiled(
    options: &FetchOptions,
    change: impl Fn(&str, usize) -> Option<Option<Answer>> + Send + Sync + 'static,
) -> (Service, Result<Fetched, CollateralError>) {
    let honest = pcs(ROWS[0].1);
    let service = Service::start(move |path, times| {
        change(path, times).unwrap_or_else(|| Some(honest.answer(path)))
    });
    let service = service.await;
    let fetched = fetch_from(&service.url, &quote(ROWS[0].0), options).await;
    (service, fetched)
}

async fn failure(
    change: impl Fn(&str, usize) -> Option<Option<Answer>> + Send + Sync + 'static,
) -> (Service, CollateralError) {
    let (service, fetched) = spoiled(&options(), change).await;
    (service, fetched.unwrap_err())
}

/// A policy that pins what the quote says, at its fixed places.
fn pinning(quote: &[u8]) -> Policy {
    let at = |start: usize, bytes: usize| hex::encode(&quote[start..start + bytes]);
    let body = if quote[0] == 5 { 54 } else { 48 };
    let (tee, pins) = match quote[4] {
        0x81 => {
            let [mrtd, kernel, disk] = [136, 376, 424].map(|part| at(body + part, 48));
            let pins = format!("mrtd = [{mrtd:?}]\nrtmr1 = [{kernel:?}]\nrtmr2 = [{disk:?}]");
            ("tdx", pins)
        }
        _ => ("sgx", format!("mrenclave = [{:?}]", at(body + 64, 32))),
    };
    // Of these platforms not all are up to date; that is not what is looked at here.
    let accepted = ["INTEL-SA-00289", "INTEL-SA-00615"]
        .map(|id| format!("[[tcb.exceptions]]\nadvisory = {id:?}\nuntil = \"2030-01-01\"\n"));
    let statuses = r#"["UpToDate", "ConfigurationAndSWHardeningNeeded"]"#;
    let (exceptions, tcb) = (accepted.concat(), format!("[tcb]\nallowed = {statuses}\n"));
    let policy = format!("tee = [{tee:?}]\n[{tee}]\n{pins}\n{tcb}{exceptions}");
    Policy::from_toml(&policy).unwrap()
}

#[tokio::test]
async fn what_is_put_together_is_what_was_recorded_and_verifies() {
    for (i, &(name, collateral, now, file_name)) in ROWS.iter().enumerate() {
        let pcs = Pcs {
            old_headers: i % 2 == 1,
            hex: i % 2 == 0,
            ..pcs(collateral)
        };
        let recorded = pcs.collateral.clone();
        let service = Service::start(move |path, _| Some(pcs.answer(path))).await;
        let quote = quote(name);
        let fetched = fetch_from(&service.url, &quote, &options()).await.unwrap();

        assert_eq!(fetched.collateral, Collateral::Dcap(recorded), "{name}");
        assert!(fetched.validity.contains(now), "{:?}", fetched.validity);
        let report =
            blindai_verify::appraise_quote(&quote, &fetched.collateral, &pinning(&quote), now);
        let report = report.unwrap_or_else(|rejection| panic!("{name}: {}", rejection.table()));
        assert!(report.valid_until() <= fetched.validity.not_after, "{name}");

        let (tee, fmspc) = (&file_name[..3], file_name[4..16].to_uppercase());
        let ca = &file_name[17..file_name.len() - 5];
        let mut asked = service.asked();
        asked.sort();
        let mut wanted = [
            format!("/{tee}/certification/v4/tcb?fmspc={fmspc}"),
            format!("/{tee}/certification/v4/qe/identity"),
            format!("/sgx/certification/v4/pckcrl?ca={ca}&encoding=der"),
            "/sgx/certification/v4/rootcacrl".to_owned(),
        ];
        wanted.sort();
        assert_eq!(asked, wanted);
        assert_eq!(blindai_collateral::file_name(&quote).unwrap(), file_name);
    }
}

#[tokio::test]
async fn a_file_and_a_folder_serve_a_closed_network() {
    let &(name, collateral, _, file_name) = &ROWS[1];
    let (quote, json) = (quote(name), file(&format!("collateral/{collateral}.json")));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file_name);
    let source = |path: &std::path::Path| path.to_str().unwrap().to_owned();

    let nothing = fetch_from(&source(folder.path()), &quote, &options()).await;
    let error = nothing.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.fact().contains(file_name), "{error}");

    std::fs::write(&path, &json).unwrap();
    for source in [source(folder.path()), source(&path)] {
        let fetched = fetch_from(&source, &quote, &options()).await.unwrap();
        assert_eq!(fetched.collateral, Collateral::Dcap(recorded(collateral)));
    }
    for (bytes, kind) in [
        (br#"{"signer":"PEM"}"#.to_vec(), Kind::Unreadable),
        (json[1..].to_vec(), Kind::Unreadable),
        (vec![b' '; (4 << 20) + 1], Kind::TooLarge),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = fetch_from(&source(&path), &quote, &options()).await;
        assert_eq!(error.unwrap_err().kind(), kind);
    }
}

#[tokio::test]
async fn failures_that_pass_are_tried_again() {
    for wrong in [
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::TOO_MANY_REQUESTS,
    ] {
        let (service, fetched) = spoiled(&options(), move |_, times| {
            (times < 3).then(|| Some(with_header(status(wrong), "retry-after", "0")))
        })
        .await;
        fetched.unwrap();
        assert_eq!(service.asked().len(), 4 * 4);
    }
    let (service, error) = failure(|path, _| {
        path.ends_with("rootcacrl")
            .then(|| Some(status(StatusCode::BAD_GATEWAY)))
    })
    .await;
    assert_eq!(error.kind(), Kind::Unreachable);
    let asked = service.asked();
    let times = asked
        .iter()
        .filter(|path| path.ends_with("rootcacrl"))
        .count();
    assert_eq!(times, 4);
}

#[tokio::test]
async fn a_broken_answer_is_tried_again_and_then_an_error() {
    let (service, fetched) = spoiled(&options(), |path, times| {
        let cut = path.ends_with("rootcacrl") && times == 0;
        cut.then(|| Some(broken_off()))
    })
    .await;
    fetched.unwrap();
    assert_eq!(service.asked().len(), 5);
}

#[tokio::test]
async fn what_cannot_be_had_is_said_at_once() {
    for (wrong, kind) in [
        (StatusCode::NOT_FOUND, Kind::NotFound),
        (StatusCode::UNAUTHORIZED, Kind::Refused),
        (StatusCode::BAD_REQUEST, Kind::Refused),
        (StatusCode::NO_CONTENT, Kind::Refused),
    ] {
        let (service, error) =
            failure(move |path, _| path.contains("/tcb?").then(|| Some(status(wrong)))).await;
        assert_eq!(error.kind(), kind, "{error}");
        let asked = service.asked();
        assert_eq!(
            asked.iter().filter(|path| path.contains("/tcb?")).count(),
            1
        );
        assert!(!error.to_string().contains("html"), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Service::start(|_, _| Some(ok("here"))).await;
    let url = elsewhere.url.clone();
    let (_, error) = failure(move |_, _| {
        let answer = status(StatusCode::TEMPORARY_REDIRECT);
        Some(Some(with_header(answer, "location", &url)))
    })
    .await;
    assert_eq!(error.kind(), Kind::Refused);
    assert_eq!(elsewhere.asked(), [""; 0]);
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let (_, error) = failure(|path, _| path.ends_with("identity").then(|| Some(endless()))).await;
    assert_eq!(error.kind(), Kind::TooLarge);
    let (_, error) = failure(|path, _| {
        let huge = || Some(ok(vec![b' '; (1 << 20) + 1]));
        path.contains("pckcrl").then(huge)
    })
    .await;
    assert_eq!(error.kind(), Kind::TooLarge);
    let (_, error) = failure(|path, _| {
        let huge = || Some(with_header(ok(""), "x", &"x".repeat(1_000_000)));
        path.contains("pckcrl").then(huge)
    })
    .await;
    assert_eq!(error.kind(), Kind::Unreachable, "{error}");
}

#[tokio::test]
async fn silence_ends_in_time() {
    let impatient = FetchOptions {
        timeout: Duration::from_millis(300),
        ..options()
    };
    let (_, fetched) = spoiled(&impatient, |path, _| path.contains("/tcb?").then_some(None)).await;
    assert_eq!(fetched.unwrap_err().kind(), Kind::Unreachable);
    // Nor may a service ask for patience without end.
    let (_, fetched) = spoiled(&impatient, |_, _| {
        let answer = status(StatusCode::TOO_MANY_REQUESTS);
        Some(Some(with_header(answer, "retry-after", "1000000000000")))
    })
    .await;
    assert_eq!(fetched.unwrap_err().kind(), Kind::Unreachable);
}

#[tokio::test]
async fn other_content_than_was_asked_for_is_refused() {
    let html = "<html>Please log in</html>";
    for part in ["/tcb?", "/qe/identity", "/pckcrl", "/rootcacrl"] {
        for body in [html, "", "0", "30", "3000", "{}", "null"] {
            let (_, error) = failure(move |path, _| {
                let honest = pcs(ROWS[0].1);
                let wrong = || {
                    let mut answer = ok(body);
                    *answer.headers_mut() = honest.answer(path).headers().clone();
                    Some(answer)
                };
                path.contains(part).then(wrong)
            })
            .await;
            assert_eq!(error.kind(), Kind::Unreadable, "{part} {body}: {error}");
        }
    }
    for part in ["/tcb?", "/qe/identity", "/pckcrl"] {
        for header in [None, Some("%ff"), Some("no%20chain")] {
            let (_, error) = failure(move |path, _| {
                let mut answer = pcs(ROWS[0].1).answer(path);
                for value in answer.headers_mut().values_mut() {
                    *value = header.unwrap_or_default().parse().unwrap();
                }
                path.contains(part).then_some(Some(answer))
            })
            .await;
            assert_eq!(error.kind(), Kind::Unreadable, "{part} {header:?}");
        }
    }
}

#[tokio::test]
async fn a_quote_without_its_platform_is_refused_before_anyone_is_asked() {
    let service = Service::start(|_, _| None).await;
    let whole = quote(ROWS[1].0);
    // The signature data end with the chain; what follows is padding.
    for end in (0..4000).step_by(7) {
        let error = fetch_from(&service.url, &whole[..end], &options()).await;
        assert_eq!(error.unwrap_err().kind(), Kind::PlatformUnknown, "{end}");
    }
    let mut other_version = whole.clone();
    other_version[0] = 6;
    let error = fetch_from(&service.url, &other_version, &options()).await;
    assert_eq!(error.unwrap_err().kind(), Kind::PlatformUnknown);
    assert_eq!(service.asked(), [""; 0]);
}

#[test]
fn sources_are_read_strictly() {
    assert_eq!(Source::parse("vendor"), Ok(Source::Vendor));
    let url = "https://pccs.example:8081/sgx/certification/v4/";
    assert_eq!(Source::parse(url), Ok(Source::Service(url.to_owned())));
    assert_eq!(Source::parse("a/b"), Ok(Source::Path("a/b".into())));
    for wrong in [
        "ftp://x",
        "http://",
        "https://user:pass@x",
        "https://x/?q=1",
        "http://a b",
    ] {
        assert_eq!(
            Source::parse(wrong).unwrap_err().kind(),
            Kind::SourceInvalid,
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn a_service_with_its_own_authority_needs_it_named() {
    let honest = pcs(ROWS[0].1);
    let (url, authority) = tls_service(move |path, _| Some(honest.answer(path))).await;
    let stranger = fetch_from(&url, &quote(ROWS[0].0), &options()).await;
    assert_eq!(stranger.unwrap_err().kind(), Kind::Unreachable);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authority.pem");
    std::fs::write(&path, authority).unwrap();
    let trusting = FetchOptions {
        authorities: Some(path.clone()),
        ..options()
    };
    fetch_from(&url, &quote(ROWS[0].0), &trusting)
        .await
        .unwrap();

    std::fs::write(&path, "no PEM").unwrap();
    let error = fetch_from(&url, &quote(ROWS[0].0), &trusting).await;
    assert_eq!(error.unwrap_err().kind(), Kind::SourceInvalid);
}

/// The same over TLS; answers its URL and the certificate that signed its own.
async fn tls_service(
    handler: impl Fn(&str, usize) -> Option<Answer> + Send + Sync + 'static,
) -> (String, String) {
    use rustls::pki_types::PrivatePkcs8KeyDer;
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let config = rustls::ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        );
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.unwrap()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let handler: Arc<Handler> = Arc::new(handler);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                let io = hyper_util::rt::TokioIo::new(stream);
                tokio::spawn(serve(io, handler.clone(), Arc::default()));
            }
        }
    });
    (format!("https://localhost:{port}"), certificate.pem())
}
