macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $remedy:literal;)*) => {
        /// Why evidence was refused. The texts never change meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum RejectionCode { $($(#[$doc])* $name,)* }

        impl RejectionCode {
            /// Every code, for documentation and tests.
            pub const ALL: &'static [RejectionCode] = &[$(RejectionCode::$name,)*];

            /// The stable text.
            pub fn as_str(self) -> &'static str {
                match self { $(RejectionCode::$name => $text,)* }
            }

            /// The usual remedy.
            pub fn remedy(self) -> &'static str {
                match self { $(RejectionCode::$name => $remedy,)* }
            }
        }
    };
}

codes! {
    /// The server's certificate cannot be read, or carries no evidence or more than one.
    CertificateMalformed = "certificate-malformed", "connect to the attested port of a BlindAI server (50051 by default)";
    /// The bytes are no quote of SGX or TDX and no report of SEV-SNP, or they are cut.
    QuoteMalformed = "quote-malformed", "give a quote or report as the hardware made it; this one is cut, or is something else";
    /// The quote is of a version, key type or vendor that is not appraised.
    QuoteUnsupported = "quote-unsupported", "update the verifier, or configure the server's platform for signed quotes of a known kind (SGX and TDX: ECDSA P-256)";
    /// The quote comes from a kind of TEE that the policy does not accept.
    TeeNotAccepted = "tee-not-accepted", "add the kind and its measurements to the policy if you accept it";
    /// The evidence is simulated and the policy accepts only hardware.
    TrustRootSimulation = "trust-root-simulation", "connect to a server on TEE hardware; for tests only, ask for simulation by name: it protects nothing";
    /// The evidence is of hardware and the policy accepts only the simulation.
    TrustRootHardware = "trust-root-hardware", "give a policy with the measurement you expect, and do not ask for simulation";
    /// The quote or its collateral leads to none of the roots that are known.
    TrustRootUnknown = "trust-root-unknown", "fetch the collateral from Intel or AMD; a chain that does not end in their roots is not evidence";
    /// A certificate in a chain is malformed or its chain does not hold.
    ChainInvalid = "chain-invalid", "fetch the collateral again";
    /// A certificate was revoked by its issuer.
    CertificateRevoked = "certificate-revoked", "do not use this machine: its keys are known to be compromised";
    /// A certificate in a chain has expired.
    CertificateExpired = "certificate-expired", "fetch the collateral again, and check the clock";
    /// A certificate in a chain is not valid yet.
    CertificateNotYetValid = "certificate-not-yet-valid", "check the clock";
    /// A part of the collateral cannot be read, or is too long.
    CollateralMalformed = "collateral-malformed", "fetch the collateral again";
    /// A part of the collateral is not signed by its issuer.
    CollateralSignature = "collateral-signature", "fetch the collateral again; somebody changed it";
    /// The TCB info or QE identity is past its next update.
    CollateralExpired = "collateral-expired", "fetch the collateral again; a server does it by itself, so ask its operator";
    /// The TCB info or QE identity was issued after the time of verification.
    CollateralNotYetValid = "collateral-not-yet-valid", "check the clock";
    /// The collateral is of another platform or another kind of TEE.
    CollateralMismatch = "collateral-mismatch", "fetch the collateral of this quote's platform";
    /// A revocation list is past its next update.
    CrlExpired = "crl-expired", "fetch the collateral again";
    /// There is no revocation list and the policy requires one.
    CrlMissing = "crl-missing", "fetch the revocation list of the ARK from AMD's key distribution service; a server staples it by itself, so ask its operator";
    /// The quote is not signed by the key that its platform certified.
    QuoteSignature = "quote-signature", "ask for new evidence; these bytes were changed or never came from a TEE";
    /// The quoting enclave is not Intel's.
    QuotingEnclave = "quoting-enclave", "have the platform's DCAP software updated";
    /// The TDX module is not Intel's, or not known in the collateral.
    TdxModule = "tdx-module", "have the platform's TDX module updated";
    /// A TD attribute weakens the TD: migration, service TDs, no SEPT_VE_DISABLE.
    TdAttributes = "td-attributes", "start the TD with secure attributes";
    /// The enclave or TD can be read with a debugger.
    Debug = "debug", "build the enclave or start the TD without debug";
    /// The platform matches no patch level that Intel knows.
    TcbUnknown = "tcb-unknown", "fetch the collateral again, and have the platform's firmware updated";
    /// The platform's patch level is revoked.
    TcbRevoked = "tcb-revoked", "do not use this machine: its keys are known to be compromised";
    /// The platform's patch level is not one the policy accepts.
    TcbStatus = "tcb-status", "have the platform's firmware updated, or accept the status until a date with [[tcb.exceptions]]";
    /// A security advisory applies to the platform and the policy has no exception for it.
    TcbAdvisory = "tcb-advisory", "have the platform's firmware updated, or accept the advisory until a date with [[tcb.exceptions]]";
    /// The collateral is of an older TCB evaluation than the policy asks for.
    TcbEvaluation = "tcb-evaluation", "fetch newer collateral";
    /// A security version of the machine is under the policy's minimum for SEV-SNP.
    TcbMinimum = "tcb-minimum", "have the platform's firmware updated and committed, or lower the minimum in the policy";
    /// The guest of SEV-SNP was started with a policy that allows more than yours: migration, SMT, old firmware, something unknown.
    GuestPolicy = "guest-policy", "start the guest with a stricter guest policy";
    /// The report was asked for at a privilege level (VMPL) that the policy does not allow.
    Vmpl = "vmpl", "if the server runs under a paravisor or SVSM as you planned, put its level in the policy: what runs below its level can read it";
    /// The code that runs is not code that the policy allows.
    MeasurementMismatch = "measurement-mismatch", "if you upgraded the server, put its new measurement in the policy; if not, do not use it";
    /// The code is not signed by a signer that the policy allows, or is too old a version.
    SignerMismatch = "signer-mismatch", "if the signer or version changed as you planned, put it in the policy; if not, do not use the server";
    /// The TEE was not set up as the policy asks: attributes, identities that its host named.
    SetupMismatch = "setup-mismatch", "if you changed how the server is started, put it in the policy; if not, do not use it";
    /// The machine, or what it says of itself, is not one that the policy allows.
    HardwareMismatch = "hardware-mismatch", "if you moved the server to this machine, put it in the policy; if not, do not use it";
    /// The claims cannot be read.
    ClaimsMalformed = "claims-malformed", "update the verifier or the server; their versions do not fit";
    /// The quote was not made for these claims: another server's, or changed.
    ReportDataMismatch = "report-data-mismatch", "do not use this server: it presents a quote that was not made for it";
    /// The TLS key is not the one in the claims: somebody sits in between.
    TlsKeyMismatch = "tls-key-mismatch", "do not use this connection: it does not end inside the TEE; check for proxies that end TLS";
    /// The claims do not carry the nonce that was sent: old evidence.
    NonceMismatch = "nonce-mismatch", "ask for evidence again with a new nonce";
    /// The claims are past their end, or do not say when they end.
    ClaimsExpired = "claims-expired", "ask for new evidence, and check the clock";
    /// The claims were made in the future, or do not say when.
    ClaimsNotYetValid = "claims-not-yet-valid", "check the clock here and on the server";
    /// The server's configuration is not one that the policy allows.
    ConfigMismatch = "config-mismatch", "if the configuration changed as you planned, put its digest in the policy";
    /// The bytes are no receipt.
    ReceiptMalformed = "receipt-malformed", "give the receipt as the server made it; this one was changed, is cut, or is something else";
    /// The receipt names a key that is not in the claims: it is another server's, or of another start.
    ReceiptKey = "receipt-key", "give the evidence of the server that made the receipt, from the same start of it";
    /// The key in the claims did not sign this receipt.
    ReceiptSignature = "receipt-signature", "do not believe this receipt: it was changed, or never came from the server";
    /// The receipt is of another kind than was asked for.
    ReceiptKind = "receipt-kind", "give the receipt of this request";
    /// The receipt was made outside of the time of the evidence, or of the time asked for.
    ReceiptTime = "receipt-time", "give the evidence that the server had when it made the receipt";
    /// The receipt names another server, or another version of it, than the claims.
    ReceiptServer = "receipt-server", "do not believe this receipt: a server of this project writes of itself what stands in its claims";
    /// The receipt names another configuration than the claims.
    ReceiptConfig = "receipt-config", "do not believe this receipt: a server of this project writes of itself what stands in its claims";
    /// The receipt does not carry the nonce that was sent.
    ReceiptNonce = "receipt-nonce", "give the receipt of this request: this one answers another";
    /// The receipt is about another model, or another version or content of it.
    ReceiptModel = "receipt-model", "give the model that ran: the receipt names its digest";
    /// The receipt is about a model that the policy does not accept.
    ReceiptModelNotAccepted = "receipt-model-not-accepted", "if the model was changed as you planned, put its digest in the policy; if not, do not use what it gave";
    /// An input is not the one in the receipt.
    ReceiptInput = "receipt-input", "give the inputs that were sent, bit for bit and under their names";
    /// An output is not the one in the receipt.
    ReceiptOutput = "receipt-output", "give the outputs as they came, bit for bit and under their names";
    /// A check that the policy requires could not be made.
    CheckSkipped = "check-skipped", "give what the check needs, or take the demand out of the policy";
    /// The verifier refused for a reason that has no code of its own.
    AppraisalFailed = "appraisal-failed", "update the verifier; if it stays, report the fact with the evidence";
}
