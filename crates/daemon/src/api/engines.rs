//! Engines: what the host has, and installing the one that it may have to get.
//!
//! A file that a client sends is received into one without a name, so that a connection that
//! breaks leaves nothing; what is done with it then is an operation's business.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, BodyDataStream};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use banger_engine::Survey;
use banger_image::{
    InstallError, Installed, Release, Reporter, Sha256Sum, Source, Upload, UploadError,
};
use banger_proto::api::{
    Engine, EngineKind, EngineRelease, InstallEngine, InstalledEngine, OperationKind, ProgramOrigin,
};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::RequestId;
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::time::timeout;

use super::Api;
use super::exchange::{Failure, Json, accepted};
use crate::engines::{Choice, in_one_line};
use crate::host::Host;
use crate::operations::Subject;
use crate::vm::lifecycle::Phase;

/// How long the rest of a file is read that was refused: the client reads the answer when it
/// has sent all.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

pub async fn list(State(api): State<Api>) -> Json<Vec<Engine>> {
    Json(engines(api.fleet.host()).await)
}

pub async fn show(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Engine>, Failure> {
    let engines = engines(api.fleet.host()).await;
    let known: Vec<String> = engines
        .iter()
        .map(|engine| engine.name.to_string())
        .collect();
    let engine = engines
        .into_iter()
        .find(|engine| engine.name.as_str() == name);
    Ok(Json(engine.ok_or_else(|| unknown(&name, &known))?))
}

pub async fn install(
    State(api): State<Api>,
    Path(name): Path<String>,
    Extension(request_id): Extension<RequestId>,
    Json(request): Json<InstallEngine>,
) -> Result<Response, Failure> {
    require_installable(&name)?;
    let host = api.fleet.host();
    let sha256 = sum(request.sha256)?;
    let url = host.config.firecracker_url.clone();
    let release = match (sha256, url) {
        (None, None) => pinned()?,
        (None, Some(url)) => pinned()?.at_mirror(url),
        (Some(sha256), Some(url)) => Release::at(url, sha256),
        (Some(_), None) => {
            let mut error = could_not_install(ErrorKind::Invalid);
            error.causes.push(
                "a hash of one's own is for a file, or for the archive that `firecracker_url` in \
                 the config names"
                    .to_owned(),
            );
            return Err(error.into());
        }
    };
    Ok(begin(&api, request_id, Source::Download(release)))
}

#[derive(Debug, Deserialize)]
pub struct From {
    sha256: Option<String>,
}

pub async fn install_from(
    State(api): State<Api>,
    Path(name): Path<String>,
    Extension(request_id): Extension<RequestId>,
    from: Result<Query<From>, QueryRejection>,
    body: Body,
) -> Result<Response, Failure> {
    let mut body = body.into_data_stream();
    let received = async {
        require_installable(&name)?;
        let Query(From { sha256 }) =
            from.map_err(|error| could_not_install(ErrorKind::Invalid).caused_by(&error))?;
        let sha256 = sum(sha256)?;
        let file = receive(api.fleet.host(), &mut body).await?;
        Ok::<_, ApiError>(Source::File { file, sha256 })
    };
    let received = received.await;
    if received.is_err() {
        let rest = async { while let Some(Ok(_)) = body.next().await {} };
        // Whatever is left behind the limit is cut off with the connection.
        let _ = timeout(DRAIN_LIMIT, rest).await;
    }
    Ok(begin(&api, request_id, received?))
}

pub async fn uninstall(
    State(api): State<Api>,
    Path(name): Path<String>,
    Extension(request_id): Extension<RequestId>,
) -> Result<Response, Failure> {
    require_installable(&name)?;
    let host = api.fleet.host();
    let survey = host.engines.survey().await;
    let is_used = survey
        .firecracker
        .is_ok_and(|program| program.origin == ProgramOrigin::Installed);
    let running = running_on_firecracker(&api);
    if is_used && let Some(error) = in_use(&running) {
        return Err(error.into());
    }
    let work = host.operations.begin(Subject {
        kind: OperationKind::UninstallEngine,
        vm: None,
        request_id: Some(request_id),
        reason: None,
    });
    let operation = work.operation();
    let host = Arc::clone(api.fleet.host());
    // It is done whole, so that nothing calls it off.
    host.clone().pulls.begin(|_| async move {
        let removed = host.installer.remove().await;
        host.engines.forget_firecracker();
        let failed = |error| failure("could not remove Firecracker", &error);
        work.end(match removed {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(ApiError::new(
                ErrorKind::NotFound,
                "banger has installed no Firecracker",
            )),
            Err(error) => Err(failed(error)),
        });
    });
    Ok(accepted(operation))
}

/// Begins an installation.
fn begin(api: &Api, request_id: RequestId, source: Source) -> Response {
    let host = Arc::clone(api.fleet.host());
    let work = host.operations.begin(Subject {
        kind: OperationKind::InstallEngine,
        vm: None,
        request_id: Some(request_id),
        reason: None,
    });
    let operation = work.operation();
    let (report, cancelled) = (work.reporter(), work.cancelled());
    host.clone().pulls.begin(|ends| async move {
        let sink = report.clone();
        let progress = Reporter::new(move |progress| sink.progress(progress));
        let called_off = || {
            let message = "the installation of Firecracker was called off";
            ApiError::new(ErrorKind::Cancelled, message)
        };
        let mark = report.stage("install");
        let result = tokio::select! {
            installed = host.installer.install(source, &progress) => {
                host.engines.forget_firecracker();
                let failed = |error| failure("could not install Firecracker", &error);
                installed.map(|_| mark.done()).map_err(failed)
            }
            () = cancelled.cancelled() => Err(called_off()),
            () = ends.cancelled() => {
                let mut error = called_off();
                error.causes.push("the daemon ends".to_owned());
                Err(error)
            }
        };
        work.end(result);
    });
    accepted(operation)
}

async fn receive(host: &Host, body: &mut BodyDataStream) -> Result<Upload, ApiError> {
    let failed = |error: UploadError| {
        let mut api = ApiError::new(error.kind(), "could not receive the file").caused_by(&error);
        api.hint = error.hint();
        api
    };
    let mut upload = host.installer.upload().await.map_err(failed)?;
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| {
            ApiError::new(ErrorKind::Invalid, "could not receive the file").caused_by(&error)
        })?;
        upload.write(&piece).await.map_err(failed)?;
    }
    Ok(upload)
}

/// Why Firecracker is not removed while these VMs run on it.
fn in_use(running: &[String]) -> Option<ApiError> {
    if running.is_empty() {
        return None;
    }
    let message = "could not remove Firecracker";
    let mut error = ApiError::new(ErrorKind::Conflict, message);
    error.causes.push(match running {
        [name] => format!("the VM `{name}` runs on it"),
        names => format!("the VMs `{}` run on it", names.join("`, `")),
    });
    Some(error.with_hint(format!(
        "stop first: `banger vm stop {}`",
        running.join(" ")
    )))
}

/// The VMs that Firecracker runs now, by name.
fn running_on_firecracker(api: &Api) -> Vec<String> {
    let runs = |phase: Phase| !matches!(phase, Phase::Created | Phase::Stopped | Phase::Failed);
    let handles = api.fleet.handles().into_iter();
    let running = handles.filter(|vm| {
        vm.look(|status| status.row.engine == EngineKind::Firecracker && runs(status.row.phase))
    });
    running.map(|vm| vm.name().to_string()).collect()
}

/// Everything about the engines of this host.
async fn engines(host: &Host) -> Vec<Engine> {
    let installer = host.installer.clone();
    let (survey, installed) = tokio::join!(
        host.engines.survey(),
        crate::blocking(move || installer.installed())
    );
    let (chosen, because) = Choice::of(host.config.vmm, &survey);
    let mut engines = describe(&survey, &host.node);
    for engine in &mut engines {
        if engine.name == chosen {
            engine.chosen = Some(because.clone());
        }
        if engine.name == EngineKind::Firecracker {
            engine.installed = installed.as_ref().map(show_installed);
            engine.release = Release::pinned().ok().map(|release| {
                let release = match &host.config.firecracker_url {
                    Some(url) => release.at_mirror(url.clone()),
                    None => release,
                };
                EngineRelease {
                    version: release.version.unwrap_or_default(),
                    url: release.url,
                    sha256: release.sha256.to_string(),
                }
            });
        }
    }
    engines
}

/// What a survey says of the engines, the better one first.
fn describe(survey: &Survey, node: &str) -> Vec<Engine> {
    let blank = |name| Engine {
        name,
        node: node.to_owned(),
        usable: false,
        reason: String::new(),
        hint: None,
        version: None,
        path: None,
        origin: None,
        chosen: None,
        installed: None,
        release: None,
    };
    let mut firecracker = blank(EngineKind::Firecracker);
    let mut qemu = blank(EngineKind::Qemu);
    for (engine, program) in [
        (&mut firecracker, survey.firecracker.as_ref().ok()),
        (&mut qemu, survey.qemu.as_ref().ok()),
    ] {
        if let Some(program) = program {
            engine.version = Some(program.version.clone());
            engine.path = Some(program.path.display().to_string());
            engine.origin = Some(program.origin);
        }
    }
    match (&survey.kvm, &survey.firecracker) {
        (Err(unusable), _) => {
            firecracker.reason = format!("it needs KVM: {}", in_one_line(unusable));
            firecracker.hint = Some(unusable.fix().to_owned());
        }
        (Ok(()), Err(missing)) => {
            firecracker.reason = in_one_line(missing);
            firecracker.hint = Some(missing.fix().to_owned());
        }
        (Ok(()), Ok(_)) => {
            firecracker.usable = true;
            firecracker.reason = "VMs run with KVM".to_owned();
        }
    }
    match (&survey.qemu, &survey.kvm) {
        (Err(missing), _) => {
            qemu.reason = in_one_line(missing);
            qemu.hint = Some(missing.fix().to_owned());
        }
        (Ok(_), Ok(())) => {
            qemu.usable = true;
            qemu.reason = "VMs run with KVM".to_owned();
        }
        (Ok(_), Err(unusable)) => {
            qemu.usable = true;
            qemu.reason = format!("VMs run in software: {}", in_one_line(unusable));
            qemu.hint = Some(unusable.fix().to_owned());
        }
    }
    vec![firecracker, qemu]
}

fn show_installed(installed: &Installed) -> InstalledEngine {
    InstalledEngine {
        version: installed.version.clone(),
        path: installed.program.display().to_string(),
        jailer: installed
            .jailer
            .as_ref()
            .map(|jailer| jailer.display().to_string()),
        sha256: installed.sha256.to_string(),
        source: installed.source.clone(),
        installed_at: installed.installed_at.clone(),
    }
}

fn require_installable(name: &str) -> Result<(), ApiError> {
    let known = [EngineKind::Firecracker, EngineKind::Qemu].map(|kind| kind.to_string());
    match name {
        "firecracker" => Ok(()),
        "qemu" => Err(ApiError::new(
            ErrorKind::Invalid,
            "QEMU comes with the host's packages, not with banger",
        )
        .with_hint("install it: `sudo apt install qemu-system-x86`")),
        _ => Err(unknown(name, &known)),
    }
}

fn unknown(name: &str, known: &[String]) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format!("there is no engine `{name}`"))
        .with_hint(format!("there are: {}", known.join(", ")))
}

fn pinned() -> Result<Release, ApiError> {
    Release::pinned().map_err(|error| failure("could not install Firecracker", &error))
}

fn sum(text: Option<String>) -> Result<Option<Sha256Sum>, ApiError> {
    let parsed = text.map(|text| text.parse()).transpose();
    parsed.map_err(|error: banger_image::InvalidSha256| {
        could_not_install(ErrorKind::Invalid).caused_by(&error)
    })
}

fn could_not_install(kind: ErrorKind) -> ApiError {
    ApiError::new(kind, "could not install Firecracker")
}

fn failure(message: &str, error: &InstallError) -> ApiError {
    let mut api = ApiError::new(error.kind(), message).caused_by(error);
    api.hint = error.hint();
    api
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_engine::{FirecrackerMissing, Program, QemuMissing, probe::Unusable};

    #[test]
    fn what_runs_on_it_keeps_it() {
        assert_eq!(in_use(&[]), None);
        let names = ["calm-otter", "devbox"].map(str::to_owned);
        let refused = [&names[..1], &names].map(in_use);
        insta::assert_debug_snapshot!(refused.map(|error| {
            let error = error.unwrap();
            (error.kind, error.causes, error.hint)
        }));
    }

    #[test]
    fn an_engine_that_cannot_be_used_says_why_and_what_to_do() {
        let program = |path: &str, version: &str, origin| Program {
            path: path.into(),
            version: version.to_owned(),
            origin,
            may_be_jailed: true,
        };
        let qemu = || {
            Ok(program(
                "/usr/bin/qemu-system-x86_64",
                "7.2",
                ProgramOrigin::Path,
            ))
        };
        let firecracker = || {
            Ok(program(
                "/f/firecracker",
                "1.16.1",
                ProgramOrigin::Installed,
            ))
        };
        let mut told = String::new();
        for survey in [
            Survey {
                qemu: qemu(),
                firecracker: firecracker(),
                kvm: Ok(()),
            },
            Survey {
                qemu: Err(QemuMissing::NotFound),
                firecracker: Err(FirecrackerMissing::NotFound),
                kvm: Ok(()),
            },
            Survey {
                qemu: qemu(),
                firecracker: firecracker(),
                kvm: Err(Unusable::NoVirtualisation),
            },
        ] {
            for engine in describe(&survey, "workstation") {
                let Engine {
                    name,
                    usable,
                    reason,
                    hint,
                    version,
                    ..
                } = engine;
                let version = version.as_deref().unwrap_or("-");
                told.push_str(&format!(
                    "{name} {version} usable: {usable}, {reason} [{hint:?}]\n"
                ));
            }
            told.push('\n');
        }
        insta::assert_snapshot!(told);
    }
}
