//! The composition root: everything that the daemon is made of, put together once from the
//! config and the paths.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_config::defaults::{HostResources, ResolvedDefaults};
use banger_config::paths::companion;
use banger_config::{Config, Paths, defaults};
use banger_image::{AnyError, CatalogOrigin, Installer, InstallerConfig, Store, StoreConfig};
use banger_net::{InvalidConfig, Network, NetworkConfig};
use banger_proto::id::{InstanceId, VmId};

use crate::capture::Captures;
use crate::clock::Clock;
use crate::engines::{Engines, Programs};
use crate::events::Events;
use crate::faults::Faults;
use crate::files::{self, FileError};
use crate::instance;
use crate::leases::Leases;
use crate::names::Names;
use crate::operations::Operations;
use crate::pulls::Pulls;
use crate::reach::Reach;
use crate::store::{Database, StoreError};
use crate::vm::bounded_logs::BoundedLogs;
use crate::vm::plan::Layout;
use crate::warnings::{Topic, Warnings};

/// The environment must say `1` here for the fake engine to be had.
pub const FAKE_VARIABLE: &str = "BANGER_TEST_FAKE";
/// Names the guest agent's binary where it is not beside the daemon.
pub const AGENT_VARIABLE: &str = "BANGER_AGENT_BIN";
/// The guest agent's binary.
pub const AGENT_NAME: &str = "banger-vsock-agent";

/// Why the daemon cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A directory cannot be made.
    #[error(transparent)]
    File(#[from] FileError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Images and kernels cannot be kept.
    #[error(transparent)]
    Images(#[from] banger_image::StoreError),
    /// The network of the config is none.
    #[error(transparent)]
    Network(#[from] InvalidConfig),
    /// This program does not know where it is.
    #[error("could not find the daemon's own program")]
    OwnProgram(#[source] io::Error),
}

impl HostError {
    /// What the user can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Images(error) => error.hint(),
            Self::Network(_) => Some("mend `cidr` in the config file".to_owned()),
            Self::OwnProgram(_) => None,
        }
    }
}

/// What the daemon takes from its environment, so that tests can give it another.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The guest agent's binary.
    pub agent: PathBuf,
    /// Whether VMs may have the fake engine.
    pub fake_allowed: bool,
    /// Faults that a test has planted.
    pub faults: Faults,
}

impl Surroundings {
    /// What the environment of this process says.
    pub fn from_env() -> Self {
        Self {
            agent: agent(),
            fake_allowed: std::env::var_os(FAKE_VARIABLE).is_some_and(|value| value == "1"),
            faults: Faults::from_env(),
        }
    }
}

/// What the daemon is made of.
pub struct Host {
    /// Where everything is.
    pub paths: Paths,
    /// Whose the things on this host are.
    pub instance: InstanceId,
    /// What the user wants.
    pub config: Config,
    /// The name of this host.
    pub node: String,
    /// What this host has.
    pub resources: HostResources,
    /// What a new VM gets.
    pub defaults: ResolvedDefaults,
    /// The rows of the VMs.
    pub database: Database,
    /// Images and kernels.
    pub images: Store,
    /// Engines.
    pub engines: Engines,
    /// Installs the one that the host may have to get.
    pub installer: Installer,
    /// The network of the VMs.
    pub network: Network,
    /// The ports of the host that lead to those of guests.
    pub reach: Reach,
    /// The network's config, for plans.
    pub network_config: NetworkConfig,
    /// What happens, for whoever watches.
    pub events: Events,
    /// Work that goes on.
    pub operations: Operations,
    /// Pulls that go on.
    pub pulls: Pulls,
    /// What follows from the VMs' names.
    pub names: Names,
    /// Clients that VMs hang on.
    pub leases: Leases,
    /// VMs that are copies of others.
    pub captures: Captures,
    /// What is odd and lasts.
    pub warnings: Warnings,
    /// When the host's clock jumps.
    pub clock: Clock,
    /// The logs of engines that run.
    pub logs: BoundedLogs,
    /// Faults that a test has planted.
    pub faults: Faults,
}

impl Host {
    /// Puts everything together. Makes the directories and opens the database; starts
    /// nothing. Blocks for some file operations.
    ///
    /// # Errors
    /// Something that the daemon cannot do without is not to be had.
    pub fn new(
        paths: Paths,
        config: Config,
        surroundings: Surroundings,
    ) -> Result<Self, HostError> {
        for directory in [
            &paths.state,
            &paths.cache,
            &paths.runtime,
            &paths.logs(),
            &paths.vms(),
        ] {
            files::make_private_directory(directory)?;
        }
        let instance = instance::load(&paths)?;
        let network_config = network_config(&paths, &instance, &config)?;
        let Surroundings {
            agent,
            fake_allowed,
            faults,
        } = surroundings;
        let engines = Engines::new(
            config.vmm,
            Programs {
                qemu: config.qemu_bin.clone(),
                firecracker: config.firecracker_bin.clone(),
                installed_firecracker: Some(paths.installed_firecracker()),
                agent: agent.clone(),
            },
            fake_allowed,
        );
        let resources = HostResources::read();
        let (database, damaged) = Database::open(&paths.database())?;
        let warnings = Warnings::default();
        if let Some(kept) = damaged {
            let text = format!(
                "the database was damaged: it is kept as `{}`, and VMs were brought back as \
                 their own directories describe them",
                kept.display()
            );
            warnings.add(Topic::Database, text);
        }
        let node = node();
        let events = Events::new(&node);
        Ok(Self {
            database: database.with_faults(faults.clone()),
            images: Store::open(store_config(&paths, &config, agent))?,
            engines,
            installer: Installer::open(installer_config(&paths)),
            network: Network::new(network_config.clone())?,
            reach: Reach::default(),
            network_config,
            operations: Operations::new(&node, events.clone()),
            events,
            pulls: Pulls::default(),
            names: Names::default(),
            leases: Leases::default(),
            captures: Captures::default(),
            warnings,
            clock: Clock::default(),
            logs: BoundedLogs::default(),
            faults,
            defaults: defaults::resolve(&config.vm_defaults, resources),
            resources,
            node,
            instance,
            paths,
            config,
        })
    }

    /// Where everything of the VM `id` in `slot` is.
    pub fn layout(&self, id: &VmId, slot: u16) -> Layout {
        Layout::of(&self.paths, &self.instance, id, slot)
    }

    /// The user's private ssh key for VMs.
    pub fn user_key(&self) -> PathBuf {
        self.config
            .ssh_key_path
            .clone()
            .unwrap_or_else(|| self.paths.ssh_key())
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

/// What the store of images must know.
pub fn store_config(paths: &Paths, config: &Config, agent: PathBuf) -> StoreConfig {
    StoreConfig {
        state_dir: paths.state.clone(),
        cache_dir: paths.cache.clone(),
        agent,
        debian_mirror: config.debian_mirror.clone(),
        ubuntu_mirror: config.ubuntu_mirror.clone(),
        catalog: origin(config),
    }
}

/// Where newer catalogs come from; the config has both keys or none.
fn origin(config: &Config) -> Option<CatalogOrigin> {
    Some(CatalogOrigin {
        url: config.catalog_url.clone()?,
        key: config.catalog_key.as_ref()?.as_str().to_owned(),
    })
}

fn installer_config(paths: &Paths) -> InstallerConfig {
    let judge = |program: &Path| {
        banger_engine::firecracker_version(program).map_err(|error| AnyError::from(Box::new(error)))
    };
    InstallerConfig {
        directory: paths.firecracker_releases(),
        downloads: paths.downloads(),
        judge: Arc::new(judge),
    }
}

/// What the network must know.
///
/// # Errors
/// This program does not know where it is.
pub fn network_config(
    paths: &Paths,
    instance: &InstanceId,
    config: &Config,
) -> Result<NetworkConfig, HostError> {
    let own = std::env::current_exe().map_err(HostError::OwnProgram)?;
    Ok(NetworkConfig {
        instance: instance.clone(),
        bridge: (config.cidr.bridge(), config.cidr.prefix()),
        runtime_dir: paths.runtime.clone(),
        log_dir: paths.logs(),
        holder: vec![own.into_os_string(), OsString::from(crate::NET_HOLDER)],
    })
}

/// The agent's binary. Where it is not to be found its bare name stands, and whoever needs it
/// says that it is missing.
pub fn agent() -> PathBuf {
    companion(AGENT_VARIABLE, AGENT_NAME).unwrap_or_else(|| AGENT_NAME.into())
}

fn node() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
pub mod tests {
    //! Hosts for tests.

    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::faults::Faults;

    /// A temporary directory whose path is short enough for sockets.
    pub fn home() -> tempfile::TempDir {
        let builder = &mut tempfile::Builder::new();
        builder.prefix("bgr").tempdir_in("/tmp").unwrap()
    }

    /// A host with its directories in `home`, whose agent is not to be had.
    pub fn host(home: &Path) -> Arc<Host> {
        let paths = Paths {
            config: home.join("config"),
            state: home.join("state"),
            cache: home.join("cache"),
            runtime: home.join("run"),
        };
        let surroundings = Surroundings {
            agent: "/nonexistent".into(),
            fake_allowed: true,
            faults: Faults::default(),
        };
        Arc::new(Host::new(paths, Config::default(), surroundings).unwrap())
    }
}
