//! Lengths of time as people type them: `30`, `30s`, `5m`, `1.5h`; a bare number is seconds.

use std::time::Duration;

/// Reads a length of time above zero.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "`{text}` is not a time: write for example `30s`, `5m` or `1.5h`; a bare number is seconds"
        )
    };
    let (number, seconds) = match text.char_indices().next_back() {
        Some((end, 's')) => (&text[..end], 1.0),
        Some((end, 'm')) => (&text[..end], 60.0),
        Some((end, 'h')) => (&text[..end], 3600.0),
        Some((end, 'd')) => (&text[..end], 86400.0),
        _ => (text, 1.0),
    };
    // `f64` reads words such as `inf`, which are no lengths of time.
    if !number.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let duration = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
    match duration.is_zero() || duration > Duration::from_secs(366 * 86400) {
        true => Err(format!(
            "`{text}` must be more than nothing and at most a year"
        )),
        false => Ok(duration),
    }
}

/// The same for what may be long: without a unit nobody can tell whether seconds or days are
/// meant.
pub(crate) fn parse_with_unit(text: &str) -> Result<Duration, String> {
    let duration = parse(text)?;
    match text.ends_with(|last: char| last.is_ascii_alphabetic()) {
        true => Ok(duration),
        false => Err(format!(
            "write `{text}` with a unit: `{text}s`, `{text}m`, `{text}h` or `{text}d`"
        )),
    }
}

/// In seconds, rounded up: what is asked to end soon must not be asked to stay.
pub(crate) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_usual_forms_parse() {
        for (text, millis) in [
            ("30", 30_000),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1.5h", 5_400_000),
            ("0.25", 250),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1", "0", "inf", "nan", "1w", "9e99", "400d", "+3"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_may_be_long_needs_a_unit() {
        assert_eq!(parse_with_unit("5s"), Ok(Duration::from_secs(5)));
        insta::assert_snapshot!(parse_with_unit("5").unwrap_err(), @"write `5` with a unit: `5s`, `5m`, `5h` or `5d`");
        assert_eq!(parse_with_unit("x"), parse("x"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = parse(&text);
        }
    }
}
