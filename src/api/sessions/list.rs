//! ListSessions: a page costs the sessions on it and a scan of at least one shard, not a scan of all
//! sessions (decision 40).
//!
//! A list goes through the caches, through the shards of each cache, and through each shard in the
//! order of ids. A page ends when it is full. It also ends after the shard with which it has
//! examined [`LOOKED_AT_MAX`] sessions. So a filter that matches few sessions makes short pages,
//! not slow ones.

use std::{cmp::Ordering, collections::BinaryHeap, sync::Arc};

use tls_sessiond_core::{
    cache::Cache,
    clock::Now,
    context::Registry,
    session::{Session, stats::Account},
};
use tls_sessiond_proto as pb;
use tls_sessiond_types::server_name::ServerName;
use tokio::task::yield_now;

use super::{calls::Sessions, reach::caches};
use crate::api::{access::Caller, convert, error::Refusal, page_token::PageTokens, role::Roles};

/// After how many examined sessions a page ends, even if it is not full.
const LOOKED_AT_MAX: usize = 20_000;
/// How many sessions of a page are converted without a pause. Each may have 64 names.
const WRITTEN_AT_ONCE: usize = 64;

/// The place at which a list continues.
struct ListPosition {
    /// Index into the caches that the caller may see, in the order of [`caches`].
    cache: u32,
    /// The shard of that cache.
    part: u32,
    /// The last listed id of the shard. Empty at the beginning of a shard.
    id: Vec<u8>,
}

impl ListPosition {
    const BEGINNING: Self = Self {
        cache: 0,
        part: 0,
        id: Vec::new(),
    };

    fn write(&self) -> Vec<u8> {
        [
            &self.cache.to_be_bytes()[..],
            &self.part.to_be_bytes(),
            &self.id,
        ]
        .concat()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (cache, rest) = bytes.split_first_chunk()?;
        let (part, id) = rest.split_first_chunk()?;
        Some(Self {
            cache: u32::from_be_bytes(*cache),
            part: u32::from_be_bytes(*part),
            id: id.to_vec(),
        })
    }
}

/// A session that compares by its id.
struct ById(Arc<Session>);

impl ById {
    fn id(&self) -> &[u8] {
        self.0.id().as_bytes()
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}
impl Eq for ById {}
impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ById {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id().cmp(other.id())
    }
}

/// Decides which sessions a caller is shown.
struct Visible<'l> {
    by: &'l Caller,
    registry: &'l Registry,
    /// `None` for all server names.
    server_name: Option<&'l ServerName<'l>>,
    /// The account of the last session, and whether the caller may see its context. The check is
    /// per session, because contexts that share a cache may be granted to different callers. The
    /// last answer is kept, because consecutive sessions mostly have the same account.
    granted: Option<(Arc<Account>, bool)>,
}

impl Visible<'_> {
    fn shows(&mut self, session: &Session) -> bool {
        let kind = session.kind();
        if self
            .server_name
            .is_some_and(|wanted| kind.server_name != *wanted)
        {
            return false;
        }
        match &self.granted {
            Some((last, may)) if Arc::ptr_eq(last, &kind.account) => *may,
            _ => {
                let may = self
                    .by
                    .may(self.registry, Roles::OBSERVER, &kind.account.name);
                self.granted.insert((Arc::clone(&kind.account), may)).1
            }
        }
    }

    /// Returns up to `most` sessions of one shard after the id `behind`, in the order of ids, and
    /// how many sessions were examined.
    fn of_part(
        &mut self,
        cache: &Cache,
        part: usize,
        now: Now,
        behind: &[u8],
        most: usize,
    ) -> (Vec<ById>, usize) {
        let (mut first, mut looked_at) = (BinaryHeap::with_capacity(most + 1), 0);
        cache.scan_part(part, now, |session| {
            looked_at += 1;
            // Ids are compared first, because that is cheap and most sessions of a shard are not on
            // the page. A session is cloned only if it is on the page so far.
            let id = session.id().as_bytes();
            let late =
                first.len() == most && first.peek().is_some_and(|last: &ById| id >= last.id());
            if id > behind && !late && self.shows(session) {
                first.push(ById(Arc::clone(session)));
                if first.len() > most {
                    first.pop();
                }
            }
        });
        (first.into_sorted_vec(), looked_at)
    }
}

impl Sessions {
    pub(crate) async fn list(
        &self,
        by: &Caller,
        request: &pb::ListSessionsRequest,
    ) -> Result<pb::ListSessionsResponse, Refusal> {
        let size = PageTokens::size(request.page_size)?;
        let _turn = self.lists.wait(by.owner()).await;
        // The registry is loaded after the wait, so that the rights are current.
        let registry = Arc::clone(&self.state.registry());
        let caches = caches(&registry, by, &request.context, Roles::OBSERVER)?;
        // An empty name means no filter. A name of dots alone is a filter that matches no session.
        let server_name = Some(&*request.server_name)
            .filter(|name| !name.is_empty())
            .map(ServerName::new);
        let filters = [
            "sessions",
            request.context.as_str(),
            request.server_name.as_str(),
        ];
        let mut place = match self.pages.place(&filters, &request.page_token)? {
            None => ListPosition::BEGINNING,
            Some(place) => ListPosition::read(&place).ok_or(Refusal::PageTokenInvalid)?,
        };
        let now = self.state.now();
        let mut filter = Visible {
            by,
            registry: &registry,
            server_name: server_name.as_ref(),
            granted: None,
        };
        let (mut listed, mut looked_at, mut ends) = (Vec::new(), 0, true);
        'page: while let Some(cache) = caches.get(place.cache as usize) {
            while (place.part as usize) < cache.shards() {
                let room = size - listed.len();
                let (some, looked) =
                    filter.of_part(cache, place.part as usize, now, &place.id, room);
                looked_at += looked;
                let full = some.len() == room;
                if let Some(last) = some.last().filter(|_| full) {
                    place.id = last.id().to_vec();
                }
                listed.extend(some);
                if full {
                    ends = false;
                    break 'page;
                }
                place = ListPosition {
                    part: place.part + 1,
                    id: Vec::new(),
                    ..place
                };
                if looked_at >= LOOKED_AT_MAX {
                    ends = false;
                    break 'page;
                }
                // Yield, so that other calls are served meanwhile.
                yield_now().await;
            }
            place = ListPosition {
                cache: place.cache + 1,
                ..ListPosition::BEGINNING
            };
        }
        let next_page_token = if ends {
            String::new()
        } else {
            self.pages.token(&filters, &place.write())
        };
        let mut sessions = Vec::with_capacity(listed.len());
        for slice in listed.chunks(WRITTEN_AT_ONCE) {
            sessions.extend(
                slice
                    .iter()
                    .map(|listed| convert::session(&listed.0, now.offset)),
            );
            yield_now().await;
        }
        Ok(pb::ListSessionsResponse {
            sessions,
            next_page_token,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_were_written() {
        for (cache, part, id) in [
            (0, 0, &b""[..]),
            (3, 255, b"id"),
            (u32::MAX, u32::MAX, &[0xff; 64]),
        ] {
            let place = ListPosition {
                cache,
                part,
                id: id.to_vec(),
            };
            let read = ListPosition::read(&place.write()).unwrap();
            assert_eq!((read.cache, read.part, &read.id[..]), (cache, part, id));
        }
        assert!(ListPosition::read(&[0; 7]).is_none());
    }
}
