//! `keys status`: the rings that the caller may see, or one of them, with their members.

use clap::Args;
use tls_sessiond_proto as pb;

use super::{
    super::{
        Console, Verdict,
        failure::Failure,
        screen::{Cell, Screen, Table, Tone},
        words,
    },
    stub,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond keys status              all rings, and the members of all of them
  tls-sessiond keys status web
  tls-sessiond keys status -o json | jq -r '.rings[].members[] | select(.late).name'

COUNTED: rotations wait for the member. RUNS: the last instruction that it has acknowledged. BEHIND: how
long a member that does not run the last instruction was not heard of. LATE: the phase waits for it
longer than members_wait. Needs the role observer, for a ring without a context in all contexts.";

/// The ring to show.
#[derive(Debug, Args)]
pub(in crate::cli) struct RingStatusArgs {
    /// Name of the ring. Without it, all rings.
    ring: Option<String>,
}

pub(super) async fn status(console: &Console, args: RingStatusArgs) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let mut client = stub(&daemon);
    if let Some(ring) = args.ring {
        let call = client.get_ring(pb::GetRingRequest { ring });
        let ring = daemon.call(call).await?.ring.unwrap_or_default();
        console
            .printer
            .message(&ring, |screen| one_ring(screen, &ring))?;
    } else {
        let call = client.list_rings(pb::ListRingsRequest {});
        let answer = daemon.call(call).await?;
        console
            .printer
            .message(&answer, |screen| all_rings(screen, &answer.rings))?;
    }
    Ok(Verdict::Yes)
}

/// Writes a row for each ring, and one for each member.
fn all_rings(screen: &mut Screen, rings: &[pb::Ring]) {
    let mut table = Table::new([
        "RING",
        "CONTEXT",
        "PHASE",
        "EPOCH",
        "AGE",
        "INSTRUCTION",
        "MEMBERS",
        "LATE",
    ]);
    for ring in rings {
        let late = ring.members.iter().filter(|member| member.late).count();
        table.row([
            ring.name.as_str().into(),
            words::or_dash(&ring.context).into(),
            phase(ring).into(),
            ring.epoch.into(),
            words::duration(ring.epoch_age.as_ref()).into(),
            ring.sequence.into(),
            ring.members.len().to_string().into(),
            Cell::toned(
                &late.to_string(),
                if late == 0 { Tone::Plain } else { Tone::Bad },
            ),
        ]);
    }
    screen.table(&table);
    let all = rings.iter().flat_map(|ring| {
        let members = ring.members.iter();
        members.map(|member| (ring.name.as_str(), member))
    });
    members(screen, all);
}

/// Writes everything about one ring.
pub(super) fn one_ring(screen: &mut Screen, ring: &pb::Ring) {
    let open: Vec<_> = ring.open_epochs.iter().map(ToString::to_string).collect();
    screen.fields([
        ("ring", ring.name.as_str().into()),
        ("context", words::or_dash(&ring.context).into()),
        (
            "phase",
            format!(
                "{} for {}",
                phase(ring),
                words::duration(ring.phase_age.as_ref())
            )
            .into(),
        ),
        (
            "epoch",
            format!(
                "{} for {} (tickets of {} are opened)",
                ring.epoch,
                words::duration(ring.epoch_age.as_ref()),
                open.join(", ")
            )
            .into(),
        ),
        ("instruction", ring.sequence.into()),
        ("rotations", ring.rotations.into()),
        ("fenced", ring.fenced.into()),
        ("rotate", words::duration(ring.rotate.as_ref()).into()),
        ("lifetime", words::duration(ring.lifetime.as_ref()).into()),
        (
            "max key age",
            words::duration(ring.max_key_age.as_ref()).into(),
        ),
        ("saved", words::yes_no(ring.saved).into()),
        ("daemons", daemons(ring).into()),
        ("tickets", tickets(ring).into()),
        ("trouble", words::or_dash(&ring.trouble).into()),
    ]);
    let of_ring = ring.members.iter();
    members(screen, of_ring.map(|member| (ring.name.as_str(), member)));
}

/// Returns how many tickets the daemon itself has sealed and opened, by epoch.
fn tickets(ring: &pb::Ring) -> String {
    let each = ring.tickets.iter().map(|of| {
        format!(
            "epoch {}: {} sealed, {} opened",
            of.epoch, of.sealed, of.opened
        )
    });
    let all: Vec<_> = each.collect();
    match all.is_empty() {
        true => "none by this daemon".to_owned(),
        false => all.join("; "),
    }
}

/// Returns how many daemons share the ring, and whether this one rotates it.
fn daemons(ring: &pb::Ring) -> String {
    match (ring.shared, ring.rotates_here) {
        (false, _) => "this one alone".to_owned(),
        (true, true) => format!("{} over the shared store; this one rotates", ring.daemons),
        (true, false) => format!(
            "{} over the shared store; another one rotates",
            ring.daemons
        ),
    }
}

fn phase(ring: &pb::Ring) -> String {
    if ring.phase() == pb::RingPhase::Unspecified {
        return "not read from the shared store yet".to_owned();
    }
    let phase = words::word::<pb::RingPhase>(ring.phase);
    match ring.emergency {
        true => format!("{phase} (emergency)"),
        false => phase,
    }
}

/// Writes a row for each member, if there is one.
fn members<'r>(screen: &mut Screen, members: impl Iterator<Item = (&'r str, &'r pb::RingMember)>) {
    let mut table = Table::new([
        "RING", "MEMBER", "STYLE", "ATTACHED", "COUNTED", "RUNS", "BEHIND", "LATE", "OWNER",
        "TROUBLE",
    ]);
    let mut some = false;
    for (ring, member) in members {
        some = true;
        let attached = match member.attached {
            true => Cell::toned("yes", Tone::Good),
            false => Cell::toned("no", Tone::Bad),
        };
        let late = match member.late {
            true => Cell::toned("yes", Tone::Bad),
            false => "no".into(),
        };
        let trouble = match &*member.trouble {
            "" => "-".into(),
            trouble => Cell::toned(trouble, Tone::Bad),
        };
        table.row([
            ring.into(),
            member.name.as_str().into(),
            words::word::<pb::TicketKeyStyle>(member.style).into(),
            attached,
            words::yes_no(member.counted).into(),
            member.acknowledged_sequence.into(),
            words::duration(member.behind.as_ref()).into(),
            late,
            words::or_dash(&member.owner).into(),
            trouble,
        ]);
    }
    if some {
        screen.heading("MEMBERS");
        screen.table(&table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_members_stand_with_their_trouble() {
        let late = pb::RingMember {
            name: "web-1/nginx".into(),
            style: pb::TicketKeyStyle::List.into(),
            attached: true,
            counted: true,
            acknowledged_sequence: 3,
            behind: Some(prost_types::Duration {
                seconds: 90,
                nanos: 1,
            }),
            late: true,
            trouble: "no \x1b[2Jprocess 7".into(),
            ..Default::default()
        };
        let ring = pb::Ring {
            name: "web".into(),
            phase: pb::RingPhase::Prepare.into(),
            sequence: 4,
            epoch: 1,
            open_epochs: vec![1, 2],
            emergency: true,
            members: vec![late],
            ..Default::default()
        };
        let mut screen = Screen::new(false);
        all_rings(&mut screen, std::slice::from_ref(&ring));
        assert_eq!(
            screen.into_text(),
            "\
RING  CONTEXT  PHASE                EPOCH  AGE  INSTRUCTION  MEMBERS  LATE
web   -        prepare (emergency)      1  -              4        1     1

MEMBERS
RING  MEMBER       STYLE  ATTACHED  COUNTED  RUNS  BEHIND  LATE  OWNER  TROUBLE
web   web-1/nginx  list   yes       yes         3  1m 30s  yes   -      no \\u{1b}[2Jprocess 7
"
        );
    }
}
