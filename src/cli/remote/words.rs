//! Values of the contract as words of a table: enums, times, durations, sizes.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use prost_types::{Duration, Timestamp};
use tls_sessiond_proto as pb;

/// An enum of the contract. Its word is the name of the value without the prefix of the enum, in
/// lower case and with hyphens: `ROLE_SERVER` is `server`.
pub(super) trait Words: Copy + Send + Sync + TryFrom<i32> + 'static {
    /// The prefix of all names.
    const PREFIX: &'static str;

    /// Returns the name in the contract.
    fn name(self) -> &'static str;

    /// Returns the word.
    fn word(self) -> String {
        let name = self.name();
        let name = name.strip_prefix(Self::PREFIX).unwrap_or(name);
        name.to_ascii_lowercase().replace('_', "-")
    }

    /// Returns all values except the first, which means that nothing is specified.
    fn all() -> impl Iterator<Item = Self> {
        (1..).map_while(|number| Self::try_from(number).ok())
    }
}

macro_rules! words {
    ($($kind:ident $prefix:literal),* $(,)?) => {
        $(impl Words for pb::$kind {
            const PREFIX: &'static str = $prefix;

            fn name(self) -> &'static str {
                self.as_str_name()
            }
        })*
    };
}

words!(
    ClosePolicy "CLOSE_POLICY_",
    CloseEvidence "CLOSE_EVIDENCE_",
    ConnectionState "CONNECTION_STATE_",
    DaemonState "DAEMON_STATE_",
    Engine "ENGINE_",
    MissReason "MISS_REASON_",
    RemovalReason "REMOVAL_REASON_",
    RingPhase "RING_PHASE_",
    Role "ROLE_",
    TicketKeyLayout "TICKET_KEY_LAYOUT_",
    TicketKeyStyle "TICKET_KEY_STYLE_",
);

/// Returns the word of a number on the wire. A number of a newer daemon is shown as it is, and
/// the unspecified value as `-`.
pub(super) fn word<W: Words>(number: i32) -> String {
    match W::try_from(number) {
        _ if number == 0 => "-".into(),
        Ok(value) => value.word(),
        Err(_) => number.to_string(),
    }
}

/// Returns a parser of the words of an enum, for an option.
pub(super) fn parser<W: Words>() -> impl TypedValueParser<Value = W> {
    let words: Vec<_> = W::all().map(Words::word).collect();
    PossibleValuesParser::new(words).try_map(|given: String| {
        W::all()
            .find(|value| value.word() == given)
            .ok_or("not a value of this option")
    })
}

/// Returns `TLS 1.2` or `TLS 1.3`, or `-`.
pub(super) fn version(number: i32) -> String {
    match pb::ProtocolVersion::try_from(number) {
        Ok(pb::ProtocolVersion::Unspecified) => "-".into(),
        Ok(pb::ProtocolVersion::Tls12) => "TLS 1.2".into(),
        Ok(pb::ProtocolVersion::Tls13) => "TLS 1.3".into(),
        Err(_) => number.to_string(),
    }
}

/// Returns a text, or `-` in place of an empty one.
pub(super) fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Returns `yes` or `no`.
pub(super) fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// Returns a time in whole seconds, as RFC 3339 writes it, or `-`.
pub(super) fn time(time: Option<&Timestamp>) -> String {
    time.map_or("-".into(), |time| {
        Timestamp { nanos: 0, ..*time }.to_string()
    })
}

/// Returns a time with milliseconds, as RFC 3339 writes it, or `-`.
pub(super) fn precise_time(time: Option<&Timestamp>) -> String {
    time.map_or("-".into(), |time| {
        let text = Timestamp {
            nanos: time.nanos / 1_000_000 * 1_000_000,
            ..*time
        }
        .to_string();
        match text.strip_suffix('Z') {
            Some(whole) if !whole.contains('.') => format!("{whole}.000Z"),
            _ => text,
        }
    })
}

/// Returns a number of seconds in its two largest units: `3d 4h`, `59s`.
pub(super) fn seconds(seconds: i64) -> String {
    const UNITS: [(i64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds.max(0);
    let mut parts = Vec::new();
    for (length, unit) in UNITS {
        if rest >= length {
            parts.push(format!("{}{unit}", rest / length));
            rest %= length;
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() {
        return "0s".into();
    }
    parts.join(" ")
}

/// Returns a duration as [`seconds`] does, or `-`.
pub(super) fn duration(duration: Option<&Duration>) -> String {
    duration.map_or("-".into(), |duration| seconds(duration.seconds))
}

/// Returns a number of bytes in the largest unit of which it has one, with one decimal.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    for (size, unit) in UNITS {
        if bytes >= size {
            let (whole, tenths) = (bytes / size, bytes % size * 10 / size);
            return match tenths {
                0 => format!("{whole} {unit}"),
                _ => format!("{whole}.{tenths} {unit}"),
            };
        }
    }
    format!("{bytes} B")
}

/// Returns a share in whole percent, rounded down, or `-` of nothing.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let share = (u128::from(part) * 100).checked_div(u128::from(whole));
    share.map_or("-".into(), |share| format!("{share} %"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enums_have_short_words() {
        assert_eq!(pb::Role::Server.word(), "server");
        assert_eq!(pb::RemovalReason::ScopeChanged.word(), "scope-changed");
        assert_eq!(word::<pb::MissReason>(0), "-");
        assert_eq!(word::<pb::MissReason>(99), "99");
        assert_eq!(pb::MissReason::all().count(), 8);
        assert_eq!(pb::Role::all().count(), 2);
    }

    #[test]
    fn numbers_are_shown_in_units() {
        for (seconds, shown) in [
            (-1, "0s"),
            (59, "59s"),
            (3_600, "1h"),
            (3_660, "1h 1m"),
            (86_405, "1d"),
            (273_600, "3d 4h"),
        ] {
            assert_eq!(super::seconds(seconds), shown);
        }
        for (size, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(bytes(size), shown);
        }
        assert_eq!(percent(1, 3), "33 %");
        assert_eq!(percent(u64::MAX, u64::MAX), "100 %");
        assert_eq!(percent(0, 0), "-");
    }

    #[test]
    fn times_are_rfc_3339() {
        let at = Timestamp {
            seconds: 1,
            nanos: 1_999_999,
        };
        assert_eq!(time(Some(&at)), "1970-01-01T00:00:01Z");
        assert_eq!(precise_time(Some(&at)), "1970-01-01T00:00:01.001Z");
        let whole = Timestamp { nanos: 0, ..at };
        assert_eq!(precise_time(Some(&whole)), "1970-01-01T00:00:01.000Z");
        assert_eq!(time(None), "-");
    }
}
