//! How everything of a VM is released, by name. Failed starts, stops, deletes and the
//! reconciler all come through here.

use std::error::Error;
use std::fmt;

use banger_engine::ReleaseError;
use banger_engine::process::Look;
use banger_proto::api::EngineKind;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::VmName;

use super::plan::Layout;
use crate::faults::{Faults, Moment, Step};
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

/// What was tried when something could not be released, and so who tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// To end what runs: the reconciler has that done again.
    Stop,
    /// To remove all of it, once.
    Delete,
    /// The same, until nothing is left.
    DeleteUntilGone,
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
    pub fn to_api(&self, verb: &str, tried: Tried, vm: &VmName) -> ApiError {
        let mut api = ApiError::new(ErrorKind::Failed, format!("could not {verb} VM `{vm}`"));
        self.explain(&mut api);
        api.with_hint(match tried {
            Tried::Stop => format!(
                "banger tries again every minute, and at `banger vm start {vm}`; what keeps it \
                 from it is named above"
            ),
            Tried::Delete => format!(
                "mend what is named above, then `banger vm delete {vm}`; with `--force` banger \
                 tries every minute until nothing is left"
            ),
            Tried::DeleteUntilGone => "mend what is named above: banger tries again every minute \
                                       until nothing is left"
                .to_owned(),
        })
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
/// All that could not be released; the rest is gone. While the machine may still run, nothing
/// is taken from under it: then only the engine's part was tried.
pub async fn take_down(
    host: &Host,
    layout: &Layout,
    engine: EngineKind,
    extent: Extent,
) -> Result<(), LeftOver> {
    take_down_seen(host, layout, engine, extent, None).await
}

/// The same for whoever has looked at the host's processes already, and knows that nobody has
/// started any for this VM since then.
///
/// # Errors
/// As [`take_down`].
pub async fn take_down_seen(
    host: &Host,
    layout: &Layout,
    engine: EngineKind,
    extent: Extent,
    look: Option<&Look>,
) -> Result<(), LeftOver> {
    host.faults.step(Step::Release, Moment::Before);
    let engine_ended = match look {
        Some(look) => banger_engine::release_seen(&layout.place, look).await,
        None => banger_engine::release(&layout.place).await,
    };
    after_engine(engine_ended, async {
        host.faults.step(Step::Release, Moment::HalfWay);
        let mut parts: Vec<Part> = Vec::new();
        if engine != EngineKind::Fake {
            let detached = host.network.detach(layout.place.slot).await;
            parts.push(("network", detached.map_err(Into::into)));
        }
        let (layout, faults) = (layout.clone(), host.faults.clone());
        let removed = crate::blocking(move || remove_files(&layout, extent, &faults)).await;
        parts.extend(removed);
        parts
    })
    .await
}

/// A part of a VM, and how its release went.
type Part = (&'static str, Result<(), Box<dyn Error + Send + Sync>>);

/// Releases the rest, unless the engine's release left a machine that may still run.
async fn after_engine(
    engine: Result<(), ReleaseError>,
    rest: impl Future<Output = Vec<Part>>,
) -> Result<(), LeftOver> {
    let may_run = matches!(
        engine,
        Err(ReleaseError::Processes(_) | ReleaseError::Kill { .. })
    );
    let mut released: Vec<Part> = vec![("engine", engine.map_err(Into::into))];
    if !may_run {
        released.extend(rest.await);
    }
    let parts: Vec<_> = released
        .into_iter()
        .filter_map(|(part, result)| Some((part, result.err()?)))
        .inspect(|(part, error)| tracing::warn!(part, %error, "could not release"))
        .collect();
    match parts.is_empty() {
        true => Ok(()),
        false => Err(LeftOver { parts }),
    }
}

fn remove_files(layout: &Layout, extent: Extent, faults: &Faults) -> Vec<Part> {
    faults.step(Step::Files, Moment::Before);
    let sockets = files::remove_directory(&layout.place.runtime_dir);
    let handles = files::remove_file(&layout.handles);
    // Its record first: from then on nothing brings the VM back.
    let everything = || {
        files::remove_file(&layout.record)?;
        faults.step(Step::Files, Moment::HalfWay);
        files::remove_directory(&layout.directory)
    };
    let directory = match extent {
        Extent::Running => Ok(()),
        Extent::Everything => everything(),
    };
    vec![
        ("sockets", sockets.map_err(Into::into)),
        ("handles", handles.map_err(Into::into)),
        ("directory", directory.map_err(Into::into)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn what_is_left_over_is_told_with_what_happens_next() {
        let left_over = LeftOver {
            parts: vec![
                ("engine", io::Error::other("process 7 stays").into()),
                ("directory", io::Error::other("it is read-only").into()),
            ],
        };
        let vm: VmName = "a".parse().unwrap();
        let told = |verb, tried| {
            let error = left_over.to_api(verb, tried, &vm);
            format!("{error}\n  hint: {}\n", error.hint.as_deref().unwrap())
        };
        let table = [
            told("stop", Tried::Stop),
            told("delete", Tried::Delete),
            told("delete", Tried::DeleteUntilGone),
        ];
        insta::assert_snapshot!(table.concat());
    }

    fn left(error: &LeftOver) -> Vec<&'static str> {
        error.parts.iter().map(|(part, _)| *part).collect()
    }

    #[tokio::test]
    async fn nothing_is_taken_from_under_a_machine_that_may_still_run() {
        for engine in [
            ReleaseError::Processes(io::Error::other("no /proc")),
            ReleaseError::Kill {
                pid: 1,
                source: io::Error::other("it stays"),
            },
        ] {
            let rest = async { unreachable!("the rest is not to be released") };
            let error = after_engine(Err(engine), rest).await.unwrap_err();
            assert_eq!(left(&error), ["engine"]);
        }
    }

    #[tokio::test]
    async fn all_else_is_tried_whatever_fails() {
        let failed = |part| (part, Err(io::Error::other("no").into()));
        let socket = ReleaseError::Socket {
            path: "/s".into(),
            source: io::Error::other("no"),
        };
        let rest = async { vec![failed("network"), ("sockets", Ok(())), failed("handles")] };
        let error = after_engine(Err(socket), rest).await.unwrap_err();
        assert_eq!(left(&error), ["engine", "network", "handles"]);
        assert!(after_engine(Ok(()), async { Vec::new() }).await.is_ok());
    }
}
