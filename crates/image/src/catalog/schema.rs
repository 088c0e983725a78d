//! How a catalog is written, and whether what is written makes sense.
//!
//! Nothing is overlooked: an unknown key, a name that nothing has, an odd letter in what becomes
//! an argument of a program or a line on a terminal. A catalog with anything wrong in it is none.

use std::collections::HashSet;

use banger_proto::name::ArtifactName;
use banger_proto::reference::{Digest, ImageReference};
use banger_proto::url::WebUrl;
use serde::Deserialize;

use super::{
    Bundle, Catalog, ImageEntry, ImageSource, KernelEntry, KernelSource, Package, Program,
    ProgramSource, Recipe,
};
use crate::debian::mirror::Family;

/// The way of writing that this banger reads.
const SCHEMA: u32 = 1;
/// Longest catalog, in bytes.
pub(crate) const LONGEST: u64 = 1 << 20;
/// Longest line that is shown to people.
const LONGEST_LINE: usize = 200;

/// Why a text is no catalog.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CatalogError {
    /// It is too long.
    #[error("it has more than {} KiB", LONGEST >> 10)]
    TooLong,
    /// It is no TOML, or has keys or values that have no place there.
    #[error("line {line}: {message}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// It is written for another banger.
    #[error("it has schema {found}, and this banger reads {SCHEMA}")]
    Schema {
        /// What it says.
        found: u32,
    },
    /// It holds nothing.
    #[error("it has no kernel")]
    NoKernel,
    /// An entry makes no sense.
    #[error("its {what} `{name}` {problem}")]
    Entry {
        /// `image` or `kernel`.
        what: &'static str,
        /// The entry.
        name: ArtifactName,
        /// What is wrong with it.
        problem: String,
    },
}

/// What any catalog must say.
#[derive(Deserialize)]
struct Head {
    schema: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[expect(dead_code, reason = "it was read as the head")]
    schema: u32,
    serial: u64,
    kernel: Vec<WrittenKernel>,
    #[serde(default)]
    image: Vec<WrittenImage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKernel {
    name: ArtifactName,
    about: String,
    source: Vec<WrittenKernelSource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenKernelSource {
    Bundle(WrittenBundle),
    Package(WrittenPackage),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenImage {
    name: ArtifactName,
    about: String,
    distro: String,
    kernel: ArtifactName,
    source: Vec<WrittenImageSource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenImageSource {
    Bundle(WrittenBundle),
    Oci(ImageReference),
    Recipe(WrittenRecipe),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenBundle {
    url: WebUrl,
    sha256: String,
    arch: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPackage {
    suite: String,
    name: String,
    version: String,
}

/// What is left out is taken from the recipe that it extends, if it extends one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRecipe {
    extends: Option<ArtifactName>,
    family: Option<Family>,
    release: Option<String>,
    components: Option<Vec<String>>,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    program: Vec<WrittenProgram>,
    #[serde(default)]
    npm: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenProgram {
    name: String,
    path: String,
    arch: String,
    sha256: String,
    size: u64,
    source: Vec<WrittenProgramSource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenProgramSource {
    Url(WebUrl),
    Npm(WrittenNpm),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenNpm {
    package: String,
    file: String,
}

impl Catalog {
    /// Reads a catalog.
    pub(crate) fn parse(text: &str) -> Result<Self, CatalogError> {
        if text.len() as u64 > LONGEST {
            return Err(CatalogError::TooLong);
        }
        let syntax = |error: toml::de::Error| CatalogError::Syntax {
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            message: error.message().trim_end().replace('\n', ", "),
        };
        let Head { schema } = toml::from_str(text).map_err(syntax)?;
        if schema != SCHEMA {
            return Err(CatalogError::Schema { found: schema });
        }
        let written: Written = toml::from_str(text).map_err(syntax)?;
        let mut catalog = Self {
            serial: written.serial,
            kernels: Vec::new(),
            images: Vec::new(),
        };
        for kernel in written.kernel {
            let entry = catalog.admit_kernel(kernel)?;
            catalog.kernels.push(entry);
        }
        if catalog.kernels.is_empty() {
            return Err(CatalogError::NoKernel);
        }
        for image in written.image {
            let entry = catalog.admit_image(image)?;
            catalog.images.push(entry);
        }
        Ok(catalog)
    }

    fn admit_kernel(&self, written: WrittenKernel) -> Result<KernelEntry, CatalogError> {
        let WrittenKernel {
            name,
            about,
            source,
        } = written;
        let wrong = |problem: String| CatalogError::Entry {
            what: "kernel",
            name: name.clone(),
            problem,
        };
        if self.kernel(&name).is_some() {
            return Err(wrong("stands there twice".to_owned()));
        }
        require_line("about", &about).map_err(wrong)?;
        let sources = source.into_iter().map(|source| match source {
            WrittenKernelSource::Bundle(bundle) => Ok(KernelSource::Bundle(admit_bundle(bundle)?)),
            WrittenKernelSource::Package(package) => {
                require("suite", &package.suite, is_suite)?;
                require("package", &package.name, is_package)?;
                require("version", &package.version, is_version)?;
                Ok(KernelSource::Package(Package {
                    suite: package.suite,
                    name: package.name,
                    version: package.version,
                }))
            }
        });
        let sources = sources.collect::<Result<Vec<_>, String>>().map_err(wrong)?;
        if sources.is_empty() {
            return Err(wrong("has no source".to_owned()));
        }
        Ok(KernelEntry {
            name,
            about,
            sources,
        })
    }

    fn admit_image(&self, written: WrittenImage) -> Result<ImageEntry, CatalogError> {
        let WrittenImage {
            name,
            about,
            distro,
            kernel,
            source,
        } = written;
        let wrong = |problem: String| CatalogError::Entry {
            what: "image",
            name: name.clone(),
            problem,
        };
        if self.image(&name).is_some() {
            return Err(wrong("stands there twice".to_owned()));
        }
        if self.kernel(&kernel).is_none() {
            let problem = format!("boots with `{kernel}`, which is not among the kernels");
            return Err(wrong(problem));
        }
        require_line("about", &about).map_err(wrong)?;
        require_line("distro", &distro).map_err(wrong)?;
        let sources = source.into_iter().map(|source| {
            Ok(match source {
                WrittenImageSource::Bundle(bundle) => ImageSource::Bundle(admit_bundle(bundle)?),
                WrittenImageSource::Oci(reference) => ImageSource::Oci(reference),
                WrittenImageSource::Recipe(recipe) => {
                    ImageSource::Recipe(self.admit_recipe(recipe)?)
                }
            })
        });
        let sources = sources.collect::<Result<Vec<_>, String>>().map_err(wrong)?;
        if sources.is_empty() {
            return Err(wrong("has no source".to_owned()));
        }
        Ok(ImageEntry {
            name,
            about,
            distro,
            kernel,
            sources,
        })
    }

    fn admit_recipe(&self, written: WrittenRecipe) -> Result<Recipe, String> {
        let base = match &written.extends {
            Some(name) => Some(self.recipe(name).ok_or_else(|| {
                format!("extends `{name}`, which is no image above it with a recipe")
            })?),
            None => None,
        };
        let lacks = |key: &str| format!("has a recipe without `{key}`");
        let mut packages = base.map_or_else(Vec::new, |base| base.packages.clone());
        packages.extend(written.packages);
        let mut programs = base.map_or_else(Vec::new, |base| base.programs.clone());
        for program in written.program {
            programs.push(admit_program(program)?);
        }
        let mut npm = base.map_or_else(Vec::new, |base| base.npm.clone());
        npm.extend(written.npm);
        let recipe = Recipe {
            family: written
                .family
                .or(base.map(|base| base.family))
                .ok_or_else(|| lacks("family"))?,
            release: written
                .release
                .or_else(|| base.map(|base| base.release.clone()))
                .ok_or_else(|| lacks("release"))?,
            components: written
                .components
                .or_else(|| base.map(|base| base.components.clone()))
                .unwrap_or_else(|| vec!["main".to_owned()]),
            packages: sorted_once(packages)?,
            programs,
            npm,
        };
        require("release", &recipe.release, is_suite)?;
        for component in &recipe.components {
            require("component", component, is_suite)?;
        }
        if recipe.components.is_empty() {
            return Err(lacks("components"));
        }
        for package in &recipe.packages {
            require("package", package, is_package)?;
        }
        for package in &recipe.npm {
            require("package of npm's with its version", package, is_npm_package)?;
        }
        Ok(recipe)
    }

    /// The recipe of an image that has been read.
    fn recipe(&self, name: &ArtifactName) -> Option<&Recipe> {
        let sources = &self.image(name)?.sources;
        sources.iter().find_map(|source| match source {
            ImageSource::Recipe(recipe) => Some(recipe),
            _ => None,
        })
    }
}

fn admit_bundle(written: WrittenBundle) -> Result<Bundle, String> {
    let WrittenBundle { url, sha256, arch } = written;
    require("architecture", &arch, is_arch)?;
    Ok(Bundle {
        url,
        sha256: admit_hash(&sha256)?,
        arch,
    })
}

fn admit_program(written: WrittenProgram) -> Result<Program, String> {
    let WrittenProgram {
        name,
        path,
        arch,
        sha256,
        size,
        source,
    } = written;
    require("program", &name, is_package)?;
    require("path in an image", &path, is_path)?;
    require("architecture", &arch, is_arch)?;
    let sources = source.into_iter().map(|source| match source {
        WrittenProgramSource::Url(url) => Ok(ProgramSource::Url(url)),
        WrittenProgramSource::Npm(WrittenNpm { package, file }) => {
            require(
                "package of npm's with its version",
                &package,
                is_npm_package,
            )?;
            require("file of a package", &file, is_path)?;
            Ok(ProgramSource::Npm { package, file })
        }
    });
    let sources = sources.collect::<Result<Vec<_>, String>>()?;
    if sources.is_empty() {
        return Err(format!("has no source of the program `{name}`"));
    }
    Ok(Program {
        name,
        path,
        arch,
        sha256: admit_hash(&sha256)?,
        size,
        sources,
    })
}

fn admit_hash(text: &str) -> Result<Digest, String> {
    format!("sha256:{text}")
        .parse()
        .map_err(|_| format!("names {text:?}, which is no hash"))
}

/// The packages in order; refuses one that stands there twice.
fn sorted_once(mut packages: Vec<String>) -> Result<Vec<String>, String> {
    let mut seen = HashSet::new();
    if let Some(twice) = packages.iter().find(|package| !seen.insert(*package)) {
        return Err(format!("names the package `{twice}` twice"));
    }
    packages.sort();
    Ok(packages)
}

fn require(what: &str, text: &str, is_one: impl Fn(&str) -> bool) -> Result<(), String> {
    match is_one(text) {
        true => Ok(()),
        false => Err(format!("names {text:?}, which is no {what}")),
    }
}

/// What people are shown is one short line that does nothing to a terminal.
fn require_line(key: &str, text: &str) -> Result<(), String> {
    let plain = !text.is_empty()
        && text.len() <= LONGEST_LINE
        && text.chars().all(|letter| !letter.is_control());
    match plain {
        true => Ok(()),
        false => Err(format!(
            "has as `{key}` no line of 1 to {LONGEST_LINE} letters"
        )),
    }
}

/// Names of packages (Debian Policy, section 5.6.7).
fn is_package(text: &str) -> bool {
    text.len() >= 2
        && is_made_of(text, |byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte)
        })
}

/// Names of suites and components.
fn is_suite(text: &str) -> bool {
    is_made_of(text, |byte| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte)
    })
}

/// The beginning of a package's version (Debian Policy, section 5.6.12).
fn is_version(text: &str) -> bool {
    is_made_of(text, |byte| {
        byte.is_ascii_alphanumeric() || b".+-~:".contains(&byte)
    })
}

/// A path below a directory, of plain names.
fn is_path(text: &str) -> bool {
    text.split('/').all(|name| {
        is_made_of(name, |byte| {
            byte.is_ascii_alphanumeric() || b".+-_".contains(&byte)
        })
    })
}

/// `name@1.2.3` or `@scope/name@1.2.3`: one version, and nothing that npm would take for an
/// option, a path or another place.
fn is_npm_package(text: &str) -> bool {
    let is_name = |text: &str| {
        is_made_of(text, |byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte)
        })
    };
    let (scope, rest) = match text.strip_prefix('@') {
        Some(rest) => rest.split_once('/').unwrap_or(("", rest)),
        None => ("none", text),
    };
    let Some((name, version)) = rest.split_once('@') else {
        return false;
    };
    let is_exact = version.starts_with(|first: char| first.is_ascii_digit())
        && version.split('.').count() >= 3
        && is_version(version);
    is_name(scope) && is_name(name) && is_exact
}

fn is_arch(text: &str) -> bool {
    is_made_of(text, |byte| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
    })
}

fn is_made_of(text: &str, legal: impl Fn(u8) -> bool) -> bool {
    text.len() <= 128
        && text.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
        && text.bytes().all(legal)
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or_default();
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}
