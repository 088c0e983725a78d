//! An error as the user sees it.
//!
//! ```text
//! error: could not start VM `quiet-otter`
//!   caused by: could not open the tap device `bgr-7-0`
//!   caused by: Permission denied (os error 13)
//! hint: /dev/net/tun must be readable and writable for you; run `banger doctor`
//! ```

use banger_proto::error::ApiError;

use crate::render::style::Style;

/// The lines of an error: what failed, why (each cause once), what to do.
pub(crate) fn error_text(error: &ApiError, style: Style) -> String {
    let mut text = format!("{} {}\n", style.red("error:"), continued(&error.message));
    let mut said = vec![error.message.as_str()];
    for cause in error.causes.iter().map(String::as_str) {
        if !said.contains(&cause) {
            said.push(cause);
            text.push_str(&format!("  caused by: {}\n", continued(cause)));
        }
    }
    if let Some(hint) = &error.hint {
        text.push_str(&format!("{} {}\n", style.cyan("hint:"), continued(hint)));
    }
    text
}

/// Lines after the first, such as the end of a console log, stand apart from banger's words.
fn continued(text: &str) -> String {
    text.trim_end().replace('\n', "\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::error::ErrorKind;

    fn tap_error() -> ApiError {
        ApiError {
            causes: vec![
                "could not open the tap device `bgr-7-0`".into(),
                "Permission denied (os error 13)".into(),
                "Permission denied (os error 13)".into(),
            ],
            ..ApiError::new(ErrorKind::Precondition, "could not start VM `quiet-otter`").with_hint(
                "/dev/net/tun must be readable and writable for you; run `banger doctor`",
            )
        }
    }

    #[test]
    fn an_error_says_what_why_and_what_to_do() {
        insta::assert_snapshot!(error_text(&tap_error(), Style::Plain), @r"
        error: could not start VM `quiet-otter`
          caused by: could not open the tap device `bgr-7-0`
          caused by: Permission denied (os error 13)
        hint: /dev/net/tun must be readable and writable for you; run `banger doctor`
        ");
    }

    #[test]
    fn only_the_labels_are_coloured() {
        let text = error_text(&tap_error(), Style::Colour);
        assert!(text.starts_with("\x1b[1;31merror:\x1b[0m could not"));
        assert!(text.contains("\n  caused by: could"));
    }

    #[test]
    fn further_lines_of_a_cause_are_indented() {
        let error = ApiError {
            causes: vec!["the guest's console ends with:\npanic\nhalt\n".into()],
            ..ApiError::new(ErrorKind::Failed, "could not start VM `a`")
        };
        insta::assert_snapshot!(error_text(&error, Style::Plain), @r"
        error: could not start VM `a`
          caused by: the guest's console ends with:
            panic
            halt
        ");
    }
}
