//! The client's connection to a daemon on another host: mutual TLS.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tls_sessiond_client::{Options, Worker};

use crate::{
    harness::TestDaemon,
    pki::{Authority, Leaf},
    worker_client::{attached, established, found},
};

/// A proxy that terminates mutual TLS in front of a daemon and carries bytes to its loopback
/// address.
async fn behind_mutual_tls(daemon: &TestDaemon, authority: &Authority, leaf: &Leaf) -> SocketAddr {
    let verifier = WebPkiClientVerifier::builder(Arc::new(trust(authority)))
        .build()
        .unwrap();
    let mut config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(leaf), key(leaf))
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let daemon = daemon.address.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let Ok(mut near) = acceptor.accept(socket).await else {
                continue;
            };
            let mut far = tokio::net::TcpStream::connect(&daemon).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    address
}

fn trust(authority: &Authority) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap())
        .unwrap();
    roots
}

fn chain(leaf: &Leaf) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap()]
}

fn key(leaf: &Leaf) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap()
}

#[tokio::test]
async fn rust_client_attaches_only_over_valid_mutual_tls() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let daemon = TestDaemon::start().await;
    let address = behind_mutual_tls(&daemon, &ours, &ours.leaf(&["localhost"])).await;
    let endpoint = format!("https://localhost:{}", address.port());
    let config = |trusted: &Authority, leaf: Option<Leaf>| {
        let config = rustls::ClientConfig::builder().with_root_certificates(trust(trusted));
        match leaf {
            Some(leaf) => config
                .with_client_auth_cert(chain(&leaf), key(&leaf))
                .unwrap(),
            None => config.with_no_client_auth(),
        }
    };
    let tls = |endpoint: &str, config: &rustls::ClientConfig| {
        let mut options = Options::over_tls(endpoint, "openssl", config).unwrap();
        options.lookup_deadline = Duration::from_secs(20);
        options.back_off = (Duration::from_millis(10), Duration::from_millis(50));
        options
    };

    let right = config(&ours, Some(ours.leaf(&["worker"])));
    let worker = attached(tls(&endpoint, &right)).await;
    let connection = established(&worker, b"a");
    connection.shutdown();
    drop(connection);
    assert!(found(&worker, b"a").await);

    let wrong = [
        ("no certificate", endpoint.clone(), config(&ours, None)),
        (
            "a certificate of another authority",
            endpoint.clone(),
            config(&ours, Some(theirs.leaf(&["worker"]))),
        ),
        (
            "a daemon of another authority",
            endpoint.clone(),
            config(&theirs, Some(ours.leaf(&["worker"]))),
        ),
        (
            "a daemon of another name",
            format!("https://127.0.0.1:{}", address.port()),
            config(&ours, Some(ours.leaf(&["worker"]))),
        ),
    ];
    for (what, endpoint, config) in wrong {
        let worker = Worker::connect(tls(&endpoint, &config));
        assert!(!worker.attached(Duration::from_millis(300)).await, "{what}");
        assert!(!found(&worker, b"a").await, "{what}");
    }
    for endpoint in [
        "http://localhost:1",
        "https://",
        "localhost:1",
        "https://a b:1",
    ] {
        assert!(
            Options::over_tls(endpoint, "openssl", &right).is_err(),
            "{endpoint}"
        );
    }
}
