//! Durations, sizes and permissions as a configuration writes them: `"30s"`, `"64MiB"`, `"0660"`.

use std::time::Duration;

use super::InvalidValue;

/// Parses a whole number and a unit: ms, s, m, h or d.
pub(crate) fn duration(text: &str) -> Result<Duration, InvalidValue> {
    let (number, unit) = split(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(format!(
                "invalid duration `{text}`: expected a number and ms, s, m, h or d, as in \"30s\""
            )
            .into());
        }
    };
    number
        .checked_mul(millis)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{text}` is too long for a duration").into())
}

/// Writes a duration of whole seconds as [`duration`] reads it, in the largest unit that divides it.
pub(super) fn shown(duration: Duration) -> String {
    let seconds = duration.as_secs();
    [(86_400, "d"), (3_600, "h"), (60, "m")]
        .into_iter()
        .find(|(unit, _)| seconds > *unit && seconds.is_multiple_of(*unit))
        .map_or(format!("{seconds}s"), |(unit, name)| {
            format!("{}{name}", seconds / unit)
        })
}

/// Parses the permissions of a file in octal, without execute permissions.
pub(crate) fn mode(text: &str) -> Result<u32, InvalidValue> {
    u32::from_str_radix(text, 8).ok().filter(|mode| mode & !0o666 == 0).ok_or_else(|| {
        format!("invalid mode `{text}`: expected octal permissions to read and write, as in \"0660\"").into()
    })
}

/// Parses `UID:GID`. Returns `None` for an empty text.
pub(crate) fn user_and_group(text: &str) -> Result<Option<(u32, u32)>, InvalidValue> {
    if text.is_empty() {
        return Ok(None);
    }
    text.split_once(':')
        .and_then(|(user, group)| Some(Some((user.parse().ok()?, group.parse().ok()?))))
        .ok_or_else(|| format!("invalid owner `{text}`: expected UID:GID, both numbers").into())
}

/// Parses a whole number and a unit: B, KiB, MiB or GiB.
pub(super) fn size(text: &str) -> Result<usize, InvalidValue> {
    let (number, unit) = split(text)?;
    let bytes = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => {
            return Err(format!(
                "invalid size `{text}`: expected a number and B, KiB, MiB or GiB, as in \"64MiB\""
            )
            .into());
        }
    };
    number
        .checked_mul(bytes)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| format!("`{text}` is more than this machine can address").into())
}

fn split(text: &str) -> Result<(u64, &str), InvalidValue> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    match number.parse() {
        Ok(number) => Ok((number, unit)),
        Err(_) => Err(format!("`{text}` does not begin with a whole number").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(size("16KiB"), Ok(16_384));
        for bad in [
            "",
            "s",
            "30",
            "30 s",
            "-1s",
            "1.5h",
            "30S",
            "99999999999999999999s",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(duration("18446744073709551615d").is_err());
        for bad in ["", "10", "10MB", "10mib", "18446744073709551615GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
