//! How a VM comes up: its stages, in order, each told to whoever follows the operation.
//!
//! A start that fails or is called off releases nothing by itself: whoever ran it calls
//! [`super::take_down`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use banger_engine::{Machine, MachineSpec, Nic};
use banger_image::{Image, Reporter, Store};
use banger_net::Attachment;
use banger_proto::agent::Configure;
use banger_proto::api::EngineKind;
use banger_proto::id::{ImageId, RequestId};
use banger_proto::name::ArtifactName;
use tokio_util::sync::CancellationToken;

use super::plan::{self, BootFiles, Layout};
use super::stage::{Stage, StageError};
use super::{handles, identity, record};
use crate::faults::{Moment, Step};
use crate::files;
use crate::guest::{self, Guest};
use crate::host::Host;
use crate::operations::StageReporter;
use crate::store::VmRow;

/// How long a guest may take from the engine's start until its agent answers, with hardware
/// virtualisation. An engine without multiplies it by its patience.
const AGENT_LIMIT: Duration = Duration::from_secs(30);

/// Whether the VM has been there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disks {
    /// They are to be made.
    New,
    /// They are there, and must not be lost.
    Existing,
}

/// A start that goes on.
#[derive(Debug)]
pub struct Start {
    /// The request that began it, for the agent's log.
    pub request_id: Option<RequestId>,
    /// The host it happens on.
    pub host: Arc<Host>,
    /// The VM as its row has it.
    pub row: VmRow,
    /// Whether it has been there before.
    pub disks: Disks,
    /// Where its stages are told.
    pub report: StageReporter,
    /// Cancelled when it is called off.
    pub cancel: CancellationToken,
}

/// What was found out about the VM's image.
#[derive(Clone, Debug, Default)]
pub struct Artifacts {
    /// The image's id.
    pub image_id: Option<ImageId>,
    /// The kernel's name.
    pub kernel: Option<ArtifactName>,
    /// Default environment of commands.
    pub env: BTreeMap<String, String>,
    /// Default user of commands; empty: root.
    pub user: String,
    /// Default directory of commands.
    pub workdir: Option<String>,
    /// What a new work disk is cloned from.
    pub work_seed: Option<PathBuf>,
}

impl Artifacts {
    /// What the agent of an existing VM must be told of its image, as far as it is known: an
    /// image may have been deleted or damaged while its VM runs.
    pub fn of_existing(host: &Host, row: &VmRow) -> Self {
        let image = match &row.image_id {
            Some(id) => host.images.image_by_id(id),
            None => host.images.image(&row.image),
        };
        image.ok().flatten().map(Self::of).unwrap_or_default()
    }

    fn of(image: Image) -> Self {
        let manifest = image.manifest;
        Self {
            image_id: Some(manifest.id),
            kernel: Some(manifest.kernel),
            env: manifest.env,
            user: manifest.user.unwrap_or_default(),
            workdir: manifest.workdir,
            work_seed: image.work_seed,
        }
    }
}

/// A VM that is up.
#[derive(Debug)]
pub struct Started {
    /// Its machine.
    pub machine: Arc<dyn Machine>,
    /// The link to its agent.
    pub guest: Guest,
    /// What it was booted from.
    pub artifacts: Artifacts,
}

/// A stage failed.
#[derive(Debug, thiserror::Error)]
#[error("stage {} failed", .stage.as_str())]
pub struct StartError {
    /// Which one.
    pub stage: Stage,
    /// Why.
    #[source]
    pub error: StageError,
}

impl Start {
    /// Makes all that the VM needs before its first start, and stops there.
    ///
    /// # Errors
    /// The stage that failed.
    pub async fn prepare(&self) -> Result<Artifacts, StartError> {
        let (artifacts, _) = self.stage(Stage::Image, self.image()).await?;
        self.stage(Stage::Directory, self.directory()).await?;
        self.stage(Stage::Disks, self.disks(&artifacts)).await?;
        Ok(artifacts)
    }

    /// Brings the VM up until its agent is configured.
    ///
    /// # Errors
    /// The stage that failed.
    pub async fn boot(&self) -> Result<Started, StartError> {
        let (artifacts, boot) = self.stage(Stage::Image, self.image()).await?;
        self.stage(Stage::Directory, self.directory()).await?;
        // Both run to their end even if one fails, so that neither goes on during the release.
        let (disks, network) = tokio::join!(
            self.stage(Stage::Disks, self.disks(&artifacts)),
            self.stage(Stage::Network, self.network()),
        );
        disks?;
        let network = network?;
        let machine = self
            .stage(Stage::Engine, self.engine(boot, network))
            .await?;
        let guest = self
            .stage(Stage::Agent, self.agent(&*machine, &artifacts))
            .await?;
        Ok(Started {
            machine,
            guest,
            artifacts,
        })
    }

    async fn stage<T>(
        &self,
        stage: Stage,
        work: impl Future<Output = Result<T, StageError>>,
    ) -> Result<T, StartError> {
        let failed = |error| StartError { stage, error };
        if self.cancel.is_cancelled() {
            return Err(failed(StageError::Cancelled));
        }
        let mark = self.report.stage(stage.as_str());
        let work = async {
            self.pass(stage, Moment::Before).await?;
            work.await
        };
        let result = match stage.may_be_left() {
            true => tokio::select! {
                result = work => result,
                () = self.cancel.cancelled() => Err(StageError::Cancelled),
            },
            false => work.await,
        };
        let value = result.map_err(failed)?;
        mark.done();
        Ok(value)
    }

    /// Where a test may have planted a fault. One that hangs still ends when the start is
    /// called off.
    async fn pass(&self, stage: Stage, moment: Moment) -> Result<(), StageError> {
        tokio::select! {
            biased;
            passed = self.host.faults.pass(stage, moment) => passed,
            () = self.cancel.cancelled() => Err(StageError::Cancelled),
        }
    }

    fn layout(&self) -> Layout {
        self.host.layout(&self.row.id, self.row.slot)
    }

    async fn image(&self) -> Result<(Artifacts, BootFiles), StageError> {
        let images = &self.host.images;
        let never_booted = self.row.image_id.is_none();
        if self.row.engine == EngineKind::Fake
            && never_booted
            && images.image(&self.row.image)?.is_none()
        {
            // No VM boots here, so there is nothing to boot from.
            self.pass(Stage::Image, Moment::HalfWay).await?;
            let nothing = PathBuf::from("/dev/null");
            let boot = BootFiles {
                rootfs: nothing.clone(),
                vmlinux: nothing.clone(),
                modules_disk: nothing.clone(),
                initrd: nothing,
            };
            return Ok((Artifacts::default(), boot));
        }
        let report = self.report.clone();
        let report = Reporter::new(move |progress| report.progress(progress));
        let image = image_of(images, &self.row, &report).await?;
        self.pass(Stage::Image, Moment::HalfWay).await?;
        let kernel = images
            .ensure_kernel(&image.manifest.kernel, &report)
            .await?;
        let initrd = images.initramfs(&kernel).await?;
        let boot = BootFiles {
            rootfs: image.rootfs.clone(),
            vmlinux: kernel.vmlinux,
            modules_disk: kernel.modules_disk,
            initrd,
        };
        Ok((Artifacts::of(image), boot))
    }

    async fn directory(&self) -> Result<(), StageError> {
        let layout = self.layout();
        let directory = layout.directory.clone();
        crate::blocking(move || files::make_private_directory(&directory)).await?;
        self.pass(Stage::Directory, Moment::HalfWay).await?;
        let name = self.row.name.clone();
        crate::blocking(move || {
            identity::host_key(&layout.ssh_host_key, &layout.known_hosts, &name)
        })
        .await?;
        Ok(())
    }

    async fn disks(&self, artifacts: &Artifacts) -> Result<(), StageError> {
        let layout = self.layout();
        let copied = self.host.captures.source(&self.row.id);
        let (system, work) = copied.map_or((None, artifacts.work_seed.clone()), |source| {
            (Some(source.system_disk), Some(source.work_disk))
        });
        self.disk(layout.system_disk.clone(), self.row.system_size, system)
            .await?;
        self.pass(Stage::Disks, Moment::HalfWay).await?;
        self.disk(layout.work_disk.clone(), self.row.disk_size, work)
            .await?;
        let mut row = self.row.clone();
        row.image_id.clone_from(&artifacts.image_id);
        row.kernel.clone_from(&artifacts.kernel);
        self.host.faults.step(Step::Record, Moment::Before);
        crate::blocking(move || record::refresh(&layout, &row)).await?;
        self.host.faults.step(Step::Record, Moment::HalfWay);
        Ok(())
    }

    async fn disk(
        &self,
        path: PathBuf,
        size: banger_proto::size::ByteSize,
        seed: Option<PathBuf>,
    ) -> Result<(), StageError> {
        let cache = self.host.paths.cache.clone();
        let disks = self.disks;
        crate::blocking(move || match disks {
            Disks::New => match seed {
                Some(seed) => Ok(banger_image::disk::clone_seed(&seed, size, &path)?),
                None => Ok(banger_image::disk::clone_blank(&cache, size, &path)?),
            },
            // It may have been told to grow by a daemon that died before it did so.
            Disks::Existing if path.is_file() => Ok(files::grow(&path, size)?),
            Disks::Existing => Err(StageError::DiskMissing(path)),
        })
        .await
    }

    async fn network(&self) -> Result<Option<Attachment>, StageError> {
        let attachment = match self.row.engine {
            // The fake engine has no guest that could use a tap.
            EngineKind::Fake => None,
            _ => Some(
                self.host
                    .network
                    .attach(self.row.slot, self.row.nat)
                    .await?,
            ),
        };
        self.pass(Stage::Network, Moment::HalfWay).await?;
        if let Some(reason) = attachment
            .as_ref()
            .and_then(|found| found.no_way_out.as_ref())
        {
            tracing::warn!(vm = %self.row.name, reason, "the guest has no way out");
        }
        Ok(attachment)
    }

    async fn engine(
        &self,
        boot: BootFiles,
        network: Option<Attachment>,
    ) -> Result<Arc<dyn Machine>, StageError> {
        let layout = self.layout();
        let sockets = layout.place.runtime_dir.clone();
        crate::blocking(move || files::make_private_directory(&sockets)).await?;
        let disks = plan::disks(&layout, &boot);
        let init = match self.host.captures.source(&self.row.id) {
            Some(_) => plan::Init::Agent,
            None => plan::Init::OfImage,
        };
        let network_plan = network.as_ref().map(|network| &network.plan);
        let spec = MachineSpec {
            cmdline: plan::kernel_command_line(
                self.row.engine,
                &self.row.name,
                &disks,
                network_plan,
                init,
            ),
            name: self.row.name.clone(),
            vcpu: self.row.vcpu,
            memory: self.row.memory,
            kernel: boot.vmlinux,
            initrd: boot.initrd,
            disks,
            nic: network.map(|network| Nic {
                mac: network.plan.mac.to_string(),
                mtu: network.plan.mtu,
                tap: network.tap,
            }),
            place: layout.place,
        };
        let engine = self.host.engines.get(self.row.engine).await?;
        let machine = tokio::select! {
            launched = engine.launch(spec) => launched?,
            // An engine that takes its time is left: what was begun of it is found by its mark.
            () = self.cancel.cancelled() => return Err(StageError::Cancelled),
        };
        self.pass(Stage::Engine, Moment::HalfWay).await?;
        let handle = machine.handle().clone();
        self.host.faults.step(Step::Handles, Moment::Before);
        crate::blocking(move || handles::write(&layout.handles, &handle)).await?;
        self.host.faults.step(Step::Handles, Moment::HalfWay);
        Ok(machine)
    }

    async fn agent(
        &self,
        machine: &dyn Machine,
        artifacts: &Artifacts,
    ) -> Result<Guest, StageError> {
        let limit = AGENT_LIMIT * self.host.engines.patience(self.row.engine);
        let guest = guest::connect(machine, limit).await?;
        self.pass(Stage::Agent, Moment::HalfWay).await?;
        let configured = guest.for_work_of(self.request_id.as_ref());
        configure(&self.host, &self.row, artifacts, &configured).await?;
        Ok(guest)
    }
}

/// The image that a VM boots: that of its first boot for ever, because its system disk is an
/// overlay of that one. Before, the one that has the name.
async fn image_of(images: &Store, row: &VmRow, report: &Reporter) -> Result<Image, StageError> {
    let Some(id) = row.image_id.clone() else {
        return Ok(images.ensure_image(&row.image, report).await?);
    };
    let (store, wanted) = (images.clone(), id.clone());
    let found = crate::blocking(move || store.image_by_id(&wanted)).await?;
    found.ok_or_else(|| StageError::ImageGone {
        name: row.image.clone(),
        id,
    })
}

/// Tells the guest who it is. Each new link needs it.
///
/// # Errors
/// A key cannot be read, or the agent refuses.
pub async fn configure(
    host: &Host,
    row: &VmRow,
    artifacts: &Artifacts,
    guest: &Guest,
) -> Result<(), StageError> {
    let layout = host.layout(&row.id, row.slot);
    let (name, user_key) = (row.name.clone(), host.user_key());
    let (host_key, authorized) = crate::blocking(move || {
        let host_key = identity::host_key(&layout.ssh_host_key, &layout.known_hosts, &name)?;
        Ok::<_, identity::KeyError>((host_key, identity::authorized_key(&user_key)?))
    })
    .await?;
    let clock = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok();
    let identity = Configure {
        hostname: row.name.to_string(),
        ssh_host_key: host_key,
        authorized_keys: vec![authorized],
        clock_unix_ns: clock.and_then(|clock| u64::try_from(clock.as_nanos()).ok()),
        env: artifacts.env.clone(),
        workdir: artifacts.workdir.clone(),
        user: artifacts.user.clone(),
    };
    guest
        .configure(&identity)
        .await
        .map_err(StageError::Configure)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::vms::tests::row;
    use banger_image::StoreConfig;
    use std::fs;
    use std::path::Path;

    pub(crate) fn put_image(state: &Path, id: &ImageId, name: &ArtifactName, created_at: &str) {
        let directory = state.join("images").join(id.as_str());
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("rootfs.ext4"), "disk").unwrap();
        let manifest = serde_json::json!({
            "id": id,
            "name": name,
            "digest": "sha256:0",
            "source": "a test",
            "distro": "debian 12",
            "arch": "x86_64",
            "created_at": created_at,
            "size": 4096,
            "rootfs_length": 4,
            "kernel": "debian-6.1",
        });
        fs::write(directory.join("manifest.json"), manifest.to_string()).unwrap();
    }

    #[tokio::test]
    async fn a_vm_boots_the_image_of_its_first_boot_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let images = Store::open(StoreConfig {
            state_dir: state.clone(),
            cache_dir: dir.path().join("cache"),
            agent: dir.path().join("agent"),
            debian_mirror: None,
            ubuntu_mirror: None,
            catalog: None,
        })
        .unwrap();
        let mut row = row("a");
        let (first, second) = (ImageId::new(), ImageId::new());
        put_image(&state, &first, &row.image, "2026-01-01T00:00:00Z");
        put_image(&state, &second, &row.image, "2026-02-01T00:00:00Z");
        let report = Reporter::new(|_| {});
        let booted = image_of(&images, &row, &report).await.unwrap();
        assert_eq!(booted.manifest.id, second, "a new VM gets the newest");
        row.image_id = Some(first.clone());
        let booted = image_of(&images, &row, &report).await.unwrap();
        assert_eq!(booted.manifest.id, first);
        fs::remove_dir_all(state.join("images").join(first.as_str())).unwrap();
        let error = image_of(&images, &row, &report).await.unwrap_err();
        assert!(matches!(&error, StageError::ImageGone { id, .. } if *id == first));
        assert!(error.to_string().contains("is gone"), "{error}");
        assert!(error.hint().is_some());
    }
}
