//! The keys of the file: every key is optional, and unknown keys are refused. They are written again
//! to show which values are in force.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "the keys of a configuration"
)]
pub(super) struct RawFile {
    pub(super) listen: RawListen,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) access: Option<Vec<RawAccess>>,
    pub(super) limits: RawLimits,
    pub(super) drain: RawDrain,
    pub(super) log: RawLog,
    pub(super) otlp: RawOtlp,
    pub(super) store: RawStore,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ticket_keys: Vec<RawTicketKeys>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) context: Option<Vec<RawContext>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) proxy: Vec<RawProxy>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, expecting = "a table `[listen]`")]
pub(super) struct RawListen {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) api: Option<Vec<String>>,
    pub(super) unix_mode: String,
    pub(super) unix_owner: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) admin: Option<String>,
    pub(super) admin_public: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) proxy_admin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tls: Option<RawListenTls>,
}

impl Default for RawListen {
    fn default() -> Self {
        Self {
            api: None,
            unix_mode: "0660".into(),
            unix_owner: String::new(),
            admin: None,
            admin_public: false,
            proxy_admin: None,
            tls: None,
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "a table `[listen.tls]`")]
pub(super) struct RawListenTls {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_ca: PathBuf,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "a table `[[access]]`")]
pub(super) struct RawAccess {
    pub(super) identity: String,
    pub(super) contexts: Vec<String>,
    pub(super) role: OneOrManyWords,
}

/// `"worker"` or `["worker", "keys"]`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged, expecting = "expected a role or a list of roles")]
pub(super) enum OneOrManyWords {
    One(String),
    Many(Vec<String>),
}

impl OneOrManyWords {
    pub(super) fn words(&self) -> &[String] {
        match self {
            Self::One(word) => std::slice::from_ref(word),
            Self::Many(words) => words,
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, expecting = "a table `[[ticket_keys]]`")]
pub(super) struct RawTicketKeys {
    pub(super) name: String,
    pub(super) context: String,
    pub(super) rule: String,
    pub(super) rotate: String,
    pub(super) lifetime: String,
    pub(super) max_key_age: String,
    pub(super) members_wait: String,
    pub(super) state: String,
    pub(super) credential: String,
}

impl Default for RawTicketKeys {
    fn default() -> Self {
        Self {
            name: "default".into(),
            context: String::new(),
            rule: String::new(),
            rotate: "1h".into(),
            lifetime: "1h".into(),
            max_key_age: "3h".into(),
            members_wait: "60s".into(),
            state: String::new(),
            credential: String::new(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, expecting = "a table `[limits]`")]
pub(super) struct RawLimits {
    pub(super) connections: usize,
    pub(super) connections_per_owner: usize,
    pub(super) calls_in_flight: usize,
    pub(super) calls_per_owner: usize,
    pub(super) request_bytes: String,
    pub(super) request_bytes_per_owner: String,
    pub(super) sockets: usize,
    pub(super) misses_per_second: u32,
    pub(super) message: String,
    pub(super) plaintext_buffer: String,
    pub(super) streams: u32,
    pub(super) streams_non_worker: u32,
    pub(super) sessions: usize,
    pub(super) session_bytes: String,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            connections_per_owner: 50_000,
            calls_in_flight: 10_000,
            calls_per_owner: 5_000,
            request_bytes: "256MiB".into(),
            request_bytes_per_owner: "64MiB".into(),
            sockets: 10_000,
            misses_per_second: 100_000,
            message: "4MiB".into(),
            plaintext_buffer: "1MiB".into(),
            streams: 8_000,
            streams_non_worker: 100,
            sessions: 1_000_000,
            session_bytes: "1GiB".into(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, expecting = "a table `[drain]`")]
pub(super) struct RawDrain {
    pub(super) delay: String,
    pub(super) timeout: String,
}

impl Default for RawDrain {
    fn default() -> Self {
        Self {
            delay: "0s".into(),
            timeout: "30s".into(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, expecting = "a table `[log]`")]
pub(super) struct RawLog {
    pub(super) level: String,
    pub(super) format: String,
    pub(super) audit: String,
}

impl Default for RawLog {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: "auto".into(),
            audit: "stderr".into(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, expecting = "a table `[otlp]`")]
pub(super) struct RawOtlp {
    pub(super) endpoint: String,
    pub(super) ca: String,
    pub(super) interval: String,
    pub(super) sample: f64,
}

impl Default for RawOtlp {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            ca: "system".into(),
            interval: "60s".into(),
            sample: 0.0,
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, expecting = "a table `[store]`")]
pub(super) struct RawStore {
    pub(super) kind: String,
    pub(super) deadline: String,
    pub(super) redis: RawRedis,
}

impl Default for RawStore {
    fn default() -> Self {
        Self {
            kind: "memory".into(),
            deadline: "50ms".into(),
            redis: RawRedis::default(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, expecting = "a table `[store.redis]`")]
pub(super) struct RawRedis {
    pub(super) urls: Vec<String>,
    pub(super) user: String,
    pub(super) password_file: String,
    pub(super) ca: String,
    pub(super) certificate: String,
    pub(super) key: String,
    pub(super) prefix: String,
    pub(super) sealing_keys: String,
    pub(super) plaintext: bool,
}

impl Default for RawRedis {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            user: String::new(),
            password_file: String::new(),
            ca: "system".into(),
            certificate: String::new(),
            key: String::new(),
            prefix: "tsd1".into(),
            sealing_keys: String::new(),
            plaintext: false,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, expecting = "a table `[[context]]`")]
pub(super) struct RawContext {
    pub(super) name: String,
    pub(super) certificate: OneOrMany,
    pub(super) key: OneOrMany,
    pub(super) client_certificates: Vec<RawPair>,
    pub(super) ca: String,
    pub(super) client_auth: String,
    pub(super) versions: Vec<String>,
    pub(super) cipher_suites: Vec<String>,
    pub(super) key_exchange: Vec<String>,
    pub(super) alpn: Vec<String>,
    pub(super) options: Vec<String>,
    pub(super) session_id_context: String,
    pub(super) scope_by: String,
    pub(super) client_sessions: String,
    pub(super) tickets: usize,
    pub(super) ticket_kind: String,
    pub(super) ticket_ring: String,
    pub(super) close_policy: String,
    pub(super) session_timeout: String,
    pub(super) session_bytes_max: String,
    pub(super) cache_entries_max: usize,
    pub(super) cache_bytes_max: String,
    pub(super) idle_timeout: String,
}

impl Default for RawContext {
    fn default() -> Self {
        Self {
            name: "default".into(),
            certificate: OneOrMany::default(),
            key: OneOrMany::default(),
            client_certificates: Vec::new(),
            ca: "system".into(),
            client_auth: "none".into(),
            versions: vec!["1.2".into(), "1.3".into()],
            cipher_suites: Vec::new(),
            key_exchange: Vec::new(),
            alpn: Vec::new(),
            options: Vec::new(),
            session_id_context: String::new(),
            scope_by: "certificate".into(),
            client_sessions: "shared".into(),
            tickets: 2,
            ticket_kind: "stateful".into(),
            ticket_ring: String::new(),
            close_policy: "flag".into(),
            session_timeout: "2h".into(),
            session_bytes_max: "16KiB".into(),
            cache_entries_max: 20_480,
            cache_bytes_max: "64MiB".into(),
            idle_timeout: "5m".into(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, expecting = "a table `[[proxy]]`")]
pub(super) struct RawProxy {
    pub(super) listen: String,
    pub(super) backend: String,
    pub(super) plaintext: bool,
    pub(super) route: Vec<RawRoute>,
    pub(super) connect: String,
    pub(super) server_name: String,
    pub(super) certificate: OneOrMany,
    pub(super) key: OneOrMany,
    pub(super) client_ca: String,
    pub(super) client_auth: String,
    pub(super) versions: Vec<String>,
    pub(super) cipher_suites: Vec<String>,
    pub(super) key_exchange: Vec<String>,
    pub(super) alpn: Vec<String>,
    pub(super) proxy_protocol: String,
    pub(super) proxy_protocol_from: Vec<String>,
    pub(super) backend_away: String,
    pub(super) handshake_timeout: String,
    pub(super) connect_timeout: String,
    pub(super) idle_timeout: String,
    pub(super) connections: usize,
    pub(super) sessions: String,
    pub(super) sessions_ca: String,
    pub(super) sessions_certificate: String,
    pub(super) sessions_key: String,
    pub(super) context: String,
}

impl Default for RawProxy {
    fn default() -> Self {
        Self {
            listen: "tls://127.0.0.1:8443".into(),
            backend: String::new(),
            plaintext: false,
            route: Vec::new(),
            connect: String::new(),
            server_name: String::new(),
            certificate: OneOrMany::default(),
            key: OneOrMany::default(),
            client_ca: String::new(),
            client_auth: "none".into(),
            versions: vec!["1.2".into(), "1.3".into()],
            cipher_suites: Vec::new(),
            key_exchange: Vec::new(),
            alpn: Vec::new(),
            proxy_protocol: "off".into(),
            proxy_protocol_from: vec!["127.0.0.0/8".into(), "::1/128".into()],
            backend_away: "close".into(),
            handshake_timeout: "10s".into(),
            connect_timeout: "5s".into(),
            idle_timeout: "5m".into(),
            connections: 5_000,
            sessions: "own".into(),
            sessions_ca: "system".into(),
            sessions_certificate: String::new(),
            sessions_key: String::new(),
            context: "default".into(),
        }
    }
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, expecting = "a table `[[proxy.route]]`")]
pub(super) struct RawRoute {
    pub(super) server_names: Vec<String>,
    pub(super) backend: String,
    pub(super) certificate: OneOrMany,
    pub(super) key: OneOrMany,
}

/// `"tls.crt"` or `["a.crt", "b.crt"]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged, expecting = "expected a file name or a list of file names")]
pub(super) enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl OneOrMany {
    pub(super) fn paths(&self) -> &[PathBuf] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table with `certificate` and `key`"
)]
pub(super) struct RawPair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}
