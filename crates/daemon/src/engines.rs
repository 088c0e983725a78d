//! Which engines this host has, and which one a VM gets.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use banger_config::file::Vmm;
use banger_engine::{
    Engine, Fake, Firecracker, FirecrackerMissing, FirecrackerUnusable, Place, Places, Qemu,
    QemuMissing, ReleaseError, Survey, probe,
};
use banger_proto::api::EngineKind;

/// How much slower a guest without hardware virtualisation may be.
const SLOWEST: u32 = 6;

/// Why a VM does not get the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineUnavailable {
    /// QEMU cannot be used.
    #[error("QEMU is not usable")]
    Qemu(#[from] QemuMissing),
    /// Firecracker cannot be used.
    #[error("Firecracker is not usable")]
    Firecracker(#[from] FirecrackerUnusable),
    /// The fake engine outside of tests.
    #[error("the engine `fake` is for tests only")]
    OnlyForTests,
}

impl EngineUnavailable {
    /// What the user can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Qemu(error) => Some(error.fix().to_owned()),
            Self::Firecracker(error) => Some(format!(
                "{}; or use `--engine qemu`, or leave the choice to banger",
                error.fix()
            )),
            Self::OnlyForTests => None,
        }
    }
}

/// Which engine a VM gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// This one.
    pub kind: EngineKind,
    /// Why not a better one, where nobody asked for this one.
    pub because: Option<String>,
}

impl Choice {
    /// The choice where nobody asks for an engine: Firecracker, if nothing keeps it from being
    /// used.
    fn best(obstacle: Option<&Obstacle<'_>>) -> Self {
        Self {
            kind: match obstacle {
                None => EngineKind::Firecracker,
                Some(_) => EngineKind::Qemu,
            },
            because: obstacle.map(|obstacle| format!("not Firecracker: {obstacle}")),
        }
    }

    /// What new VMs get where only the config says anything, told with its reason.
    pub fn of(preferred: Vmm, survey: &Survey) -> (EngineKind, String) {
        if let Some(kind) = preferred.engine() {
            return (kind, "`vmm` in the config says so".to_owned());
        }
        let obstacle = match (&survey.kvm, &survey.firecracker) {
            (Err(unusable), _) => Some(Obstacle::Kvm(unusable)),
            (Ok(()), Err(missing)) => Some(Obstacle::Program(missing)),
            (Ok(()), Ok(_)) => None,
        };
        let choice = Self::best(obstacle.as_ref());
        let usable = || "KVM is usable, and Firecracker is there".to_owned();
        (choice.kind, choice.because.unwrap_or_else(usable))
    }
}

/// What keeps Firecracker from being used.
#[derive(Debug)]
enum Obstacle<'a> {
    Kvm(&'a probe::Unusable),
    Program(&'a FirecrackerMissing),
}

impl<'a> From<&'a FirecrackerUnusable> for Obstacle<'a> {
    fn from(unusable: &'a FirecrackerUnusable) -> Self {
        match unusable {
            FirecrackerUnusable::Kvm(unusable) => Self::Kvm(unusable),
            FirecrackerUnusable::Missing(missing) => Self::Program(missing),
        }
    }
}

impl fmt::Display for Obstacle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&in_one_line(match self {
            Self::Kvm(unusable) => *unusable,
            Self::Program(missing) => *missing,
        }))
    }
}

/// An error and all below it.
pub fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        text.push_str(&format!(": {error}"));
        below = error.source();
    }
    text
}

/// Where the engines' programs are, as far as that is known.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// The config's QEMU.
    pub qemu: Option<PathBuf>,
    /// The config's Firecracker.
    pub firecracker: Option<PathBuf>,
    /// Where banger installs a Firecracker.
    pub installed_firecracker: Option<PathBuf>,
    /// The guest agent, which is what the fake engine runs.
    pub agent: PathBuf,
}

/// The host's engines, each looked for when it is first needed: asking QEMU for its version
/// takes longer than most of what the daemon does.
#[derive(Debug)]
pub struct Engines {
    preferred: Vmm,
    programs: Programs,
    qemu: OnceLock<Arc<Qemu>>,
    /// Another may be installed while the daemon runs.
    firecracker: Mutex<Option<Arc<Firecracker>>>,
    fake: Arc<Fake>,
    fake_allowed: bool,
}

impl Engines {
    /// No engine is looked for yet.
    pub fn new(preferred: Vmm, programs: Programs, fake_allowed: bool) -> Self {
        Self {
            preferred,
            qemu: OnceLock::new(),
            firecracker: Mutex::default(),
            fake: Arc::new(Fake::new(programs.agent.clone())),
            programs,
            fake_allowed,
        }
    }

    /// The engine of a new VM: the one that is asked for, else the config's, else the best of
    /// this host.
    pub async fn choose(&self, asked: Option<EngineKind>) -> Choice {
        if let Some(kind) = asked.or(self.preferred.engine()) {
            let because = None;
            return Choice { kind, because };
        }
        let unusable = self.firecracker().await.err();
        let choice = Choice::best(unusable.as_ref().map(Obstacle::from).as_ref());
        match unusable {
            // QEMU says the same of KVM.
            Some(FirecrackerUnusable::Kvm(_)) => Choice {
                because: None,
                ..choice
            },
            _ => choice,
        }
    }

    async fn firecracker(&self) -> Result<Arc<Firecracker>, FirecrackerUnusable> {
        let known = self.known_firecracker().clone();
        if let Some(firecracker) = known {
            return Ok(firecracker);
        }
        let Programs {
            firecracker,
            installed_firecracker,
            ..
        } = self.programs.clone();
        let find =
            move || Firecracker::find(firecracker.as_deref(), installed_firecracker.as_deref());
        let found = Arc::new(crate::blocking(find).await?);
        *self.known_firecracker() = Some(Arc::clone(&found));
        Ok(found)
    }

    /// Has Firecracker looked for again when it is next needed.
    pub fn forget_firecracker(&self) {
        *self.known_firecracker() = None;
    }

    fn known_firecracker(&self) -> MutexGuard<'_, Option<Arc<Firecracker>>> {
        let known = self.firecracker.lock();
        known.expect("no holder of this lock panics")
    }

    /// What this host has now.
    pub async fn survey(&self) -> Survey {
        let places = Places {
            qemu: self.programs.qemu.clone(),
            firecracker: self.programs.firecracker.clone(),
            installed_firecracker: self.programs.installed_firecracker.clone(),
        };
        crate::blocking(move || banger_engine::survey(&places)).await
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
                let chosen = self.programs.qemu.clone();
                let found = crate::blocking(move || Qemu::find(chosen.as_deref())).await?;
                Ok(Arc::clone(self.qemu.get_or_init(|| Arc::new(found))) as Arc<dyn Engine>)
            }
            EngineKind::Firecracker => Ok(self.firecracker().await? as Arc<dyn Engine>),
            EngineKind::Fake if self.fake_allowed => Ok(Arc::clone(&self.fake) as Arc<dyn Engine>),
            EngineKind::Fake => Err(EngineUnavailable::OnlyForTests),
        }
    }

    /// By what factor a guest of this engine is slower than with hardware virtualisation.
    pub fn patience(&self, kind: EngineKind) -> u32 {
        match kind {
            EngineKind::Fake => 1,
            EngineKind::Qemu => self.qemu.get().map_or(SLOWEST, |qemu| qemu.patience()),
            EngineKind::Firecracker => {
                let known = self.known_firecracker();
                known.as_ref().map_or(SLOWEST, |known| known.patience())
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

#[cfg(test)]
mod tests {
    use super::*;
    use banger_engine::{Program, probe::Unusable};
    use banger_proto::api::ProgramOrigin;

    #[test]
    fn the_choice_tells_its_reason() {
        let survey = |firecracker: bool, kvm: bool| Survey {
            qemu: Err(QemuMissing::NotFound),
            firecracker: match firecracker {
                true => Ok(Program {
                    path: "/usr/bin/firecracker".into(),
                    version: "1.16.1".to_owned(),
                    origin: ProgramOrigin::Path,
                    may_be_jailed: true,
                }),
                false => Err(FirecrackerMissing::NotFound),
            },
            kvm: match kvm {
                true => Ok(()),
                false => Err(Unusable::NoVirtualisation),
            },
        };
        let said: Vec<String> = [
            (Vmm::Auto, survey(true, true)),
            (Vmm::Auto, survey(false, true)),
            (Vmm::Auto, survey(true, false)),
            (Vmm::Firecracker, survey(false, false)),
        ]
        .map(|(preferred, survey)| {
            let (kind, because) = Choice::of(preferred, &survey);
            format!("{kind}: {because}")
        })
        .into();
        insta::assert_snapshot!(said.join("\n"));
    }
}
