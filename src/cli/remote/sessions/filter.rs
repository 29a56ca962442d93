//! Which events a watch prints, and the line of an event.

use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use tls_sessiond_proto::{self as pb, watch_sessions_response::Event};

use super::super::{
    id::IdPrefix,
    screen::Screen,
    words::{self, Words},
};

/// Which events to print.
#[derive(Debug, Args)]
pub(in crate::cli) struct WatchArgs {
    /// Only sessions that were made in this context.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(super) context: String,
    /// Only these kinds of events.
    #[arg(long, value_name = "KIND", value_enum, value_delimiter = ',')]
    kind: Vec<WatchKind>,
    /// Only removals and misses for these reasons.
    #[arg(long, value_name = "REASON", value_parser = reasons(), value_delimiter = ',')]
    reason: Vec<String>,
    /// Only ids that begin with these digits. Misses have the first eight digits of the id.
    #[arg(long, value_name = "DIGITS")]
    id_prefix: Option<IdPrefix>,
    /// Only sessions and lookups with this server name.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WatchKind {
    /// A session was stored.
    Added,
    /// A session was found for a handshake.
    Hit,
    /// A session was removed.
    Removed,
    /// A lookup found nothing to resume.
    Missed,
}

/// Returns a parser of the words of both enums of reasons.
fn reasons() -> PossibleValuesParser {
    let mut words: Vec<_> = pb::RemovalReason::all().map(Words::word).collect();
    words.extend(pb::MissReason::all().map(Words::word));
    words.sort();
    words.dedup();
    PossibleValuesParser::new(words)
}

/// The parts of an event that all kinds have in common.
pub(super) struct Seen<'e> {
    kind: WatchKind,
    context: &'e str,
    role: i32,
    /// The id, or for a miss its first digits.
    id: &'e str,
    server_name: &'e str,
    /// The word of the reason, or `-`.
    reason: String,
}

impl<'e> Seen<'e> {
    /// `None`: the event is a number of dropped events, or is not known to this version.
    pub(super) fn of(event: &'e pb::WatchSessionsResponse) -> Option<Self> {
        let (kind, session) = match event.event.as_ref()? {
            Event::Dropped(_) => return None,
            Event::Missed(miss) => {
                return Some(Self {
                    kind: WatchKind::Missed,
                    context: &miss.context,
                    role: miss.role,
                    id: &miss.session_id_prefix,
                    server_name: &miss.server_name,
                    reason: words::word::<pb::MissReason>(miss.reason),
                });
            }
            Event::Added(session) => (WatchKind::Added, session),
            Event::Hit(session) => (WatchKind::Hit, session),
            Event::Removed(session) => (WatchKind::Removed, session),
        };
        Some(Self {
            kind,
            context: &session.context,
            role: session.role,
            id: &session.id,
            server_name: &session.server_name,
            reason: words::word::<pb::RemovalReason>(event.reason),
        })
    }

    /// Writes a line whose columns are as wide as most values.
    pub(super) fn line(&self, event: &pb::WatchSessionsResponse, screen: &mut Screen) {
        let kind = match self.kind {
            WatchKind::Added => "added",
            WatchKind::Hit => "hit",
            WatchKind::Removed => "removed",
            WatchKind::Missed => "missed",
        };
        let line = format!(
            "{}  {kind:7}  {:13}  {:10}  {:6}  {:32}  {}",
            words::precise_time(event.time.as_ref()),
            self.reason,
            self.context,
            words::word::<pb::Role>(self.role),
            self.id,
            words::or_dash(self.server_name),
        );
        screen.line(line);
    }
}

impl WatchArgs {
    /// Returns whether all filters fit an event.
    pub(super) fn wants(&self, seen: &Seen<'_>) -> bool {
        // A miss has only the first digits of its id, and none if it was by server name.
        let is_cut = seen.kind == WatchKind::Missed && !seen.id.is_empty();
        let fits = |prefix: &IdPrefix| {
            prefix.fits(seen.id) || is_cut && prefix.digits().starts_with(seen.id)
        };
        (self.kind.is_empty() || self.kind.contains(&seen.kind))
            && (self.reason.is_empty() || self.reason.contains(&seen.reason))
            && self.id_prefix.as_ref().is_none_or(fits)
            && self
                .server_name
                .as_ref()
                .is_none_or(|name| seen.server_name.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(id: &str, reason: pb::RemovalReason) -> pb::WatchSessionsResponse {
        pb::WatchSessionsResponse {
            event: Some(Event::Removed(pb::Session {
                id: id.into(),
                server_name: "a.test".into(),
                ..Default::default()
            })),
            reason: reason.into(),
            ..Default::default()
        }
    }

    fn args() -> WatchArgs {
        WatchArgs {
            context: String::new(),
            kind: Vec::new(),
            reason: Vec::new(),
            id_prefix: None,
            server_name: None,
        }
    }

    fn wants(args: &WatchArgs, event: &pb::WatchSessionsResponse) -> bool {
        args.wants(&Seen::of(event).unwrap())
    }

    #[test]
    fn filters_apply_together() {
        let event = removed("abcd", pb::RemovalReason::Unclosed);
        assert!(wants(&args(), &event));
        for (filter, wanted) in [
            (
                WatchArgs {
                    kind: vec![WatchKind::Removed],
                    ..args()
                },
                true,
            ),
            (
                WatchArgs {
                    kind: vec![WatchKind::Added, WatchKind::Hit],
                    ..args()
                },
                false,
            ),
            (
                WatchArgs {
                    reason: vec!["unclosed".into()],
                    ..args()
                },
                true,
            ),
            (
                WatchArgs {
                    reason: vec!["expired".into()],
                    ..args()
                },
                false,
            ),
            (
                WatchArgs {
                    id_prefix: "AB:C".parse().ok(),
                    ..args()
                },
                true,
            ),
            (
                WatchArgs {
                    id_prefix: "b".parse().ok(),
                    ..args()
                },
                false,
            ),
            (
                WatchArgs {
                    server_name: Some("A.test".into()),
                    ..args()
                },
                true,
            ),
            (
                WatchArgs {
                    server_name: Some("b.test".into()),
                    ..args()
                },
                false,
            ),
            (
                WatchArgs {
                    kind: vec![WatchKind::Removed],
                    reason: vec!["expired".into()],
                    ..args()
                },
                false,
            ),
        ] {
            assert_eq!(wants(&filter, &event), wanted, "{filter:?}");
        }
    }

    #[test]
    fn a_miss_fits_a_prefix_that_is_longer_than_its_digits() {
        let missed = |digits: &str| pb::WatchSessionsResponse {
            event: Some(Event::Missed(pb::SessionMiss {
                session_id_prefix: digits.into(),
                ..Default::default()
            })),
            ..Default::default()
        };
        let filter = WatchArgs {
            id_prefix: "aabbccddee".parse().ok(),
            ..args()
        };
        for (event, wanted) in [
            (missed("aabbccdd"), true),
            (missed("aabbccde"), false),
            (missed(""), false),
            (removed("aabbccdd", pb::RemovalReason::Expired), false),
            (removed("aabbccddee", pb::RemovalReason::Expired), true),
        ] {
            assert_eq!(wants(&filter, &event), wanted, "{event:?}");
        }
    }

    #[test]
    fn dropped_events_are_no_session() {
        let event = pb::WatchSessionsResponse {
            event: Some(Event::Dropped(3)),
            ..Default::default()
        };
        assert!(Seen::of(&event).is_none());
    }
}
