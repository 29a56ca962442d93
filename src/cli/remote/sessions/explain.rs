//! Explains and removes one session.
//!
//! Both calls take a complete id, with the context and the role. So the id is tried as it was
//! given, and if the daemon does not know it, its digits are looked for in the list of sessions.

use tls_sessiond_proto as pb;

use super::{
    super::{
        Console, Verdict,
        channel::RemoteDaemon,
        failure::Failure,
        screen::{Cell, Screen, Tone},
        words,
    },
    OneSession, fields,
    list::find,
    stub,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond sessions explain 9c41f0                              found by its first digits
  tls-sessiond sessions explain 9c41f0a1b2c3d4e5 --context web --role server

An id whose session was removed must be complete. Without --context it is looked for in `default`,
and without --role among sessions of servers.
Exit status: 0 also if the session cannot be resumed; 1 if nothing is known about the id.";

/// Where a session is: what a call about it has to name.
struct Place {
    context: String,
    session_id: String,
    role: pb::Role,
}

impl Place {
    /// Takes the arguments as they were given. `None`: the digits are not an id.
    fn as_given(wanted: &OneSession) -> Option<Self> {
        let OneSession { id, selection } = wanted;
        id.is_whole_bytes().then(|| Self {
            context: selection.context.clone().unwrap_or_default(),
            session_id: id.digits().to_owned(),
            role: selection.role.unwrap_or(pb::Role::Server),
        })
    }

    /// Finds the session in the memory of the daemon. `None`: it is not there.
    async fn listed(daemon: &RemoteDaemon, wanted: &OneSession) -> Result<Option<Self>, Failure> {
        let session = find(daemon, wanted).await?;
        Ok(session.map(|session| Self {
            role: session.role(),
            context: session.context,
            session_id: session.id,
        }))
    }
}

pub(super) async fn explain(console: &Console, wanted: &OneSession) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let given = match Place::as_given(wanted) {
        Some(place) => Some(ask(&daemon, place).await?),
        None => None,
    };
    // A session of another context or role may be the one that is meant.
    let is_elsewhere = |answer: &pb::ExplainSessionResponse| {
        matches!(
            answer.miss_reason(),
            pb::MissReason::Unknown | pb::MissReason::Scope
        )
    };
    if let Some(answer) = given.as_ref().filter(|answer| !is_elsewhere(answer)) {
        show(console, answer)?;
        return Ok(Verdict::Yes);
    }
    if let Some(place) = Place::listed(&daemon, wanted).await? {
        show(console, &ask(&daemon, place).await?)?;
        return Ok(Verdict::Yes);
    }
    // The daemon's summary of an unknown id says why the daemon may not know it.
    let answer = given.ok_or_else(|| wanted.id.missing("session"))?;
    show(console, &answer)?;
    Ok(match answer.miss_reason() {
        pb::MissReason::Unknown => Verdict::No,
        _ => Verdict::Yes,
    })
}

async fn ask(daemon: &RemoteDaemon, place: Place) -> Result<pb::ExplainSessionResponse, Failure> {
    let request = pb::ExplainSessionRequest {
        context: place.context,
        session_id: place.session_id,
        role: place.role.into(),
    };
    daemon.call(stub(daemon).explain_session(request)).await
}

fn show(console: &Console, answer: &pb::ExplainSessionResponse) -> Result<(), Failure> {
    console
        .printer
        .message(answer, |screen| table(screen, answer))
}

fn table(screen: &mut Screen, answer: &pb::ExplainSessionResponse) {
    let resumable = if answer.resumable {
        Cell::toned("yes", Tone::Good)
    } else {
        Cell::toned("no", Tone::Bad)
    };
    screen.line(answer.summary.as_str());
    screen.fields([
        ("resumable", resumable),
        (
            "miss",
            words::word::<pb::MissReason>(answer.miss_reason).into(),
        ),
        (
            "removal",
            words::word::<pb::RemovalReason>(answer.removal_reason).into(),
        ),
        ("removed", words::time(answer.remove_time.as_ref()).into()),
    ]);
    if let Some(session) = &answer.session {
        screen.heading("SESSION");
        fields(screen, session);
    }
}

pub(super) async fn remove(console: &Console, wanted: &OneSession) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    if let Some(place) = Place::as_given(wanted) {
        let id = place.session_id.clone();
        let answer = take(&daemon, place).await?;
        if answer.removed {
            return removed(console, &id, &answer);
        }
    }
    let place = Place::listed(&daemon, wanted)
        .await?
        .ok_or_else(|| wanted.id.missing("session"))?;
    let id = place.session_id.clone();
    let answer = take(&daemon, place).await?;
    removed(console, &id, &answer)
}

async fn take(daemon: &RemoteDaemon, place: Place) -> Result<pb::RemoveSessionResponse, Failure> {
    let request = pb::RemoveSessionRequest {
        context: place.context,
        session_id: place.session_id,
        role: place.role.into(),
    };
    daemon.call(stub(daemon).remove_session(request)).await
}

fn removed(
    console: &Console,
    id: &str,
    answer: &pb::RemoveSessionResponse,
) -> Result<Verdict, Failure> {
    let done = if answer.removed {
        "removed"
    } else {
        "not removed"
    };
    console
        .printer
        .message(answer, |screen| screen.line(format!("{done} {id}")))?;
    Ok(if answer.removed {
        Verdict::Yes
    } else {
        Verdict::No
    })
}
