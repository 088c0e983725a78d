//! The API's table as methods.

use std::io;
use std::path::{Path, PathBuf};

use banger_proto::VERSION;
use banger_proto::api::{
    BuildImage, CachePart, Catalog, CommitVm, CreateVm, DaemonStatus, Engine, EngineKind, Image,
    InstallEngine, Kernel, KillVm, LogKind, Operation, Port, PullBundle, PullImage, RegisterImage,
    RenameImage, SetVm, SshTarget, Version, Vm, VmHealth, VmStats,
};
use banger_proto::id::OperationId;
use banger_proto::name::ArtifactName;
use banger_proto::size::ByteSize;
use bytes::Bytes;
use futures_util::Stream;

use crate::download::Download;
use crate::error::ClientError;
use crate::events::{DaemonEvents, Events};
use crate::lease::Lease;
use crate::stream::ByteStream;
use crate::transport::{Call, Transport, path};
use crate::upload::Upload;

/// The version of the API that this client speaks.
const API: u32 = 1;

/// A daemon that answers. All methods fail with [`ClientError`]: the daemon's own answer as
/// [`ClientError::Api`], everything else when the daemon is gone, mute or of another version.
///
/// `vm` is a name, an id, or an unambiguous beginning of an id.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    daemon: Version,
}

impl Client {
    /// Makes sure that a daemon answers on `socket`, and that it speaks the same API.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if nobody listens, [`ClientError::OtherApi`] if the daemon is
    /// too old or too new.
    pub async fn connect(socket: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let client = Self::connect_to_any(socket).await?;
        match client.daemon.api {
            API => Ok(client),
            api => Err(ClientError::OtherApi {
                daemon: client.daemon.version,
                api,
                ours: API,
            }),
        }
    }

    /// As [`Client::connect`], also to a daemon of another API. What all versions share is
    /// [`Client::daemon_status`] and [`Client::stop_daemon`].
    ///
    /// # Errors
    /// [`ClientError::Connect`] if nobody listens.
    pub async fn connect_to_any(socket: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let transport = Transport::new(socket.into());
        let daemon = transport.json(Call::get("/v1/version")).await?;
        Ok(Self { transport, daemon })
    }

    /// The socket that requests go to.
    pub fn socket(&self) -> &Path {
        self.transport.socket()
    }

    /// The daemon's version, as it was when this client connected.
    pub fn daemon_version(&self) -> &Version {
        &self.daemon
    }

    /// A line for the user if the daemon is of another version than this client. It still works.
    pub fn version_notice(&self) -> Option<String> {
        (self.daemon.version != VERSION).then(|| {
            format!(
                "the daemon is version {}, this is {VERSION}: run `banger daemon restart`; VMs go on running",
                self.daemon.version
            )
        })
    }

    /// `GET /v1/version`
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.transport.json(Call::get("/v1/version")).await
    }

    /// `GET /v1/daemon`
    pub async fn daemon_status(&self) -> Result<DaemonStatus, ClientError> {
        self.transport.json(Call::get("/v1/daemon")).await
    }

    /// `POST /v1/daemon/stop`: the daemon ends once it has answered; VMs go on running.
    pub async fn stop_daemon(&self) -> Result<(), ClientError> {
        self.transport.done(Call::post("/v1/daemon/stop")).await
    }

    /// `POST /v1/daemon/stop?if_idle=true`: the same, but only if its end ends nothing else.
    ///
    /// # Errors
    /// An [`ErrorKind::Conflict`](banger_proto::error::ErrorKind::Conflict) that says what would
    /// be ended.
    pub async fn stop_idle_daemon(&self) -> Result<(), ClientError> {
        self.transport
            .done(Call::post("/v1/daemon/stop?if_idle=true"))
            .await
    }

    /// `GET /v1/events`: what has happened in the daemon, from the event behind the one with the
    /// id `last` on, or from the oldest that it remembers; with `follow`, also what happens.
    pub async fn daemon_events(
        &self,
        follow: bool,
        last: Option<&str>,
    ) -> Result<DaemonEvents, ClientError> {
        let call = Call::get(format!("/v1/events?follow={follow}")).last_event(last);
        let request = call.name();
        Ok(DaemonEvents::new(request, self.transport.body(call).await?))
    }

    /// `GET /metrics`: the daemon's and its VMs' counters, as Prometheus reads them.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        self.transport.text(Call::get("/metrics")).await
    }

    /// `POST /v1/leases`: held until the result is dropped.
    pub async fn lease(&self) -> Result<Lease, ClientError> {
        let call = Call::post("/v1/leases");
        let request = call.name();
        let stream = self.transport.upgrade(call).await?;
        Lease::receive(request, stream).await
    }

    /// `POST /v1/vms`. With an `idempotency_key`, asking again gives the first one's operation.
    pub async fn create_vm(
        &self,
        vm: &CreateVm,
        idempotency_key: Option<&str>,
    ) -> Result<Operation, ClientError> {
        let call = Call::post("/v1/vms")
            .json(vm)
            .idempotency_key(idempotency_key);
        self.transport.json(call).await
    }

    /// `GET /v1/vms`
    pub async fn vms(&self) -> Result<Vec<Vm>, ClientError> {
        self.transport.json(Call::get("/v1/vms")).await
    }

    /// `GET /v1/vms/{vm}`
    pub async fn vm(&self, vm: &str) -> Result<Vm, ClientError> {
        self.transport
            .json(Call::get(path("/v1/vms/", vm, "")))
            .await
    }

    /// `GET /v1/vms/{vm}?guest=true`: also what the guest tells of itself, if it does so soon.
    pub async fn vm_with_guest(&self, vm: &str) -> Result<Vm, ClientError> {
        self.transport
            .json(Call::get(path("/v1/vms/", vm, "?guest=true")))
            .await
    }

    /// `PATCH /v1/vms/{vm}`: changes what `change` names.
    pub async fn set_vm(&self, vm: &str, change: &SetVm) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::patch(path("/v1/vms/", vm, "")).json(change))
            .await
    }

    /// `DELETE /v1/vms/{vm}`
    pub async fn delete_vm(&self, vm: &str) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::delete(path("/v1/vms/", vm, "")))
            .await
    }

    /// `DELETE /v1/vms/{vm}?force=true`: if something cannot be removed now, the daemon tries again
    /// every minute until nothing is left.
    pub async fn delete_vm_until_gone(&self, vm: &str) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::delete(path("/v1/vms/", vm, "?force=true")))
            .await
    }

    /// `POST /v1/vms/{vm}/start`
    pub async fn start_vm(&self, vm: &str) -> Result<Operation, ClientError> {
        self.order(vm, "/start").await
    }

    /// `POST /v1/vms/{vm}/stop`
    pub async fn stop_vm(&self, vm: &str) -> Result<Operation, ClientError> {
        self.order(vm, "/stop").await
    }

    /// `POST /v1/vms/{vm}/restart`: stops it cleanly if it runs, and starts it.
    pub async fn restart_vm(&self, vm: &str) -> Result<Operation, ClientError> {
        self.order(vm, "/restart").await
    }

    /// `POST /v1/vms/{vm}/kill`: ends it at once, as if its power were cut.
    pub async fn kill_vm(&self, vm: &str, kill: &KillVm) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::post(path("/v1/vms/", vm, "/kill")).json(kill))
            .await
    }

    /// `POST /v1/vms/{vm}/pause`
    pub async fn pause_vm(&self, vm: &str) -> Result<Operation, ClientError> {
        self.order(vm, "/pause").await
    }

    /// `POST /v1/vms/{vm}/resume`
    pub async fn resume_vm(&self, vm: &str) -> Result<Operation, ClientError> {
        self.order(vm, "/resume").await
    }

    async fn order(&self, vm: &str, order: &str) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::post(path("/v1/vms/", vm, order)))
            .await
    }

    /// `GET /v1/vms/{vm}/stats`: a look at what it uses; rates come of two looks.
    pub async fn vm_stats(&self, vm: &str) -> Result<VmStats, ClientError> {
        self.transport
            .json(Call::get(path("/v1/vms/", vm, "/stats")))
            .await
    }

    /// `GET /v1/stats`: the same of every VM that runs.
    pub async fn stats(&self) -> Result<Vec<VmStats>, ClientError> {
        self.transport.json(Call::get("/v1/stats")).await
    }

    /// `GET /v1/vms/{vm}/health`: whether it runs and its agent answers.
    pub async fn vm_health(&self, vm: &str) -> Result<VmHealth, ClientError> {
        self.transport
            .json(Call::get(path("/v1/vms/", vm, "/health")))
            .await
    }

    /// `GET /v1/vms/{vm}/ports`: where its guest listens and how the host reaches that; with
    /// `probe`, also which of it are web servers, which takes some seconds at most.
    pub async fn vm_ports(&self, vm: &str, probe: bool) -> Result<Vec<Port>, ClientError> {
        let query = format!("/ports?probe={probe}");
        self.transport
            .json(Call::get(path("/v1/vms/", vm, &query)))
            .await
    }

    /// `GET /v1/vms/{vm}/files?path=`: what is at `file` in the guest, as a tar stream. Names in
    /// it begin with the last part of `file`.
    pub async fn files(&self, vm: &str, file: &str) -> Result<Download, ClientError> {
        let call = Call::get(files_path(vm, file));
        let request = call.name();
        Ok(Download::new(request, self.transport.body(call).await?))
    }

    /// `PUT /v1/vms/{vm}/files?path=`: unpacks a tar stream below `directory` in the guest.
    pub async fn put_files(
        &self,
        vm: &str,
        directory: &str,
        archive: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), ClientError> {
        let call = Call::put(files_path(vm, directory));
        self.transport.upload(call, Upload::new(archive)).await
    }

    /// `POST /v1/vms/{vm}/exec`: a stream of [`banger_proto::frame`]s, the first one being
    /// [`banger_proto::frame::Frame::Start`].
    pub async fn exec(&self, vm: &str) -> Result<ByteStream, ClientError> {
        self.transport
            .upgrade(Call::post(path("/v1/vms/", vm, "/exec")))
            .await
    }

    /// `POST /v1/vms/{vm}/ssh`: an SSH connection to the guest's server.
    pub async fn ssh(&self, vm: &str) -> Result<ByteStream, ClientError> {
        self.transport
            .upgrade(Call::post(path("/v1/vms/", vm, "/ssh")))
            .await
    }

    /// `GET /v1/vms/{vm}/ssh-target`
    pub async fn ssh_target(&self, vm: &str) -> Result<SshTarget, ClientError> {
        self.transport
            .json(Call::get(path("/v1/vms/", vm, "/ssh-target")))
            .await
    }

    /// `GET /v1/vms/{vm}/logs`: what there is; with `follow`, also what comes.
    pub async fn logs(
        &self,
        vm: &str,
        log: LogKind,
        follow: bool,
    ) -> Result<Download, ClientError> {
        self.log_query(vm, &format!("log={}&follow={follow}", log.as_str()))
            .await
    }

    /// `GET /v1/vms/{vm}/logs` with `tail=`: as [`Client::logs`], from the last `lines` lines on.
    pub async fn logs_tail(
        &self,
        vm: &str,
        log: LogKind,
        follow: bool,
        lines: u64,
    ) -> Result<Download, ClientError> {
        let query = format!("log={}&follow={follow}&tail={lines}", log.as_str());
        self.log_query(vm, &query).await
    }

    async fn log_query(&self, vm: &str, query: &str) -> Result<Download, ClientError> {
        let call = Call::get(path("/v1/vms/", vm, &format!("/logs?{query}")));
        let request = call.name();
        Ok(Download::new(request, self.transport.body(call).await?))
    }

    /// `GET /v1/images`
    pub async fn images(&self) -> Result<Vec<Image>, ClientError> {
        self.transport.json(Call::get("/v1/images")).await
    }

    /// `POST /v1/images/{name}/pull`
    pub async fn pull_image(&self, name: &ArtifactName) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::post(path("/v1/images/", name.as_str(), "/pull")))
            .await
    }

    /// `POST /v1/images/pull`: an image of a registry.
    pub async fn pull_reference(&self, pull: &PullImage) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::post("/v1/images/pull").json(pull))
            .await
    }

    /// `POST /v1/bundles/image`: an image that is a bundle on the web.
    pub async fn pull_image_bundle(&self, pull: &PullBundle) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::post("/v1/bundles/image").json(pull))
            .await
    }

    /// `POST /v1/images/archive`: an image in an archive, which is sent first. The operation
    /// begins when all of it is there.
    pub async fn send_archive(
        &self,
        name: &ArtifactName,
        kernel: Option<&ArtifactName>,
        size: Option<ByteSize>,
        archive: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<Operation, ClientError> {
        let mut query = format!("name={name}");
        if let Some(kernel) = kernel {
            query.push_str(&format!("&kernel={kernel}"));
        }
        if let Some(size) = size {
            query.push_str(&format!("&size={}", size.bytes()));
        }
        let call = Call::post(format!("/v1/images/archive?{query}"));
        self.transport.upload_for(call, Upload::new(archive)).await
    }

    /// `POST /v1/images/register`: records an image whose files stay where they are.
    pub async fn register_image(&self, image: &RegisterImage) -> Result<Image, ClientError> {
        self.transport
            .json(Call::post("/v1/images/register").json(image))
            .await
    }

    /// `POST /v1/images/{image}/promote`: copies its files into the daemon's store.
    pub async fn promote_image(&self, image: &str) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::post(path("/v1/images/", image, "/promote")))
            .await
    }

    /// `POST /v1/vms/{vm}/commit`: makes an image of a VM that is stopped.
    pub async fn commit_vm(&self, vm: &str, commit: &CommitVm) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::post(path("/v1/vms/", vm, "/commit")).json(commit))
            .await
    }

    /// `POST /v1/images/build`: makes an image of another one and what is done to it.
    pub async fn build_image(&self, build: &BuildImage) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::post("/v1/images/build").json(build))
            .await
    }

    /// `POST /v1/images/{image}/rename`
    pub async fn rename_image(
        &self,
        image: &str,
        name: &ArtifactName,
    ) -> Result<Image, ClientError> {
        let rename = RenameImage { name: name.clone() };
        self.transport
            .json(Call::post(path("/v1/images/", image, "/rename")).json(&rename))
            .await
    }

    /// `DELETE /v1/images/{image}`
    pub async fn delete_image(&self, image: &str) -> Result<(), ClientError> {
        self.transport
            .done(Call::delete(path("/v1/images/", image, "")))
            .await
    }

    /// `POST /v1/images/prune`: deletes what no VM uses, and gives it; with `dry_run`, only
    /// gives it.
    pub async fn prune_images(&self, dry_run: bool) -> Result<Vec<Image>, ClientError> {
        let call = Call::post(format!("/v1/images/prune?dry_run={dry_run}"));
        self.transport.json(call).await
    }

    /// `POST /v1/cache/prune`: removes what nobody uses of the cache, and says what; with `dry_run`,
    /// only says it.
    pub async fn prune_cache(&self, dry_run: bool) -> Result<Vec<CachePart>, ClientError> {
        let call = Call::post(format!("/v1/cache/prune?dry_run={dry_run}"));
        self.transport.json(call).await
    }

    /// `GET /v1/images/{image}/export`: the image as a bundle. One that breaks off is not whole.
    pub async fn export_image(&self, image: &str) -> Result<Download, ClientError> {
        let call = Call::get(path("/v1/images/", image, "/export"));
        let request = call.name();
        Ok(Download::new(request, self.transport.body(call).await?))
    }

    /// `POST /v1/images/import`: makes an image of a bundle, which must hash to `sha256`.
    pub async fn import_image(
        &self,
        name: Option<&ArtifactName>,
        sha256: Option<&str>,
        bundle: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<Image, ClientError> {
        let mut query = String::new();
        if let Some(name) = name {
            query.push_str(&format!("name={name}&"));
        }
        query.push_str(&hash_query(sha256));
        let call = Call::post(format!("/v1/images/import?{query}"));
        self.transport.upload_for(call, Upload::new(bundle)).await
    }

    /// `POST /v1/kernels/{name}/import`: makes a kernel of a bundle, which must hash to `sha256`.
    pub async fn import_kernel(
        &self,
        name: &ArtifactName,
        sha256: Option<&str>,
        bundle: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<Kernel, ClientError> {
        let after = format!("/import?{}", hash_query(sha256));
        let call = Call::post(path("/v1/kernels/", name.as_str(), &after));
        self.transport.upload_for(call, Upload::new(bundle)).await
    }

    /// `GET /v1/catalog`: what can be had by its name alone. With `ask`, the newest catalog is
    /// asked for where the daemon's config says.
    pub async fn catalog(&self, ask: bool) -> Result<Catalog, ClientError> {
        self.transport
            .json(Call::get(format!("/v1/catalog?ask={ask}")))
            .await
    }

    /// `POST /v1/kernels/{name}/pull`: a kernel of the catalog.
    pub async fn pull_kernel(&self, name: &ArtifactName) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::post(path("/v1/kernels/", name.as_str(), "/pull")))
            .await
    }

    /// `POST /v1/bundles/kernel`: a kernel that is a bundle on the web.
    pub async fn pull_kernel_bundle(&self, pull: &PullBundle) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::post("/v1/bundles/kernel").json(pull))
            .await
    }

    /// `DELETE /v1/kernels/{name}`
    pub async fn delete_kernel(&self, name: &ArtifactName) -> Result<(), ClientError> {
        self.transport
            .done(Call::delete(path("/v1/kernels/", name.as_str(), "")))
            .await
    }

    /// `GET /v1/kernels`
    pub async fn kernels(&self) -> Result<Vec<Kernel>, ClientError> {
        self.transport.json(Call::get("/v1/kernels")).await
    }

    /// `GET /v1/engines`
    pub async fn engines(&self) -> Result<Vec<Engine>, ClientError> {
        self.transport.json(Call::get("/v1/engines")).await
    }

    /// `GET /v1/engines/{engine}`
    pub async fn engine(&self, engine: EngineKind) -> Result<Engine, ClientError> {
        self.transport
            .json(Call::get(engine_path(engine, "")))
            .await
    }

    /// `POST /v1/engines/{engine}/install`: downloads and installs it.
    pub async fn install_engine(
        &self,
        engine: EngineKind,
        request: &InstallEngine,
    ) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::post(engine_path(engine, "/install")).json(request))
            .await
    }

    /// `PUT /v1/engines/{engine}/install`: installs it from a file that the caller has.
    pub async fn install_engine_from(
        &self,
        engine: EngineKind,
        sha256: Option<&str>,
        file: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<Operation, ClientError> {
        let query = sha256.map(|sha256| path("?sha256=", sha256, ""));
        let after = format!("/install{}", query.unwrap_or_default());
        let call = Call::put(engine_path(engine, &after));
        self.transport.upload_for(call, Upload::new(file)).await
    }

    /// `DELETE /v1/engines/{engine}/install`: removes what was installed.
    pub async fn uninstall_engine(&self, engine: EngineKind) -> Result<Operation, ClientError> {
        self.transport
            .json(Call::delete(engine_path(engine, "/install")))
            .await
    }

    /// `GET /v1/operations`: those that go on, and those that ended not long ago.
    pub async fn operations(&self) -> Result<Vec<Operation>, ClientError> {
        self.transport.json(Call::get("/v1/operations")).await
    }

    /// `GET /v1/operations/{id}`
    pub async fn operation(&self, id: &OperationId) -> Result<Operation, ClientError> {
        self.transport.json(Call::get(operation_path(id, ""))).await
    }

    /// `GET /v1/operations/{id}/events`: all events, also those that have been.
    pub async fn events(&self, id: &OperationId) -> Result<Events, ClientError> {
        let call = Call::get(operation_path(id, "/events"));
        let request = call.name();
        Ok(Events::new(request, self.transport.body(call).await?))
    }

    /// `DELETE /v1/operations/{id}`: calls it off. It ends once it has cleaned up.
    pub async fn cancel_operation(&self, id: &OperationId) -> Result<(), ClientError> {
        self.transport
            .done(Call::delete(operation_path(id, "")))
            .await
    }
}

fn hash_query(sha256: Option<&str>) -> String {
    sha256.map_or_else(String::new, |hash| path("sha256=", hash, ""))
}

fn operation_path(id: &OperationId, after: &str) -> String {
    path("/v1/operations/", id.as_str(), after)
}

fn engine_path(engine: EngineKind, after: &str) -> String {
    path("/v1/engines/", engine.as_str(), after)
}

fn files_path(vm: &str, file: &str) -> String {
    let query = path("/files?path=", file, "");
    path("/v1/vms/", vm, &query)
}
