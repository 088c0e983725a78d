//! What was tried, one after the other, and why each failed: told as one cause each.

use std::error::Error;
use std::fmt;

/// A source that could not be had, and those that were tried after it.
#[derive(Debug)]
pub struct Attempt {
    text: String,
    hint: Option<String>,
    next: Option<Box<Attempt>>,
}

impl Attempt {
    /// The attempt at `source`, which ended with `error`.
    pub(crate) fn new(source: &dyn fmt::Display, error: &dyn Error, hint: Option<String>) -> Self {
        Self {
            text: format!("{source}: {}", chain(error)),
            hint,
            next: None,
        }
    }

    /// All of them, each the next one's cause; `None` if there are none.
    pub(crate) fn link(attempts: Vec<Self>) -> Option<Self> {
        attempts.into_iter().rev().reduce(|next, attempt| Self {
            next: Some(Box::new(next)),
            ..attempt
        })
    }

    /// What the user can do about the first one that they can do something about.
    pub(crate) fn hint(&self) -> Option<String> {
        self.hint
            .clone()
            .or_else(|| self.next.as_ref().and_then(|next| next.hint()))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Attempt {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.next.as_ref().map(|next| &**next as _)
    }
}

/// An error with all that is below it, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::error::{ApiError, ErrorKind};

    #[test]
    fn every_attempt_is_a_cause_of_its_own() {
        let attempt = |source: &str, hint: Option<&str>| {
            let below = std::io::Error::other("refused");
            let error = crate::download::DownloadError::Io {
                action: "read",
                path: "/x".into(),
                source: below,
            };
            Attempt::new(&source, &error, hint.map(str::to_owned))
        };
        let tried = Attempt::link(vec![
            attempt("a", None),
            attempt("b", Some("do b")),
            attempt("c", Some("do c")),
        ]);
        let tried = tried.unwrap();
        let error = ApiError::new(ErrorKind::Unavailable, "no").caused_by(&tried);
        assert_eq!(
            error.causes,
            [
                "a: could not read `/x`: refused",
                "b: could not read `/x`: refused",
                "c: could not read `/x`: refused",
            ]
        );
        assert_eq!(tried.hint().unwrap(), "do b");
        assert!(Attempt::link(Vec::new()).is_none());
    }
}
