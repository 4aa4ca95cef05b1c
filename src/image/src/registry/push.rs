//! Giving a registry what it does not have (OCI distribution-spec, "Push").

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oci_client::errors::OciDistributionError;

use super::{RETRIES, Repository, may_pass, pause, silence};
use crate::source::SourceError;
use crate::{Digest, Event, Progress};

/// How long a registry may take nothing of a blob, or think about one that it has got: some carry it
/// on to another store first.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at how far an upload is.
const TICK: Duration = Duration::from_millis(100);
const BUFFER: usize = 256 << 10;

/// A blob that a registry is to have.
pub(crate) struct Upload {
    pub(crate) digest: Digest,
    /// By what it is named in events: a layer's diff id.
    pub(crate) id: Digest,
    pub(crate) size: u64,
    pub(crate) path: PathBuf,
    /// Other repositories of the registry that may have it.
    pub(crate) mounts: Vec<String>,
}

impl Repository {
    /// Whether the repository has the blob.
    pub(crate) fn has(&self, digest: &Digest) -> Result<bool, SourceError> {
        let digest = digest.to_string();
        self.call(async |client| client.blob_exists(&self.reference, &digest).await)
    }

    /// Has the registry take the blob from another of its repositories; says from which. None where
    /// it can't or won't: not every registry does, nor for everybody.
    pub(crate) fn mount<'a>(&self, blob: &'a Upload) -> Option<&'a str> {
        let digest = blob.digest.to_string();
        let mounted = blob.mounts.iter().find(|from| {
            let source = oci_client::Reference::with_tag(
                self.name.registry.clone(),
                (*from).clone(),
                String::new(),
            );
            let request = self
                .call(async |client| client.mount_blob(&self.reference, &source, &digest).await);
            match request {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(%error, from, "a blob is not mounted");
                    false
                }
            }
        });
        mounted.map(String::as_str)
    }

    /// Sends a blob.
    pub(crate) fn upload(&self, blob: &Upload, progress: &dyn Progress) -> Result<(), SourceError> {
        let mut failures = 0;
        loop {
            let file = File::open(&blob.path).map_err(SourceError::open(&blob.path))?;
            progress.event(Event::LayerStarted {
                diff_id: &blob.id,
                total: blob.size,
            });
            let sent = Arc::new(AtomicU64::new(0));
            let chunks = futures_util::stream::iter(Chunks {
                file,
                sent: sent.clone(),
            });
            let digest = blob.digest.to_string();
            let session = self.session()?;
            let push =
                session
                    .client
                    .push_blob_stream(&self.reference, chunks, &digest, Some(blob.size));
            let report = |bytes| {
                let diff_id = &blob.id;
                progress.event(Event::LayerBytes { diff_id, bytes });
            };
            match session.wait(watched(push, &sent, &report)) {
                Ok(_) => {
                    self.give_back(session);
                    return Ok(());
                }
                Err(error) if failures < RETRIES && may_pass(&error) => {
                    tracing::debug!(%error, "a blob is sent again");
                    pause(failures);
                    failures += 1;
                }
                Err(error) => return Err(self.error(error)),
            }
        }
    }

    /// Sets the manifest that the tag stands for.
    pub(crate) fn put_manifest(
        &self,
        manifest: &[u8],
        media_type: &str,
    ) -> Result<(), SourceError> {
        self.call(async |client| {
            let content_type = media_type.parse().map_err(|_| {
                OciDistributionError::UnsupportedMediaTypeError(media_type.to_owned())
            })?;
            let request =
                client.push_manifest_raw(&self.reference, manifest.to_vec(), content_type);
            request.await.map(drop)
        })
    }
}

/// Waits for an upload as long as it goes on.
async fn watched<T>(
    upload: impl Future<Output = Result<T, OciDistributionError>>,
    sent: &AtomicU64,
    report: &dyn Fn(u64),
) -> Result<T, OciDistributionError> {
    let mut upload = pin!(upload);
    let mut reported = 0;
    let mut last = Instant::now();
    loop {
        let finished = tokio::time::timeout(TICK, &mut upload).await;
        let bytes = sent.load(Ordering::Relaxed);
        if bytes > reported {
            report(bytes - reported);
            reported = bytes;
            last = Instant::now();
        }
        match finished {
            Ok(result) => return result,
            Err(_) if last.elapsed() > UPLOAD_PATIENCE => return Err(silence()),
            Err(_) => {}
        }
    }
}

/// A file, piece by piece.
struct Chunks {
    file: File,
    /// Bytes that were handed on.
    sent: Arc<AtomicU64>,
}

impl Iterator for Chunks {
    type Item = Result<bytes::Bytes, OciDistributionError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut buffer = vec![0; BUFFER];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return None,
                Ok(read) => {
                    buffer.truncate(read);
                    self.sent.fetch_add(read as u64, Ordering::Relaxed);
                    return Some(Ok(buffer.into()));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}
