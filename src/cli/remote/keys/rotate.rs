//! `keys rotate` and `keys fence`: what an operator does to a ring.

use clap::Args;
use tls_sessiond_proto as pb;

use super::{
    super::{Console, Verdict, confirmation::answer_to, failure::Failure, printer::note, words},
    stub,
};

pub(super) const ROTATE_EXAMPLES: &str = "\
Examples:
  tls-sessiond keys rotate web
  tls-sessiond keys rotate web --emergency          asks for the name of the ring
  tls-sessiond keys rotate web --emergency --yes    for scripts

A rotation loses no ticket. It waits until every member has acknowledged: keys status shows it.
--emergency is for a key that has leaked. It replaces all keys at once: no ticket that exists is resumed,
each client makes one full handshake, and members that do not acknowledge within members_wait are fenced.
Sessions that were recorded with a leaked key can be read also after it. Needs the role admin.";

pub(super) const FENCE_EXAMPLES: &str = "\
Examples:
  tls-sessiond keys status web
  tls-sessiond keys fence web web-7/nginx

For a server that does not return. An agent that still runs joins again by itself. Needs the role admin.";

/// The ring to rotate.
#[derive(Debug, Args)]
pub(in crate::cli) struct RotateArgs {
    /// Name of the ring.
    ring: String,
    /// Replace all keys at once, without waiting: no ticket that exists is resumed.
    #[arg(long)]
    emergency: bool,
    /// Do not ask before an emergency rotation.
    #[arg(long)]
    yes: bool,
}

/// The membership to end.
#[derive(Debug, Args)]
pub(in crate::cli) struct FenceArgs {
    /// Name of the ring.
    ring: String,
    /// Name of the member, as keys status shows it.
    member: String,
}

pub(super) async fn rotate(console: &Console, args: RotateArgs) -> Result<Verdict, Failure> {
    let RotateArgs {
        ring,
        emergency,
        yes,
    } = args;
    if emergency && !yes {
        note(&format!(
            "--emergency replaces all keys of the ring {ring} at once: no ticket that exists is resumed, and each client \
             makes one full handshake. Without --emergency a rotation loses no ticket."
        ));
        let answer = answer_to("Type the name of the ring to go on:", "rotate --emergency")?;
        if answer.trim() != ring {
            return Err(Failure::No("nothing was rotated".into()));
        }
    }
    let daemon = console.daemon().await?;
    let request = pb::RotateRingRequest { ring, emergency };
    let answer = daemon.call(stub(&daemon).rotate_ring(request)).await?;
    let ring = answer.ring.unwrap_or_default();
    console.printer.message(&ring, |screen| {
        let name = &ring.name;
        let what = match emergency {
            true => "all keys are replaced",
            false => "a rotation is asked for",
        };
        screen.line(format!("ring {name}: {what}; {}", now(&ring)));
        let waits = ring.members.iter().filter(|member| member.counted).count();
        screen.line(format!(
            "members that it waits for: {waits}; tls-sessiond keys status {name} shows them"
        ));
    })?;
    Ok(Verdict::Yes)
}

pub(super) async fn fence(console: &Console, args: FenceArgs) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let FenceArgs { ring, member } = args;
    let request = pb::FenceMemberRequest {
        ring,
        member: member.clone(),
    };
    let answer = daemon.call(stub(&daemon).fence_member(request)).await?;
    let ring = answer.ring.unwrap_or_default();
    console.printer.message(&ring, |screen| {
        screen.line(format!(
            "ring {}: it no longer waits for {member}; {}",
            ring.name,
            now(&ring)
        ));
    })?;
    Ok(Verdict::Yes)
}

/// Returns the epoch and the phase of a ring in words.
fn now(ring: &pb::Ring) -> String {
    let phase = words::word::<pb::RingPhase>(ring.phase);
    format!("epoch {}, phase {phase}", ring.epoch)
}
