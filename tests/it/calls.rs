//! Unary calls of a worker that runs TLS itself.

use tls_sessiond_proto as pb;

use crate::harness::{TestDaemon, new};

/// Returns a request for a connection whose TLS runs in the worker.
pub(crate) fn worker(role: pb::Role) -> pb::NewRequest {
    pb::NewRequest {
        engine: pb::Engine::Worker.into(),
        ..new("", role)
    }
}

/// Returns a request to store a TLS 1.2 session of a server's connection.
pub(crate) fn put(connection_id: &str, session_id: &str) -> pb::PutSessionRequest {
    pb::PutSessionRequest {
        connection_id: connection_id.into(),
        session_id: session_id.into(),
        data: "master secret".into(),
        format: "openssl".into(),
        version: pb::ProtocolVersion::Tls12.into(),
        cipher_suite: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".into(),
        ..Default::default()
    }
}

pub(crate) fn lookup(session_id: &str) -> pb::LookupSessionRequest {
    pb::LookupSessionRequest {
        role: pb::Role::Server.into(),
        session_id: session_id.into(),
        format: "openssl".into(),
        ..Default::default()
    }
}

/// A worker whose calls must succeed: each method panics on an error.
pub(crate) struct Worker<'d>(pub(crate) &'d TestDaemon);

impl Worker<'_> {
    pub(crate) async fn open(&self, request: pb::NewRequest) -> pb::Connection {
        self.0
            .connections()
            .new_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
    }

    pub(crate) async fn put(&self, request: pb::PutSessionRequest) -> pb::PutSessionResponse {
        self.0
            .sessions()
            .put_session(request)
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn lookup(
        &self,
        request: pb::LookupSessionRequest,
    ) -> pb::LookupSessionResponse {
        self.0
            .sessions()
            .lookup_session(request)
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn found(&self, session_id: &str) -> bool {
        self.lookup(lookup(session_id)).await.found
    }

    /// Opens a server's connection, stores a session with this id on it, and returns the
    /// connection's id.
    pub(crate) async fn established(&self, session_id: &str) -> String {
        let id = self.open(worker(pb::Role::Server)).await.id;
        assert_eq!(self.put(put(&id, session_id)).await.reason, "");
        id
    }

    pub(crate) async fn shutdown(&self, id: &str) -> pb::ShutdownResponse {
        let request = pb::ShutdownRequest {
            connection_id: id.into(),
        };
        self.0
            .connections()
            .shutdown(request)
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn free(&self, id: &str) -> usize {
        let request = pb::FreeRequest {
            connection_id: id.into(),
            allow_missing: false,
        };
        self.0
            .connections()
            .free(request)
            .await
            .unwrap()
            .into_inner()
            .removed_sessions
            .len()
    }

    pub(crate) async fn set_session(&self, id: &str, session_id: &str) -> pb::Connection {
        let request = pb::SetSessionRequest {
            connection_id: id.into(),
            session_id: session_id.into(),
        };
        self.0
            .connections()
            .set_session(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
    }
}
