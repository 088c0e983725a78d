//! What a registry must not get away with.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use banger_proto::api::RegistryAuth;
use banger_proto::error::ErrorKind;
use serde_json::json;

use super::image::{GZIP_LAYER, INDEX, Image, Layer, MANIFEST, descriptor, digest, gzip};
use super::server::{Home, Reply, Sent, Server, in_words, request, request_for};
use crate::ext4::read;

/// Random enough that it does not compress to nothing.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 33) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn small() -> Image {
    Image::of(&[
        Layer::new()
            .directory("etc")
            .file("etc/motd", b"hello")
            .finish(),
        Layer::new().file("data", &noise(300_000)).finish(),
    ])
}

fn blob_path(image: &Image, layer: usize) -> String {
    let digest = image.manifest["layers"][layer]["digest"].as_str().unwrap();
    format!("/v2/app/blobs/{digest}")
}

/// Without the address, which is another one each time.
fn steady(words: &str, server: &Server) -> String {
    let hex = |word: &str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words = words.replace(&server.address, "HOST");
    let mut steady = String::new();
    for piece in words.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let word = piece.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        match hex(word) {
            true => steady.push_str(&piece.replace(word, "HEX")),
            false => steady.push_str(piece),
        }
    }
    steady
}

#[tokio::test]
async fn an_image_is_pulled_over_plain_http_from_the_loopback_and_only_once() {
    let image = small();
    let server = Server::serve(image.clone(), |_| None).await;
    let home = Home::new();
    let pulled = home.pull(&request(&server.address)).await.unwrap();
    assert_eq!(pulled.manifest.env["GREETING"], "hello");
    assert_eq!(pulled.manifest.cmd, ["/bin/sh"]);
    let tree = read::tree(&pulled.rootfs);
    assert_eq!(tree[&b"data"[..]].size, 300_000);
    let before = server.asked().len();
    let again = home.pull(&request(&server.address)).await.unwrap();
    assert_eq!(again.manifest.id, pulled.manifest.id);
    let later = &server.asked()[before..];
    assert!(
        !later.iter().any(|asked| asked.path.contains("blobs")),
        "{later:?}"
    );
    // Another name needs another image, and no layer again.
    let mut other = request(&server.address);
    other.shape.name = "other".parse().unwrap();
    let before = server.asked().len();
    home.pull(&other).await.unwrap();
    let later = &server.asked()[before..];
    assert!(
        !later.iter().any(|asked| asked.path.contains("blobs")),
        "{later:?}"
    );
}

#[tokio::test]
async fn pulls_of_the_same_thing_share_the_work() {
    let image = small();
    let server = Server::serve(image.clone(), |_| None).await;
    let home = Home::new();
    let wanted = request(&server.address);
    let (first, second) = tokio::join!(home.pull(&wanted), home.pull(&wanted));
    assert_eq!(first.unwrap().manifest.id, second.unwrap().manifest.id);
    let path = blob_path(&image, 1);
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|asked| asked.path == path).count(), 1);
}

#[tokio::test]
async fn an_image_is_made_while_its_layers_come() {
    const LENGTH: usize = 6 << 20;
    let layers = [
        Layer::new().directory("etc").finish(),
        Layer::new().file("data", &noise(LENGTH)).finish(),
    ];
    let image = Image::of(&layers);
    let home = Home::new();
    let (path, served) = (blob_path(&image, 1), image.clone());
    let images = home.cache().join("../../state/images");
    // Most of the layer comes, and the rest when a part of it is in the file system.
    let is_written = move || {
        let drafts = std::fs::read_dir(&images).into_iter().flatten();
        let mut disks = drafts.filter_map(|draft| {
            let disk = draft.ok()?.path().join("rootfs.ext4");
            Some(std::fs::metadata(disk).ok()?.len())
        });
        disks.any(|length| length > 1 << 20)
    };
    let is_written: Arc<dyn Fn() -> bool + Send + Sync> = Arc::new(is_written);
    let server = Server::serve(image, move |asked| {
        let sent = Sent::HeldUntil(LENGTH - 100_000, Arc::clone(&is_written));
        (asked.path == path).then(|| super::server::ordinary(&served, asked).sent(sent))
    })
    .await;
    let pulled = home.pull(&request(&server.address)).await.unwrap();
    let tree = read::tree(&pulled.rootfs);
    assert_eq!(tree[&b"data"[..]].size, LENGTH as u64);
}

#[tokio::test]
async fn a_layer_that_is_damaged_in_the_cache_is_fetched_again() {
    let image = small();
    let server = Server::serve(image.clone(), |_| None).await;
    let home = Home::new();
    home.pull(&request(&server.address)).await.unwrap();
    let path = blob_path(&image, 1);
    let cached = home.cache().join(path.rsplit(':').next().unwrap());
    let mut bytes = std::fs::read(&cached).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&cached, bytes).unwrap();
    let mut other = request(&server.address);
    other.shape.name = "other".parse().unwrap();
    let pulled = home.pull(&other).await.unwrap();
    assert_eq!(read::tree(&pulled.rootfs)[&b"data"[..]].size, 300_000);
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|asked| asked.path == path).count(), 2);
}

#[tokio::test]
async fn a_server_that_dies_half_way_is_asked_for_the_rest() {
    let image = small();
    let path = blob_path(&image, 1);
    let (wanted, served) = (path.clone(), image.clone());
    let times = AtomicUsize::new(0);
    let server = Server::serve(image, move |asked| {
        let first = asked.path == wanted && times.fetch_add(1, Ordering::SeqCst) == 0;
        first.then(|| super::server::ordinary(&served, asked).sent(Sent::Cut(100_000)))
    })
    .await;
    let home = Home::new();
    home.pull(&request(&server.address)).await.unwrap();
    let ranges: Vec<_> = server
        .asked()
        .iter()
        .filter(|asked| asked.path == path)
        .map(super::server::Asked::range)
        .collect();
    assert_eq!(ranges, [0, 100_000]);
}

#[tokio::test]
async fn a_wrong_layer_is_refused_and_not_kept() {
    let image = small();
    let path = blob_path(&image, 1);
    let length = image.blobs[&path.rsplit('/').next().unwrap().parse().unwrap()].len();
    // The right length and the wrong bytes, too few, too many.
    let mut said = Vec::new();
    for body in [vec![7; length], vec![7; length + 1]] {
        let path = path.clone();
        let server = Server::serve(image.clone(), move |asked| {
            (asked.path == path).then(|| Reply::new("200 OK", body.clone()))
        })
        .await;
        let (kind, words) = Home::new().refuses(&request(&server.address)).await;
        assert_eq!(kind, ErrorKind::Failed);
        said.push(steady(&words, &server));
    }
    insta::assert_snapshot!(said.join("\n\n"), @r"
    could not get layer 2 of 2
    - what http://HOST/v2/app/blobs/sha256:HEX sends does not have the hash that it should have

    could not get layer 2 of 2
    - what http://HOST/v2/app/blobs/sha256:HEX sends is longer than the 300656 bytes that it should be
    ");
}

/// What is said of an image whose second layer comes in this way.
async fn refusal_of_layer_sent(sent: Sent) -> String {
    let image = small();
    let (path, served) = (blob_path(&image, 1), image.clone());
    let server = Server::serve(image, move |asked| {
        let reply = || super::server::ordinary(&served, asked).sent(sent.clone());
        (asked.path == path).then(reply)
    })
    .await;
    let (kind, words) = Home::impatient().refuses(&request(&server.address)).await;
    assert_eq!(kind, ErrorKind::Failed);
    steady(&words, &server)
}

#[tokio::test]
async fn a_layer_that_does_not_end_or_does_not_come_is_given_up() {
    let mut said = Vec::new();
    for sent in [
        Sent::Endlessly,
        Sent::Slowly(Duration::from_millis(10)),
        Sent::Slowly(Duration::from_secs(1000)),
        Sent::Cut(10),
    ] {
        said.push(refusal_of_layer_sent(sent).await);
    }
    insta::assert_snapshot!(said.join("\n\n"), @r"
    could not get layer 2 of 2
    - what http://HOST/v2/app/blobs/sha256:HEX sends is longer than the 300656 bytes that it should be

    could not get layer 2 of 2
    - http://HOST/v2/app/blobs/sha256:HEX sends less than 64 KiB in 1s

    could not get layer 2 of 2
    - could not download http://HOST/v2/app/blobs/sha256:HEX
    - error decoding response body
    - request or response body error
    - operation timed out

    could not get layer 2 of 2
    - could not download http://HOST/v2/app/blobs/sha256:HEX
    - error decoding response body
    - request or response body error
    - error reading a body from connection
    - end of file before message length reached
    ");
}

#[tokio::test]
async fn a_document_that_does_not_come_in_time_is_given_up() {
    let image = small();
    let config = image.manifest["config"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut said = Vec::new();
    for slow in ["/manifests/1".to_owned(), config] {
        let served = image.clone();
        let server = Server::serve(image.clone(), move |asked| {
            let sent = Sent::Slowly(Duration::from_millis(10));
            let reply = || super::server::ordinary(&served, asked).sent(sent);
            asked.path.ends_with(&slow).then(reply)
        })
        .await;
        let (kind, words) = Home::impatient().refuses(&request(&server.address)).await;
        assert_eq!(kind, ErrorKind::Timeout);
        said.push(steady(&words, &server));
    }
    insta::assert_snapshot!(said.join("\n\n"), @r"
    http://HOST/v2/app/manifests/1 took longer than 1s

    http://HOST/v2/app/blobs/sha256:HEX took longer than 1s
    ");
}

/// A tar stream of one entry, whatever its header says.
fn raw_entry(kind: tar::EntryType, path: &[u8], link: &[u8], size: u64, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend([0; 1024]);
    bytes
}

#[tokio::test]
async fn layers_that_reach_out_or_make_no_sense_are_refused() {
    use tar::EntryType::{Link, Regular, Symlink};
    let entry =
        |kind, path: &str, link: &str| raw_entry(kind, path.as_bytes(), link.as_bytes(), 0, b"");
    let below_device = Layer::new()
        .entry("null", tar::EntryType::Char, 0o666, (0, 0), None, b"")
        .file("null/x", b"1")
        .finish();
    let tars = [
        entry(Regular, "../../etc/passwd", ""),
        entry(Regular, "a/../../x", ""),
        entry(Symlink, "a", "../../etc"),
        entry(Link, "a", "../../etc/passwd"),
        entry(Link, "a", "/etc/passwd"),
        entry(Symlink, "round", "round"),
        entry(Regular, "a/.wh..", ""),
        entry(tar::EntryType::new(b'S'), "sparse", ""),
        entry(tar::EntryType::new(b'M'), "volume", ""),
        below_device,
        raw_entry(Regular, "short".as_bytes(), b"", 1 << 20, b"only this"),
        raw_entry(Regular, "huge".as_bytes(), b"", u64::MAX, b""),
        raw_entry(tar::EntryType::XHeader, b"pax", b"", 8, b"99 a=bcd"),
        b"no archive at all".repeat(100),
    ];
    let mut said = Vec::new();
    for tar in tars {
        // Only where the layer below is a link to itself is there anything wrong with this one.
        let above = Layer::new().file("round/x", b"1").finish();
        let image = Image::of(&[tar, above]);
        let server = Server::serve(image, |_| None).await;
        let (_, words) = Home::new().refuses(&request(&server.address)).await;
        said.push(words);
    }
    insta::assert_snapshot!(said.join("\n\n"), @r"
    could not use layer 1 of 2
    - the path `../../etc/passwd` leads out of the image

    could not use layer 1 of 2
    - the path `a/../../x` leads out of the image

    could not use layer 1 of 2
    - the symbolic link `a` leads out of the image: `../../etc`

    could not use layer 1 of 2
    - the path `../../etc/passwd` leads out of the image

    could not use layer 1 of 2
    - `a` is a hard link to `/etc/passwd`, which is not there or a directory

    could not use layer 2 of 2
    - there are too many symbolic links on the way to `round/x`

    could not use layer 1 of 2
    - the whiteout `a/.wh..` names nothing

    could not use layer 1 of 2
    - the archive has a damaged header

    could not use layer 1 of 2
    - the archive's entry `volume` is of a kind (`M`) that is not supported

    could not use layer 1 of 2
    - `null/x` lies below something that is not a directory

    could not use layer 1 of 2
    - the content of `short` ends early

    could not use layer 1 of 2
    - the archive has a damaged header

    could not use layer 1 of 2
    - the archive has a malformed extension

    could not use layer 1 of 2
    - the archive has a damaged header
    ");
}

#[tokio::test]
async fn layers_whose_bytes_are_right_and_whose_content_is_not_are_refused() {
    let tar = Layer::new().file("data", &noise(100_000)).finish();
    let whole = gzip(&tar);
    let truncated = whole[..whole.len() / 2].to_vec();
    let mut damaged = whole.clone();
    let at = damaged.len() - 6;
    damaged[at] ^= 1;
    let other = gzip(&Layer::new().file("data", b"other").finish());
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    let cut = zstd[..zstd.len() - 3].to_vec();
    let mut said = Vec::new();
    for blob in [truncated, damaged, other, cut, Vec::new()] {
        let mut image = Image::of(&[Layer::new().finish(), tar.clone()]);
        image.manifest["layers"][1] = descriptor(GZIP_LAYER, &blob);
        image.blobs.insert(digest(&blob), blob);
        let server = Server::serve(image, |_| None).await;
        let (kind, words) = Home::new().refuses(&request(&server.address)).await;
        assert_eq!(kind, ErrorKind::Failed);
        said.push(steady(&words, &server));
    }
    insta::assert_snapshot!(said.join("\n\n"), @r"
    could not use layer 2 of 2
    - could not decompress it
    - incomplete deflate stream

    could not use layer 2 of 2
    - could not decompress it
    - corrupt gzip stream does not have a matching checksum

    could not use layer 2 of 2
    - it has the hash sha256:HEX when decompressed, and the image's config says sha256:HEX

    could not use layer 2 of 2
    - could not decompress it
    - incomplete frame

    could not use layer 2 of 2
    - it has the hash sha256:HEX when decompressed, and the image's config says sha256:HEX
    ");
}

#[tokio::test]
async fn devices_and_pipes_of_a_layer_are_entries_and_nothing_on_this_host() {
    let layer = Layer::new()
        .entry("disk", tar::EntryType::Block, 0o660, (0, 6), None, b"")
        .entry("pipe", tar::EntryType::Fifo, 0o600, (0, 0), None, b"");
    let server = Server::serve(Image::of(&[layer.finish()]), |_| None).await;
    let home = Home::new();
    let pulled = home.pull(&request(&server.address)).await.unwrap();
    let tree = read::tree(&pulled.rootfs);
    assert_eq!(tree[&b"disk"[..]].device, Some((1, 3)));
    assert_eq!(tree[&b"pipe"[..]].mode, 0o010_600);
    for entry in home.files() {
        let kind = std::fs::symlink_metadata(&entry).unwrap().file_type();
        assert!(kind.is_file() || kind.is_dir(), "{entry:?}");
    }
}

#[tokio::test]
async fn documents_that_make_no_sense_are_refused() {
    let image = small();
    let mut said = Vec::new();
    let foreign = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.artifact.manifest.v1+json",
    });
    let config = image.manifest["config"].clone();
    let mut absurd = image.manifest.clone();
    absurd["layers"][1]["size"] = json!(u64::MAX / 2);
    let mut negative = image.manifest.clone();
    negative["layers"][1]["size"] = json!(-1);
    let mut more = image.manifest.clone();
    more["layers"].as_array_mut().unwrap().push(config.clone());
    let mut fewer = image.manifest.clone();
    fewer["layers"].as_array_mut().unwrap().pop();
    let mut chart = image.manifest.clone();
    chart["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    let mut sealed = image.manifest.clone();
    sealed["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+encrypted");
    let documents = [
        json!("rubbish").to_string().into_bytes(),
        foreign.to_string().into_bytes(),
        absurd.to_string().into_bytes(),
        negative.to_string().into_bytes(),
        more.to_string().into_bytes(),
        fewer.to_string().into_bytes(),
        chart.to_string().into_bytes(),
        sealed.to_string().into_bytes(),
        vec![b' '; 5 << 20],
    ];
    for document in documents {
        let server = Server::serve(image.clone(), move |asked| {
            let reply = || Reply::new("200 OK", document.clone()).header("content-type", MANIFEST);
            asked.path.ends_with("/manifests/1").then(reply)
        })
        .await;
        let (_, words) = Home::new().refuses(&request(&server.address)).await;
        said.push(steady(&words, &server));
    }
    let said = said.join("\n\n");
    insta::assert_snapshot!(without_room(&said), @r#"
    `HOST/app:1` is no image that banger can use
    - its manifest is malformed
    - invalid type: string "rubbish", expected struct Kind at line 1 column 9

    `HOST/app:1` is no image that banger can use
    - its manifest is of the type `application/vnd.oci.artifact.manifest.v1+json`, which is not one of an image

    - … free, and … needed

    `HOST/app:1` is no image that banger can use
    - its manifest is malformed
    - invalid value: integer `-1`, expected u64 at line 1 column 476

    `HOST/app:1` is no image that banger can use
    - its layer is of the type `application/vnd.oci.image.config.v1+json`, which is not one of an image

    `HOST/app:1` is no image that banger can use
    - its manifest has 1 layers, and its config 2

    `HOST/app:1` is no image that banger can use
    - its config is of the type `application/vnd.cncf.helm.config.v1+json`, which is not one of an image

    `HOST/app:1` is no image that banger can use
    - its layer is of the type `application/vnd.oci.image.layer.v1.tar+encrypted`, which is not one of an image

    what http://HOST/v2/app/manifests/1 sends is larger than 4 MiB
    "#);
}

fn small_gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Without what depends on the room of this host.
fn without_room(text: &str) -> String {
    let line = |line: &str| match line.contains("MiB free") {
        true => "- … free, and … needed".to_owned(),
        false => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn indexes_that_lead_round_and_round_end() {
    // An index whose every entry is an index: each has the next one's digest, so that a true
    // circle cannot be made; a server may go on for as long as it likes.
    let chain = Arc::new({
        let mut chain: Vec<Vec<u8>> = vec![b"{}".to_vec()];
        for _ in 0..10 {
            let mut entry = descriptor(INDEX, chain.last().unwrap());
            entry["platform"] = json!({
                "os": "linux",
                "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
            });
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
            chain.push(index.to_string().into_bytes());
        }
        chain
    });
    let server = Server::start(move |asked| {
        let target = asked.path.rsplit('/').next().unwrap();
        let document = match target {
            "" => Some(&chain[0]),
            "1" => chain.last(),
            digest_ => chain.iter().find(|bytes| digest(bytes).as_str() == digest_),
        };
        match document {
            Some(bytes) => Reply::new("200 OK", bytes.clone()).header("content-type", INDEX),
            None => Reply::new("404 Not Found", "{}"),
        }
    })
    .await;
    let (_, words) = Home::new().refuses(&request(&server.address)).await;
    assert!(words.contains("lead to each other"), "{words}");
}

#[tokio::test]
async fn a_digest_that_was_asked_for_is_what_comes_or_nothing() {
    let image = small();
    let other = digest(b"another image");
    let served = image.clone();
    let server = Server::serve(image.clone(), move |asked| {
        asked
            .path
            .contains("/manifests/sha256:")
            .then(|| Reply::new("200 OK", served.manifest_bytes()).header("content-type", MANIFEST))
    })
    .await;
    let pinned = request_for(&format!("{}/app@{other}", server.address), None);
    let (_, words) = Home::new().refuses(&pinned).await;
    assert!(words.contains("what came as sha256:"), "{words}");
    let right = digest(&image.manifest_bytes());
    let pinned = request_for(&format!("{}/app:1@{right}", server.address), None);
    let pulled = Home::new().pull(&pinned).await.unwrap();
    assert_eq!(pulled.manifest.digest, right.to_string());
}

#[tokio::test]
async fn a_bomb_is_refused_before_it_fills_the_disk() {
    // 10 GiB of zeros in 10 MB, of which each MiB is a gzip member of its own.
    let member = small_gzip(&vec![0; 1 << 20]);
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(10 << 30);
    header.set_cksum();
    let mut bomb = gzip(header.as_bytes());
    for _ in 0..10 << 10 {
        bomb.extend(&member);
    }
    assert!(bomb.len() < 12 << 20, "{}", bomb.len());
    let mut image = small();
    image.manifest["layers"][1] = descriptor(GZIP_LAYER, &bomb);
    image.blobs.insert(digest(&bomb), bomb);
    let server = Server::serve(image, |_| None).await;
    let home = Home::new();
    let mut wanted = request(&server.address);
    wanted.shape.limit = Some(banger_proto::size::ByteSize::from_mib(64));
    let (_, words) = home.refuses(&wanted).await;
    insta::assert_snapshot!(words, @r"
    could not use layer 2 of 2
    - its files are larger than 64 MiB
    ");
    wanted.shape.limit = None;
    let (_, words) = home.refuses(&wanted).await;
    assert!(words.contains("its files are larger than"), "{words}");
}

#[tokio::test]
async fn a_registry_that_wants_a_password_gets_it_and_no_other_host_does() {
    let image = small();
    // Another host: `localhost` is not `127.0.0.1`.
    let storage = Server::serve(image.clone(), |_| None).await;
    let port = storage.address.rsplit(':').next().unwrap().to_owned();
    let first = blob_path(&image, 1);
    let server = Server::serve(image.clone(), move |asked| {
        if asked.headers.get("authorization").map(String::as_str) != Some("Basic YW5uOnNlY3JldA==")
        {
            let reply = Reply::new(
                "401 Unauthorized",
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}"#,
            );
            return Some(reply.header("www-authenticate", "Basic realm=\"x\""));
        }
        (asked.path == first).then(|| {
            let to = format!("http://localhost:{port}{}", asked.path);
            Reply::new("307 Temporary Redirect", "").header("location", to)
        })
    })
    .await;
    let reference = format!("{}/app:1", server.address);
    let auth = |password: &str| {
        Some(RegistryAuth::Password {
            username: "ann".to_owned(),
            password: password.to_owned(),
        })
    };
    let home = Home::new();
    home.pull(&request_for(&reference, auth("secret")))
        .await
        .unwrap();
    let redirected = storage.asked();
    assert!(!redirected.is_empty());
    for asked in redirected {
        assert_eq!(asked.headers.get("authorization"), None, "{asked:?}");
    }
    for auth in [None, auth("wrong")] {
        let home = Home::new();
        let (kind, words) = home.refuses(&request_for(&reference, auth)).await;
        assert_eq!(kind, ErrorKind::Precondition);
        assert!(words.contains("who are you?"), "{words}");
        assert!(!words.contains("secret"), "{words}");
    }
}

#[tokio::test]
async fn tokens_are_fetched_with_a_password_an_identity_token_or_nothing() {
    let image = small();
    for (auth, expected) in [
        (
            None,
            "GET /token?scope=repository%3Aapp%3Apull&service=it - ",
        ),
        (
            Some(RegistryAuth::Password {
                username: "ann".to_owned(),
                password: "secret".to_owned(),
            }),
            "GET /token?scope=repository%3Aapp%3Apull&service=it&account=ann Basic YW5uOnNlY3JldA== ",
        ),
        (
            Some(RegistryAuth::IdentityToken {
                token: "identity".to_owned(),
            }),
            "POST /token - scope=repository%3Aapp%3Apull&service=it&grant_type=refresh_token&client_id=banger&refresh_token=identity",
        ),
    ] {
        let server = Server::serve(image.clone(), |asked| {
            let host = &asked.headers["host"];
            if asked.path.starts_with("/token") {
                return Some(Reply::new("200 OK", r#"{"token":"abc"}"#));
            }
            let is_let_in = asked.headers.get("authorization").map(String::as_str) == Some("Bearer abc");
            (!is_let_in && asked.path != "/v2/").then(|| {
                let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"it\",scope=\"repository:app:pull\"");
                Reply::new("401 Unauthorized", "{}").header("www-authenticate", challenge)
            })
        })
        .await;
        let reference = format!("{}/app:1", server.address);
        Home::new()
            .pull(&request_for(&reference, auth))
            .await
            .unwrap();
        let asked = server.asked();
        let token = asked
            .iter()
            .find(|asked| asked.path.starts_with("/token"))
            .unwrap();
        let authorization = token
            .headers
            .get("authorization")
            .map_or("-", String::as_str);
        assert_eq!(
            format!(
                "{} {} {authorization} {}",
                token.method, token.path, token.body
            ),
            expected
        );
    }
}

#[tokio::test]
async fn what_is_not_there_and_who_does_not_answer_is_told() {
    let server = Server::serve(small(), |_| None).await;
    let missing = request_for(&format!("{}/app:2", server.address), None);
    let (kind, words) = Home::new().refuses(&missing).await;
    assert_eq!(kind, ErrorKind::NotFound);
    assert_eq!(
        steady(&words, &server),
        "the registry HOST has no `app` with `2`"
    );
    let nobody = request("127.0.0.1:9");
    let (kind, words) = Home::new().refuses(&nobody).await;
    assert_eq!(kind, ErrorKind::Failed);
    assert!(
        words.starts_with("could not reach the registry 127.0.0.1:9"),
        "{words}"
    );
}

#[tokio::test]
async fn a_pull_that_is_called_off_leaves_nothing() {
    let image = small();
    let path = blob_path(&image, 1);
    let (reached, mut is_reached) = tokio::sync::mpsc::unbounded_channel();
    // The layer never comes: it is announced, and its bytes are not sent.
    let server = Server::serve(image, move |asked| {
        (asked.path == path).then(|| {
            reached.send(()).unwrap();
            Reply::new("503 Service Unavailable", "").header("retry-after", "1000")
        })
    })
    .await;
    let home = Home::new();
    let wanted = request(&server.address);
    {
        let pull = home.pull(&wanted);
        tokio::pin!(pull);
        tokio::select! {
            outcome = &mut pull => panic!("{:?}", outcome.map_err(|error| in_words(&error))),
            _ = is_reached.recv() => {}
        }
    }
    // The work goes on to its clean end by itself.
    let images = home.cache().join("../../state/images");
    while std::fs::read_dir(&images).unwrap().next().is_some() {
        tokio::task::yield_now().await;
    }
    home.require_clean();
}

/// A registry that sends whoever comes to `realm` for a token.
async fn wants_a_token_of(realm: String) -> Server {
    Server::serve(small(), move |asked| {
        let challenge = format!("Bearer realm=\"{realm}\"");
        (asked.path != "/v2/")
            .then(|| Reply::new("401 Unauthorized", "{}").header("www-authenticate", challenge))
    })
    .await
}

#[tokio::test]
async fn a_registry_on_the_loopback_gets_no_password_sent_elsewhere_in_the_clear() {
    // An address for documentation: nobody is there, and nobody must be asked.
    let server = wants_a_token_of("http://192.0.2.1/token".to_owned()).await;
    let secrets = [
        RegistryAuth::Password {
            username: "me".into(),
            password: "hunter2".into(),
        },
        RegistryAuth::IdentityToken {
            token: "hunter2".into(),
        },
    ];
    for secret in secrets {
        for insecure in [false, true] {
            let reference = format!("{}/app:1", server.address);
            let mut wanted = request_for(&reference, Some(secret.clone()));
            wanted.insecure = insecure;
            let (_, words) = Home::new().refuses(&wanted).await;
            assert!(words.contains("which is not encrypted"), "{words}");
        }
    }
}

#[tokio::test]
async fn a_server_of_tokens_cannot_pass_a_secret_on() {
    let thief = Server::start(|_| Reply::new("200 OK", "{\"token\":\"x\"}")).await;
    let to = format!("http://{}/token", thief.address);
    let tokens = Server::start(move |_| {
        Reply::new("307 Temporary Redirect", "").header("location", to.clone())
    })
    .await;
    let server = wants_a_token_of(format!("http://{}/token", tokens.address)).await;
    let secret = RegistryAuth::IdentityToken {
        token: "hunter2".into(),
    };
    let wanted = request_for(&format!("{}/app:1", server.address), Some(secret));
    Home::new().refuses(&wanted).await;
    assert_eq!(tokens.asked()[0].method, "POST");
    assert!(thief.asked().is_empty(), "{:?}", thief.asked());
}
