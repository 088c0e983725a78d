//! The catalog and bundles through the API: signed by minisign itself, served on the loopback by
//! busybox' web server, in a daemon of its own.

#![expect(clippy::unwrap_used, reason = "these are tests")]
#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use banger_client::ClientError;
use banger_image::Packer;
use banger_proto::api::{Operation, OperationState, PullBundle};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::ArtifactName;
use support::{Daemon, Home, soon, succeeded};

/// The catalog that is built in.
const BUILT_IN: &str = include_str!("../../image/catalog.toml");

/// Prints why a test is skipped if a program that it needs is missing.
fn has(programs: &[&str]) -> bool {
    let missing = programs
        .iter()
        .find(|program| banger_process::find(program).is_none());
    match missing {
        None => true,
        Some(program) => {
            eprintln!("skipped: `{program}` is not installed");
            false
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let path = banger_process::find(program).unwrap();
    let output = Command::new(path).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A directory that busybox serves for as long as this process lives.
struct Site {
    directory: tempfile::TempDir,
    base: String,
}

impl Site {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let served = directory.path().to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = OwnedFd::from(stream.unwrap());
                let mut server = Command::new("busybox");
                server.args(["httpd", "-i", "-h"]).arg(&served);
                server.stdin(Stdio::from(stream.try_clone().unwrap()));
                let mut server = server.stdout(Stdio::from(stream)).spawn().unwrap();
                std::thread::spawn(move || server.wait());
            }
        });
        Self { directory, base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn url(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }

    /// Serves a bundle, and gives its hash.
    fn put_bundle(&self, name: &str, parts: &[(&str, &[u8])]) -> String {
        let mut packer = Packer::new(Vec::new()).unwrap();
        for (name, content) in parts {
            let length = content.len() as u64;
            packer.add(Path::new(name), length, *content).unwrap();
        }
        let path = self.path(name);
        fs::write(&path, packer.finish().unwrap()).unwrap();
        let printed = run("sha256sum", &[path.to_str().unwrap()]);
        printed.split_whitespace().next().unwrap().to_owned()
    }
}

/// An image's bundle, with a file system that mke2fs has made.
fn image_bundle(site: &Site, name: &str) -> String {
    let disk = site.path("disk");
    fs::File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    run(
        "mke2fs",
        &["-q", "-F", "-t", "ext4", disk.to_str().unwrap()],
    );
    let disk = fs::read(disk).unwrap();
    let manifest = format!(
        r#"{{"id": "0123456789abcdef0123456789abcdef", "name": "from-bundle", "digest": "sha256:0",
            "source": "a test", "distro": "none", "arch": "{}", "created_at": "2026-01-01T00:00:00Z",
            "size": 1, "rootfs_length": {}, "kernel": "own-kernel"}}"#,
        std::env::consts::ARCH,
        disk.len()
    );
    let parts = [
        ("manifest.json", manifest.as_bytes()),
        ("rootfs.ext4", &disk),
    ];
    site.put_bundle(name, &parts)
}

/// A kernel's bundle. All that it needs is built in.
fn kernel_bundle(site: &Site, name: &str) -> String {
    let vmlinux = b"\x7fELF .. Linux version 6.9.1-me (x) ..";
    site.put_bundle(name, &[("vmlinux", vmlinux)])
}

/// Whoever keeps a catalog.
struct Keeper {
    directory: tempfile::TempDir,
    key: String,
}

impl Keeper {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name).display().to_string();
        let (public, secret) = (file("public"), file("secret"));
        run("minisign", &["-G", "-W", "-p", &public, "-s", &secret]);
        let text = fs::read_to_string(public).unwrap();
        let key = text.lines().nth(1).unwrap().to_owned();
        Self { directory, key }
    }

    fn sign(&self, file: &Path) {
        let secret = self.directory.path().join("secret");
        let (secret, file) = (secret.to_str().unwrap(), file.to_str().unwrap());
        run("minisign", &["-S", "-W", "-s", secret, "-m", file]);
    }

    /// Puts a catalog with one image and one kernel more on the site.
    fn publish(&self, site: &Site, serial: u64, image: &str, kernel: &str) {
        let arch = std::env::consts::ARCH;
        let (image_at, kernel_at) = (site.url("image.tar.zst"), site.url("kernel.tar.zst"));
        let own_kernel = format!(
            "[[kernel]]\nname = \"own-kernel\"\nabout = \"a kernel\"\n[[kernel.source]]\n\
             bundle = {{ url = \"{kernel_at}\", sha256 = \"{kernel}\", arch = \"{arch}\" }}\n\n"
        );
        let own = format!(
            "\n[[image]]\nname = \"own\"\nabout = \"an image\"\ndistro = \"none\"\n\
             kernel = \"own-kernel\"\n[[image.source]]\noci = \"127.0.0.1:1/own:1\"\n\
             [[image.source]]\n\
             bundle = {{ url = \"{image_at}\", sha256 = \"{image}\", arch = \"{arch}\" }}\n"
        );
        let built_in = BUILT_IN.replacen("[[image]]", &format!("{own_kernel}[[image]]"), 1);
        let serial_line = BUILT_IN
            .lines()
            .find(|line| line.starts_with("serial"))
            .unwrap();
        let text = built_in.replace(serial_line, &format!("serial = {serial}")) + &own;
        let path = site.path("catalog.toml");
        fs::write(&path, text).unwrap();
        self.sign(&path);
    }
}

async fn start(home: &Home, site: &Site, keeper: &Keeper) -> Daemon {
    let paths = home.paths();
    fs::create_dir_all(&paths.config).unwrap();
    let config = format!(
        "catalog_url = '{}'\ncatalog_key = '{}'\n",
        site.url("catalog.toml"),
        keeper.key
    );
    fs::write(paths.config_file(), config).unwrap();
    home.start().await
}

fn name(text: &str) -> ArtifactName {
    text.parse().unwrap()
}

async fn pull(daemon: &Daemon, image: &str) -> Operation {
    let begun = daemon.client.pull_image(&name(image)).await.unwrap();
    daemon.end(&begun.id).await
}

fn refused(error: ClientError) -> ApiError {
    match error {
        ClientError::Api(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_image_of_a_signed_catalog_comes_from_the_first_source_that_can_be_had() {
    if !has(&["minisign", "busybox", "mke2fs", "depmod"]) {
        return;
    }
    let (home, site, keeper) = (Home::new(), Site::start(), Keeper::new());
    let image = image_bundle(&site, "image.tar.zst");
    let kernel = kernel_bundle(&site, "kernel.tar.zst");
    let daemon = start(&home, &site, &keeper).await;
    // Nothing is there yet: the built-in one has to do, and is said to.
    let catalog = soon(daemon.client.catalog(true)).await.unwrap();
    let built_in = catalog.serial;
    assert_eq!(catalog.url, None);
    assert!(catalog.warning.unwrap().contains("404"));
    let unknown = pull(&daemon, "own").await;
    assert_eq!(unknown.error.unwrap().kind, ErrorKind::NotFound);

    keeper.publish(&site, built_in + 1, &image, &kernel);
    let pulled = pull(&daemon, "own").await;
    succeeded(&pulled);
    assert!(pulled.warnings.is_empty(), "{:?}", pulled.warnings);
    let images = daemon.client.images().await.unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].name, name("own"));
    assert_eq!(images[0].source, site.url("image.tar.zst"));
    assert_eq!(images[0].digest, format!("sha256:{image}"));
    let kernels = daemon.client.kernels().await.unwrap();
    assert_eq!(kernels[0].name, name("own-kernel"));
    assert_eq!(kernels[0].release, "6.9.1-me");
    let catalog = soon(daemon.client.catalog(false)).await.unwrap();
    assert_eq!(catalog.serial, built_in + 1);
    let own = catalog
        .images
        .iter()
        .find(|image| image.name == name("own"));
    let own = own.unwrap();
    assert!(own.here);
    assert_eq!(
        own.sources,
        ["127.0.0.1:1/own:1", &*site.url("image.tar.zst")]
    );

    // What was signed before counts in a daemon that starts anew, though nobody answers it now.
    daemon.stop().await;
    fs::remove_file(site.path("catalog.toml.minisig")).unwrap();
    let daemon = home.start().await;
    assert_eq!(
        soon(daemon.client.catalog(false)).await.unwrap().serial,
        built_in + 1
    );
    daemon.client.delete_image("own").await.unwrap();
    let again = pull(&daemon, "own").await;
    succeeded(&again);
    assert_eq!(again.warnings.len(), 1);
    assert!(again.warnings[0].contains("is not used"), "{again:?}");

    // What was changed after it was signed is refused, and nothing of it is used.
    keeper.publish(&site, built_in + 2, &image, &kernel);
    let path = site.path("catalog.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("an image", "a trap")).unwrap();
    daemon.client.delete_image("own").await.unwrap();
    let error = pull(&daemon, "own").await.error.unwrap();
    assert_eq!(error.kind, ErrorKind::Precondition);
    assert!(error.causes[0].contains("is refused"), "{error:?}");
    assert!(error.hint.unwrap().contains("catalog_key"));
    let error = refused(soon(daemon.client.catalog(true)).await.unwrap_err());
    assert_eq!(error.kind, ErrorKind::Precondition);
    assert_eq!(
        soon(daemon.client.catalog(false)).await.unwrap().serial,
        built_in + 1
    );
    assert!(daemon.client.images().await.unwrap().is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn a_bundle_comes_from_its_address_and_only_with_its_hash() {
    if !has(&["busybox", "mke2fs", "depmod"]) {
        return;
    }
    let (home, site) = (Home::new(), Site::start());
    let image = image_bundle(&site, "image.tar.zst");
    let kernel = kernel_bundle(&site, "own-kernel.tar.zst");
    let daemon = home.start().await;
    let bundle = |file: &str, hash: &str| PullBundle {
        url: site.url(file).parse().unwrap(),
        digest: format!("sha256:{hash}").parse().unwrap(),
        name: None,
        kernel: None,
    };
    let wanted = bundle("own-kernel.tar.zst", &kernel);
    let begun = daemon.client.pull_kernel_bundle(&wanted).await.unwrap();
    succeeded(&daemon.end(&begun.id).await);
    let pull = async |wanted: &PullBundle| {
        let begun = daemon.client.pull_image_bundle(wanted).await.unwrap();
        daemon.end(&begun.id).await
    };
    let wrong = pull(&bundle("image.tar.zst", &kernel)).await;
    assert_eq!(wrong.state, OperationState::Failed);
    let causes = wrong.error.unwrap().causes;
    assert!(causes[1].contains("does not have the hash"), "{causes:?}");
    let missing = pull(&bundle("missing.tar.zst", &image)).await;
    let causes = missing.error.unwrap().causes;
    assert!(causes[1].contains("404"), "{causes:?}");
    succeeded(&pull(&bundle("image.tar.zst", &image)).await);
    let images = daemon.client.images().await.unwrap();
    assert_eq!(images[0].name, name("from-bundle"));
    assert_eq!(
        images[0].reference.as_deref(),
        Some(&*site.url("image.tar.zst"))
    );
    // A kernel that nobody knows is refused before anything is fetched.
    let unknown = PullBundle {
        name: Some(name("other")),
        kernel: Some(name("generic-1.0")),
        ..bundle("image.tar.zst", &image)
    };
    let error = refused(daemon.client.pull_image_bundle(&unknown).await.unwrap_err());
    assert_eq!(error.kind, ErrorKind::NotFound);
    let downloads = fs::read_dir(home.paths().cache.join("downloads")).unwrap();
    assert_eq!(downloads.count(), 0);
    daemon.stop().await;
}
