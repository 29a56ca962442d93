//! Implements ConnectionService.

use std::sync::{Arc, atomic::AtomicUsize};

use tls_sessiond_core::{
    cache::Found,
    connection::{
        self, Alert, ConnectionId, Input, ShutdownStatus,
        table::{Lapse, Wanted},
    },
    session::{Miss, SessionId},
    state::CoreState,
};
use tls_sessiond_proto as pb;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use crate::api::{
    access::Caller,
    connections::{
        open::{Opener, tell_failure},
        steps::Stepped,
    },
    convert::{self, within_limit},
    error::Refusal,
    page_token::PageTokens,
    quota::turns::Turns,
    role::SEES,
};

/// Holds the state that the calls of ConnectionService share.
pub(crate) struct Connections {
    pub(crate) opener: Arc<Opener>,
    pub(crate) pages: Arc<PageTokens>,
    pub(crate) lists: Arc<Turns>,
    pub(crate) draining: CancellationToken,
    /// The most plaintext, in bytes, that one Drive holds back until its handshake is finished.
    pub(crate) plaintext_buffer: AtomicUsize,
}

fn status(status: ShutdownStatus) -> pb::ShutdownStatus {
    match status {
        ShutdownStatus::Sent => pb::ShutdownStatus::Sent,
        ShutdownStatus::Complete => pb::ShutdownStatus::Complete,
        ShutdownStatus::WantRead => pb::ShutdownStatus::WantRead,
    }
}

impl Connections {
    fn state(&self) -> &Arc<CoreState> {
        &self.opener.state
    }

    /// Does the same as [`Opener::driven`].
    fn driven(&self, by: &Caller, id: &str) -> Result<ConnectionId, Refusal> {
        self.opener.driven(by, id)
    }

    /// Parses the id of a connection that the caller may see.
    ///
    /// # Errors
    /// The id is malformed, or there is no such connection. A connection that the caller may not
    /// see counts as not found.
    pub(crate) fn seen(&self, by: &Caller, id: &str) -> Result<ConnectionId, Refusal> {
        let id = convert::connection_id(id)?;
        let registry = self.state().registry();
        self.state()
            .connections()
            .authorize(id, |owner, context| by.sees(&registry, owner, context))?;
        Ok(id)
    }

    pub(crate) fn view(&self, id: ConnectionId) -> Result<Option<pb::Connection>, Refusal> {
        Ok(Some(
            self.state()
                .connections()
                .inspect(id, convert::connection)?,
        ))
    }

    pub(crate) fn clear(
        &self,
        by: &Caller,
        request: &pb::ClearRequest,
    ) -> Result<pb::ClearResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        let (connection, removed) =
            self.state()
                .connections()
                .with_exclusive(id, |connection, now| {
                    let removed = connection.clear();
                    Ok((
                        convert::connection(connection, Lapse::of(connection, now)),
                        removed,
                    ))
                })?;
        let removed_sessions = convert::removed(removed);
        Ok(pb::ClearResponse {
            connection: Some(connection),
            removed_sessions,
        })
    }

    pub(crate) fn shutdown(
        &self,
        by: &Caller,
        request: &pb::ShutdownRequest,
    ) -> Result<pb::ShutdownResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        let response = self
            .state()
            .connections()
            .with_exclusive(id, |connection, now| {
                let mut ciphertext = Vec::new();
                let done = connection.shutdown(&mut ciphertext)?;
                Ok(pb::ShutdownResponse {
                    status: status(done).into(),
                    ciphertext: ciphertext.into(),
                    connection: Some(convert::connection(connection, Lapse::of(connection, now))),
                })
            })?;
        Ok(response)
    }

    pub(crate) fn set_shutdown(
        &self,
        by: &Caller,
        request: &pb::SetShutdownRequest,
    ) -> Result<pb::SetShutdownResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        let flags = convert::flags(request.shutdown.ok_or(Refusal::ShutdownRequired)?);
        let connection = self.state().connections().with(id, |connection, now| {
            connection.set_shutdown(flags);
            Ok(convert::connection(connection, Lapse::of(connection, now)))
        })?;
        Ok(pb::SetShutdownResponse {
            connection: Some(connection),
        })
    }

    pub(crate) fn free(
        &self,
        by: &Caller,
        request: &pb::FreeRequest,
    ) -> Result<pb::FreeResponse, Refusal> {
        let freed = self
            .driven(by, &request.connection_id)
            .and_then(|id| self.state().connections().free(id).map_err(Refusal::from));
        match freed {
            Ok(removed) => Ok(pb::FreeResponse {
                removed_sessions: convert::removed(removed),
            }),
            Err(Refusal::Connection(connection::Error::NotFound(_))) if request.allow_missing => {
                Ok(pb::FreeResponse::default())
            }
            Err(refusal) => Err(refusal),
        }
    }

    pub(crate) async fn list(
        &self,
        by: &Caller,
        request: &pb::ListConnectionsRequest,
    ) -> Result<pb::ListConnectionsResponse, Refusal> {
        let size = PageTokens::size(request.page_size)?;
        let filters = ["connections", request.context.as_str()];
        let _turn = self.lists.wait(by.owner()).await;
        // The registry is loaded after the wait, so that the rights are current.
        let registry = Arc::clone(&self.state().registry());
        let filter = match request.context.as_str() {
            "" => None,
            name => {
                by.context(&registry, name, SEES)?;
                Some(name)
            }
        };
        let wanted = |owner: &str, context: &str| {
            filter.is_none_or(|name| *context == *name) && by.sees(&registry, owner, context)
        };
        let mut after = match self.pages.place(&filters, &request.page_token)? {
            None => None,
            Some(place) => Some(read_place(&place).ok_or(Refusal::PageTokenInvalid)?),
        };
        let (mut places, mut connections) = (Vec::new(), Vec::new());
        loop {
            let before = places.len();
            let next = self
                .state()
                .connections()
                .page(wanted, after, size - before, &mut places);
            // A connection that was freed since then is not listed.
            let new = places[before..].iter();
            connections.extend(new.filter_map(|place| {
                self.state()
                    .connections()
                    .inspect(place.id, convert::connection)
                    .ok()
            }));
            if next.is_none() || places.len() == size {
                break;
            }
            after = next;
            // The filter may match few of a hundred thousand connections. Yield, so that other
            // calls are served meanwhile.
            yield_now().await;
        }
        let next_page_token = match places.last() {
            Some(last) if places.len() == size => {
                self.pages.token(&filters, &last.number.to_be_bytes())
            }
            _ => String::new(),
        };
        Ok(pb::ListConnectionsResponse {
            connections,
            next_page_token,
        })
    }

    pub(crate) async fn set_session(
        &self,
        by: &Caller,
        request: &pb::SetSessionRequest,
    ) -> Result<pb::SetSessionResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        let session = convert::session_id(&request.session_id)?;
        let joined = match &session {
            Some(session) => {
                let (context, role, engine) = self.state().connections().place(id)?;
                self.opener.join(&context, role, engine, session).await
            }
            None => None,
        };
        self.set_joined_session(by, id, session.as_ref(), joined)
    }

    /// Does what SetSession does where no store is shared.
    pub(crate) fn set_session_in_memory(
        &self,
        by: &Caller,
        request: &pb::SetSessionRequest,
    ) -> Result<pb::SetSessionResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        let session = convert::session_id(&request.session_id)?;
        self.set_joined_session(by, id, session.as_ref(), None)
    }

    /// Does what SetSession does once the shared store was asked.
    fn set_joined_session(
        &self,
        by: &Caller,
        id: ConnectionId,
        session: Option<&SessionId>,
        joined: Option<Result<Found, Miss>>,
    ) -> Result<pb::SetSessionResponse, Refusal> {
        let registry = self.state().registry();
        let within = |context: &str| by.may(&registry, SEES, context);
        let wanted = session.map(|id| Wanted {
            id,
            joined,
            registry: &registry,
            within: &within,
        });
        let removed = self
            .state()
            .connections()
            .set_session(id, wanted, |_, removed| removed)?;
        Ok(pb::SetSessionResponse {
            connection: self.view(id)?,
            removed_sessions: convert::removed(removed),
        })
    }

    pub(crate) fn get_session(
        &self,
        by: &Caller,
        request: &pb::GetSessionRequest,
    ) -> Result<pb::GetSessionResponse, Refusal> {
        let id = self.seen(by, &request.connection_id)?;
        let session = self
            .state()
            .connections()
            .inspect(id, |connection, lapse| {
                connection
                    .session()
                    .map(|session| convert::session(session, lapse.offset))
            })?;
        Ok(pb::GetSessionResponse { session })
    }

    pub(crate) fn report_alert(
        &self,
        by: &Caller,
        request: &pb::ReportAlertRequest,
    ) -> Result<pb::ReportAlertResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        let alert = request.alert.as_ref().ok_or(Refusal::AlertInvalid)?;
        let code = u8::try_from(alert.code)
            .ok()
            .filter(|&code| code != 0)
            .ok_or(Refusal::AlertInvalid)?;
        let alert = Alert {
            code,
            received: alert.received,
        };
        let (connection, removed) =
            self.state()
                .connections()
                .with_exclusive(id, |connection, now| {
                    let removed = connection.report_alert(alert)?;
                    tell_failure(connection);
                    Ok((
                        convert::connection(connection, Lapse::of(connection, now)),
                        removed,
                    ))
                })?;
        let removed_sessions = convert::removed(removed);
        Ok(pb::ReportAlertResponse {
            connection: Some(connection),
            removed_sessions,
        })
    }

    pub(crate) async fn exchange(
        &self,
        by: &Caller,
        request: &pb::ExchangeRequest,
    ) -> Result<pb::ExchangeResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        within_limit("ciphertext", &request.ciphertext)?;
        within_limit("plaintext", &request.plaintext)?;
        let input = Input {
            ciphertext: &request.ciphertext,
            plaintext: &request.plaintext,
            end_of_stream: request.end_of_stream,
        };
        let stepped = self
            .state()
            .connections()
            .with_exclusive(id, |connection, now| {
                let step = connection.exchange(input, now)?;
                Ok(Stepped::of(connection, step, Lapse::of(connection, now)))
            })?;
        let (output, connection) = self.opener.finish(id, stepped).await?;
        Ok(pb::ExchangeResponse {
            ciphertext: output.ciphertext.into(),
            plaintext: output.plaintext.into(),
            connection: Some(connection),
            alert: output.alert.map(convert::alert),
            removed_sessions: convert::removed(output.removed),
        })
    }
}

/// Reads the number of the last listed connection from the bytes of a page token.
fn read_place(place: &[u8]) -> Option<u64> {
    place.try_into().ok().map(u64::from_be_bytes)
}
