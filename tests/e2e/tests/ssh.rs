//! The ordinary ssh programs reach a VM through banger, whatever the image serves itself.

use std::path::PathBuf;
use std::process::Command;

use banger_e2e::{Home, Invocation};

/// What any ssh program needs to reach a VM, without any of the user's own settings.
struct Ssh<'a> {
    home: &'a Home,
    options: Vec<String>,
    alias: String,
}

impl<'a> Ssh<'a> {
    fn to(home: &'a Home, vm: &str) -> Self {
        let shown = home.banger(["vm", "show", vm, "--json"]).run().json();
        let target = home.get(&format!("/v1/vms/{vm}/ssh-target"));
        let field = |name: &str| target[name].as_str().expect("it is a text").to_owned();
        let proxy = home.programs().join("banger");
        let id = shown["id"].as_str().expect("a VM has an id");
        let options = [
            format!("ProxyCommand={} ssh-proxy {id}", proxy.display()),
            format!("IdentityFile={}", field("identity_file")),
            format!("UserKnownHostsFile={}", field("known_hosts_file")),
            format!("HostKeyAlias={}", field("name")),
            format!("User={}", field("user")),
            "IdentitiesOnly=yes".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "BatchMode=yes".to_owned(),
        ];
        Self {
            home,
            options: options.to_vec(),
            alias: field("name"),
        }
    }

    fn program(&self, program: &str, arguments: &[&str]) -> Invocation {
        let mut command: Command = self.home.command(program);
        command.args(["-F", "none"]);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.args(arguments);
        Invocation::new(command)
    }

    fn run(&self, command: &str) -> Invocation {
        self.program("ssh", &[&self.alias, command])
    }
}

#[test]
fn ssh_works_before_systemd_is_up_and_after() {
    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "early"])
        .run()
        .exited_with(0);
    let ssh = Ssh::to(&home, "early");
    let uptime = ssh.run("cut -d ' ' -f 1 /proc/uptime").run().text();
    let uptime: f64 = uptime.parse().unwrap();

    // Its bus is not there at first, and its exit status tells whether units failed, which
    // is not the question here.
    let wait = "until systemctl is-system-running --wait 2>&1 | grep -qE '^(running|degraded)'; \
                do sleep 0.2; done";
    ssh.run(wait).run().exited_with(0);
    let finished = ssh
        .run("systemctl show --property=FinishTimestampMonotonic --value")
        .run()
        .text();
    let finished: f64 = finished.parse().unwrap();
    assert!(
        uptime < finished / 1e6,
        "ssh answered at {uptime} s, systemd was done at {finished} us"
    );
    home.banger(["vm", "delete", "early"]).run().exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn ssh_scp_and_sftp_carry_statuses_and_files() {
    let Some(home) = Home::new() else { return };
    home.banger(["vm", "create", "--name", "reach"])
        .run()
        .exited_with(0);
    let ssh = Ssh::to(&home, "reach");
    ssh.run("exit 11").run().exited_with(11);
    let output = ssh
        .run("cat; echo err >&2")
        .stdin("in")
        .run()
        .exited_with(0);
    assert_eq!(output.stdout, b"in");
    assert!(output.stderr.contains("err"), "{output:?}");

    let file = |name: &str| -> PathBuf { home.path().join("home").join(name) };
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(file("sent"), &content).unwrap();
    home.hand_over();
    let remote = format!("{}:/root/through-scp", ssh.alias);
    let sent = file("sent").display().to_string();
    let came = file("came").display().to_string();
    ssh.program("scp", &[&sent, &remote]).run().exited_with(0);
    ssh.program("scp", &[&remote, &came]).run().exited_with(0);
    assert!(
        std::fs::read(file("came")).unwrap() == content,
        "scp changed the file"
    );

    let came = file("came-by-sftp").display().to_string();
    let batch = format!(
        "put {sent} /root/through-sftp\nrename /root/through-sftp /root/renamed\n\
         get /root/renamed {came}\nrm /root/renamed\nls /root\n"
    );
    let listed = ssh
        .program("sftp", &["-b", "-", &ssh.alias])
        .stdin(batch)
        .run()
        .text();
    assert!(
        listed.contains("through-scp") && !listed.contains("\n/root/renamed\n"),
        "{listed}"
    );
    assert!(
        std::fs::read(file("came-by-sftp")).unwrap() == content,
        "sftp changed the file"
    );

    // The same by banger's own word for it.
    home.banger(["vm", "ssh", "reach", "--", "exit 12"])
        .run()
        .exited_with(12);
    home.banger(["vm", "delete", "reach"]).run().exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_key_that_banger_did_not_make_is_refused() {
    let Some(home) = Home::new() else { return };
    home.banger(["vm", "create", "--name", "closed"])
        .run()
        .exited_with(0);
    let mut ssh = Ssh::to(&home, "closed");
    let key = home.path().join("home/stranger");
    let mut keygen = home.command("ssh-keygen");
    keygen
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key);
    Invocation::new(keygen).run().exited_with(0);
    for option in &mut ssh.options {
        if option.starts_with("IdentityFile=") {
            *option = format!("IdentityFile={}", key.display());
        }
    }
    ssh.run("true")
        .run()
        .exited_with(255)
        .says("Permission denied");
    home.banger(["vm", "delete", "closed"]).run().exited_with(0);
}

#[test]
fn vms_are_reached_by_name_once_the_users_config_includes_bangers() {
    let Some(home) = Home::new() else { return };
    home.banger(["ssh-config", "--install"])
        .run()
        .exited_with(0);
    let config = home.path().join("home/.ssh/config");
    let config = config.to_str().expect("the path is text").to_owned();
    // ssh goes by the user's entry in the system, and not by HOME.
    let program = |program: &str, arguments: &[&str]| {
        let mut command = home.command(program);
        command.args(["-F", &config, "-o", "BatchMode=yes"]);
        command.args(arguments);
        Invocation::new(command)
    };
    let create = || {
        home.banger(["vm", "create", "--name", "box"])
            .run()
            .exited_with(0);
    };
    create();
    let said = program("ssh", &["box.vm", "echo hello; exit 9"]).run();
    assert_eq!(said.exited_with(9).stdout, b"hello\n");
    let file = home.path().join("home/file");
    std::fs::write(&file, "carried").expect("the home can be written to");
    home.hand_over();
    let file = file.to_str().expect("the path is text").to_owned();
    program("scp", &[&file, "box.vm:/root/file"])
        .run()
        .exited_with(0);
    assert_eq!(
        program("ssh", &["box.vm", "cat file"]).run().text(),
        "carried"
    );

    // Its key goes by the new name, and not by the old one any more.
    home.banger(["vm", "rename", "box", "case"])
        .run()
        .exited_with(0);
    program("ssh", &["case.vm", "true"]).run().exited_with(0);
    program("ssh", &["box.vm", "true"])
        .run()
        .exited_with(255)
        .says("there is no VM `box`");
    // Another one of the same name is known by its own key.
    create();
    program("ssh", &["box.vm", "true"]).run().exited_with(0);
    home.banger(["vm", "delete", "box", "case"])
        .run()
        .exited_with(0);
    let known = std::fs::read_to_string(home.paths().ssh_known_hosts());
    assert_eq!(known.expect("it is there"), "", "keys go with their VMs");
    home.banger(["ssh-config", "--uninstall"])
        .run()
        .exited_with(0);
    assert!(!std::path::Path::new(&config).exists());
}
