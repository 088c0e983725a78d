//! Catalogs that come from a site, with real signatures.

use std::io::Cursor;

use minisign::KeyPair;

use super::*;
use crate::download::site::Site;

const PATH: &str = "/catalog.toml";
const BESIDE: &str = "/catalog.toml.minisig";

struct Place {
    site: Site,
    signer: KeyPair,
    home: tempfile::TempDir,
}

impl Place {
    async fn new() -> Self {
        Self {
            site: Site::start().await,
            signer: KeyPair::generate_unencrypted_keypair().unwrap(),
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn origin(&self) -> CatalogOrigin {
        CatalogOrigin {
            url: self.site.url(PATH).parse().unwrap(),
            key: self.signer.pk.to_base64(),
        }
    }

    /// What a daemon that starts now knows.
    fn catalogs(&self) -> Arc<Catalogs> {
        let directory = self.home.path().join("catalogs");
        Arc::new(Catalogs::open(Some(self.origin()), directory))
    }

    /// Serves a catalog with this serial, and its signature.
    fn publish(&self, serial: u64) {
        let text = catalog(serial);
        self.site.put(BESIDE, sign(&self.signer, &text));
        self.site.put(PATH, text);
    }

    async fn ask(&self, catalogs: &Arc<Catalogs>) -> Result<Option<String>, Arc<CatalogRefused>> {
        let asked = catalogs.ask(self.home.path()).await;
        // The port is another one in each run.
        asked.map(|warning| warning.map(|told| told.replace(&self.site.url(""), "SITE")))
    }
}

/// The catalog that is built in, with another serial and one image more.
fn catalog(serial: u64) -> String {
    let built_in = include_str!("../../../catalog.toml");
    let own = format!("serial = {}\n", Catalog::built_in().serial);
    assert!(built_in.contains(&own));
    built_in.replace(&own, &format!("serial = {serial}\n"))
        + "\n[[image]]\nname = \"newer\"\nabout = \"x\"\ndistro = \"x\"\nkernel = \"generic-6.1\"\n\
           [[image.source]]\noci = \"newer:1\"\n"
}

fn sign(signer: &KeyPair, text: &str) -> String {
    let data = Cursor::new(text.to_owned());
    let signature = minisign::sign(None, &signer.sk, data, None, None);
    signature.unwrap().into_string()
}

fn serial(catalogs: &Catalogs) -> u64 {
    catalogs.current().catalog.serial
}

#[tokio::test]
async fn a_newer_catalog_that_is_signed_counts_from_now_on() {
    let place = Place::new().await;
    let catalogs = place.catalogs();
    let built_in = serial(&catalogs);
    place.publish(built_in + 1);
    assert_eq!(place.ask(&catalogs).await.unwrap(), None);
    assert_eq!(serial(&catalogs), built_in + 1);
    let newer = "newer".parse().unwrap();
    assert!(catalogs.current().catalog.image(&newer).is_some());
    // Asking again changes nothing, and a daemon that starts later has it without asking.
    assert_eq!(place.ask(&catalogs).await.unwrap(), None);
    let asked = place.site.asked().len();
    assert_eq!(serial(&place.catalogs()), built_in + 1);
    assert_eq!(place.site.asked().len(), asked);
    // Of those that came only the one that counts is kept.
    place.publish(built_in + 5);
    assert_eq!(place.ask(&catalogs).await.unwrap(), None);
    let kept = kept(&place.home.path().join("catalogs"));
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].0, built_in + 5);
    assert!(catalogs.old().is_empty());
}

#[tokio::test]
async fn who_does_not_reach_it_goes_on_with_what_is_here() {
    let place = Place::new().await;
    let catalogs = place.catalogs();
    let built_in = serial(&catalogs);
    let told = place.ask(&catalogs).await.unwrap().unwrap();
    insta::assert_snapshot!(
        told.replace(&format!("serial {built_in}"), "serial N"),
        @"the catalog `SITE/catalog.toml` is not used: could not download SITE/catalog.toml.minisig: the server answers 404 Not Found; the one that is here has serial N"
    );
    place.publish(built_in + 2);
    assert_eq!(place.ask(&catalogs).await.unwrap(), None);
    place.site.remove(PATH);
    assert!(place.ask(&catalogs).await.unwrap().is_some());
    assert_eq!(serial(&catalogs), built_in + 2);
}

#[tokio::test]
async fn a_site_that_does_not_answer_is_not_waited_for() {
    let place = Place::new().await;
    let catalogs = place.catalogs();
    place.publish(serial(&catalogs) + 1);
    place.site.hold_after(0);
    let began = std::time::Instant::now();
    let told = place.ask(&catalogs).await.unwrap().unwrap();
    assert!(told.contains("no answer for 10 seconds"), "{told}");
    assert!(began.elapsed() < LIMIT * 3, "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_the_keys_owner_has_not_signed_is_refused_and_never_used() {
    let place = Place::new().await;
    let catalogs = place.catalogs();
    let before = serial(&catalogs);
    let text = catalog(before + 1);
    let stranger = KeyPair::generate_unencrypted_keypair().unwrap();
    let signature = sign(&place.signer, &text);
    let mut told = Vec::new();
    for (text, signature) in [
        (text.clone(), sign(&stranger, &text)),
        (text.replace("newer:1", "evil:1"), signature.clone()),
        (text.clone(), String::new()),
        (text.clone(), "\n\n\n\n".to_owned()),
        (
            text.clone(),
            signature.replace("trusted comment: ", "trusted comment: x"),
        ),
    ] {
        place.site.put(PATH, text);
        place.site.put(BESIDE, signature);
        let refused = place.ask(&catalogs).await.unwrap_err();
        assert!(refused.hint().is_some());
        assert_eq!(refused.kind(), ErrorKind::Precondition);
        told.push(refused.to_string().replace(&place.site.url(""), "SITE"));
        assert_eq!(serial(&catalogs), before);
    }
    insta::assert_snapshot!(told.join("\n"));
    assert!(kept(&place.home.path().join("catalogs")).is_empty());
    // A key that is none trusts nothing.
    place.publish(before + 1);
    let origin = CatalogOrigin {
        key: "RWQ".to_owned(),
        ..place.origin()
    };
    let catalogs = Catalogs::open(Some(origin), place.home.path().join("catalogs"));
    let refused = place.ask(&Arc::new(catalogs)).await.unwrap_err();
    assert!(refused.to_string().contains("is no key of minisign"));
}

#[tokio::test]
async fn an_older_catalog_or_another_of_the_same_serial_is_not_taken() {
    let place = Place::new().await;
    let catalogs = place.catalogs();
    let built_in = serial(&catalogs);
    place.publish(built_in + 7);
    assert_eq!(place.ask(&catalogs).await.unwrap(), None);
    let mut told = Vec::new();
    for serial_of_it in [built_in + 6, 0] {
        place.publish(serial_of_it);
        told.push(place.ask(&catalogs).await.unwrap().unwrap());
        assert_eq!(serial(&catalogs), built_in + 7);
    }
    let other = catalog(built_in + 7).replace("newer:1", "newer:2");
    place.site.put(BESIDE, sign(&place.signer, &other));
    place.site.put(PATH, other);
    told.push(place.ask(&catalogs).await.unwrap().unwrap());
    let unreadable = catalog(built_in + 8).replace("schema = 1", "schema = 2");
    place.site.put(BESIDE, sign(&place.signer, &unreadable));
    place.site.put(PATH, unreadable);
    told.push(place.ask(&catalogs).await.unwrap().unwrap());
    let told = told.join("\n");
    let told = told.replace(&format!("{}", built_in + 7), "N+7");
    insta::assert_snapshot!(told.replace(&format!("{}", built_in + 6), "N+6"));
    assert_eq!(serial(&place.catalogs()), built_in + 7);
}

#[tokio::test]
async fn what_lies_in_the_cache_is_not_believed() {
    let place = Place::new().await;
    let catalogs = place.catalogs();
    let built_in = serial(&catalogs);
    place.publish(built_in + 1);
    assert_eq!(place.ask(&catalogs).await.unwrap(), None);
    let directory = place.home.path().join("catalogs");
    let kept_one = directory.join((built_in + 1).to_string());
    let file = kept_one.join(CATALOG_FILE);
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replace("newer:1", "evil:1")).unwrap();
    let later = place.catalogs();
    assert_eq!(serial(&later), built_in);
    assert_eq!(later.old(), std::slice::from_ref(&kept_one));
    // The right one takes its place.
    assert_eq!(place.ask(&later).await.unwrap(), None);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), good);
    assert_eq!(serial(&place.catalogs()), built_in + 1);
    // Under another serial it would count as newer than it is.
    std::fs::rename(&kept_one, directory.join("99")).unwrap();
    assert_eq!(serial(&place.catalogs()), built_in);
    // Nor does it count with another key, or when the config names no origin any more.
    std::fs::rename(directory.join("99"), &kept_one).unwrap();
    let other = CatalogOrigin {
        key: KeyPair::generate_unencrypted_keypair()
            .unwrap()
            .pk
            .to_base64(),
        ..place.origin()
    };
    assert_eq!(
        serial(&Catalogs::open(Some(other), directory.clone())),
        built_in
    );
    let none = Catalogs::open(None, directory);
    assert_eq!(serial(&none), built_in);
    assert_eq!(none.old().len(), 1);
}

#[tokio::test]
async fn those_who_ask_at_the_same_time_ask_once() {
    let place = Place::new().await;
    let catalogs = place.catalogs();
    place.publish(serial(&catalogs) + 1);
    let asking = (0..8).map(|_| {
        let (catalogs, home) = (Arc::clone(&catalogs), place.home.path().to_owned());
        async move { catalogs.ask(&home).await.unwrap() }
    });
    let mut all = tokio::task::JoinSet::new();
    asking.for_each(|one| drop(all.spawn(one)));
    for warning in all.join_all().await {
        assert_eq!(warning, None);
    }
    let asked = place.site.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
}
