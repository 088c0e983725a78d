//! The chain of trust, with an archive and a key that are made for the test.

use std::collections::BTreeMap;
use std::io::Read;

use jiff::Timestamp;
use pgp::composed::{
    CleartextSignedMessage, KeyType, SecretKeyParamsBuilder, SignedSecretKey, SubkeyParamsBuilder,
};
use pgp::ser::Serialize;
use pgp::types::Password;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::archive::{ArchiveError, Suite};
use super::keyring::Keyring;
use super::policy::Policy;
use super::release::{Release, ReleaseError};
use super::sources::Source;
use crate::download::{DownloadError, Downloads};
use crate::hash::show_sha256;
use crate::progress::Reporter;

fn key() -> SignedSecretKey {
    SecretKeyParamsBuilder::default()
        .key_type(KeyType::Ed25519)
        .can_certify(true)
        .can_sign(true)
        .primary_user_id("archive".into())
        .subkey(
            SubkeyParamsBuilder::default()
                .key_type(KeyType::Ed25519)
                .can_sign(true)
                .build()
                .unwrap(),
        )
        .build()
        .unwrap()
        .generate(rand::thread_rng())
        .unwrap()
}

fn keyring(key: &SignedSecretKey) -> Keyring {
    Keyring::of(&key.to_public_key().to_bytes().unwrap())
}

fn sign(text: &str, key: &SignedSecretKey) -> String {
    CleartextSignedMessage::sign(
        rand::thread_rng(),
        text,
        &key.primary_key,
        &Password::empty(),
    )
    .unwrap()
    .to_armored_string(None.into())
    .unwrap()
}

fn sign_with_subkey(text: &str, key: &SignedSecretKey) -> String {
    CleartextSignedMessage::sign(
        rand::thread_rng(),
        text,
        &key.secret_subkeys[0].key,
        &Password::empty(),
    )
    .unwrap()
    .to_armored_string(None.into())
    .unwrap()
}

const HASH: &str = "0000000000000000000000000000000000000000000000000000000000000001";

fn release(extra: &str) -> String {
    format!(
        "Origin: Debian\nSuite: stable\nCodename: bookworm\nDate: Fri, 20 Nov 2026 00:12:41 UTC\n{extra}\
         SHA256:\n {HASH} 7 main/binary-amd64/Packages.xz\n"
    )
}

fn now() -> Timestamp {
    "2026-11-22T00:00:00Z".parse().unwrap()
}

fn check(text: &str, suite: &str, keyring: &Keyring) -> Result<Release, ReleaseError> {
    Release::check(text, suite, keyring, Policy::default(), now())
}

#[test]
fn a_release_signed_by_a_trusted_key_counts() {
    let key = key();
    for signed in [
        sign(&release(""), &key),
        sign_with_subkey(&release(""), &key),
    ] {
        for suite in ["bookworm", "stable"] {
            let checked = check(&signed, suite, &keyring(&key)).unwrap();
            let file = checked.file("main/binary-amd64/Packages.xz").unwrap();
            assert_eq!((show_sha256(&file.sha256).as_str(), file.size), (HASH, 7));
            assert_eq!(checked.file("other"), None);
        }
    }
}

#[test]
fn a_release_signed_by_nobody_known_is_refused() {
    let signed = sign(&release(""), &key());
    let outcome = check(&signed, "bookworm", &keyring(&key()));
    assert!(
        matches!(outcome, Err(ReleaseError::Signature(_))),
        "{outcome:?}"
    );
    let outcome = check(&signed, "bookworm", &Keyring::debian());
    assert!(
        matches!(outcome, Err(ReleaseError::Signature(_))),
        "{outcome:?}"
    );
    let outcome = check(&release(""), "bookworm", &Keyring::debian());
    assert!(
        matches!(outcome, Err(ReleaseError::Signature(_))),
        "{outcome:?}"
    );
}

#[test]
fn a_release_that_was_changed_is_refused() {
    let key = key();
    let signed = sign(&release(""), &key);
    let changed = signed.replace("0001 7 main", "0002 7 main");
    assert_ne!(signed, changed);
    let outcome = check(&changed, "bookworm", &keyring(&key));
    assert!(
        matches!(outcome, Err(ReleaseError::Signature(_))),
        "{outcome:?}"
    );
}

#[test]
fn what_stands_outside_of_the_signature_is_not_believed() {
    let key = key();
    let signed = sign(&release(""), &key);
    let forged = release("").replace("0001 7", "0002 9");
    for text in [format!("{forged}\n{signed}"), format!("{signed}\n{forged}")] {
        // Either it is refused, or only the signed part counts.
        if let Ok(checked) = check(&text, "bookworm", &keyring(&key)) {
            assert_eq!(
                checked.file("main/binary-amd64/Packages.xz").unwrap().size,
                7
            );
        }
    }
}

#[test]
fn another_suites_release_is_refused() {
    let key = key();
    let outcome = check(&sign(&release(""), &key), "trixie", &keyring(&key));
    let error = outcome.unwrap_err();
    assert_eq!(error.to_string(), "it is the release of `bookworm`");
}

#[test]
fn dates_are_checked_as_the_policy_says() {
    let key = key();
    let keyring = keyring(&key);
    let expired = sign(
        &release("Valid-Until: Sat, 21 Nov 2026 00:00:00 UTC\n"),
        &key,
    );
    let valid = sign(
        &release("Valid-Until: Fri, 27 Nov 2026 00:12:41 UTC\n"),
        &key,
    );
    let strict = Policy::default();
    let lax = Policy {
        check_valid_until: false,
        ..strict
    };
    let blind = Policy {
        check_date: false,
        ..strict
    };
    let outcome = |text: &str, policy, now: &str| {
        Release::check(text, "bookworm", &keyring, policy, now.parse().unwrap()).map(drop)
    };
    let at = "2026-11-22T00:00:00Z";
    assert!(outcome(&valid, strict, at).is_ok());
    assert!(matches!(
        outcome(&expired, strict, at),
        Err(ReleaseError::Expired { .. })
    ));
    assert!(outcome(&expired, lax, at).is_ok());
    assert!(outcome(&expired, blind, at).is_ok());
    let before = "2026-11-19T00:00:00Z";
    assert!(matches!(
        outcome(&valid, lax, before),
        Err(ReleaseError::Future { .. })
    ));
    assert!(outcome(&valid, blind, before).is_ok());
}

#[test]
fn a_release_without_its_fields_is_refused() {
    let key = key();
    for (text, field) in [
        (release("").replace("Date", "Fate"), "Date"),
        (release("").replace("20 Nov", "20 Nob"), "Date"),
        (release("Valid-Until: never\n"), "Valid-Until"),
        (release("").replace("SHA256", "MD5Sum"), "SHA256"),
        (release("").replace(HASH, "abc"), "SHA256"),
    ] {
        let error = check(&sign(&text, &key), "bookworm", &keyring(&key)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("its field `{field}` is missing or malformed")
        );
    }
}

#[test]
fn debians_own_keys_are_all_read() {
    // Nine keys of Debian 11 to 13; the host may have more.
    let shown = format!("{:?}", Keyring::debian());
    assert!(shown.matches("primary_key").count() >= 9);
}

/// An archive in memory, behind a server on the loopback.
struct Archive {
    source: Source,
    task: JoinHandle<()>,
}

impl Drop for Archive {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const PACKAGE: &[u8] = b"the package";

fn packages() -> Vec<u8> {
    let stanza = |version: &str, size: usize, hash: String| {
        format!(
            "Package: kernel\nVersion: {version}\nDepends: linux-image-1 (= 1), kmod | x\nFilename: pool/k_{version}.deb\n\
             Size: {size}\nSHA256: {hash}\n\n"
        )
    };
    let text = [
        stanza("1.9", 1, HASH.to_owned()),
        stanza(
            "1.10",
            PACKAGE.len(),
            show_sha256(&Sha256::digest(PACKAGE).into()),
        ),
        stanza("1.2", 1, HASH.to_owned()),
        "Package: bad\nVersion: 1\n\n".to_owned(),
    ]
    .concat();
    let mut bytes = Vec::new();
    liblzma::read::XzEncoder::new(text.as_bytes(), 1)
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

/// Serves an archive signed by `key`, changed by `change`.
async fn archive(
    key: &SignedSecretKey,
    change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>),
) -> Archive {
    let packages = packages();
    let hash = show_sha256(&Sha256::digest(&packages).into());
    let text = release("Acquire-By-Hash: yes\n")
        .replace(&format!("{HASH} 7"), &format!("{hash} {}", packages.len()));
    let dists = "/debian/dists/bookworm";
    let mut files = BTreeMap::from([
        (format!("{dists}/InRelease"), sign(&text, key).into_bytes()),
        (
            format!("{dists}/main/binary-amd64/by-hash/SHA256/{hash}"),
            packages.clone(),
        ),
        (format!("{dists}/main/binary-amd64/Packages.xz"), packages),
        ("/debian/pool/k_1.10.deb".to_owned(), PACKAGE.to_vec()),
    ]);
    change(&mut files);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let source = Source {
        uri: format!("http://{}/debian", listener.local_addr().unwrap()),
        suite: "bookworm".to_owned(),
        components: vec!["main".to_owned()],
        signed_by: None,
        check_valid_until: None,
    };
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio::io::BufReader::new(stream);
            let mut request = String::new();
            stream.read_line(&mut request).await.unwrap();
            let path = request.split(' ').nth(1).unwrap().to_owned();
            let mut line = String::new();
            while stream.read_line(&mut line).await.unwrap() > 2 {
                line.clear();
            }
            let (status, body) = match files.get(&path) {
                Some(body) => ("200 OK", body.clone()),
                None => ("404 Not Found", Vec::new()),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream
                .write_all(&[head.as_bytes(), &body].concat())
                .await
                .unwrap();
        }
    });
    Archive { source, task }
}

async fn open(
    archive: &Archive,
    keyring: Keyring,
) -> Result<(Suite, Downloads, tempfile::TempDir), ArchiveError> {
    let directory = tempfile::tempdir().unwrap();
    let downloads = Downloads::new(directory.path().to_owned()).unwrap();
    // The test's archive is dated, and the host's clock may say anything.
    let policy = Policy {
        check_valid_until: false,
        check_date: false,
    };
    let suite = Suite::open(
        &archive.source,
        "amd64",
        keyring,
        policy,
        &downloads,
        &Reporter::silent(),
    )
    .await?;
    Ok((suite, downloads, directory))
}

#[tokio::test]
async fn a_package_is_found_and_fetched_along_the_chain() {
    let key = key();
    let archive = archive(&key, |_| {}).await;
    let (suite, downloads, _directory) = open(&archive, keyring(&key)).await.unwrap();
    let package = suite.find("kernel").unwrap();
    assert_eq!(package.version, "1.10", "the newest");
    assert_eq!(package.depends, ["linux-image-1", "kmod"]);
    let path = suite
        .fetch(&package, &downloads, &Reporter::silent())
        .await
        .unwrap();
    assert_eq!(std::fs::read(path.path()).unwrap(), PACKAGE);
    assert!(matches!(
        suite.find("none"),
        Err(ArchiveError::NoPackage { .. })
    ));
    assert!(matches!(
        suite.find("bad"),
        Err(ArchiveError::BadPackage { .. })
    ));
}

#[tokio::test]
async fn an_index_that_is_not_there_by_hash_is_fetched_by_name() {
    let key = key();
    let archive = archive(&key, |files| {
        files.retain(|path, _| !path.contains("by-hash"))
    })
    .await;
    let (suite, _downloads, _directory) = open(&archive, keyring(&key)).await.unwrap();
    assert!(suite.find("kernel").is_ok());
}

#[tokio::test]
async fn each_link_of_the_chain_is_checked() {
    let key = key();
    let changed = archive(&key, |files| {
        for (path, content) in files {
            if path.contains("Packages") || path.contains("by-hash") {
                content[30] ^= 1;
            }
        }
    })
    .await;
    let error = open(&changed, keyring(&key)).await.err();
    assert!(
        matches!(
            error,
            Some(ArchiveError::Download(DownloadError::WrongHash { .. }))
        ),
        "{error:?}"
    );

    let changed = archive(&key, |files| {
        files.insert(
            "/debian/pool/k_1.10.deb".to_owned(),
            b"a package??".to_vec(),
        );
    })
    .await;
    let (suite, downloads, _directory) = open(&changed, keyring(&key)).await.unwrap();
    let package = suite.find("kernel").unwrap();
    let error = suite
        .fetch(&package, &downloads, &Reporter::silent())
        .await
        .err();
    assert!(
        matches!(
            error,
            Some(ArchiveError::Download(DownloadError::WrongHash { .. }))
        ),
        "{error:?}"
    );

    let foreign = archive(&self::key(), |_| {}).await;
    let error = open(&foreign, keyring(&key)).await.err();
    assert!(
        matches!(error, Some(ArchiveError::Release { .. })),
        "{error:?}"
    );
}

proptest! {
    #[test]
    fn rubbish_is_never_a_release(text in "(-----BEGIN PGP SIGNED MESSAGE-----\n|Hash: SHA256\n|\n|-----BEGIN PGP SIGNATURE-----\n|[\\PC]{0,20}|-----END PGP SIGNATURE-----\n){0,12}") {
        prop_assert!(check(&text, "bookworm", &Keyring::of(&[])).is_err());
    }

    #[test]
    fn rubbish_is_never_a_key(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Keyring::of(&bytes);
    }
}
