//! VMs that nobody uses are stopped, if the config says so.

mod support;

use banger_proto::agent::ExecRequest;
use banger_proto::api::{OperationKind, VmState};
use banger_proto::frame::Frame;
use support::Home;
use tokio::io::AsyncWriteExt as _;

#[tokio::test]
async fn a_vm_that_nobody_uses_is_stopped_and_one_with_an_open_stream_is_not() {
    let home = Home::new();
    let config = home.paths().config_file();
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    std::fs::write(&config, "auto_stop_stale_after = '6s'\n").unwrap();
    let daemon = home.start().await;
    daemon.run("used").await;
    let request = ExecRequest {
        command: vec!["cat".to_owned()],
        stdin: true,
        ..ExecRequest::default()
    };
    let mut stream = daemon.client.exec("used").await.unwrap();
    let start = Frame::Start(Box::new(request)).to_bytes();
    stream.write_all(&start).await.unwrap();
    let used = daemon.client.vm("used").await.unwrap().last_used_at;
    assert!(used.is_some());

    daemon.run("unused").await;
    let unused = daemon.comes_to("unused", VmState::Stopped).await;
    assert_eq!(unused.failure, None);
    let reason = unused.reason.unwrap();
    assert!(reason.starts_with("nobody has used it for "), "{reason}");
    let operations = daemon.client.operations().await.unwrap();
    let stop = operations
        .iter()
        .find(|operation| operation.kind == OperationKind::StopVm);
    assert_eq!(stop.unwrap().reason.as_deref(), Some(reason.as_str()));
    let used = daemon.client.vm("used").await.unwrap();
    assert_eq!(used.state, VmState::Running);
    drop(stream);
    daemon.comes_to("used", VmState::Stopped).await;
    // Those who look at it do not use it.
    let looked_at = daemon.client.vm("used").await.unwrap();
    assert!(looked_at.last_used_at >= used.last_used_at);
    assert_eq!(
        daemon.client.vm("used").await.unwrap().last_used_at,
        looked_at.last_used_at
    );
}
