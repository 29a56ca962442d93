//! How a connection of an engine ends, and which sessions stay.

use std::io::ErrorKind;

use rustls::{AlertDescription, version::TLS13};
use tokio::{
    io::{AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
    Near, SOCKET, Stage, VERSIONS, acceptor_of, localhost, pattern, read, read_error, rest,
};
use crate::{pki::Authority, process::PATIENCE};

#[tokio::test]
async fn end_without_close_notify_is_an_error_and_removes_the_sessions() {
    for version in VERSIONS {
        let stage = Stage::start(version).await;
        let (mut near, far) = stage.open_pair().await;
        drop(far);
        let error = read_error(&mut near).await;
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
        let error = near.shutdown().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
        stage.ended(false).await;
    }
}

#[tokio::test]
async fn reset_is_an_error_and_removes_the_sessions() {
    for version in VERSIONS {
        let stage = Stage::start(version).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(socket, listener.accept());
        let far = far.unwrap().0;
        far.set_zero_linger().unwrap();
        let connect = stage.engine.connect(near.unwrap(), localhost());
        let (near, far) = tokio::join!(connect, stage.acceptor.accept(far));
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        far.write_all(b"!").await.unwrap();
        assert_eq!(read(&mut near, 1).await, b"!");
        assert!(stage.sessions() > 0);
        drop(far);
        let error = read_error(&mut near).await;
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        stage.ended(false).await;
    }
}

#[tokio::test]
async fn stream_that_is_dropped_open_removes_the_sessions() {
    for version in VERSIONS {
        let stage = Stage::start(version).await;
        let (near, _far) = stage.open_pair().await;
        drop(near);
        stage.ended(false).await;
    }
}

#[tokio::test]
async fn stream_that_was_shut_down_keeps_the_sessions() {
    for version in VERSIONS {
        let stage = Stage::start(version).await;
        let (mut near, mut far) = stage.open_pair().await;
        timeout(PATIENCE, near.shutdown()).await.unwrap().unwrap();
        assert!(rest(&mut far).await.is_empty(), "the close_notify has come");
        let error = near.write_all(b"late").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        drop(near);
        stage.ended(true).await;
    }
}

#[tokio::test]
async fn each_side_writes_after_the_other_has_closed() {
    for version in VERSIONS {
        let stage = Stage::start(version).await;
        let data = pattern(200 << 10);

        // The server has closed, and its socket has ended.
        let (mut near, mut far) = stage.open_pair().await;
        far.shutdown().await.unwrap();
        assert!(rest(&mut near).await.is_empty());
        let write = async {
            near.write_all(&data).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let ((), heard) = tokio::join!(write, rest(&mut far));
        assert!(heard == data, "{version:?}");
        assert!(rest(&mut near).await.is_empty());

        // The engine has closed.
        let (mut near, mut far) = stage.open_pair().await;
        near.shutdown().await.unwrap();
        let write = async {
            far.write_all(&data).await.unwrap();
            far.shutdown().await.unwrap();
        };
        let ((), heard) = tokio::join!(write, rest(&mut near));
        assert!(heard == data, "{version:?}");
        assert!(stage.daemon.core.connections().is_empty());
        stage.ended(true).await;
    }
}

#[tokio::test]
async fn server_that_goes_after_its_close_notify_leaves_the_sessions() {
    for version in VERSIONS {
        let stage = Stage::start(version).await;
        let (mut near, mut far) = stage.open_pair().await;
        far.shutdown().await.unwrap();
        drop(far);
        assert!(rest(&mut near).await.is_empty());
        // The socket takes no close_notify any more.
        timeout(PATIENCE, near.shutdown()).await.unwrap().unwrap();
        drop(near);
        stage.ended(true).await;
    }
}

#[tokio::test]
async fn refused_certificate_is_told_to_the_server_and_the_caller() {
    for version in VERSIONS {
        let stage = Stage::start(version).await;
        let stranger = Authority::new("a stranger").leaf(&["localhost"]);
        let stranger = acceptor_of(&stranger, version);
        let (near, far) = duplex(SOCKET);
        let connect = stage.engine.connect(near, localhost());
        let (refused, told) = tokio::join!(connect, stranger.accept(far));
        let refused = refused.err().expect("the certificate is not trusted");
        let text = "this side sent the fatal alert unknown_ca (48)";
        assert_eq!(refused.to_string(), text, "{version:?}");
        let told = told.expect_err("an alert");
        let told: &rustls::Error = told.get_ref().unwrap().downcast_ref().unwrap();
        let alert = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        assert_eq!(*told, alert, "{version:?}");
    }
}

#[tokio::test]
async fn alert_of_the_server_is_named() {
    let stage = Stage::start(&TLS13).await;
    let (mut near, far) = stage.open_pair().await;
    // A record that no key decrypts makes the engine send an alert.
    let (mut socket, _) = far.into_inner();
    let junk = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
    socket.write_all(&junk).await.unwrap();
    let error = read_error(&mut near).await;
    assert!(
        error
            .to_string()
            .contains("this side sent the fatal alert bad_record_mac")
    );
    assert!(!rest_of(&mut socket, near).await.is_empty(), "the alert");
    stage.ended(false).await;

    // A server that speaks no version of the client.
    let (near, mut far) = duplex(SOCKET);
    let refuse = async {
        read(&mut far, 5).await;
        far.write_all(&[21, 3, 3, 0, 2, 2, 40]).await.unwrap();
        far
    };
    let (refused, _far) = tokio::join!(stage.engine.connect(near, localhost()), refuse);
    let refused = refused.err().expect("a refusal");
    let text = "the peer sent the fatal alert handshake_failure (40)";
    assert_eq!(refused.to_string(), text);
}

/// Drops a stream, and returns what its peer still gets.
async fn rest_of(socket: &mut DuplexStream, stream: Near) -> Vec<u8> {
    drop(stream);
    rest(socket).await
}
