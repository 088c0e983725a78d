use super::*;
use crate::elsewhere::tests::filesystem;
use crate::store::tests::{Place, place};
use std::cell::Cell;

impl Place {
    fn disk(&self, name: &str) -> std::path::PathBuf {
        let path = self.home.path().join(name);
        filesystem(&path, 0);
        path
    }

    fn register(&self, name: &str, rootfs: &Path) -> Result<Manifest, ChangeError> {
        self.store.register(Registration {
            name: name.parse().unwrap(),
            files: Elsewhere {
                rootfs: rootfs.to_owned(),
                work_seed: None,
            },
            kernel: "generic-6.12".parse().unwrap(),
        })
    }
}

fn told(error: &ChangeError) -> String {
    format!("{error} ({})", error.hint().unwrap_or_default())
}

#[test]
fn a_registered_image_is_updated_in_place() {
    let place = place();
    let first = place.register("base", &place.disk("one")).unwrap();
    let second = place.register("base", &place.disk("two")).unwrap();
    assert_eq!(first.id, second.id);
    let image = place.store.image_by_id(&first.id).unwrap().unwrap();
    assert_eq!(image.rootfs, place.home.path().join("two"));
    assert_eq!(place.store.images().unwrap().len(), 1);
    place.add_image("owned", "2026-01-01T00:00:00Z");
    let error = place.register("owned", &place.disk("one")).unwrap_err();
    insta::assert_snapshot!(told(&error), @"there is an image `owned` already (choose another name, or `banger image delete owned` first)");
}

#[test]
fn an_image_whose_file_vanishes_says_so_and_comes_back_with_it() {
    let place = place();
    let disk = place.disk("one");
    let manifest = place.register("base", &disk).unwrap();
    assert!(place.store.problem(&manifest).is_none());
    std::fs::remove_file(&disk).unwrap();
    let error = place.store.image_by_id(&manifest.id).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition);
    let hint = error.hint().unwrap();
    let home = place.home.path().display().to_string();
    insta::assert_snapshot!(format!("{error} ({hint})").replace(&home, "/home"), @"the files of the image `base`, which are not banger's own, cannot be used (bring the files back, or name others: `banger image register --name base --rootfs FILE`)");
    assert!(place.store.problem(&manifest).is_some());
    assert_eq!(place.store.images().unwrap().len(), 1, "it is still listed");
    place.disk("one");
    assert!(place.store.problem(&manifest).is_none());
}

#[test]
fn promotion_copies_the_files_and_keeps_the_id() {
    let place = place();
    let disk = place.disk("one");
    let manifest = place.register("base", &disk).unwrap();
    let content = std::fs::read(&disk).unwrap();
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let error = place
        .store
        .promote(&manifest.id, &Reporter::silent(), &cancelled);
    assert!(matches!(error, Err(ChangeError::Cancelled)), "{error:?}");
    let promote = || {
        let token = CancellationToken::new();
        place
            .store
            .promote(&manifest.id, &Reporter::silent(), &token)
    };
    let promoted = promote().unwrap();
    std::fs::remove_file(&disk).unwrap();
    assert_eq!(promoted.manifest.id, manifest.id);
    assert!(promoted.manifest.digest.starts_with("sha256:"));
    assert_eq!(std::fs::read(&promoted.rootfs).unwrap(), content);
    assert!(place.store.problem(&promoted.manifest).is_none());
    let directory = promoted.rootfs.parent().unwrap();
    assert_eq!(
        std::fs::read_dir(directory).unwrap().count(),
        2,
        "no draft is left"
    );
    assert!(matches!(promote(), Err(ChangeError::Managed)));
}

#[test]
fn names_are_given_once() {
    let place = place();
    place.add_image("one", "2026-01-01T00:00:00Z");
    place.add_image("two", "2026-01-01T00:00:00Z");
    let one = place.store.find_image("one").unwrap();
    let rename = |to: &str, waiting: &[VmName]| {
        place
            .store
            .rename_image(&one.id, to.parse().unwrap(), waiting)
    };
    let waiting = ["otter".parse().unwrap()];
    let refused = [
        told(&rename("two", &[]).unwrap_err()),
        told(&rename("three", &waiting).unwrap_err()),
    ];
    insta::assert_snapshot!(refused.join("\n"), @"
    there is an image `two` already (choose another name, or `banger image delete two` first)
    VM `otter` uses it (`banger vm delete otter` first)
    ");
    rename("three", &[]).unwrap();
    assert_eq!(place.store.find_image("three").unwrap().id, one.id);
    assert_eq!(
        place.store.find_image(&one.id.as_str()[..8]).unwrap().id,
        one.id
    );
    insta::assert_snapshot!(told(&place.store.find_image("one").unwrap_err()), @"there is no image `one` here (see `banger image list`)");
}

#[test]
fn what_vms_use_stays_even_if_they_come_in_the_middle() {
    let place = place();
    place.add_image("one", "2026-01-01T00:00:00Z");
    let one = place.store.find_image("one").unwrap();
    let vms: Vec<VmName> = vec!["otter".parse().unwrap(), "seal".parse().unwrap()];
    let error = place.store.delete_image(&one, |_| vms.clone()).unwrap_err();
    insta::assert_snapshot!(told(&error), @"VMs `otter`, `seal` use it (`banger vm delete otter seal` first)");
    let looks = Cell::new(0);
    let second_look_finds_one = |_: &Manifest| {
        looks.set(looks.get() + 1);
        vms[..usize::from(looks.get() > 1)].to_vec()
    };
    let error = place
        .store
        .delete_image(&one, second_look_finds_one)
        .unwrap_err();
    assert!(matches!(error, ChangeError::InUse { .. }), "{error}");
    assert!(place.store.image_by_id(&one.id).unwrap().is_some());
    place.store.delete_image(&one, |_| Vec::new()).unwrap();
    assert!(place.store.images().unwrap().is_empty());
}

#[test]
fn deleting_a_registered_image_leaves_the_file() {
    let place = place();
    let disk = place.disk("one");
    let manifest = place.register("base", &disk).unwrap();
    place.store.delete_image(&manifest, |_| Vec::new()).unwrap();
    assert!(disk.exists());
    assert!(place.store.images().unwrap().is_empty());
}

#[test]
fn a_kernel_that_images_need_and_nobody_can_fetch_stays() {
    let place = place();
    place.add_kernel();
    std::fs::create_dir(place.home.path().join("state/kernels/mine")).unwrap();
    place.add_image("one", "2026-01-01T00:00:00Z");
    let mut one = place.store.find_image("one").unwrap();
    one.kernel = "mine".parse().unwrap();
    let directory = place.home.path().join("state/images").join(one.id.as_str());
    manifest::replace(&one, &directory).unwrap();
    let delete = |name: &str| place.store.delete_kernel(&name.parse().unwrap(), Vec::new);
    insta::assert_snapshot!(told(&delete("mine").unwrap_err()), @"these images boot with it: `one` (delete these images first)");
    delete("generic-6.12").unwrap();
    insta::assert_snapshot!(told(&delete("generic-6.12").unwrap_err()), @"there is no kernel `generic-6.12` here (see `banger kernel list`)");
}

#[test]
fn an_image_is_superseded_by_a_newer_one_that_can_be_booted() {
    let place = place();
    place.register("mine", &place.disk("one")).unwrap();
    let names = || {
        let superseded = place.store.superseded().unwrap();
        let line = |image: &Manifest| format!("{} {}", image.name, image.created_at);
        superseded.iter().map(line).collect::<Vec<_>>()
    };
    place.add_image("app", "2026-01-01T00:00:00Z");
    place.add_image("other", "2026-01-01T00:00:00Z");
    assert!(names().is_empty());
    place.add_image("app", "2026-01-03T00:00:00Z");
    place.add_image("app", "2026-01-02T00:00:00Z");
    assert_eq!(
        names(),
        ["app 2026-01-01T00:00:00Z", "app 2026-01-02T00:00:00Z"]
    );
    let newest = place.store.find_image("app").unwrap();
    let rootfs = place
        .home
        .path()
        .join("state/images")
        .join(newest.id.as_str());
    std::fs::remove_file(rootfs.join(ROOTFS)).unwrap();
    assert!(names().is_empty());
}
