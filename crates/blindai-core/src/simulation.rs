//! The trust root of the simulation. It protects nothing: its private key is public, in the source
//! of `blindai-tee`. Client and server must name the same root, so its certificate stands here.

/// The self-signed certificate, DER.
pub const ROOT_CERTIFICATE_DER: &[u8] = include_bytes!("simulation_root.der");
/// How the certificate names itself.
pub const ROOT_NAME: &str = "BlindAI Simulation Root - protects nothing";
/// The self-signed certificate in AMD's place (ARK), DER.
pub const ARK_CERTIFICATE_DER: &[u8] = include_bytes!("simulation_ark.der");
/// How that certificate names itself.
pub const ARK_NAME: &str = "BlindAI Simulation ARK - protects nothing";
/// The intermediate under it (ASK), DER.
pub const ASK_CERTIFICATE_DER: &[u8] = include_bytes!("simulation_ask.der");
/// How that certificate names itself.
pub const ASK_NAME: &str = "BlindAI Simulation ASK - protects nothing";
