//! Whether what the config file says can be had on this host: `banger config check`. Reading
//! the file refuses what makes no sense anywhere; this looks at the host.

use std::ops::Range;
use std::path::Path;

use banger_proto::size::ByteSize;
use toml::de::DeTable;

use crate::bounds::{DISK_MAX, DISK_MIN, MEMORY_MIN};
use crate::defaults::HostResources;
use crate::file::{Config, ConfigError, line_of};

/// What is wrong with the values of a config file that was read from `text`, in the order of
/// its lines.
pub fn judge(path: &Path, text: &str, config: &Config, host: HostResources) -> Vec<ConfigError> {
    let Ok(table) = DeTable::parse(text) else {
        return Vec::new();
    };
    let table = table.get_ref();
    let mut found: Vec<(&str, String)> = Vec::new();
    for (key, program) in [
        ("firecracker_bin", &config.firecracker_bin),
        ("qemu_bin", &config.qemu_bin),
    ] {
        let problem = program.as_deref().and_then(program_problem);
        found.extend(problem.map(|problem| (key, problem)));
    }
    if let Some(key) = &config.ssh_key_path {
        let missing = !key.is_file();
        let problem = || format!("there is no file `{}`", key.display());
        found.extend(missing.then(|| ("ssh_key_path", problem())));
    }
    if let Some(mirror) = &config.debian_mirror {
        found.extend(mirror_problem(mirror).map(|problem| ("debian_mirror", problem)));
    }
    let defaults = &config.vm_defaults;
    if let Some(vcpu) = defaults.vcpu.filter(|vcpu| !(1..=host.cpus).contains(vcpu)) {
        let cpus = host.cpus;
        let problem = format!("{vcpu} CPUs are not to be had: write 1 to {cpus}, as this host has");
        found.push(("vm_defaults.vcpu", problem));
    }
    if let Some(memory) = defaults.memory {
        found.extend(memory_problem(memory, host).map(|problem| ("vm_defaults.memory", problem)));
    }
    for (key, size) in [
        ("vm_defaults.disk_size", defaults.disk_size),
        ("vm_defaults.system_size", defaults.system_size),
    ] {
        found.extend(size.and_then(disk_problem).map(|problem| (key, problem)));
    }
    let mut errors: Vec<ConfigError> = found
        .into_iter()
        .map(|(key, problem)| ConfigError::Value {
            path: path.to_owned(),
            line: line_of(text, span_of(table, key)),
            message: format!("{key}: {problem}"),
        })
        .collect();
    errors.sort_by_key(|error| match error {
        ConfigError::Value { line, .. } | ConfigError::UnknownKey { line, .. } => *line,
        ConfigError::Read { .. } => 0,
    });
    errors
}

fn program_problem(program: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    match program.metadata() {
        Ok(metadata) if !metadata.is_file() => {
            Some(format!("`{}` is no program", program.display()))
        }
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => {
            Some(format!("`{}` cannot be executed", program.display()))
        }
        Ok(_) => None,
        Err(error) => Some(format!("`{}` cannot be used: {error}", program.display())),
    }
}

/// Debian's archive is fetched by HTTP: `http://host/path` or `https://host/path`.
fn mirror_problem(mirror: &str) -> Option<String> {
    let rest = mirror
        .strip_prefix("http://")
        .or_else(|| mirror.strip_prefix("https://"));
    let host = rest.map(|rest| rest.split('/').next().unwrap_or_default());
    let plain = !mirror.contains(|letter: char| letter.is_whitespace() || letter.is_control());
    match host {
        Some(host) if !host.is_empty() && plain => None,
        _ => Some(format!(
            "`{mirror}` is not a mirror's URL: write for example http://ftp.debian.org/debian"
        )),
    }
}

fn memory_problem(memory: ByteSize, host: HostResources) -> Option<String> {
    if memory < MEMORY_MIN {
        return Some(format!("{memory} is too little: the least is {MEMORY_MIN}"));
    }
    (memory > host.memory).then(|| {
        let most = ByteSize::from_mib(host.memory.mib());
        format!("{memory} is not to be had: this host has {most}")
    })
}

fn disk_problem(size: ByteSize) -> Option<String> {
    if size < DISK_MIN {
        return Some(format!("{size} is too small: the least is {DISK_MIN}"));
    }
    (size > DISK_MAX).then(|| format!("{size} is too large: the most is {DISK_MAX}"))
}

/// Where the value of a key stands.
fn span_of(table: &DeTable<'_>, key: &str) -> Option<Range<usize>> {
    match key.split_once('.') {
        None => table.get(key).map(toml::Spanned::span),
        Some((outer, inner)) => span_of(table.get(outer)?.get_ref().as_table()?, inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostResources = HostResources {
        cpus: 8,
        memory: ByteSize::from_gib(16),
    };

    fn problems(text: &str) -> Vec<String> {
        let path = Path::new("config.toml");
        let config = Config::parse(path, text).unwrap();
        let found = judge(path, text, &config, HOST);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_this_host_cannot_have_is_named_with_its_line() {
        let text = "qemu_bin = '/no/such/qemu'\nssh_key_path = '/no/key'\n\n\
                    debian_mirror = 'ftp.debian.org'\n[vm_defaults]\nvcpu = 0\n\
                    memory = '64M'\ndisk_size = 1\nsystem_size = '1P'\n";
        insta::assert_snapshot!(problems(text).join("\n"));
    }

    #[test]
    fn more_than_the_host_has_is_too_much() {
        let found = problems("vm_defaults.vcpu = 9\nvm_defaults.memory = '17G'\n");
        insta::assert_snapshot!(found.join("\n"));
    }

    #[test]
    fn a_program_must_be_one() {
        assert_eq!(problems("qemu_bin = '/bin/sh'\n"), Vec::<String>::new());
        assert!(problems("qemu_bin = '/etc/passwd'\n")[0].contains("cannot be executed"));
        assert!(problems("qemu_bin = '/'\n")[0].contains("is no program"));
    }

    #[test]
    fn an_ordinary_file_has_no_problems() {
        let text = "debian_mirror = 'https://deb.debian.org/debian'\n\
                    [vm_defaults]\nvcpu = 8\nmemory = '16G'\ndisk_size = '64M'\n";
        assert_eq!(problems(text), Vec::<String>::new());
        assert_eq!(problems(""), Vec::<String>::new());
    }
}
