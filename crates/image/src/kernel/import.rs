//! How a kernel is made of somebody's own files: `vmlinux`, and perhaps modules and an initrd.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use banger_proto::name::ArtifactName;
use banger_proto::size::ByteSize;

use super::{
    BOOT_MODULES, EXTRA_INITRD, KernelError, MODULES_DISK, MODULES_LOAD, VMLINUX, bzimage,
    first_half, initramfs, keep_boot_modules, require_release, step, tree, write_modules_disk,
};
use crate::bundle::{Bundle, BundleError, BundleSource};
use crate::hash::show_sha256;
use crate::manifest::{self, KernelManifest};
use crate::store::ImportError;
use crate::tool::{self, DEPMOD};

const INITRD: &str = "initrd.img";
const MODULES: &str = "modules/";
/// No kernel is larger, with all that helps to debug it.
const KERNEL_MAX: u64 = 1 << 30;
/// Longest file besides.
const FILE_MAX: u64 = 512 << 20;
/// Most bytes of all modules together, and most of them.
const MODULES_MAX: u64 = 4 << 30;
const MODULE_COUNT_MAX: usize = 100_000;
/// How the kernel's banner begins (`linux_banner` in `init/version.c`).
const BANNER: &[u8] = b"Linux version ";

/// Takes the kernel in a bundle apart into `draft`, and writes its manifest.
pub(crate) fn import(
    source: BundleSource<impl Read>,
    name: &ArtifactName,
    origin: &str,
    draft: &Path,
) -> Result<(), ImportError> {
    let root = draft.join("tree");
    let unpacked = root.join("modules");
    std::fs::create_dir_all(&unpacked).map_err(step("make a directory for the modules"))?;
    let mut bundle = Bundle::open(source)?;
    let limit = |name: &str| match name {
        VMLINUX => Some(KERNEL_MAX),
        INITRD => Some(FILE_MAX),
        name if name.starts_with(MODULES) => Some(FILE_MAX),
        _ => None,
    };
    let (mut vmlinux, mut total, mut count) = (None, 0, 0);
    while let Some(part) = bundle.next(limit)? {
        match part.name.as_str() {
            VMLINUX => {
                let mut bytes = Vec::new();
                let read = bundle.content().read_to_end(&mut bytes);
                read.map_err(BundleError::Read)?;
                vmlinux = Some(bytes);
            }
            INITRD => write_file(&draft.join(EXTRA_INITRD), &mut bundle.content())?,
            module => {
                total += part.length;
                count += 1;
                if total > MODULES_MAX || count > MODULE_COUNT_MAX {
                    return Err(BundleError::TooLong {
                        name: MODULES.to_owned(),
                        length: total,
                        limit: MODULES_MAX,
                    }
                    .into());
                }
                write_file(&root.join(module), &mut bundle.content())?;
            }
        }
    }
    let vmlinux = vmlinux.ok_or(BundleError::Lacks(VMLINUX))?;
    let hash = bundle.finish()?;
    let vmlinux = match vmlinux.starts_with(b"\x7fELF") {
        true => vmlinux,
        // What distributions install is the same, packed.
        false => bzimage::extract(&vmlinux).map_err(step("extract vmlinux from the kernel"))?,
    };
    let release = release_of(&vmlinux).ok_or(KernelError::NoRelease)?;
    let modules = place_modules(&root, &unpacked, &release)?;
    std::fs::write(draft.join(VMLINUX), &vmlinux).map_err(step("write vmlinux"))?;
    if count > 0 {
        require_same_release(&modules, &vmlinux)?;
        let mut depmod = DEPMOD.command().map_err(KernelError::from)?;
        depmod.arg("-b").arg(&root).arg(&release);
        tool::run(&mut depmod).map_err(KernelError::from)?;
        keep_boot_modules(&modules, draft)?;
    } else {
        // All that boot needs is built in.
        std::fs::create_dir(draft.join(BOOT_MODULES))
            .map_err(step("make a directory for boot's modules"))?;
        std::fs::write(draft.join(MODULES_LOAD), "")
            .map_err(step("write the list of boot's modules"))?;
    }
    let tree = tree::Tree {
        release,
        bzimage: Vec::new(),
        root,
        modules,
    };
    let modules_length = write_modules_disk(&tree, &draft.join(MODULES_DISK), first_half(&hash))?;
    std::fs::remove_dir_all(&tree.root).map_err(step("remove what was unpacked"))?;
    let manifest = KernelManifest {
        name: name.clone(),
        release: tree.release,
        digest: format!("sha256:{}", show_sha256(&hash)),
        source: origin.to_owned(),
        created_at: jiff::Timestamp::now().to_string(),
        size: ByteSize::from_bytes(crate::store::size_on_disk(draft)),
        vmlinux_length: vmlinux.len() as u64,
        modules_length,
    };
    manifest::write(&manifest, draft).map_err(step("write the kernel's manifest"))?;
    Ok(())
}

fn write_file(path: &Path, content: &mut impl Read) -> Result<(), KernelError> {
    let mut write = || -> io::Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(path))?;
        let mut file = File::create_new(path)?;
        io::copy(content, &mut file)?;
        file.flush()
    };
    write().map_err(step("unpack the bundle"))
}

/// The release in the kernel's banner. Only one without odd letters is one: it becomes the name
/// of a directory.
fn release_of(vmlinux: &[u8]) -> Option<String> {
    let at = vmlinux
        .windows(BANNER.len())
        .position(|window| window == BANNER)?;
    let rest = &vmlinux[at + BANNER.len()..];
    let end = rest.iter().take(128).position(|byte| *byte == b' ')?;
    let release = std::str::from_utf8(&rest[..end]).ok()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+~".contains(&byte);
    let plain = release.starts_with(|c: char| c.is_ascii_digit()) && release.bytes().all(is_plain);
    plain.then(|| release.to_owned())
}

/// Puts `modules/` or `modules/<release>/` where `depmod -b` looks for it.
fn place_modules(root: &Path, unpacked: &Path, release: &str) -> Result<PathBuf, KernelError> {
    let below = std::fs::read_dir(unpacked)
        .and_then(|entries| entries.collect::<io::Result<Vec<_>>>())
        .map_err(step("look at the modules"))?;
    let from = match &below[..] {
        [only] if only.path().is_dir() && only.file_name() != "kernel" => {
            if only.file_name() != release {
                return Err(KernelError::OtherModules {
                    modules: only.file_name().to_string_lossy().into_owned(),
                    kernel: release.to_owned(),
                });
            }
            only.path()
        }
        _ => unpacked.to_owned(),
    };
    let all = root.join("usr/lib/modules");
    let to = all.join(release);
    let place = || -> io::Result<()> {
        std::fs::create_dir_all(&all)?;
        std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
        std::fs::rename(from, &to)
    };
    place().map_err(step("put the modules in their place"))?;
    Ok(to)
}

/// Every module says which kernel it is for (`vermagic` in `include/linux/vermagic.h`).
fn require_same_release(modules: &Path, vmlinux: &[u8]) -> Result<(), KernelError> {
    let Some(path) = first_module(modules).map_err(step("look for a module"))? else {
        return Ok(());
    };
    let module = initramfs::read_module(&path).map_err(step("read a module"))?;
    let mark = b"vermagic=";
    let magic = module
        .content
        .windows(mark.len())
        .position(|window| window == mark)
        .map(|at| &module.content[at + mark.len()..]);
    let release = magic
        .and_then(|rest| rest.split(|byte| matches!(byte, b' ' | 0)).next())
        .map(String::from_utf8_lossy);
    match release {
        Some(release) => {
            require_release(vmlinux, &release).map_err(|_| KernelError::OtherModules {
                modules: release.into_owned(),
                kernel: release_of(vmlinux).unwrap_or_default(),
            })
        }
        None => Err(KernelError::OtherModules {
            modules: "no kernel that they name".to_owned(),
            kernel: release_of(vmlinux).unwrap_or_default(),
        }),
    }
}

fn first_module(directory: &Path) -> io::Result<Option<PathBuf>> {
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_module = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"]
                .iter()
                .any(|end| name.ends_with(end));
            if path.is_dir() {
                open.push(path);
            } else if is_module {
                return Ok(Some(path));
            }
        }
    }
    Ok(None)
}
