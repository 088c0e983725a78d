//! Which engines this host has, and which one a VM gets.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use banger_config::file::Vmm;
use banger_engine::{Engine, Fake, Place, Qemu, QemuMissing, ReleaseError};
use banger_proto::api::EngineKind;

/// How much slower a guest without hardware virtualisation may be.
const SLOWEST: u32 = 6;

/// Why a VM does not get the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineUnavailable {
    /// QEMU cannot be used.
    #[error("QEMU is not usable")]
    Qemu(#[from] QemuMissing),
    /// This build has no driver for it.
    #[error("this version of banger has no driver for the engine `{0}`")]
    NotBuilt(EngineKind),
    /// The fake engine outside of tests.
    #[error("the engine `fake` is for tests only")]
    OnlyForTests,
}

impl EngineUnavailable {
    /// What the user can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Qemu(error) => Some(error.fix().to_owned()),
            Self::NotBuilt(_) => {
                Some("use `--engine qemu`, or leave the choice to banger".to_owned())
            }
            Self::OnlyForTests => None,
        }
    }
}

/// The host's engines, each looked for when it is first needed: asking QEMU for its version
/// takes longer than most of what the daemon does.
#[derive(Debug)]
pub struct Engines {
    preferred: Vmm,
    qemu_bin: Option<PathBuf>,
    qemu: OnceLock<Arc<Qemu>>,
    fake: Arc<Fake>,
    fake_allowed: bool,
}

impl Engines {
    /// No engine is looked for yet. `agent` is what the fake engine runs.
    pub fn new(
        preferred: Vmm,
        qemu_bin: Option<PathBuf>,
        agent: PathBuf,
        fake_allowed: bool,
    ) -> Self {
        Self {
            preferred,
            qemu_bin,
            qemu: OnceLock::new(),
            fake: Arc::new(Fake::new(agent)),
            fake_allowed,
        }
    }

    /// The engine of a new VM: the one that is asked for, else the config's, else the best of
    /// this host.
    pub fn choose(&self, asked: Option<EngineKind>) -> EngineKind {
        asked
            .or(self.preferred.engine())
            .unwrap_or(EngineKind::Qemu)
    }

    /// The engine of this kind.
    ///
    /// # Errors
    /// The host does not have it. It is looked for again at the next call.
    pub async fn get(&self, kind: EngineKind) -> Result<Arc<dyn Engine>, EngineUnavailable> {
        match kind {
            EngineKind::Qemu => {
                if let Some(qemu) = self.qemu.get() {
                    return Ok(Arc::clone(qemu) as Arc<dyn Engine>);
                }
                let chosen = self.qemu_bin.clone();
                let found = crate::blocking(move || Qemu::find(chosen.as_deref())).await?;
                Ok(Arc::clone(self.qemu.get_or_init(|| Arc::new(found))) as Arc<dyn Engine>)
            }
            EngineKind::Firecracker => Err(EngineUnavailable::NotBuilt(kind)),
            EngineKind::Fake if self.fake_allowed => Ok(Arc::clone(&self.fake) as Arc<dyn Engine>),
            EngineKind::Fake => Err(EngineUnavailable::OnlyForTests),
        }
    }

    /// By what factor a guest of this engine is slower than with hardware virtualisation.
    pub fn patience(&self, kind: EngineKind) -> u32 {
        match kind {
            EngineKind::Fake => 1,
            EngineKind::Qemu | EngineKind::Firecracker => {
                self.qemu.get().map_or(SLOWEST, |qemu| qemu.patience())
            }
        }
    }

    /// Ends whatever runs at `place`, by its mark. That needs no engine's binary: a VM can be
    /// deleted after its engine was uninstalled.
    ///
    /// # Errors
    /// Something is left over.
    pub async fn release(&self, place: &Place) -> Result<(), ReleaseError> {
        banger_engine::release(place).await
    }
}
