//! Long transfers: flow control, and bounded buffers.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt, copy_bidirectional, duplex, split},
    time::timeout,
};

use super::{SOCKET, Stage, VERSIONS, pattern, read, rest};
use crate::process::PATIENCE;

/// A transfer that fits into no buffer.
const LONG: usize = 8 << 20;
/// More bytes than all buffers of one direction hold.
const HELD_MAX: usize = 3 << 19;

/// Writes all bytes and counts those that were taken.
async fn write_counted(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8], count: &mut usize) {
    while *count < bytes.len() {
        *count += stream.write(&bytes[*count..]).await.unwrap();
    }
    stream.flush().await.unwrap();
}
#[tokio::test]
async fn server_that_is_not_read_is_held_up_while_this_side_writes() {
    for version in VERSIONS {
        let stage = Stage::start(version).await;
        let (mut near, far) = stage.open_pair().await;
        let data = pattern(LONG);
        let (mut reads, mut writes) = split(far);
        let mut written = 0;
        {
            let mut serve = pin!(write_counted(&mut writes, &data, &mut written));
            let upload = async {
                near.write_all(&data).await.unwrap();
                near.flush().await.unwrap();
            };
            let both = async { tokio::join!(upload, read(&mut reads, LONG)) };
            let heard = tokio::select! {
                ((), heard) = both => heard,
                () = &mut serve => panic!("everything was buffered"),
            };
            assert!(heard == data, "{version:?}");
            // The server goes on once it is read.
            let ((), heard) = tokio::join!(serve, read(&mut near, LONG));
            assert!(heard == data, "{version:?}");
        }
        assert_eq!(written, LONG);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writer_is_held_up_by_a_server_that_does_not_read() {
    for version in VERSIONS {
        let stage = Stage::start(version).await;
        let (near, mut far) = stage.open_pair().await;
        let data = pattern(LONG);
        // The two halves are polled by two tasks.
        let (mut reads, mut writes) = split(near);
        let reader = tokio::spawn(async move { (read(&mut reads, LONG).await, reads) });
        let (taken, upload) = (Arc::new(AtomicUsize::new(0)), data.clone());
        let count = Arc::clone(&taken);
        let writer = tokio::spawn(async move {
            for piece in upload.chunks(10_000) {
                writes.write_all(piece).await.unwrap();
                count.fetch_add(piece.len(), Ordering::Relaxed);
            }
            writes.shutdown().await.unwrap();
        });
        timeout(PATIENCE, far.write_all(&data))
            .await
            .unwrap()
            .unwrap();
        far.flush().await.unwrap();
        let (heard, mut reads) = timeout(PATIENCE, reader).await.unwrap().unwrap();
        assert!(heard == data, "{version:?}");
        let taken = taken.load(Ordering::Relaxed);
        assert!(taken < HELD_MAX, "{version:?}: {taken}");
        // The records of the upload are all read, and the peer's tickets too.
        assert!(rest(&mut far).await == data, "{version:?}");
        far.shutdown().await.unwrap();
        assert!(rest(&mut reads).await.is_empty());
        timeout(PATIENCE, writer).await.unwrap().unwrap();
        stage.ended(true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_bidirectional_carries_half_closes() {
    for version in VERSIONS {
        let stage = Stage::start(version).await;
        let (mut near, mut far) = stage.pair().await;
        let (mut local, mut proxied) = duplex(SOCKET);
        let data = pattern(1 << 20);
        let proxy = async { copy_bidirectional(&mut proxied, &mut near).await.unwrap() };
        let serve = async {
            let heard = rest(&mut far).await;
            far.write_all(&heard).await.unwrap();
            far.shutdown().await.unwrap();
        };
        let client = async {
            local.write_all(&data).await.unwrap();
            local.shutdown().await.unwrap();
            rest(&mut local).await
        };
        let all = async { tokio::join!(proxy, serve, client) };
        let (copied, (), heard) = timeout(PATIENCE, all).await.expect("an end");
        assert_eq!(copied, (1 << 20, 1 << 20));
        assert!(heard == data);
        drop(near);
        stage.ended(true).await;
    }
}
