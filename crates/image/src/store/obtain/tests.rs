//! Entries with several sources, in a catalog that is signed and served on the loopback.

use banger_proto::error::{ApiError, ErrorKind};
use minisign::KeyPair;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::catalog::CatalogOrigin;
use crate::download::site::Site;
use crate::store::StoreConfig;
use crate::store::carry::tests::{bundle, disk, manifest};
use crate::store::tests::config;

const VMLINUX: &[u8] = b"\x7fELF .. Linux version 6.9.1-me (x) ..";

struct Place {
    site: Site,
    store: Store,
    _home: tempfile::TempDir,
}

/// A store whose catalog is this one; `SITE`, `IMAGE` and `KERNEL` in it stand for the site and
/// for the hashes of the bundles that it serves.
async fn place(catalog: &str) -> Place {
    let site = Site::start().await;
    let disk = disk();
    let json = manifest(disk.len() as u64);
    let image = bundle(&[("manifest.json", json.as_bytes()), ("rootfs.ext4", &disk)]);
    let kernel = bundle(&[("vmlinux", VMLINUX)]);
    let hash = |bytes: &[u8]| crate::hash::show_sha256(&Sha256::digest(bytes).into());
    let catalog = catalog
        .replace("SITE", &site.url(""))
        .replace("IMAGE", &hash(&image))
        .replace("KERNEL", &hash(&kernel));
    let signer = KeyPair::generate_unencrypted_keypair().unwrap();
    let data = std::io::Cursor::new(catalog.clone());
    let signature = minisign::sign(None, &signer.sk, data, None, None).unwrap();
    site.put("/catalog.toml.minisig", signature.into_string());
    site.put("/catalog.toml", catalog);
    site.put("/image.tar.zst", image);
    site.put("/kernel.tar.zst", kernel);
    site.put("/other.tar.zst", "something else");
    let home = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        catalog: Some(CatalogOrigin {
            url: site.url("/catalog.toml").parse().unwrap(),
            key: signer.pk.to_base64(),
        }),
        ..config(home.path())
    };
    let store = Store::open(config).unwrap();
    assert_eq!(store.ask_for_catalog().await.unwrap(), None);
    Place {
        site,
        store,
        _home: home,
    }
}

/// Sources that cannot be had, and one that can.
const CATALOG: &str = r#"
schema = 1
serial = 1000

[[kernel]]
name = "k"
about = "a kernel"
[[kernel.source]]
bundle = { url = "SITE/missing.tar.zst", sha256 = "KERNEL", arch = "ARCH" }
[[kernel.source]]
bundle = { url = "SITE/kernel.tar.zst", sha256 = "KERNEL", arch = "ARCH" }

[[image]]
name = "a"
about = "an image"
distro = "none"
kernel = "k"
[[image.source]]
bundle = { url = "SITE/image.tar.zst", sha256 = "IMAGE", arch = "pdp11" }
[[image.source]]
bundle = { url = "SITE/missing.tar.zst", sha256 = "IMAGE", arch = "ARCH" }
[[image.source]]
bundle = { url = "SITE/other.tar.zst", sha256 = "IMAGE", arch = "ARCH" }
[[image.source]]
oci = "127.0.0.1:1/a:1"
"#;

const LAST: &str = r#"
[[image.source]]
bundle = { url = "SITE/image.tar.zst", sha256 = "IMAGE", arch = "ARCH" }
"#;

fn catalog(text: &str) -> String {
    text.replace("ARCH", std::env::consts::ARCH)
}

#[tokio::test]
async fn the_first_source_that_can_be_had_is_used() {
    let place = place(&catalog(&format!("{CATALOG}{LAST}"))).await;
    let (name, progress) = ("a".parse().unwrap(), Reporter::silent());
    let image = place.store.ensure_image(&name, &progress).await.unwrap();
    assert_eq!(image.manifest.name, name);
    assert_eq!(image.manifest.kernel.as_str(), "k");
    assert_eq!(image.manifest.source, place.site.url("/image.tar.zst"));
    if let Err(error) = DEPMOD.find() {
        eprintln!("skipped: {error}");
        return;
    }
    let kernel = place.store.ensure_kernel(&image.manifest.kernel, &progress);
    let kernel = kernel.await.unwrap();
    assert_eq!(kernel.manifest.name.as_str(), "k");
    assert_eq!(kernel.manifest.source, place.site.url("/kernel.tar.zst"));
}

#[tokio::test]
async fn if_none_can_be_had_each_says_why() {
    let place = place(&catalog(CATALOG)).await;
    let (name, progress) = ("a".parse().unwrap(), Reporter::silent());
    let error = place
        .store
        .ensure_image(&name, &progress)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let told = ApiError::new(error.kind(), "could not get the image").caused_by(&error);
    let told = told.causes.join("\n").replace(&place.site.url(""), "SITE");
    insta::assert_snapshot!(told);
    assert!(
        error.hint().unwrap().contains("plain HTTP"),
        "{:?}",
        error.hint()
    );
    assert!(place.store.images().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_called_off_is_not_tried_elsewhere() {
    let place = place(&catalog(&format!("{CATALOG}{LAST}"))).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    let entry = place.store.image_entry(&"a".parse().unwrap()).unwrap();
    let made = place
        .store
        .obtain_image(&entry, Reporter::silent(), cancel)
        .await;
    // The first source is for another architecture, and fails before it waits for anything.
    assert!(matches!(made, Err(ImageError::Cancelled)), "{made:?}");
    let asked = place.site.asked();
    let missing = asked.iter().filter(|(path, _)| path.contains("missing"));
    assert_eq!(missing.count(), 0, "{asked:?}");
}
