//! SessionService.

use std::{collections::BinaryHeap, sync::Arc};

use tonic::{Request, Response, Status, async_trait};

use super::{
    connections::{answer, or_default},
    convert,
    page::Pages,
    status::Refusal,
};
use crate::{
    clock::Timestamp,
    connection::Table,
    proto::{self as pb, session_service_server::SessionService},
    session::{Cache, Role, Session},
};

/// Holds what the calls need.
pub(super) struct Sessions {
    pub(super) table: Arc<Table>,
    pub(super) pages: Arc<Pages>,
}

/// Where a list goes on: when the last session was made, and its id. Ids are random, and differ between the two sides.
type Place = (Timestamp, Vec<u8>);

struct Listed(Place, Arc<Session>);

impl PartialEq for Listed {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl Eq for Listed {}
impl PartialOrd for Listed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Listed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl Sessions {
    fn remove(&self, request: &pb::RemoveSessionRequest) -> Result<pb::RemoveSessionResponse, Refusal> {
        let name = or_default(&request.context);
        let context =
            self.table.registry().get(name).ok_or_else(|| Refusal::ContextNotFound(name.to_owned()))?;
        let role = convert::role(request.role)?;
        let id = convert::session_id(&request.session_id)?.ok_or(Refusal::SessionIdRequired)?;
        Ok(pb::RemoveSessionResponse { removed: context.cache(role).remove(&id) })
    }

    fn list(&self, request: &pb::ListSessionsRequest) -> Result<pb::ListSessionsResponse, Refusal> {
        let size = Pages::size(request.page_size)?;
        let registry = self.table.registry();
        let caches: Vec<&Arc<Cache>> = match request.context.as_str() {
            "" => registry.caches().collect(),
            name => {
                let context = registry.get(name).ok_or_else(|| Refusal::ContextNotFound(name.to_owned()))?;
                vec![context.cache(Role::Server), context.cache(Role::Client)]
            }
        };
        let filters = ["sessions", request.context.as_str(), request.server_name.as_str()];
        let after = match self.pages.place(&filters, &request.page_token)? {
            None => None,
            Some(place) => Some(read_place(&place).ok_or(Refusal::PageTokenInvalid)?),
        };
        let now = self.table.now();
        let mut oldest = BinaryHeap::with_capacity(size + 1);
        for cache in caches {
            cache.scan(now, |session| {
                if !request.server_name.is_empty() && *session.server_name != *request.server_name {
                    return;
                }
                let place = (session.created, session.id.as_bytes().to_vec());
                if after.as_ref().is_none_or(|after| place > *after) {
                    oldest.push(Listed(place, Arc::clone(session)));
                    if oldest.len() > size {
                        oldest.pop();
                    }
                }
            });
        }
        let listed = oldest.into_sorted_vec();
        let next_page_token = match listed.last() {
            Some(last) if listed.len() == size => self.pages.token(&filters, &write_place(&last.0)),
            _ => String::new(),
        };
        let sessions = listed.iter().map(|listed| convert::session(&listed.1)).collect();
        Ok(pb::ListSessionsResponse { sessions, next_page_token })
    }
}

fn write_place((created, id): &Place) -> Vec<u8> {
    [&created.as_millis().to_be_bytes()[..], id].concat()
}

fn read_place(place: &[u8]) -> Option<Place> {
    let (created, id) = place.split_first_chunk::<8>()?;
    Some((Timestamp::from_millis(u64::from_be_bytes(*created)), id.to_vec()))
}

#[async_trait]
impl SessionService for Sessions {
    async fn remove_session(
        &self,
        request: Request<pb::RemoveSessionRequest>,
    ) -> Result<Response<pb::RemoveSessionResponse>, Status> {
        answer(self.remove(request.get_ref()))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        answer(self.list(request.get_ref()))
    }
}
