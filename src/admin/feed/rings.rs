//! The rings of ticket keys, as the page shows them.

use serde_json::{Value, json};
use tls_sessiond_proto as pb;

use super::word;

/// Returns the rings, and the members that their rotations wait for.
pub(super) fn rings(status: &pb::GetStatusResponse) -> Value {
    let each = status.rings.iter().map(|ring| {
        let seconds = |age: &Option<prost_types::Duration>| age.as_ref().map(|age| age.seconds);
        json!({
            "name": ring.name,
            "phase": word(ring.phase().as_str_name(), "RING_PHASE_"),
            "epoch": ring.epoch,
            "age": seconds(&ring.epoch_age),
            "members": ring.members.len(),
            "late": ring.members.iter().filter(|member| member.late).count(),
            "sealed": ring.tickets_sealed,
            "opened": ring.tickets_opened,
            "waits": waiting(ring),
        })
    });
    each.collect()
}

/// Most members of a ring that the page names.
const MEMBERS_SHOWN: usize = 8;

/// Returns the members that a ring waits for, those with trouble first.
fn waiting(ring: &pb::Ring) -> Value {
    let mut waits: Vec<_> = ring
        .members
        .iter()
        .filter(|member| member.behind.is_some() || !member.trouble.is_empty())
        .collect();
    waits.sort_by_key(|member| (member.trouble.is_empty(), !member.late));
    let each = waits.into_iter().take(MEMBERS_SHOWN).map(|member| {
        json!({
            "name": member.name,
            "behind": member.behind.map(|behind| behind.seconds),
            "attached": member.attached,
            "late": member.late,
            "trouble": member.trouble,
        })
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: usize, behind: i64, late: bool, trouble: &str) -> pb::RingMember {
        pb::RingMember {
            name: name.to_string(),
            behind: (behind > 0).then_some(prost_types::Duration {
                seconds: behind,
                nanos: 0,
            }),
            late,
            trouble: trouble.into(),
            ..Default::default()
        }
    }

    #[test]
    fn members_that_a_rotation_waits_for_are_named_the_worst_first() {
        let mut members: Vec<_> = (0..9).map(|name| member(name, 1, false, "")).collect();
        members.push(member(9, 0, false, ""));
        members.push(member(10, 7, true, ""));
        members.push(member(11, 0, false, "wrong length"));
        let status = pb::GetStatusResponse {
            rings: vec![pb::Ring {
                members,
                ..Default::default()
            }],
            ..Default::default()
        };
        let shown = rings(&status);
        let waits = shown[0]["waits"].as_array().unwrap();
        let names: Vec<_> = waits.iter().map(|member| &member["name"]).collect();
        assert_eq!(names, ["11", "10", "0", "1", "2", "3", "4", "5"]);
        assert_eq!(waits[1]["behind"], 7);
        assert_eq!(waits[0]["behind"], Value::Null);
    }
}
