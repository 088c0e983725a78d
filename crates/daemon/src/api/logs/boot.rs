//! The boot log: stages of a VM's starts with their times, of the last start or as they come.

use std::collections::VecDeque;

use axum::body::Body;
use axum::response::Response;
use banger_proto::api::{Happened, OperationEvent, OperationKind, OperationState, StageTime};
use banger_proto::id::{OperationId, VmId};
use bytes::Bytes;
use futures_util::stream::unfold;

use super::last_lines;
use crate::api::Api;
use crate::api::exchange::text;
use crate::events::Follower as Events;
use crate::operations::{Follower, Operations};
use crate::vm::task::Handle;

/// Stages, one a line.
pub(super) fn lines(stages: &[StageTime]) -> String {
    stages.iter().map(line).collect()
}

fn line(time: &StageTime) -> String {
    let failed = if time.failed { "  failed" } else { "" };
    format!(
        "{:>9.1} ms  {:<10} {:>9.1} ms{failed}\n",
        time.begin_ms, time.stage, time.took_ms
    )
}

/// The stages of the last start, or of the one that goes on, and then of every start that
/// comes, until the VM is gone.
pub(super) fn follow(api: &Api, vm: Handle, tail: Option<u64>) -> Response {
    let host = api.fleet.host();
    let id = vm.id();
    // Before the look at what goes on, so that no start falls between the two.
    let events = host.events.follow_new();
    let going = going_start(&host.operations, &id);
    let first = match going {
        Some(_) => Bytes::new(),
        None => last_lines(
            lines(&vm.look(|status| status.row.stages.clone())).into(),
            tail,
        ),
    };
    let starts = Starts {
        operations: host.operations.clone(),
        start: going.as_ref().and_then(|id| host.operations.follow(id)),
        followed: going,
        events,
        vm: id,
    };
    let pieces = unfold(
        (VecDeque::from([first]), starts, vm),
        async |(mut ready, mut starts, vm)| {
            loop {
                match ready.pop_front() {
                    Some(piece) if piece.is_empty() => {}
                    Some(piece) => {
                        return Some((Ok::<_, std::io::Error>(piece), (ready, starts, vm)));
                    }
                    None => tokio::select! {
                        time = starts.next() => ready.push_back(line(&time?).into()),
                        () = vm.gone() => return None,
                    },
                }
            }
        },
    );
    text(Body::from_stream(pieces))
}

/// Follows one start after the other.
struct Starts {
    operations: Operations,
    events: Events,
    vm: VmId,
    /// The one that goes on.
    start: Option<Follower>,
    /// The one that was followed last.
    followed: Option<OperationId>,
}

impl Starts {
    /// The next stage that has ended; `None` when the daemon ends. Cancel-safe.
    async fn next(&mut self) -> Option<StageTime> {
        loop {
            if let Some(start) = &mut self.start {
                match start.next().await {
                    Some(OperationEvent::StageDone(time)) => return Some(time),
                    Some(_) => {}
                    None => self.start = None,
                }
                continue;
            }
            if let Happened::Operation {
                operation,
                kind,
                state: OperationState::Running,
                vm: Some(vm),
                ..
            } = self.events.next().await?.what
                && starts(kind)
                && vm == self.vm
                && self.followed.as_ref() != Some(&operation)
            {
                self.start = self.operations.follow(&operation);
                self.followed = Some(operation);
            }
        }
    }
}

fn going_start(operations: &Operations, vm: &VmId) -> Option<OperationId> {
    let going = operations.list().into_iter().rev().find(|operation| {
        starts(operation.kind)
            && operation.state == OperationState::Running
            && operation.vm.as_ref() == Some(vm)
    });
    Some(going?.id)
}

fn starts(kind: OperationKind) -> bool {
    matches!(
        kind,
        OperationKind::CreateVm | OperationKind::StartVm | OperationKind::RestartVm
    )
}
