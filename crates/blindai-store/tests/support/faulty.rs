//! A backend that fails at one of its calls, or from there on.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, stream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::Backend;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call is not made, and none after it: as after kill -9.
    Stop,
    /// The call is made, its answer is lost, and none is made after it.
    StopAfter,
    /// This call is not made.
    Refuse,
    /// This call is made, and its answer is lost.
    LoseAnswer,
}

/// Counts the calls that change something or could fail, and spoils the chosen one.
#[derive(Clone)]
pub struct Faulty(Arc<State>);

struct State {
    inner: Backend,
    calls: AtomicUsize,
    at: usize,
    fault: Fault,
}

impl Faulty {
    pub fn new(inner: Backend, at: usize, fault: Fault) -> Self {
        let calls = AtomicUsize::new(0);
        Self(Arc::new(State {
            inner,
            calls,
            at,
            fault,
        }))
    }

    pub fn calls(&self) -> usize {
        self.0.calls.load(Ordering::SeqCst)
    }

    /// Makes the call, if it is to be made, and gives back its answer, if it is to be heard.
    async fn call<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let number = self.0.calls.fetch_add(1, Ordering::SeqCst);
        let (chosen, after) = (number == self.0.at, number > self.0.at);
        match self.0.fault {
            Fault::Stop if chosen || after => Err(spoiled()),
            Fault::StopAfter if after => Err(spoiled()),
            Fault::Refuse if chosen => Err(spoiled()),
            Fault::StopAfter | Fault::LoseAnswer if chosen => {
                let _ = call.await;
                Err(spoiled())
            }
            _ => call.await,
        }
    }
}

fn spoiled() -> Error {
    Error::Generic {
        store: "faulty",
        source: "no answer".into(),
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, load: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.call(self.0.inner.put_opts(path, load, opts)).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self
            .call(self.0.inner.put_multipart_opts(path, opts))
            .await?;
        let faulty = self.clone();
        Ok(Box::new(Upload { inner, faulty }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.call(self.0.inner.get_opts(path, options)).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.call(self.0.inner.get_ranges(path, ranges)).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let faulty = self.clone();
        let deleted = paths.then(move |path| {
            let faulty = faulty.clone();
            async move {
                let path = path?;
                let inner = faulty.0.inner.clone();
                let one = stream::once(async { Ok(path) }).boxed();
                let mut deleted = inner.delete_stream(one);
                faulty
                    .call(async { deleted.next().await.expect("one path, one answer") })
                    .await
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (faulty, prefix) = (self.clone(), prefix.cloned());
        let listed = stream::once(async move {
            let inner = faulty.0.inner.clone();
            faulty.call(async { Ok(inner.list(prefix.as_ref())) }).await
        });
        let listed = listed.map(|listed| match listed {
            Ok(listed) => listed,
            Err(error) => stream::once(async { Err(error) }).boxed(),
        });
        listed.flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.call(self.0.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.call(self.0.inner.copy_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct Upload {
    inner: Box<dyn MultipartUpload>,
    faulty: Faulty,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, faulty) = (self.inner.put_part(data), self.faulty.clone());
        Box::pin(async move { faulty.call(part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let faulty = self.faulty.clone();
        faulty.call(self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        let faulty = self.faulty.clone();
        faulty.call(self.inner.abort()).await
    }
}
