//! How words are written for ssh: in its config, and for the shell that it runs commands with.

use banger_proto::error::{ApiError, ErrorKind};

/// One word for the shell that ssh runs its proxy command with, in a place where ssh replaces
/// what begins with `%`.
pub(crate) fn proxy_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''")).replace('%', "%%")
}

/// One word of ssh's config, in which `%` begins a token.
///
/// # Errors
/// ssh has no way to write it.
pub(crate) fn config_word(path: &str) -> Result<String, ApiError> {
    match path.contains(['"', '\n', '\\']) {
        true => Err(unusable(path)),
        false => Ok(format!("\"{}\"", path.replace('%', "%%"))),
    }
}

/// The error of a path that ssh cannot be given.
pub(crate) fn unusable(path: &str) -> ApiError {
    ApiError::new(
        ErrorKind::Precondition,
        format!("ssh cannot be given the path `{path}`"),
    )
    .with_hint("set BANGER_HOME to a path without quotes and backslashes")
}
