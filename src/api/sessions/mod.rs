//! Implements SessionService.
//!
//! * `calls`: PutSession, LookupSession and RemoveSession
//! * `lookup`: the parts of a lookup that one call and a batch share
//! * `list`: pages of sessions
//! * `explain`: why a session is no longer found
//! * `revoke`: revocations
//! * `watch`: the stream of events
//! * `reach`: the caches that a caller may reach

mod calls;
mod explain;
mod list;
pub(crate) mod lookup;
mod reach;
mod revoke;
mod watch;

pub(crate) use calls::{PutDone, Sessions};

use tls_sessiond_proto as pb;
use tls_sessiond_proto::session_service_server::SessionService;
use tonic::{Request, Response, Status, async_trait};
use watch::SessionWatch;

use crate::api::call::{Deadline, answer, caller};

#[async_trait]
impl SessionService for Sessions {
    type WatchSessionsStream = SessionWatch;

    async fn revoke_sessions(
        &self,
        request: Request<pb::RevokeSessionsRequest>,
    ) -> Result<Response<pb::RevokeSessionsResponse>, Status> {
        let by = caller(&request)?;
        answer(self.revoke(&by, request.into_inner()).await)
    }

    async fn explain_session(
        &self,
        request: Request<pb::ExplainSessionRequest>,
    ) -> Result<Response<pb::ExplainSessionResponse>, Status> {
        answer(self.explain(&*caller(&request)?, request.get_ref()).await)
    }

    async fn watch_sessions(
        &self,
        request: Request<pb::WatchSessionsRequest>,
    ) -> Result<Response<SessionWatch>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied();
        answer(self.watch(&caller(&request)?, &request.get_ref().context, deadline))
    }

    async fn put_session(
        &self,
        request: Request<pb::PutSessionRequest>,
    ) -> Result<Response<pb::PutSessionResponse>, Status> {
        let by = caller(&request)?;
        answer(self.put_and_wait(&by, request.into_inner()).await)
    }

    async fn lookup_session(
        &self,
        request: Request<pb::LookupSessionRequest>,
    ) -> Result<Response<pb::LookupSessionResponse>, Status> {
        answer(self.lookup(&*caller(&request)?, request.get_ref()).await)
    }

    async fn remove_session(
        &self,
        request: Request<pb::RemoveSessionRequest>,
    ) -> Result<Response<pb::RemoveSessionResponse>, Status> {
        answer(self.remove(&*caller(&request)?, request.get_ref()).await)
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        answer(self.list(&*caller(&request)?, request.get_ref()).await)
    }
}
