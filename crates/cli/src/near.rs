//! Names that are near one that nothing has.

use banger_client::{Client, ClientError};
use banger_proto::error::{ApiError, ErrorKind};

use crate::failure::Failure;

/// How alike two names must be (Jaro-Winkler, 0 to 1) to take one for the other's misspelling.
const ALIKE: f64 = 0.8;

/// The error of a request about `vm`, with the nearest name in its hint if there is no such VM.
pub(crate) async fn explain(client: &Client, vm: &str, error: ClientError) -> Failure {
    explained(client, vm, error).await.into()
}

/// As [`explain`], for who goes on after it.
pub(crate) async fn explained(client: &Client, vm: &str, error: ClientError) -> ApiError {
    let error = ApiError::from(error);
    if error.kind != ErrorKind::NotFound {
        return error;
    }
    let vms = client.vms().await.unwrap_or_default();
    let names: Vec<&str> = vms.iter().map(|vm| vm.name.as_str()).collect();
    match nearest(vm, &names) {
        Some(name) => error.with_hint(format!("did you mean `{name}`?")),
        None if error.hint.is_none() => error.with_hint("`banger vm list` lists the VMs"),
        None => error,
    }
}

fn nearest<'a>(wanted: &str, names: &[&'a str]) -> Option<&'a str> {
    names
        .iter()
        .map(|name| (strsim::jaro_winkler(wanted, name), *name))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_finds_its_name_and_a_stranger_none() {
        let names = ["calm-otter", "calm-owl", "devbox"];
        assert_eq!(nearest("calm-oter", &names), Some("calm-otter"));
        assert_eq!(nearest("devbx", &names), Some("devbox"));
        assert_eq!(nearest("zebra", &names), None);
        assert_eq!(nearest("a", &[]), None);
    }
}
