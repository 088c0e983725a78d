//! How long something took, or how long ago it was.

use std::time::Duration;

use jiff::Timestamp;

/// How long ago an RFC 3339 time was, such as `3 min`; the text itself if it is none.
pub(crate) fn age(time: &str, now: Timestamp) -> String {
    let Ok(then) = time.parse::<Timestamp>() else {
        return time.to_owned();
    };
    let seconds = now.duration_since(then).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// An RFC 3339 time to the second, and how long ago it was; the text itself if it is none.
pub(crate) fn moment(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(then) => format!(
            "{} ({})",
            then.strftime("%Y-%m-%dT%H:%M:%SZ"),
            age(time, now)
        ),
        Err(_) => time.to_owned(),
    }
}

/// An RFC 3339 time to the second, and how long it is until then.
pub(crate) fn moment_to_come(time: &str, now: Timestamp) -> String {
    let Ok(then) = time.parse::<Timestamp>() else {
        return time.to_owned();
    };
    let seconds = then.duration_since(now).as_secs().max(0);
    let left = match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    };
    format!("{} (in {left})", then.strftime("%Y-%m-%dT%H:%M:%SZ"))
}

/// How long something took, such as `12 ms`, `3.4 s` or `2 min 5 s`.
pub(crate) fn took(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match duration.as_millis() {
        millis @ 0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{:.1} s", duration.as_secs_f64()),
        60_000..3_600_000 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600_000..172_800_000 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} days {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_the_unit_that_fits() {
        let now: Timestamp = "2026-03-02T12:00:00Z".parse().unwrap();
        for (time, text) in [
            ("2026-03-02T11:59:58Z", "2 s ago"),
            ("2026-03-02T11:57:00.5Z", "2 min ago"),
            ("2026-03-02T09:00:00+00:00", "3 h ago"),
            ("2026-02-20T12:00:00Z", "10 days ago"),
            ("2026-03-02T12:00:01Z", "0 s ago"),
            ("yesterday", "yesterday"),
        ] {
            assert_eq!(age(time, now), text, "{time}");
        }
    }

    #[test]
    fn moments_are_to_the_second() {
        let now: Timestamp = "2026-03-02T12:00:00Z".parse().unwrap();
        assert_eq!(
            moment("2026-03-02T11:00:00.123456789Z", now),
            "2026-03-02T11:00:00Z (59 min ago)"
        );
        assert_eq!(moment("yesterday", now), "yesterday");
        assert_eq!(
            moment_to_come("2026-03-02T20:00:00.5Z", now),
            "2026-03-02T20:00:00Z (in 8 h)"
        );
        assert_eq!(
            moment_to_come("2026-03-02T11:00:00Z", now),
            "2026-03-02T11:00:00Z (in 0 s)"
        );
    }

    #[test]
    fn durations_are_in_the_unit_that_fits() {
        assert_eq!(took(Duration::from_micros(12_300)), "12 ms");
        assert_eq!(took(Duration::from_millis(3_420)), "3.4 s");
        assert_eq!(took(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(took(Duration::from_secs(7_500)), "2 h 5 min");
        assert_eq!(took(Duration::from_secs(4 * 86_400)), "4 days 0 h");
    }
}
