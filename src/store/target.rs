//! Where the store is, and how a connection to it is opened.

use std::{fmt, fs, io, path::PathBuf, sync::Arc};

use redis::{
    AsyncConnectionConfig, RedisConnectionInfo,
    aio::{AsyncStream, MultiplexedConnection},
};
use rustls::{
    ClientConfig, RootCertStore, crypto::aws_lc_rs::default_provider, pki_types::ServerName,
    sign::SingleCertAndKey,
};
use tls_sessiond_core::pem;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::config::{Config, ConfigError, StoreAddress, StoreConfig};

/// The most bytes of a password file.
const PASSWORD_MAX: u64 = 4096;

/// Why a connection to the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host or its port does not answer.
    #[error("cannot connect to {address}: {error}")]
    Unreachable {
        /// The address, without user and password.
        address: String,
        /// The error of the system.
        error: io::Error,
    },
    /// TLS failed: the certificate of the store is not trusted, or the store does not take ours.
    #[error("TLS with {address} failed: {error}")]
    Tls {
        /// The address.
        address: String,
        /// The error of the handshake.
        error: io::Error,
    },
    /// The store does not accept user and password.
    #[error("{address} refused user and password: {error}")]
    Password {
        /// The address.
        address: String,
        /// What the store said.
        error: String,
    },
    /// The store does not let this user run a command that every daemon runs.
    #[error("{address} forbids a command: {error}")]
    Forbidden {
        /// The address.
        address: String,
        /// What the store said.
        error: String,
    },
    /// The store does not accept the certificate of this daemon, or misses it.
    #[error("TLS with {address} failed: {error}")]
    Certificate {
        /// The address.
        address: String,
        /// The error of the handshake.
        error: String,
    },
    /// What answers does not behave as Redis or Valkey.
    #[error("{address} does not answer as Redis 7 or Valkey does: {error}")]
    Protocol {
        /// The address.
        address: String,
        /// What is wrong.
        error: String,
    },
}

impl OpenError {
    /// Returns the key of `store.redis` that the error is about.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::Protocol { .. } => "urls",
            Self::Tls { .. } => "ca",
            Self::Certificate { .. } => "certificate",
            Self::Forbidden { .. } => "user",
            Self::Password { .. } => "password_file",
        }
    }

    /// Returns whether the store may be reached later with the same configuration. Otherwise a daemon
    /// does not start.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// A store, and all that a connection to it needs. The files are read once.
pub struct Target {
    address: StoreAddress,
    database: i64,
    user: Option<String>,
    password: Option<Zeroizing<String>>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.address)
    }
}

impl Target {
    /// Reads the files that the configuration of the store names.
    ///
    /// # Errors
    /// Names the key, the file and the fault.
    pub fn read(config: &Config, store: &StoreConfig) -> Result<Self, ConfigError> {
        let password = match &store.password_file {
            None => None,
            Some(path) => {
                Some(password(path).map_err(|why| config.store_error("redis.password_file", why))?)
            }
        };
        let tls = match &store.address {
            StoreAddress::Tls { host, .. } => Some(tls(config, store, host)?),
            StoreAddress::Plain { .. } | StoreAddress::Unix(_) => None,
        };
        Ok(Self {
            address: store.address.clone(),
            database: store.database,
            user: store.user.clone(),
            password,
            tls,
        })
    }

    /// Returns whether connections are over TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Returns the address, without user and password.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Opens a connection. Its driver runs as a task of the present runtime.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(super) async fn open(&self) -> Result<MultiplexedConnection, OpenError> {
        let unreachable = |error| OpenError::Unreachable {
            address: self.address(),
            error,
        };
        match (&self.address, &self.tls) {
            (StoreAddress::Unix(path), _) => {
                let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                self.greet(stream).await
            }
            (StoreAddress::Plain { host, port } | StoreAddress::Tls { host, port }, tls) => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                match tls {
                    None => self.greet(stream).await,
                    Some((connector, name)) => {
                        let stream = connector.connect(name.clone(), stream).await;
                        let stream = stream.map_err(|error| self.tls_failed(error))?;
                        self.greet(stream).await
                    }
                }
            }
        }
    }

    async fn greet(
        &self,
        stream: impl AsyncStream + Unpin + Send + 'static,
    ) -> Result<MultiplexedConnection, OpenError> {
        // The daemon sends user, password and database itself: the crate replaces each error of AUTH by
        // a wrong password.
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let settings = AsyncConnectionConfig::new().set_response_timeout(None);
        let opened = MultiplexedConnection::new_with_config(&info, stream, settings).await;
        let (mut connection, driver) = opened.map_err(|err| self.refused(&err))?;
        tokio::spawn(driver);
        if let Some(password) = &self.password {
            let mut auth = redis::cmd("AUTH");
            if let Some(user) = &self.user {
                auth.arg(user);
            }
            auth.arg(password.as_str());
            let accepted = auth.exec_async(&mut connection).await;
            accepted.map_err(|err| self.unaccepted(&err))?;
        }
        if self.database != 0 {
            let mut select = redis::cmd("SELECT");
            let selected = select.arg(self.database).exec_async(&mut connection).await;
            selected.map_err(|err| self.refused(&err))?;
        }
        Ok(connection)
    }

    /// Returns what an error of AUTH means.
    fn unaccepted(&self, err: &redis::RedisError) -> OpenError {
        match err.code() {
            // Also of a server without a password, and of one that does not know users.
            Some("ERR") if !err.to_string().contains("max number of clients") => {
                OpenError::Password {
                    address: self.address(),
                    error: err.to_string(),
                }
            }
            _ => self.refused(err),
        }
    }

    /// Returns what an error of a handshake means: one of rustls stays, and one of the network may
    /// pass.
    fn tls_failed(&self, error: io::Error) -> OpenError {
        let address = self.address();
        let text = error.to_string();
        if text.contains("received fatal alert") {
            return OpenError::Certificate {
                address,
                error: text,
            };
        }
        match error.kind() {
            io::ErrorKind::InvalidData => OpenError::Tls { address, error },
            _ => OpenError::Unreachable { address, error },
        }
    }

    pub(super) fn refused(&self, err: &redis::RedisError) -> OpenError {
        let (address, error) = (self.address(), err.to_string());
        // A store with TLS 1.3 reports a missing or refused certificate after its handshake.
        if self.is_tls() && error.contains("received fatal alert") {
            return OpenError::Certificate { address, error };
        }
        let may_pass = err.is_io_error()
            || error.contains("max number of clients")
            || matches!(err.code(), Some("LOADING" | "BUSY" | "MASTERDOWN"));
        if may_pass {
            let error = io::Error::other(error);
            return OpenError::Unreachable { address, error };
        }
        match err.code() {
            Some("NOPERM") => OpenError::Forbidden { address, error },
            Some("NOAUTH" | "WRONGPASS") => OpenError::Password { address, error },
            _ => OpenError::Protocol { address, error },
        }
    }
}

fn password(path: &PathBuf) -> Result<Zeroizing<String>, String> {
    let file = |err: io::Error| format!("{}: {err}", path.display());
    let metadata = fs::metadata(path).map_err(file)?;
    if !metadata.is_file() || metadata.len() > PASSWORD_MAX {
        return Err(format!(
            "{}: expected a file of at most {PASSWORD_MAX} bytes with the password",
            path.display()
        ));
    }
    let text = Zeroizing::new(fs::read(path).map_err(file)?);
    let text = std::str::from_utf8(&text)
        .map_err(|_| format!("{}: the password is not UTF-8", path.display()))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() || password.contains(['\r', '\n']) {
        return Err(format!(
            "{}: expected one line with the password",
            path.display()
        ));
    }
    Ok(Zeroizing::new(password.to_owned()))
}

fn tls(
    config: &Config,
    store: &StoreConfig,
    host: &str,
) -> Result<(TlsConnector, ServerName<'static>), ConfigError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        config.store_error(
            "redis.urls",
            format!("`{host}` is not a name or an address"),
        )
    })?;
    let mut roots = RootCertStore::empty();
    match &store.ca {
        Some(path) => {
            roots = pem::read_anchors(path).map_err(|err| config.store_error("redis.ca", err))?;
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|err| config.store_error("redis.urls", err))?
        .with_root_certificates(roots);
    let client = match &store.certificate {
        None => client.with_no_client_auth(),
        Some((certificate, key)) => {
            let certified = pem::read_pair(certificate, key).map_err(|err| match err {
                pem::PairError::Certificate(err) => config.store_error("redis.certificate", err),
                pem::PairError::Key(err) => config.store_error("redis.key", err),
            })?;
            client.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
    };
    Ok((TlsConnector::from(Arc::new(client)), name))
}
