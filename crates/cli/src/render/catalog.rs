//! The catalog and the cache as tables, and one image of the catalog in full.

use banger_proto::api::{CachePart, CatalogImage, CatalogKernel};

use crate::render::lists::rounded;
use crate::render::table::Table;

/// The table of `image list --available`.
pub(crate) fn catalog_image_table(images: &[CatalogImage]) -> String {
    let mut table = Table::new(["NAME", "HERE", "DISTRO", "KERNEL", "ABOUT"]);
    for image in images {
        table.row([
            image.name.to_string(),
            yes(image.here),
            image.distro.clone(),
            image.kernel.to_string(),
            image.about.clone(),
        ]);
    }
    table.render()
}

/// The table of `kernel list --available`.
pub(crate) fn catalog_kernel_table(kernels: &[CatalogKernel]) -> String {
    let mut table = Table::new(["NAME", "HERE", "ABOUT"]);
    for kernel in kernels {
        table.row([
            kernel.name.to_string(),
            yes(kernel.here),
            kernel.about.clone(),
        ]);
    }
    table.render()
}

/// The table of `image cache prune --dry-run`.
pub(crate) fn cache_table(parts: &[CachePart]) -> String {
    let mut table = Table::new(["WHAT", "FILES", "WOULD FREE", "IN USE"]);
    for part in parts {
        table.row([
            part.kind.as_str().to_owned(),
            part.files.to_string(),
            rounded(part.freed),
            rounded(part.in_use),
        ]);
    }
    table.render()
}

/// The lines of `image show` for one that is not here.
pub(crate) fn catalog_image_text(image: &CatalogImage) -> String {
    let mut text = format!(
        "name         {}\nhere         no: `banger image pull {}` gets it\nabout        {}\n\
         distro       {}\nkernel       {}\n",
        image.name, image.name, image.about, image.distro, image.kernel,
    );
    for source in &image.sources {
        text.push_str(&format!("source       {source}\n"));
    }
    text
}

fn yes(here: bool) -> String {
    match here {
        true => "yes".to_owned(),
        false => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::api::CacheKind;
    use banger_proto::size::ByteSize;

    #[test]
    fn the_cache_lines_up() {
        let part = |kind, files, freed| CachePart {
            kind,
            files,
            freed: ByteSize::from_mib(freed),
            in_use: ByteSize::from_bytes(0),
        };
        let parts = [
            part(CacheKind::Downloads, 3, 120),
            part(CacheKind::Layers, 0, 0),
        ];
        insta::assert_snapshot!(cache_table(&parts), @r"
        WHAT       FILES  WOULD FREE  IN USE
        downloads  3      120M        0B
        layers     0      0B          0B
        ");
    }

    #[test]
    fn the_catalog_lines_up() {
        let image = |name: &str, here| CatalogImage {
            name: name.parse().unwrap(),
            about: "Debian 12 and little else".into(),
            distro: "debian 12".into(),
            kernel: "generic-6.12".parse().unwrap(),
            sources: vec!["packages of Debian bookworm".into(), "docker.io/a:1".into()],
            here,
        };
        let images = [image("debian-bookworm-slim", true), image("other", false)];
        insta::assert_snapshot!(catalog_image_table(&images), @r"
        NAME                  HERE  DISTRO     KERNEL        ABOUT
        debian-bookworm-slim  yes   debian 12  generic-6.12  Debian 12 and little else
        other                 -     debian 12  generic-6.12  Debian 12 and little else
        ");
        insta::assert_snapshot!(catalog_image_text(&images[1]), @r"
        name         other
        here         no: `banger image pull other` gets it
        about        Debian 12 and little else
        distro       debian 12
        kernel       generic-6.12
        source       packages of Debian bookworm
        source       docker.io/a:1
        ");
        let kernel = CatalogKernel {
            name: "generic-6.12".parse().unwrap(),
            about: "Linux 6.12 of Debian".into(),
            sources: Vec::new(),
            here: true,
        };
        insta::assert_snapshot!(catalog_kernel_table(&[kernel]), @r"
        NAME          HERE  ABOUT
        generic-6.12  yes   Linux 6.12 of Debian
        ");
    }
}
