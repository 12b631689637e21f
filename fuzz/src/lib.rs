//! What strangers' bytes go through. Each function takes any bytes and must come back; what must
//! hold of the answer is asserted. `crates/blindai-verify/tests/corpus.rs` runs the kept inputs
//! through the same functions with an ordinary compiler.

use std::sync::LazyLock;

use blindai_core::legacy::{Payload, Piece, Proof, RunModel, SendModel, numbers, read_reply};
use blindai_core::oip::grpc::{
    decode_infer, decode_load, decode_model, encode_infer, encode_stream_infer, request_id,
};
use blindai_core::oip::{
    InferResponse, Room, classify_outputs, decode_request, decode_response, encode_request,
    encode_response,
};
use blindai_core::receipt::SignedStatement;
use blindai_core::{
    Claims, Collateral, DType, DcapCollateral, Evidence, EvidenceDocument, SnpCollateral,
};
use blindai_verify::{
    Binding, Policy, appraise_quote, observe, read_certificate, read_foreign_certificate, verify,
};

/// A quote of SGX or TDX, with collateral that fits real machines of the corpus.
pub fn quote(data: &[u8]) {
    let policy = Policy::dangerous().accept_simulation();
    // Nothing simulated is in the corpus, so nothing can be accepted.
    assert!(appraise_quote(data, &DCAP, &policy, NOW).is_err());
    look(data, Some(&DCAP));
    look(data, None);
}

/// A report of SEV-SNP; a certificate of its signer may follow.
pub fn report(data: &[u8]) {
    let (report, signer) = data.split_at(data.len().min(SNP_REPORT_BYTES));
    let collateral = Collateral::Snp(SnpCollateral {
        signer: String::from_utf8_lossy(signer).into_owned(),
        issuer_chain: None,
        crl: None,
    });
    let policy = Policy::accept_nothing();
    assert!(appraise_quote(report, &collateral, &policy, NOW).is_err());
    look(report, Some(&collateral));
}

/// A certificate; else the value of an extension in one.
pub fn certificate(data: &[u8]) {
    if let Ok(read) = read_certificate(data) {
        let _ = read.check_binding();
    }
    if let Ok(read) = read_foreign_certificate(data) {
        let _ = read.check_binding();
    }
    for read in [Evidence::from_extension, Evidence::from_cmw] {
        if let Ok(evidence) = read(data) {
            let (_, again) = evidence.to_extension();
            assert!(again.len() <= data.len() + 64);
        }
    }
}

/// An encoded claims map.
pub fn claims(data: &[u8]) {
    if let Ok(claims) = Claims::decode(data) {
        assert_eq!(Claims::decode(&claims.encode()), Ok(claims));
    }
}

/// A receipt. What was read has no second form.
pub fn receipt(data: &[u8]) {
    let Ok(read) = SignedStatement::decode(data) else {
        return;
    };
    let statement = &read.statement;
    let again = statement.sign(&[0; 32], |_| vec![0; 64]);
    let again = again.expect("what was read is short enough");
    let again = SignedStatement::decode(&again).expect("our own receipt");
    assert_eq!(&again.statement, statement);
    let _ = statement.to_json().to_string();
}

/// A policy file.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Policy::from_toml(text) {
        Ok(policy) => assert!(!policy.accepts_simulation()),
        Err(error) => assert!(!error.problems().is_empty()),
    }
}

/// An evidence document, with whatever collateral it brings.
pub fn document(data: &[u8]) {
    let Ok(document) = EvidenceDocument::from_json(data) else {
        return;
    };
    let again = EvidenceDocument::from_json(&document.to_json());
    assert_eq!(again.as_ref(), Ok(&document));
    let evidence = document.evidence();
    look(&evidence.quote, document.collateral.as_ref());
    let Some(collateral) = &document.collateral else {
        return;
    };
    let binding = Binding {
        tls_spki_sha256: Some([0; 32]),
        nonce: None,
    };
    let policy = Policy::accept_nothing();
    assert!(verify(&evidence, collateral, &binding, &policy, NOW).is_err());
}

/// A message of `inference.GRPCInferenceService`.
pub fn grpc(data: &[u8]) {
    let message = bytes::Bytes::copy_from_slice(data);
    let _ = decode_model(message.clone());
    let _ = decode_load(message.clone());
    let id = request_id(message.clone());
    let mut asked = 0;
    let room: Room<'_> = &mut |bytes| take(&mut asked, bytes, data);
    let Ok(call) = decode_infer(message, room) else {
        return;
    };
    assert_eq!(call.request.id.unwrap_or_default(), id.unwrap_or_default());
    let inputs = call.request.inputs.iter();
    let held: usize = inputs.map(|input| input.tensor.data().len()).sum();
    assert!(held as u64 <= asked.max(data.len() as u64));
    // What came in may go out.
    let mut response = InferResponse {
        id: None,
        model_name: call.model.name,
        model_version: call.model.version,
        outputs: call.request.inputs,
        receipt: None,
    };
    let request = blindai_core::oip::InferRequest {
        outputs: call.request.outputs,
        ..blindai_core::oip::InferRequest::new(Vec::new())
    };
    let _ = classify_outputs(&request, &mut response);
    let again = decode_model(encode_infer(&response).concat().into()).expect("our own message");
    assert_eq!(again.name, response.model_name);
    assert!(!encode_stream_infer(&response).concat().is_empty());
}

/// Gives room for what a message becomes, of which no byte is more than a number.
fn take(asked: &mut u64, bytes: u64, message: &[u8]) -> blindai_core::Result<()> {
    *asked += bytes;
    assert!(
        *asked <= 8 * message.len() as u64,
        "a byte became more than a number"
    );
    Ok(())
}

/// A request of the Open Inference Protocol over HTTP: JSON, and from the first zero byte on tensors.
pub fn http(data: &[u8]) {
    let body = bytes::Bytes::copy_from_slice(data);
    let header_length = data.iter().position(|&byte| byte == 0);
    let mut asked = 0;
    let room: Room<'_> = &mut |bytes| take(&mut asked, bytes, data);
    let Ok(request) = decode_request(body, header_length, room) else {
        return;
    };
    let inputs = request.inputs.iter();
    let held: usize = inputs.map(|input| input.tensor.data().len()).sum();
    assert!(held as u64 <= asked + data.len() as u64);
    // What came in may go out, and is the same when it is read again.
    let sent = encode_request(&request);
    let read = decode_request(sent.parts.concat().into(), sent.header_length, &mut |_| {
        Ok(())
    });
    assert_eq!(read.expect("our own request").inputs, request.inputs);
    let response = InferResponse {
        id: request.id.clone(),
        model_name: "m".into(),
        model_version: None,
        outputs: request.inputs.clone(),
        receipt: None,
    };
    let format = |output: &str| request.format_of(output);
    if let Ok(sent) = encode_response(&response, format, &mut |_| Ok(())) {
        let read = decode_response(sent.parts.concat().into(), sent.header_length);
        assert_eq!(read.expect("our own answer").outputs, response.outputs);
    }
}

/// A message or file of BlindAI 0.3, or a list of numbers.
pub fn legacy(data: &[u8]) {
    let message = bytes::Bytes::copy_from_slice(data);
    if let Ok((head, data)) = SendModel::read(message.clone()) {
        assert_eq!(SendModel::read(head.write(&data)), Ok((head, data)));
    }
    if let Ok((head, data)) = RunModel::read(message.clone()) {
        assert_eq!(RunModel::read(head.write(&data)), Ok((head, data)));
    }
    if let Ok(payload) = Payload::read(message.clone()) {
        assert_eq!(Payload::read(payload.write()), Ok(payload));
    }
    let _ = read_reply(message.clone());
    let proof = Proof::read(message);
    assert!(proof.map_or(0, |proof| proof.payload.len()) <= data.len());
    let Ok(count) = numbers::each(data, |_, _| Ok(())) else {
        return;
    };
    for dtype in [
        DType::F32,
        DType::F64,
        DType::I32,
        DType::I64,
        DType::U32,
        DType::U64,
    ] {
        if let Ok(tensor) = numbers::to_tensor(data, dtype, &[count]) {
            let list = numbers::from_tensor(&tensor).expect("a type of 0.3");
            assert!(list.len() as u64 <= numbers::list_bytes(&tensor));
            let again = numbers::to_tensor(&list, dtype, &[count]).expect("our own list");
            assert_eq!(again.len(), tensor.len());
        }
    }
}

/// The policy that is written from an observation must compile, whatever the evidence says.
fn look(quote: &[u8], collateral: Option<&Collateral>) {
    let Ok(observation) = observe(quote, collateral, NOW) else {
        return;
    };
    let text = observation.to_policy_toml();
    let policy = Policy::from_toml(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let _ = policy.differences(&observation);
    let _ = observation.to_string();
}

static DCAP: LazyLock<Collateral> = LazyLock::new(|| {
    let json = include_bytes!("../../testdata/evidence/collateral/tdx_b0c06f_2025-06.json");
    let collateral: DcapCollateral = serde_json::from_slice(json).expect("kept collateral");
    collateral.into()
});

/// A time at which the kept collateral is valid, in seconds since 1970.
const NOW: u64 = 1_751_600_000;
const SNP_REPORT_BYTES: usize = 1184;
