//! The catalog that is built in, and catalogs that are none.

use super::schema::CatalogError;
use super::*;
use proptest::prelude::*;

const BUILT_IN: &str = include_str!("../../catalog.toml");

/// A small catalog that is one.
const SMALL: &str = r#"schema = 1
serial = 7

[[kernel]]
name = "k"
about = "a kernel"
[[kernel.source]]
package = { suite = "bookworm", name = "linux-image", version = "6." }

[[image]]
name = "a"
about = "an image"
distro = "debian 12"
kernel = "k"
[[image.source]]
bundle = { url = "https://example.org/a.tar.zst", sha256 = "HASH", arch = "x86_64" }
[[image.source]]
oci = "alpine:3.20"
[[image.source]]
[image.source.recipe]
family = "debian"
release = "bookworm"
packages = ["git", "curl"]
npm = ["node@24.21.0"]
[[image.source.recipe.program]]
name = "mise"
path = "usr/local/bin/mise"
arch = "x86_64"
sha256 = "HASH"
size = 9
[[image.source.recipe.program.source]]
url = "https://example.org/mise"
[[image.source.recipe.program.source]]
npm = { package = "@scope/mise@1.2.3", file = "bin/mise" }

[[image]]
name = "b"
about = "another"
distro = "debian 13"
kernel = "k"
[[image.source]]
[image.source.recipe]
extends = "a"
release = "trixie"
packages = ["docker-cli"]
npm = ["@scope/tool@0.1.0-rc.1"]
"#;

fn small() -> String {
    SMALL.replace("HASH", &"0f".repeat(32))
}

fn name(text: &str) -> ArtifactName {
    text.parse().unwrap()
}

#[test]
fn the_catalog_that_is_built_in_is_one() {
    let catalog = Catalog::parse(BUILT_IN).unwrap();
    for image in [
        "debian-bookworm",
        "debian-bookworm-slim",
        "debian-agents",
        "alpine",
    ] {
        assert!(catalog.image(&name(image)).is_some(), "{image}");
    }
    assert_eq!(catalog.default_kernel(), &name("generic-6.12"));
}

#[test]
fn the_catalog_that_is_built_in_is_in_order() {
    let lists = BUILT_IN.split("packages = [\n").skip(1);
    for list in lists {
        let list = list.split("\n]").next().unwrap();
        let packages: Vec<&str> = list
            .lines()
            .filter(|line| line.trim_start().starts_with('"'))
            .collect();
        assert!(packages.is_sorted(), "{list}");
    }
}

#[test]
fn sources_keep_their_order_and_recipes_add_to_what_they_extend() {
    let catalog = Catalog::parse(&small()).unwrap();
    assert_eq!(catalog.serial, 7);
    let shown: Vec<String> = catalog
        .images
        .iter()
        .flat_map(|image| &image.sources)
        .map(|source| match source {
            ImageSource::Recipe(recipe) => {
                let programs = recipe.programs.iter().flat_map(|program| {
                    let sources = program.sources.iter().map(ProgramSource::to_string);
                    std::iter::once(program.path.clone()).chain(sources)
                });
                let words: Vec<String> = recipe
                    .packages
                    .iter()
                    .chain(&recipe.npm)
                    .cloned()
                    .chain(programs)
                    .collect();
                format!("{source}: {}", words.join(" "))
            }
            _ => source.to_string(),
        })
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @r"
    https://example.org/a.tar.zst
    docker.io/library/alpine:3.20
    packages of Debian bookworm: curl git node@24.21.0 usr/local/bin/mise https://example.org/mise npm's `@scope/mise@1.2.3`
    packages of Debian trixie: curl docker-cli git node@24.21.0 @scope/tool@0.1.0-rc.1 usr/local/bin/mise https://example.org/mise npm's `@scope/mise@1.2.3`
    ");
}

#[test]
fn what_makes_no_sense_is_refused_and_named() {
    let changes = [
        ("schema = 1\n", ""),
        ("schema = 1", "schema = 2"),
        ("serial = 7", "serial = -1"),
        ("serial = 7", "serial = 7\ncolour = \"red\""),
        (
            "about = \"an image\"",
            "about = \"an image\"\nabuot = \"x\"",
        ),
        ("about = \"an image\"", "about = \"two\\nlines\""),
        ("name = \"b\"", "name = \"a\""),
        ("name = \"b\"", "name = \"B\""),
        ("kernel = \"k\"", "kernel = \"other\""),
        ("oci = \"alpine:3.20\"", "oci = \"Alpine\""),
        ("oci = \"alpine:3.20\"", "ftp = \"x\""),
        ("oci = \"alpine:3.20\"", "oci = \"a:1\"\nbundle = \"x\""),
        ("https://example.org", "file:///etc"),
        ("arch = \"x86_64\" }", "arch = \"x86_64\", size = 1 }"),
        ("sha256 = \"0f", "sha256 = \"0"),
        ("family = \"debian\"", "family = \"slackware\""),
        ("family = \"debian\"\n", ""),
        ("usr/local/bin/mise", "/usr/local/bin/mise"),
        ("usr/local/bin/mise", "usr/../bin/mise"),
        ("size = 9\n", ""),
        ("@scope/mise@1.2.3", "@scope/mise"),
        ("@scope/mise@1.2.3", "@scope/mise@latest"),
        ("@scope/mise@1.2.3", "../mise@1.2.3"),
        ("node@24.21.0", "--prefix=/@24.21.0"),
        ("node@24.21.0", "node@24.21.0 other"),
        ("release = \"bookworm\"", "release = \"../x\""),
        (
            "release = \"bookworm\"",
            "release = \"bookworm\"\ncomponents = []",
        ),
        ("[\"git\", \"curl\"]", "[\"git\", \"--hook=x\"]"),
        ("[\"git\", \"curl\"]", "[\"git\", \"curl,vim\"]"),
        ("[\"docker-cli\"]", "[\"git\"]"),
        ("extends = \"a\"", "extends = \"b\""),
        ("name = \"linux-image\"", "name = \"l\""),
    ];
    let told: Vec<String> = changes
        .iter()
        .map(|(from, to)| {
            let text = small();
            assert!(text.contains(from), "{from}");
            let error = Catalog::parse(&text.replace(from, to)).unwrap_err();
            format!("{to}\n    {error}")
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"));
    let long = format!("{}#{}", small(), "x".repeat(1 << 20));
    assert!(matches!(Catalog::parse(&long), Err(CatalogError::TooLong)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is changed in a catalog: it is refused, or still makes sense.
    #[test]
    fn a_changed_catalog_is_refused_or_makes_sense(
        at in any::<prop::sample::Index>(),
        length in 0_usize..40,
        put in "(\\[\\[|\\]\\]|[a-z=\"{}\\[\\]\n.#,-]|\\PC){0,12}",
    ) {
        let text: Vec<char> = small().chars().collect();
        let at = at.index(text.len());
        let end = (at + length).min(text.len());
        let changed: String = text[..at].iter().copied()
            .chain(put.chars())
            .chain(text[end..].iter().copied())
            .collect();
        if let Ok(catalog) = Catalog::parse(&changed) {
            for image in &catalog.images {
                prop_assert!(catalog.kernel(&image.kernel).is_some());
                prop_assert!(!image.sources.is_empty());
            }
        }
    }

    #[test]
    fn rubbish_is_no_catalog(text in "(schema = 1\n|serial|\\[\\[image\\]\\]\n|\\PC){0,30}") {
        prop_assert!(Catalog::parse(&text).is_err());
    }
}
