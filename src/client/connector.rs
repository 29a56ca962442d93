//! Connects to a daemon's Unix socket.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{codegen::Service, transport::Uri};

use crate::unix::Unix;

/// Opens this path.
pub(super) struct Connector(pub(super) PathBuf);

impl Service<Uri> for Connector {
    type Response = TokioIo<Unix>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Unix>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move {
            let stream = UnixStream::connect(path).await?.into_std()?;
            Unix::new(stream).map(TokioIo::new)
        })
    }
}
