//! Images and kernels as tables, and what the daemon tells of itself.

use std::collections::BTreeMap;

use banger_proto::api::{DaemonStatus, Image, Kernel};
use banger_proto::size::ByteSize;
use jiff::Timestamp;

use crate::render::table::Table;
use crate::render::time::{age, moment};

/// The table of `image list`.
pub(crate) fn image_table(images: &[Image], now: Timestamp) -> String {
    let mut table = Table::new([
        "NAME", "ID", "DISTRO", "KERNEL", "SIZE", "SOURCE", "CREATED",
    ]);
    for image in images {
        table.row([
            image.name.to_string(),
            image.id.short().to_owned(),
            image.distro.clone(),
            image.kernel.to_string(),
            rounded(image.size),
            image.problem.as_ref().map_or_else(
                || image.reference.as_ref().unwrap_or(&image.source).clone(),
                |problem| format!("unusable: {problem}"),
            ),
            age(&image.created_at, now),
        ]);
    }
    table.render()
}

/// The lines of `image show`.
pub(crate) fn image_text(image: &Image, now: Timestamp) -> String {
    let mut facts: Vec<(&str, String)> = vec![
        ("name", image.name.to_string()),
        ("id", image.id.to_string()),
        ("digest", image.digest.clone()),
        ("source", image.source.clone()),
        ("distro", image.distro.clone()),
        ("arch", image.arch.clone()),
        ("kernel", image.kernel.to_string()),
        ("size", rounded(image.size)),
        ("created", moment(&image.created_at, now)),
    ];
    facts.extend(image.rootfs.iter().map(|path| ("rootfs", path.clone())));
    facts.extend(image.problem.iter().map(|why| ("unusable", why.clone())));
    facts.extend(image.user.iter().map(|user| ("user", user.clone())));
    facts.extend(image.workdir.iter().map(|path| ("workdir", path.clone())));
    let words = |words: &[String]| (!words.is_empty()).then(|| words.join(" "));
    facts.extend(words(&image.entrypoint).map(|words| ("entrypoint", words)));
    facts.extend(words(&image.cmd).map(|words| ("cmd", words)));
    let pairs = |what: &'static str, pairs: &BTreeMap<String, String>| {
        pairs
            .iter()
            .map(|(key, value)| (what, format!("{key}={value}")))
            .collect::<Vec<_>>()
    };
    facts.extend(pairs("env", &image.env));
    facts.extend(pairs("label", &image.labels));
    // The image's maker chose some of these words, and a terminal would act on some letters.
    let legible = |value: &str| value.replace(char::is_control, "\u{fffd}");
    facts
        .iter()
        .map(|(name, value)| format!("{name:12} {}\n", legible(value)))
        .collect()
}

/// The table of `kernel list`.
pub(crate) fn kernel_table(kernels: &[Kernel], now: Timestamp) -> String {
    let mut table = Table::new(["NAME", "RELEASE", "SIZE", "SOURCE", "CREATED"]);
    for kernel in kernels {
        table.row([
            kernel.name.to_string(),
            kernel.release.clone(),
            rounded(kernel.size),
            kernel.source.clone(),
            age(&kernel.created_at, now),
        ]);
    }
    table.render()
}

/// The lines of `kernel show`.
pub(crate) fn kernel_text(kernel: &Kernel, now: Timestamp) -> String {
    format!(
        "name     {}\nrelease  {}\nsize     {}\nsource   {}\ncreated  {}\n",
        kernel.name,
        kernel.release,
        rounded(kernel.size),
        kernel.source,
        moment(&kernel.created_at, now),
    )
}

/// The lines of `daemon status`.
pub(crate) fn daemon_text(status: &DaemonStatus, now: Timestamp) -> String {
    let mut text = format!(
        "version  {}\npid      {}\nnode     {}\nstarted  {}\nsocket   {}\nstate    {}\nVMs      {}, {} running\n",
        status.version,
        status.pid,
        status.node,
        moment(&status.started_at, now),
        status.socket,
        status.state_dir,
        status.vms,
        status.running,
    );
    if status.operations + status.streams > 0 {
        text.push_str(&format!(
            "at work  {}, {}\n",
            counted(status.operations, "operation"),
            counted(status.streams, "open stream")
        ));
    }
    for warning in &status.warnings {
        text.push_str(&format!("warning  {warning}\n"));
    }
    text
}

fn counted(count: u32, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// A size to three digits, such as `261M`.
pub(crate) fn rounded(size: ByteSize) -> String {
    let bytes = size.bytes();
    let units = [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        None => format!("{bytes}B"),
        Some((shift, letter)) => {
            let tenths = ((u128::from(bytes) * 10) >> shift).min(u128::from(u64::MAX));
            match tenths {
                0..100 => format!("{}.{}{letter}", tenths / 10, tenths % 10),
                _ => format!("{}{letter}", tenths / 10),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_for_people() {
        for (bytes, text) in [
            (12, "12B"),
            (1536, "1.5K"),
            (273_678_336, "261M"),
            (3 << 30, "3.0G"),
        ] {
            assert_eq!(rounded(ByteSize::from_bytes(bytes)), text);
        }
    }

    #[test]
    fn a_daemon_tells_what_is_odd() {
        let status = DaemonStatus {
            version: "0.1.0".into(),
            pid: 42,
            node: "workstation".into(),
            started_at: "2026-03-02T11:55:00Z".into(),
            socket: "/run/bangerd.sock".into(),
            state_dir: "/state".into(),
            vms: 2,
            running: 1,
            operations: 1,
            streams: 2,
            warnings: vec!["the database was damaged, and is kept as `banger.db.damaged-1`".into()],
        };
        let now = "2026-03-02T12:00:00Z".parse().unwrap();
        insta::assert_snapshot!(daemon_text(&status, now), @r"
        version  0.1.0
        pid      42
        node     workstation
        started  2026-03-02T11:55:00Z (5 min ago)
        socket   /run/bangerd.sock
        state    /state
        VMs      2, 1 running
        at work  1 operation, 2 open streams
        warning  the database was damaged, and is kept as `banger.db.damaged-1`
        ");
    }

    #[test]
    fn images_line_up() {
        let image = Image {
            id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            name: "debian-bookworm-slim".parse().unwrap(),
            digest: "sha256:00".into(),
            source: "recipe".into(),
            distro: "debian 12".into(),
            arch: "x86_64".into(),
            created_at: "2026-03-02T11:55:00Z".into(),
            size: ByteSize::from_mib(261),
            kernel: "generic-6.12".parse().unwrap(),
            reference: None,
            env: [("LANG".to_owned(), "C.UTF-8".to_owned())].into(),
            user: Some("1000:1000".into()),
            workdir: Some("/srv".into()),
            entrypoint: vec!["/bin/server".into()],
            cmd: vec!["--port".into(), "80".into()],
            labels: [("org.example".to_owned(), "x".to_owned())].into(),
            managed: true,
            rootfs: None,
            problem: None,
        };
        let now = "2026-03-02T12:00:00Z".parse().unwrap();
        insta::assert_snapshot!(image_table(std::slice::from_ref(&image), now), @r"
        NAME                  ID            DISTRO     KERNEL        SIZE  SOURCE  CREATED
        debian-bookworm-slim  0123456789ab  debian 12  generic-6.12  261M  recipe  5 min ago
        ");
        insta::assert_snapshot!(image_text(&image, now), @r"
        name         debian-bookworm-slim
        id           0123456789abcdef0123456789abcdef
        digest       sha256:00
        source       recipe
        distro       debian 12
        arch         x86_64
        kernel       generic-6.12
        size         261M
        created      2026-03-02T11:55:00Z (5 min ago)
        user         1000:1000
        workdir      /srv
        entrypoint   /bin/server
        cmd          --port 80
        env          LANG=C.UTF-8
        label        org.example=x
        ");
    }
}
