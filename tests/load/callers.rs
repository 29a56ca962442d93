//! A daemon with a listener of each kind, and callers with each role at them.

use std::{fs, fs::Permissions, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::{
    binary::Binary,
    frames::Raw,
    pki::{Authority, Leaf},
};

/// A listener, and the role that the caller has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Over loopback, without a role.
    Loopback,
    /// Over the Unix socket, as a worker.
    Unix,
    /// Over mutual TLS, with a certificate for this name, which is also the role. `none` has no
    /// role.
    Tls(&'static str),
}

/// Every listener, with every role.
pub(crate) const CALLERS: [Caller; 6] = [
    Caller::Loopback,
    Caller::Unix,
    Caller::Tls("none"),
    Caller::Tls("worker"),
    Caller::Tls("observer"),
    Caller::Tls("admin"),
];

impl Caller {
    pub(crate) fn has_role(self) -> bool {
        !matches!(self, Self::Loopback | Self::Tls("none"))
    }

    pub(crate) fn is_worker(self) -> bool {
        matches!(self, Self::Unix | Self::Tls("worker"))
    }
}

/// The daemon, with its certificates and addresses.
pub(crate) struct Guarded {
    pub(crate) daemon: Binary,
    authority: Authority,
    tls: String,
    socket: PathBuf,
    _folder: TempDir,
}

impl Guarded {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let authority = Authority::new("callers");
        authority
            .leaf(&["localhost"])
            .write(folder.path(), "server");
        fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        let uid = rustix::process::getuid().as_raw();
        let rule = |identity: &str, role: &str| {
            format!(
                "[[access]]\nidentity = \"{identity}\"\ncontexts = [\"*\"]\nrole = \"{role}\"\n"
            )
        };
        let text = format!(
            "[listen.tls]\ncertificate = \"server.crt\"\nkey = \"server.key\"\nclient_ca = \"ca.pem\"\n{}{}{}{}",
            rule(&format!("uid:{uid}"), "worker"),
            rule("dns:worker", "worker"),
            rule("dns:observer", "observer"),
            rule("dns:admin", "admin")
        );
        let config = folder.path().join("daemon.toml");
        fs::write(&config, text).unwrap();
        let socket = folder.path().join("api.sock");
        // `Binary::start` waits for the last listener.
        let api = format!(
            "listen.api=[\"tls://127.0.0.1:0\", \"unix://{}\", \"tcp://127.0.0.1:0\"]",
            socket.display()
        );
        let daemon = Binary::start(&["--config", config.to_str().unwrap(), "--set", &api]).await;
        let tls = daemon
            .greeting
            .lines()
            .find_map(|line| line.strip_prefix("listening on tls://"));
        Self {
            tls: tls.unwrap().to_owned(),
            daemon,
            authority,
            socket,
            _folder: folder,
        }
    }

    /// Opens a connection of this caller, with this window for each of its streams.
    pub(crate) async fn raw(&self, caller: Caller, window: u32) -> Raw {
        match caller {
            Caller::Loopback => Raw::connect(&self.daemon.address, window).await,
            Caller::Unix => {
                Raw::over(UnixStream::connect(&self.socket).await.unwrap(), window).await
            }
            Caller::Tls(name) => {
                let connector =
                    TlsConnector::from(Arc::new(self.client(&self.authority.leaf(&[name]))));
                let socket = TcpStream::connect(&self.tls).await.unwrap();
                let stream = connector
                    .connect("localhost".try_into().unwrap(), socket)
                    .await
                    .unwrap();
                Raw::over(stream, window).await
            }
        }
    }

    fn client(&self, leaf: &Leaf) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).unwrap())
            .unwrap();
        let chain = vec![CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots);
        let mut config = config.with_client_auth_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}
