//! Docker in a VM, with the packages that the default image has.

use banger_e2e::{Home, TAG, archive, busybox, has_busybox, system};

#[test]
fn docker_runs_containers_of_an_image_that_was_loaded_from_a_file() {
    let Some(home) = Home::with_vms() else { return };
    if !has_busybox() {
        return;
    }
    let Some(image) = system(&home, "docker") else {
        return;
    };
    let source = format!("docker-archive:{}", image.display());
    home.banger(["image", "pull", &source, "--name", "docker"])
        .run()
        .exited_with(0);
    let container = archive(&home, busybox).display().to_string();
    home.banger(["vm", "create", "--name", "vm", "--image", "docker"])
        .run()
        .exited_with(0);
    let exec = |command: &str| {
        let output = home
            .banger(["vm", "exec", "vm", "--", "sh", "-c", command])
            .run();
        output.exited_with(0).text()
    };
    // A command may be there before the init is.
    let up = "until systemctl is-system-running --wait 2>&1 | grep -qE '^(running|degraded)'; \
              do sleep 0.2; done; systemctl is-active docker";
    assert_eq!(exec(up), "active");
    assert_eq!(exec("docker info --format '{{.Driver}}'"), "overlay2");

    home.banger(["vm", "cp", &container, "vm:/root/made.tar"])
        .run()
        .exited_with(0);
    exec("docker load --input /root/made.tar");
    let run = |options: &str, command: &str| exec(&format!("docker run {options} {TAG} {command}"));
    let inside = run(
        "--rm --hostname inside",
        "sh -c 'cat /proc/sys/kernel/hostname /proc/net/route'",
    );
    assert!(inside.starts_with("inside"), "{inside}");
    assert!(inside.contains("eth0"), "no network: {inside}");
    // A layer of its own over the image's, and a port of it on the guest's own address.
    run(
        "--detach --name server --publish 8080:80",
        "sh -c 'echo served >/page; while true; do nc -l -p 80 </page; done'",
    );
    let get = "exec 3<>/dev/tcp/127.0.0.1/8080; head -n 1 <&3";
    let said = home
        .banger(["vm", "exec", "vm", "--", "bash", "-c", get])
        .run();
    assert_eq!(said.exited_with(0).text(), "served");

    home.banger(["vm", "stop", "vm"]).run().exited_with(0);
    home.banger(["vm", "start", "vm"]).run().exited_with(0);
    assert_eq!(exec(up), "active");
    exec("docker start server");
    assert_eq!(exec("docker exec server cat /page"), "served");
    home.banger(["vm", "delete", "vm"]).run().exited_with(0);
    home.wait_for_no_vm();
}
