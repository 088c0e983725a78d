//! What a registry asks for before it answers: the header `WWW-Authenticate` (RFC 9110,
//! section 11.6.1).

use std::collections::BTreeMap;

/// A way to be let in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from another address.
    Bearer {
        /// Where tokens are given out.
        realm: String,
        /// For what, in the server's words.
        service: Option<String>,
        /// For which repository, in the server's words.
        scope: Option<String>,
    },
}

/// The first challenge of `header` that we can meet; a token rather than a password.
pub(super) fn read<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for (scheme, mut parameters) in headers.flat_map(split) {
        if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = parameters.remove("realm")
        {
            return Some(Challenge::Bearer {
                realm,
                service: parameters.remove("service"),
                scope: parameters.remove("scope"),
            });
        }
        if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
    }
    basic
}

/// The schemes of one header with their parameters.
fn split(header: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut found: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let (name, after) = (word.to_ascii_lowercase(), after.trim_start_matches(' '));
        rest = match after.strip_prefix('=') {
            Some(value) if !word.is_empty() => {
                let (value, after) = take_value(value.trim_start_matches(' '));
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.entry(name).or_insert(value);
                }
                after
            }
            // A stray `=`.
            Some(after) => after,
            None => {
                found.push((word.to_owned(), BTreeMap::new()));
                after
            }
        }
        .trim_start_matches([' ', ',']);
    }
    found
}

/// A token or a quoted string, and what follows it.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([' ', ',']).unwrap_or(text.len()));
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull,push""#,
                bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/alpine:pull,push"),
                ),
            ),
            (
                r#"Basic realm="Registry, with \"quotes\"", bearer realm=https://a/b"#,
                bearer("https://a/b", None, None),
            ),
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("Negotiate", None),
            ("Bearer", None),
            ("", None),
        ] {
            assert_eq!(read([header].into_iter()), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn rubbish_ends_and_never_panics(text in "[a-z =,\"\\\\]{0,60}") {
            let _ = read([text.as_str()].into_iter());
        }
    }
}
