//! Many clients at once: none waits for another one's VM, and nothing is lost or done twice.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::collections::BTreeSet;

use banger_client::{Client, ClientError};
use banger_proto::api::{CreateVm, KillVm, Operation, OperationState, SetVm, VmState};
use banger_proto::error::ErrorKind;
use banger_proto::id::VmId;
use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use support::{Daemon, Home, refusal, small, soon, succeeded};

const CLIENTS: usize = 50;
const ROUNDS: usize = 3;

fn idle(name: &str) -> CreateVm {
    CreateVm {
        no_start: true,
        ..small(name)
    }
}

/// Waits for the end of an operation over a client of its own.
async fn end(client: &Client, begun: Result<Operation, ClientError>) -> Operation {
    let operation = begun.unwrap();
    let ended = async { client.events(&operation.id).await.unwrap().end().await };
    soon(ended).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_clients_get_just_what_they_asked_for() {
    let home = Home::new();
    let daemon = home.start().await;
    let socket = daemon.client.socket().to_owned();
    let clients = (0..CLIENTS).map(|number| {
        let socket = socket.clone();
        tokio::spawn(async move {
            let client = Client::connect(socket).await.unwrap();
            let mut wins = 0;
            for round in 0..ROUNDS {
                // Every fifth client boots its VMs.
                let own = format!("own-{number}-{round}");
                let vm = match number % 5 {
                    0 => small(&own),
                    _ => idle(&own),
                };
                succeeded(&end(&client, client.create_vm(&vm, None).await).await);
                assert_eq!(client.vm(&own).await.unwrap().name.as_str(), own);
                let seen = client.vms().await.unwrap();
                assert!(seen.iter().any(|vm| vm.name.as_str() == own));

                // All clients want this one; each label is one client's.
                match client
                    .create_vm(&idle(&format!("shared-{round}")), None)
                    .await
                {
                    Ok(operation) => {
                        succeeded(&end(&client, Ok(operation)).await);
                        wins += 1;
                    }
                    Err(error) => {
                        let error = refusal(Err::<(), _>(error));
                        assert!(error.to_string().contains("already a VM"), "{error}");
                    }
                }
                let mut label = SetVm::default();
                label.labels.insert(own.clone(), Some("set".to_owned()));
                loop {
                    match client.set_vm("shared-0", &label).await {
                        Ok(operation) => {
                            succeeded(&end(&client, Ok(operation)).await);
                            break;
                        }
                        // Its winner has not made it yet.
                        Err(ClientError::Api(error))
                            if matches!(error.kind, ErrorKind::Conflict | ErrorKind::NotFound)
                                && !error.to_string().contains("labels") =>
                        {
                            tokio::task::yield_now().await;
                        }
                        Err(ClientError::Api(error)) => {
                            assert!(error.to_string().contains("labels are too many"), "{error}");
                            break;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                if round + 1 < ROUNDS {
                    succeeded(&end(&client, client.delete_vm(&own).await).await);
                    let error = refusal(client.vm(&own).await);
                    assert_eq!(error.kind, ErrorKind::NotFound);
                }
            }
            wins
        })
    });
    let wins: Vec<usize> = join_all(clients)
        .await
        .into_iter()
        .map(|client| client.unwrap())
        .collect();
    assert_eq!(
        wins.iter().sum::<usize>(),
        ROUNDS,
        "each name is given once"
    );

    let vms = daemon.client.vms().await.unwrap();
    let names: BTreeSet<&str> = vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names.len(), CLIENTS + ROUNDS);
    let slots: BTreeSet<u64> = vms.iter().map(|vm| slot(&home, &vm.id)).collect();
    assert_eq!(slots.len(), vms.len(), "each has a slot of its own");
    for vm in &vms {
        let boots = vm.name.as_str().starts_with("own-")
            && vm
                .name
                .as_str()
                .split('-')
                .nth(1)
                .unwrap()
                .parse::<usize>()
                .unwrap()
                % 5
                == 0;
        let state = match boots {
            true => VmState::Running,
            false => VmState::Created,
        };
        assert_eq!(vm.state, state, "{}", vm.name);
    }
    // As many as a VM may have: none was overwritten by another client's.
    let shared = daemon.client.vm("shared-0").await.unwrap();
    assert_eq!(shared.labels.len(), 64);

    let deleted = join_all(names.iter().map(|name| daemon.delete_vm(name))).await;
    deleted.iter().for_each(|operation| succeeded(operation));
    home.assert_clean();
}

#[tokio::test]
async fn a_vm_that_hangs_in_its_start_blocks_no_other() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("other").await;
    daemon.stop().await;
    let daemon = home.start_with_fault("hang:agent:half").await;
    let stuck = daemon.begin(small("stuck")).await.unwrap();
    daemon.reach(&stuck.id, "agent").await;

    assert_eq!(daemon.exec("other", &["true"]).await.code(), 0);
    let more = daemon.begin(idle("more")).await.unwrap();
    succeeded(&daemon.end(&more.id).await);
    succeeded(&daemon.stop_vm("other").await);
    succeeded(&daemon.delete_vm("other").await);
    succeeded(&daemon.delete_vm("more").await);
    let stuck = daemon.client.vm("stuck").await.unwrap();
    assert_eq!(stuck.state, VmState::Starting);
    succeeded(&daemon.delete_vm("stuck").await);
    home.assert_clean();
}

/// What a VM's record says of its slot.
fn slot(home: &Home, vm: &VmId) -> u64 {
    let record = home.paths().vms().join(vm.as_str()).join("vm.json");
    let record = std::fs::read(record).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    record["slot"].as_u64().unwrap()
}

fn freeze(engine: Option<u32>) {
    let pid = Pid::from_raw(engine.unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
}

#[tokio::test]
async fn a_guest_that_is_frozen_blocks_no_other_and_is_killed_at_once() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("frozen").await;
    daemon.run("other").await;
    freeze(daemon.client.vm("frozen").await.unwrap().pid);
    let rename = SetVm {
        name: Some("cold".parse().unwrap()),
        ..SetVm::default()
    };
    // The guest is to learn its name and does not answer; what it is called is decided.
    let renaming = daemon.client.set_vm("frozen", &rename).await.unwrap();
    let stopping = daemon.client.stop_vm("cold").await.unwrap();
    let error = daemon.end(&renaming.id).await.error.unwrap();
    assert!(
        error.to_string().contains("its guest does not know yet"),
        "{error}"
    );

    assert_eq!(daemon.exec("other", &["true"]).await.code(), 0);
    succeeded(&daemon.stop_vm("other").await);
    succeeded(&daemon.start_vm("other").await);
    assert_eq!(
        daemon.client.vm("cold").await.unwrap().state,
        VmState::Stopping
    );

    let killing = daemon
        .client
        .kill_vm("cold", &KillVm::default())
        .await
        .unwrap();
    succeeded(&daemon.end(&killing.id).await);
    succeeded(&daemon.end(&stopping.id).await);
    assert_eq!(
        daemon.client.vm("cold").await.unwrap().state,
        VmState::Stopped
    );
}

#[tokio::test]
async fn of_many_who_start_and_stop_one_vm_each_is_told_the_truth() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    for _ in 0..5 {
        let stops = join_all((0..20).map(|_| daemon.client.stop_vm("a"))).await;
        for stop in stops {
            match stop {
                Ok(operation) => succeeded(&daemon.end(&operation.id).await),
                Err(error) => {
                    let error = refusal(Err::<(), _>(error));
                    assert!(error.to_string().contains("not running"), "{error}");
                }
            }
        }
        let starts = join_all((0..20).map(|_| daemon.client.start_vm("a"))).await;
        let mut began = 0;
        for start in starts {
            match start {
                Ok(operation) => {
                    let operation = daemon.end(&operation.id).await;
                    assert_eq!(operation.state, OperationState::Succeeded);
                    began += 1;
                }
                Err(error) => assert_eq!(refusal(Err::<(), _>(error)).kind, ErrorKind::Conflict),
            }
        }
        assert_eq!(began, 1);
        assert_eq!(running(&daemon).await, ["a"]);
    }
}

async fn running(daemon: &Daemon) -> Vec<String> {
    let vms = daemon.client.vms().await.unwrap();
    vms.into_iter()
        .filter(|vm| vm.state == VmState::Running)
        .map(|vm| vm.name.to_string())
        .collect()
}
