//! How everything of a VM is released, by name. Failed starts, stops, deletes and the
//! reconciler all come through here.

use std::error::Error;
use std::fmt;

use banger_proto::api::EngineKind;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::VmName;

use super::plan::Layout;
use crate::files;
use crate::host::Host;

/// How much of a VM is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What runs. The disks, keys and logs stay.
    Running,
    /// All of it.
    Everything,
}

/// What could not be released, and why.
#[derive(Debug)]
pub struct LeftOver {
    parts: Vec<(&'static str, Box<dyn Error + Send + Sync>)>,
}

impl fmt::Display for LeftOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.parts.iter().map(|(name, _)| *name).collect();
        write!(f, "could not release its {}", names.join(", "))
    }
}

impl Error for LeftOver {}

impl LeftOver {
    /// The error of a request that came to this.
    pub fn to_api(&self, verb: &str, vm: &VmName) -> ApiError {
        let mut api = ApiError::new(ErrorKind::Failed, format!("could not {verb} VM `{vm}`"));
        self.explain(&mut api);
        api.with_hint(format!(
            "mend what is named above, then `banger vm delete {vm}`; banger also tries again by itself"
        ))
    }

    /// Adds what is left over to the causes of an error.
    pub fn explain(&self, api: &mut ApiError) {
        api.causes.push(self.to_string());
        for (_, error) in &self.parts {
            *api = api.clone().caused_by(error.as_ref());
        }
    }
}

/// Releases everything of a VM that `extent` names. Succeeds when there is nothing.
///
/// # Errors
/// All that could not be released; the rest is gone.
pub async fn take_down(
    host: &Host,
    layout: &Layout,
    engine: EngineKind,
    extent: Extent,
) -> Result<(), LeftOver> {
    let mut parts: Vec<(&'static str, Box<dyn Error + Send + Sync>)> = Vec::new();
    let mut note = |part: &'static str, result: Result<(), Box<dyn Error + Send + Sync>>| {
        if let Err(error) = result {
            tracing::warn!(part, error = %error, "could not release");
            parts.push((part, error));
        }
    };
    // The engine first: nothing may be taken from under a running guest.
    note(
        "engine",
        host.engines
            .release(&layout.place)
            .await
            .map_err(Into::into),
    );
    if engine != EngineKind::Fake {
        note(
            "network",
            host.network
                .detach(layout.place.slot)
                .await
                .map_err(Into::into),
        );
    }
    let layout = layout.clone();
    let removed = crate::blocking(move || {
        [
            (
                "sockets",
                files::remove_directory(&layout.place.runtime_dir),
            ),
            ("handles", files::remove_file(&layout.handles)),
            (
                "directory",
                match extent {
                    Extent::Running => Ok(()),
                    Extent::Everything => files::remove_directory(&layout.directory),
                },
            ),
        ]
    })
    .await;
    for (part, result) in removed {
        note(part, result.map_err(Into::into));
    }
    match parts.is_empty() {
        true => Ok(()),
        false => Err(LeftOver { parts }),
    }
}
