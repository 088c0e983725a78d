//! Bundles that come from a site on the loopback.

use std::path::PathBuf;

use banger_proto::error::ErrorKind;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::download::site::Site;
use crate::store::carry::tests::{bundle, disk, manifest};
use crate::store::tests::{Place, place};

/// A kernel with everything built in.
const VMLINUX: &[u8] = b"\x7fELF .. Linux version 6.9.1-me (x) ..";

fn image_bundle() -> Vec<u8> {
    let disk = disk();
    let json = manifest(disk.len() as u64);
    bundle(&[("manifest.json", json.as_bytes()), ("rootfs.ext4", &disk)])
}

fn pull(site: &Site, path: &str, content: &[u8]) -> BundlePull {
    BundlePull {
        url: site.url(path).parse().unwrap(),
        sha256: Digest::of(Sha256::digest(content).into()),
        name: None,
        kernel: None,
    }
}

fn names(directory: PathBuf) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

impl Place {
    fn downloads(&self) -> Vec<String> {
        names(self.store.shared.config.downloads())
    }

    async fn pull(&self, pull: &BundlePull) -> Result<Image, ImageError> {
        let progress = Reporter::silent();
        self.store.pull_image_bundle(pull, &progress).await
    }
}

#[tokio::test]
async fn an_image_says_where_its_bundle_came_from_and_comes_once() {
    let (place, site) = (place(), Site::start().await);
    let sent = image_bundle();
    site.put("/base.tar.zst", sent.clone());
    let wanted = pull(&site, "/base.tar.zst", &sent);
    let image = place.pull(&wanted).await.unwrap();
    assert_eq!(image.manifest.name.as_str(), "base");
    assert_eq!(image.manifest.digest, wanted.sha256.as_str());
    assert_eq!(image.manifest.source, wanted.url.as_str());
    assert_eq!(
        image.manifest.reference.as_deref(),
        Some(wanted.url.as_str())
    );
    assert!(place.downloads().is_empty(), "it is of no more use");
    let asked = site.asked().len();
    let again = place.pull(&wanted).await.unwrap();
    assert_eq!(again.manifest.id, image.manifest.id);
    assert_eq!(site.asked().len(), asked);
    // Under another name, and with another kernel, it is another image.
    let other = BundlePull {
        name: Some("other".parse().unwrap()),
        kernel: Some("generic-6.1".parse().unwrap()),
        ..wanted.clone()
    };
    let other = place.pull(&other).await.unwrap();
    assert_eq!(other.manifest.name.as_str(), "other");
    assert_eq!(other.manifest.kernel.as_str(), "generic-6.1");
    assert_ne!(other.manifest.id, image.manifest.id);
}

#[tokio::test]
async fn what_is_not_what_was_asked_for_is_refused_and_leaves_nothing() {
    let (place, site) = (place(), Site::start().await);
    let good = image_bundle();
    site.put("/wrong", vec![7; good.len()]);
    site.put("/none", b"hello".to_vec());
    site.put("/good", good.clone());
    let mut told = Vec::new();
    for wanted in [
        pull(&site, "/missing", &good),
        pull(&site, "/wrong", &good),
        pull(&site, "/none", b"hello"),
    ] {
        let error = place.pull(&wanted).await.unwrap_err();
        told.push(crate::attempt::chain(&error).replace(&site.url(""), "SITE"));
    }
    place.pull(&pull(&site, "/good", &good)).await.unwrap();
    let more = bundle(&[("vmlinux", VMLINUX)]);
    site.put("/more", more.clone());
    let error = place.pull(&pull(&site, "/more", &more)).await.unwrap_err();
    told.push(crate::attempt::chain(&error));
    let again = image_bundle();
    site.put("/again", again.clone());
    let error = place
        .pull(&pull(&site, "/again", &again))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    told.push(crate::attempt::chain(&error));
    insta::assert_snapshot!(told.join("\n"));
    assert_eq!(names(place.store.shared.config.images()).len(), 1);
    assert!(place.downloads().is_empty(), "{:?}", place.downloads());
}

#[tokio::test]
async fn a_download_that_broke_off_is_gone_on_with() {
    let (place, site) = (place(), Site::start().await);
    let sent = image_bundle();
    site.put("/base", sent.clone());
    site.hold_after(sent.len() / 2);
    let wanted = pull(&site, "/base", &sent);
    let store = place.store.clone();
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let pulling = {
        let wanted = wanted.clone();
        tokio::spawn(async move {
            let progress = Reporter::new(move |progress| {
                let _ = begun.send(progress);
            });
            store.pull_image_bundle(&wanted, &progress).await
        })
    };
    let first = begins.recv().await.unwrap();
    assert!(first.done > 0 && first.done < sent.len() as u64);
    pulling.abort();
    let _ = pulling.await;
    site.let_go();
    let image = place.pull(&wanted).await.unwrap();
    assert_eq!(image.manifest.name.as_str(), "base");
    let resumed = site.asked();
    assert!(resumed.iter().any(|(_, from)| *from > 0), "{resumed:?}");
    assert_eq!(names(place.store.shared.config.images()).len(), 1);
    assert!(place.downloads().is_empty());
}

#[tokio::test]
async fn equal_pulls_share_the_work_and_one_that_goes_leaves_the_others_alone() {
    let (place, site) = (place(), Site::start().await);
    let sent = image_bundle();
    site.put("/base", sent.clone());
    site.hold_after(10);
    let wanted = pull(&site, "/base", &sent);
    let mut pulls = Vec::new();
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..4 {
        let (store, wanted, begun) = (place.store.clone(), wanted.clone(), begun.clone());
        pulls.push(tokio::spawn(async move {
            let progress = Reporter::new(move |progress| {
                let _ = begun.send(progress);
            });
            store.pull_image_bundle(&wanted, &progress).await
        }));
    }
    for _ in 0..4 {
        begins.recv().await.unwrap();
    }
    pulls.remove(0).abort();
    site.let_go();
    let mut ids = Vec::new();
    for pull in pulls {
        ids.push(pull.await.unwrap().unwrap().manifest.id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    // Once for its length, once for its content.
    assert_eq!(site.asked().len(), 2, "{:?}", site.asked());
}

#[tokio::test]
async fn a_kernel_comes_as_a_bundle_and_is_called_as_its_file() {
    let (place, site) = (place(), Site::start().await);
    let sent = bundle(&[("vmlinux", VMLINUX), ("initrd.img", b"extra")]);
    site.put("/a/Mine-6.9.tar.zst", sent.clone());
    let wanted = pull(&site, "/a/Mine-6.9.tar.zst", &sent);
    let progress = Reporter::silent();
    let kernel = place.store.pull_kernel_bundle(&wanted, &progress).await;
    let kernel = kernel.unwrap();
    assert_eq!(kernel.manifest.name.as_str(), "mine-6.9");
    assert_eq!(kernel.manifest.release, "6.9.1-me");
    assert_eq!(kernel.manifest.source, wanted.url.as_str());
    let asked = site.asked().len();
    let again = place.store.pull_kernel_bundle(&wanted, &progress).await;
    assert_eq!(again.unwrap().manifest, kernel.manifest);
    assert_eq!(site.asked().len(), asked);
    assert!(place.downloads().is_empty());
    // Another one of that name is refused, and so is one with another's modules.
    let module = b"\x7fELF\0vermagic=6.9.2 SMP\0".as_slice();
    let other = bundle(&[("vmlinux", VMLINUX), ("modules/6.9.2/kernel/a.ko", module)]);
    site.put("/a/Mine-6.9.tar.zst", other.clone());
    let other = pull(&site, "/a/Mine-6.9.tar.zst", &other);
    let taken = place.store.pull_kernel_bundle(&other, &progress).await;
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::Conflict);
    let other = BundlePull {
        name: Some("another".parse().unwrap()),
        ..other
    };
    let refused = place.store.pull_kernel_bundle(&other, &progress).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert_eq!(
        refused.to_string(),
        "the modules are of 6.9.2, and the kernel is 6.9.1-me"
    );
    assert_eq!(names(place.store.shared.config.kernels()), ["mine-6.9"]);
}
