//! What requests are sent to.

use anyhow::Result;
use blindai_client::{Client, PreparedRequest, blocking};

/// A server that takes one and the same request again and again.
pub trait Target {
    /// Sends the request and waits for the whole answer.
    ///
    /// # Errors
    /// A [`blindai_client::ClientError`] or a [`super::peer::PeerError`], for their codes.
    async fn send(&self) -> Result<()>;
}

/// A BlindAI server that proved itself.
pub struct Attested {
    client: Client,
    request: PreparedRequest,
    alone: bool,
}

impl Attested {
    /// `alone`: no other request is in progress meanwhile, so that the thread may stay awake for the
    /// answer, as the blocking client does.
    pub fn new(client: Client, request: PreparedRequest, alone: bool) -> Self {
        Self {
            client,
            request,
            alone,
        }
    }
}

impl Target for Attested {
    async fn send(&self) -> Result<()> {
        let answer = self.client.infer_prepared(&self.request);
        match self.alone {
            true => blocking::awake(answer).await?,
            false => answer.await?,
        };
        Ok(())
    }
}
