//! The crash test: several clients work on several VMs while the daemon is killed, at random
//! moments and between a stage's own system calls. After each restart every VM is in a state
//! that its history allows and is what was asked for or what it was before, what was synced is there, row,
//! record, disk and tap agree, and nothing on the host is without owner.
//!
//! Each VM has one client, so that its history is a line, and each request's outcome says which
//! states it may have led to; of a request whose answer died with the daemon it may be any.
//! `cargo xtask crash` runs it for longer and with real VMs. The seed decides what is done; when
//! it meets the kill is for the scheduler to say.

#![expect(clippy::unwrap_used, reason = "these are tests")]
#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use banger_client::{Client, ClientError};
use banger_config::Config;
use banger_daemon::leaks;
use banger_proto::agent::ExecRequest;
use banger_proto::api::{
    CreateVm, EngineKind, KillVm, Operation, OperationState, SetVm, Vm, VmState,
};
use banger_proto::doctor::ThingKind;
use banger_proto::exit::ExitStatus;
use banger_proto::frame::Frame;
use banger_proto::size::ByteSize;
use bytes::BytesMut;
use support::{Daemon, Home, small};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How many rounds CI runs.
const ROUNDS: u32 = 100;
/// Points at which a daemon can be killed, as `BANGER_FAULT` names them.
const POINTS: [&str; 11] = [
    "image",
    "directory",
    "disks",
    "network",
    "engine",
    "agent",
    "record",
    "handles",
    "row",
    "release",
    "files",
];
/// Bytes that a mark takes on a fake VM's disk.
const MARK_SIZE: u64 = 16;

/// What the runs differ in.
struct Setting {
    rounds: u32,
    seed: u64,
    engine: EngineKind,
    /// How many VMs, each with a client of its own.
    vms: u64,
    /// Longest time from the clients' start to the kill.
    longest: Duration,
    /// Longest time for which a client leaves a running VM alone. Where a start takes long, the
    /// kills would else meet nothing but starts.
    linger: Duration,
    /// How long a VM may take to come to rest or to run.
    patience: Duration,
}

impl Setting {
    fn from_env() -> Self {
        let number = |name: &str| -> Option<u64> {
            let text = std::env::var(name).ok()?;
            Some(
                text.parse()
                    .unwrap_or_else(|_| panic!("{name}={text} is no number")),
            )
        };
        let rounds = number("BANGER_CRASH_ROUNDS").unwrap_or(ROUNDS.into());
        let seed = number("BANGER_CRASH_SEED").unwrap_or_else(|| {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes).unwrap();
            u32::from_ne_bytes(bytes).into()
        });
        let rounds = rounds.try_into().unwrap();
        match std::env::var("BANGER_CRASH_ENGINE").as_deref() {
            Err(_) | Ok("fake") => Self {
                rounds,
                seed,
                engine: EngineKind::Fake,
                vms: 3,
                longest: Duration::from_millis(1500),
                linger: Duration::ZERO,
                patience: Duration::from_secs(60),
            },
            Ok("qemu") => Self {
                rounds,
                seed,
                engine: EngineKind::Qemu,
                vms: 2,
                longest: Duration::from_secs(90),
                linger: Duration::from_secs(20),
                patience: Duration::from_secs(240),
            },
            Ok(other) => panic!("BANGER_CRASH_ENGINE={other} is neither fake nor qemu"),
        }
    }
}

/// Random numbers that a seed repeats (SplitMix64, by Steele, Lea and Flood).
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

/// A state that lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rest {
    Absent,
    Created,
    Running,
    Paused,
    Stopped,
    Failed,
}

impl Rest {
    /// `None`: it does not last.
    fn of(state: VmState) -> Option<Self> {
        match state {
            VmState::Created => Some(Self::Created),
            VmState::Running => Some(Self::Running),
            VmState::Paused => Some(Self::Paused),
            VmState::Stopped => Some(Self::Stopped),
            VmState::Failed => Some(Self::Failed),
            VmState::Starting | VmState::Stopping => None,
        }
    }
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Create,
    CreateOnly,
    Start,
    Stop,
    Restart,
    Kill,
    Pause,
    Resume,
    Set,
    Delete,
    Mark,
    List,
}

impl Act {
    const OF_ABSENT: [Self; 4] = [Self::Create, Self::Create, Self::CreateOnly, Self::List];
    const OF_PRESENT: [Self; 14] = [
        Self::Start,
        Self::Start,
        Self::Start,
        Self::Stop,
        Self::Stop,
        Self::Restart,
        Self::Kill,
        Self::Pause,
        Self::Resume,
        Self::Set,
        Self::Delete,
        Self::Mark,
        Self::Mark,
        Self::List,
    ];

    /// Where it leads to when it succeeds, from `from`.
    fn success(self, from: Rest) -> Rest {
        match self {
            Self::Create | Self::Start | Self::Restart | Self::Resume => Rest::Running,
            Self::Pause => Rest::Paused,
            Self::CreateOnly => Rest::Created,
            Self::Stop | Self::Kill => Rest::Stopped,
            Self::Delete => Rest::Absent,
            Self::Set | Self::Mark | Self::List => from,
        }
    }

    /// Where it may have led to when it did not succeed, from `from`.
    fn failure(self, from: Rest) -> Vec<Rest> {
        match self {
            Self::Create | Self::CreateOnly => vec![Rest::Absent],
            Self::Start => vec![from, Rest::Failed],
            // A paused VM goes on before it shuts down.
            Self::Stop => vec![from, Rest::Running, Rest::Stopped],
            Self::Restart => vec![from, Rest::Running, Rest::Stopped, Rest::Failed],
            Self::Kill => vec![from, Rest::Stopped],
            Self::Pause | Self::Resume => vec![Rest::Running, Rest::Paused],
            Self::Delete => vec![from, Rest::Absent],
            Self::Set | Self::Mark | Self::List => vec![from],
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Succeeded,
    /// The daemon said that it failed.
    Failed,
    /// It was refused, and nothing has changed.
    Refused,
    /// The daemon died first.
    Unknown,
}

/// What of a VM a client changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Nature {
    name: String,
    disk: ByteSize,
    nat: bool,
    touched: Option<String>,
}

impl Nature {
    /// That of a VM as it is created.
    fn new(name: &str, engine: EngineKind) -> Self {
        let vm = new_vm(name, engine, true);
        Self {
            name: name.to_owned(),
            disk: vm.disk_size.unwrap(),
            nat: vm.nat.unwrap(),
            touched: None,
        }
    }

    fn of(vm: &Vm) -> Self {
        Self {
            name: vm.name.to_string(),
            disk: vm.disk_size,
            nat: vm.nat,
            touched: vm.labels.get("touched").cloned(),
        }
    }

    /// A change of some of it, which is made as a whole or not at all.
    fn change(&self, names: &[String; 2], dice: &mut Dice) -> (SetVm, Self) {
        let mut new = self.clone();
        let [renamed, grown, switched] = [dice.below(3), dice.below(3), dice.below(3)];
        if renamed == 0 {
            new.name = names
                .iter()
                .find(|name| **name != self.name)
                .unwrap()
                .clone();
        }
        if grown == 0 {
            new.disk = ByteSize::from_mib(self.disk.mib() + 1 + dice.below(8));
        }
        if switched == 0 {
            new.nat = !self.nat;
        }
        new.touched = Some(dice.roll().to_string());
        let change = SetVm {
            name: (renamed == 0).then(|| new.name.parse().unwrap()),
            disk_size: (grown == 0).then_some(new.disk),
            nat: (switched == 0).then_some(new.nat),
            labels: [("touched".to_owned(), new.touched.clone())].into(),
            ..SetVm::default()
        };
        (change, new)
    }
}

/// What was done to a VM, what it may be in, and what it may be.
struct History {
    /// What it is created as.
    name: String,
    engine: EngineKind,
    may: BTreeSet<Rest>,
    natures: BTreeSet<Nature>,
    /// Marks that were synced since the VM was created.
    marks: Vec<u64>,
    next_mark: u64,
    told: String,
}

impl History {
    fn new(name: String, engine: EngineKind) -> Self {
        Self {
            natures: [Nature::new(&name, engine)].into(),
            name,
            engine,
            may: [Rest::Absent].into(),
            marks: Vec::new(),
            next_mark: 0,
            told: String::new(),
        }
    }

    fn learn(&mut self, act: Act, end: End) {
        writeln!(self.told, "  {act:?}: {end:?}").unwrap();
        let before = std::mem::take(&mut self.may);
        for from in before {
            match end {
                End::Succeeded => drop(self.may.insert(act.success(from))),
                End::Refused => drop(self.may.insert(from)),
                End::Failed => self.may.extend(act.failure(from)),
                End::Unknown => {
                    self.may.insert(from);
                    self.may.insert(act.success(from));
                    self.may.extend(act.failure(from));
                }
            }
        }
        if act == Act::Delete && end == End::Succeeded {
            self.begin_anew();
        }
    }

    fn begin_anew(&mut self) {
        self.marks.clear();
        self.natures = [Nature::new(&self.name, self.engine)].into();
    }

    /// The names that the VM takes turns with.
    fn names(&self) -> [String; 2] {
        [self.name.clone(), format!("{}-renamed", self.name)]
    }

    /// What it is. Its client has gone when it may be one thing or another.
    fn nature(&self) -> &Nature {
        assert_eq!(self.natures.len(), 1, "{:?}", self.natures);
        self.natures.first().unwrap()
    }

    fn learn_change(&mut self, new: Nature, end: End) {
        writeln!(self.told, "  {new:?}").unwrap();
        match end {
            End::Succeeded => self.natures = [new].into(),
            End::Refused => {}
            End::Failed | End::Unknown => drop(self.natures.insert(new)),
        }
        self.learn(Act::Set, end);
    }

    #[track_caller]
    fn settle(&mut self, vm: Option<&Vm>) {
        let found = vm.map_or(Rest::Absent, |vm| {
            Rest::of(vm.state).expect("it is at rest")
        });
        assert!(
            self.may.contains(&found),
            "VM {} is {found:?} and may be {:?} after:\n{}",
            self.name,
            self.may,
            self.told
        );
        writeln!(self.told, "-- found {found:?}").unwrap();
        self.may = [found].into();
        match vm.map(Nature::of) {
            None => {
                self.begin_anew();
                self.told.clear();
            }
            Some(nature) => {
                assert!(
                    self.natures.contains(&nature),
                    "{nature:?} is none of {:?} after:\n{}",
                    self.natures,
                    self.told
                );
                self.natures = [nature].into();
            }
        }
    }

    /// The only state it can be in, where that is known.
    fn known(&self) -> Option<Rest> {
        match self.may.len() {
            1 => self.may.first().copied(),
            _ => None,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_the_daemon_is_killed_nothing_is_lost_and_nothing_left() {
    let setting = Setting::from_env();
    let store = std::env::var_os("BANGER_TEST_ARTIFACTS");
    if setting.engine == EngineKind::Qemu && store.is_none() {
        eprintln!("skipped: real VMs need BANGER_TEST_ARTIFACTS");
        return;
    }
    println!(
        "seed {}, {} rounds, {}",
        setting.seed, setting.rounds, setting.engine
    );
    let home = Home::new();
    if let Some(store) = store.filter(|_| setting.engine == EngineKind::Qemu) {
        home.take_store(store.as_ref());
    }
    let mut dice = Dice(setting.seed);
    let mut histories: Vec<History> = (0..setting.vms)
        .map(|number| History::new(format!("vm-{number}"), setting.engine))
        .collect();
    let mut daemon = home.start().await;
    let mut met: BTreeMap<Rest, u32> = BTreeMap::new();
    for round in 1..=setting.rounds {
        // A third of the daemons die by a fault, which is planted before they start.
        let fault = (dice.below(3) == 0).then(|| {
            let point = dice.one_of(&POINTS);
            let moment = dice.one_of(&["before", "half"]);
            format!("kill:{point}:{moment}:{}", 1 + dice.below(8))
        });
        println!("round {round}: {}", fault.as_deref().unwrap_or("kill"));
        if let Some(fault) = &fault {
            daemon.stop().await;
            match home.try_start_with_fault(fault).await {
                Some(started) => daemon = started,
                // It died of the fault before it served anything.
                None => {
                    daemon = home.start().await;
                    check(&home, &daemon, &mut histories, &setting, round).await;
                    continue;
                }
            }
        }
        let enough = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = histories
            .into_iter()
            .map(|history| {
                let client = daemon.client.clone();
                let (dice, enough) = (Dice(dice.roll()), Arc::clone(&enough));
                let disk = disk_of(&home);
                let linger = setting.linger;
                tokio::spawn(async move { work(client, history, dice, linger, disk, enough).await })
            })
            .collect();
        let longest = u64::try_from(setting.longest.as_millis()).unwrap();
        // A third of the kills meet what has just begun.
        let longest = dice.one_of(&[longest, longest, longest / 8]);
        let moment = Duration::from_millis(dice.below(longest));
        // A fault that no client has met by then is not met in this round.
        daemon.kill_after(moment, fault.is_some()).await;
        enough.store(true, Ordering::Relaxed);
        histories = Vec::new();
        for client in clients {
            histories.push(client.await.unwrap());
        }
        daemon = home.start().await;
        check(&home, &daemon, &mut histories, &setting, round).await;
        for history in &histories {
            let found = history.known().expect("it was looked at");
            *met.entry(found).or_default() += 1;
        }
    }
    println!("states after the kills: {met:?}");
    // All that was synced is there, also on VMs that are down, and can be used.
    for history in &mut histories {
        if history.known() != Some(Rest::Absent) {
            finish(&home, &daemon, history, &setting).await;
        }
    }
    let left = leaks::inventory(&home.paths(), &Config::default()).await;
    assert_eq!(left.leaks().count(), 0, "{}", leaks::render(&left));
    home.assert_clean();
    daemon.stop().await;
}

/// Does random things to one VM until the daemon dies or enough was done.
async fn work(
    client: Client,
    mut history: History,
    mut dice: Dice,
    linger: Duration,
    disk: impl Fn(&str) -> String,
    enough: Arc<AtomicBool>,
) -> History {
    while !enough.load(Ordering::Relaxed) {
        let act = match history.known() {
            Some(Rest::Absent) => dice.one_of(&Act::OF_ABSENT),
            _ => dice.one_of(&Act::OF_PRESENT),
        };
        let (name, engine) = (history.nature().name.clone(), history.engine);
        let end = match act {
            Act::Mark => {
                let mark = history.next_mark;
                history.next_mark += 1;
                let end = write_mark(&client, &name, mark, engine, &disk).await;
                if end == End::Succeeded {
                    history.marks.push(mark);
                }
                history.learn(act, end);
                end
            }
            Act::Set => {
                let (change, new) = history.nature().change(&history.names(), &mut dice);
                let end = end_of_begun(&client, client.set_vm(&name, &change).await).await;
                history.learn_change(new, end);
                end
            }
            _ => {
                let end = ask(&client, &name, act, engine).await;
                history.learn(act, end);
                end
            }
        };
        // After a change that failed it may have one name or the other.
        if end == End::Unknown || (act, end) == (Act::Set, End::Failed) {
            break;
        }
        if !linger.is_zero() && history.known() == Some(Rest::Running) {
            let longest = u64::try_from(linger.as_millis()).unwrap();
            tokio::time::sleep(Duration::from_millis(dice.below(longest))).await;
        }
    }
    history
}

async fn ask(client: &Client, name: &str, act: Act, engine: EngineKind) -> End {
    let begun = match act {
        Act::Create | Act::CreateOnly => {
            let vm = new_vm(name, engine, act == Act::CreateOnly);
            client.create_vm(&vm, None).await
        }
        Act::Start => client.start_vm(name).await,
        Act::Stop => client.stop_vm(name).await,
        Act::Restart => client.restart_vm(name).await,
        Act::Kill => client.kill_vm(name, &KillVm::default()).await,
        Act::Pause => client.pause_vm(name).await,
        Act::Resume => client.resume_vm(name).await,
        Act::Delete => client.delete_vm(name).await,
        Act::List => return end_of(client.vms().await.map(drop)),
        Act::Mark | Act::Set => unreachable!("they take more than a name"),
    };
    end_of_begun(client, begun).await
}

async fn end_of_begun(client: &Client, begun: Result<Operation, ClientError>) -> End {
    let operation = match begun {
        Ok(operation) => operation,
        Err(error) => return end_of(Err(error)),
    };
    match follow(client, &operation).await {
        Some(operation) if operation.state == OperationState::Succeeded => End::Succeeded,
        Some(_) => End::Failed,
        None => End::Unknown,
    }
}

fn end_of(result: Result<(), ClientError>) -> End {
    match result {
        Ok(()) => End::Succeeded,
        Err(ClientError::Api(_)) => End::Refused,
        Err(_) => End::Unknown,
    }
}

/// `None`: the daemon died before it was over.
async fn follow(client: &Client, operation: &Operation) -> Option<Operation> {
    client.events(&operation.id).await.ok()?.end().await.ok()
}

fn new_vm(name: &str, engine: EngineKind, no_start: bool) -> CreateVm {
    let vm = CreateVm {
        engine: Some(engine),
        no_start,
        nat: Some(true),
        ..small(name)
    };
    match engine {
        EngineKind::Fake => vm,
        _ => CreateVm {
            image: Some("debian-bookworm-slim".parse().unwrap()),
            memory: Some(ByteSize::from_mib(384)),
            disk_size: Some(ByteSize::from_mib(256)),
            system_size: Some(ByteSize::from_mib(256)),
            ..vm
        },
    }
}

/// Where the disk of a VM with this id is.
fn disk_of(home: &Home) -> impl Fn(&str) -> String + use<> {
    let vms = home.paths().vms();
    move |id| vms.join(id).join("work.ext4").display().to_string()
}

/// Has the guest write a mark and sync it. The fake guest has no disk of its own, so it writes
/// to the VM's.
async fn write_mark(
    client: &Client,
    name: &str,
    mark: u64,
    engine: EngineKind,
    disk: &impl Fn(&str) -> String,
) -> End {
    let vm = match client.vm(name).await {
        Ok(vm) => vm,
        Err(error) => return end_of(Err(error)),
    };
    let script = match engine {
        EngineKind::Fake => {
            "printf '%-15s\\n' \"mark $1\" | dd of=\"$2\" bs=16 seek=\"$1\" conv=notrunc,fsync 2>&-"
        }
        _ => "echo \"mark $1\" >>/root/marks && sync /root/marks",
    };
    let words = [
        "sh",
        "-c",
        script,
        "sh",
        &mark.to_string(),
        &disk(vm.id.as_str()),
    ];
    match run(client, name, &words).await {
        Ok(Some((0, _))) => End::Succeeded,
        // The guest ended before it could tell.
        Ok(_) => End::Refused,
        Err(error) => end_of(Err(error)),
    }
}

/// Runs a command in a VM; `None`: it did not come to an end.
async fn run(
    client: &Client,
    name: &str,
    words: &[&str],
) -> Result<Option<(u8, String)>, ClientError> {
    let mut stream = client.exec(name).await?;
    let request = ExecRequest {
        command: words.iter().map(ToString::to_string).collect(),
        ..ExecRequest::default()
    };
    let begin = Frame::Start(Box::new(request)).to_bytes();
    if stream.write_all(&begin).await.is_err() {
        return Ok(None);
    }
    let (mut buffer, mut output) = (BytesMut::new(), Vec::new());
    loop {
        match stream.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
        while let Ok(Some(frame)) = Frame::decode(&mut buffer) {
            match frame {
                Frame::Stdout(bytes) => output.extend_from_slice(&bytes),
                Frame::Exit(ExitStatus::Code(code)) => {
                    return Ok(Some((code, String::from_utf8_lossy(&output).into_owned())));
                }
                Frame::Exit(_) => return Ok(None),
                _ => {}
            }
        }
    }
}

/// Everything that must hold after a restart.
async fn check(
    home: &Home,
    daemon: &Daemon,
    histories: &mut [History],
    setting: &Setting,
    round: u32,
) {
    for history in histories.iter_mut() {
        let found = settled(daemon, history, setting).await;
        history.settle(found.as_ref());
        if let Some(vm) = found {
            if setting.engine == EngineKind::Fake {
                assert_marks_on_disk(&disk_of(home)(vm.id.as_str()), history);
            }
            let agreed = tokio::time::timeout(setting.patience, agrees(home, &vm)).await;
            if agreed.is_err() {
                let what = differs(home, &vm).await.unwrap_or_default();
                panic!("round {round}: {what} after:\n{}", history.told);
            }
        }
    }
    let names: BTreeSet<String> = daemon
        .client
        .vms()
        .await
        .unwrap()
        .iter()
        .map(|vm| vm.name.to_string())
        .collect();
    let expected: BTreeSet<String> = histories
        .iter()
        .filter(|history| history.known() != Some(Rest::Absent))
        .map(|history| history.nature().name.clone())
        .collect();
    assert_eq!(names, expected, "round {round}");
    let inventory = leaks::inventory(&home.paths(), &Config::default()).await;
    assert!(
        inventory.leaks().next().is_none() && inventory.unseen.is_empty(),
        "seed {}, round {round}: {}",
        setting.seed,
        leaks::render(&inventory)
    );
    let status = daemon.client.daemon_status().await.unwrap();
    assert_eq!(status.warnings, [""; 0], "round {round}");
}

/// The VM in the state that it comes to by itself. `None`: there is none.
async fn settled(daemon: &Daemon, history: &History, setting: &Setting) -> Option<Vm> {
    let names = history.names();
    let settle = async {
        loop {
            let mut vms = daemon.client.vms().await.unwrap();
            vms.retain(|vm| names.iter().any(|name| *name == vm.name.to_string()));
            assert!(vms.len() <= 1, "{vms:?} after:\n{}", history.told);
            let vm = vms.pop();
            if vm.as_ref().is_none_or(|vm| Rest::of(vm.state).is_some()) {
                return vm;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(setting.patience, settle)
        .await
        .unwrap_or_else(|_| panic!("VM {} does not come to rest", history.name))
}

/// Returns when the VM's record, disk and tap are what its row says: what a dead daemon has
/// written down is carried out by the next.
async fn agrees(home: &Home, vm: &Vm) {
    while differs(home, vm).await.is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What of a VM's record, disk and tap is not as its row says.
async fn differs(home: &Home, vm: &Vm) -> Option<String> {
    let directory = home.paths().vms().join(vm.id.as_str());
    let record = std::fs::read(directory.join("vm.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let row = serde_json::to_value(vm).unwrap();
    for what in ["name", "disk_size", "system_size", "nat", "labels"] {
        // Labels are left out of an object that has none.
        let none = serde_json::json!({});
        let of = |object: &serde_json::Value| object.get(what).unwrap_or(&none).clone();
        if of(&record) != of(&row) {
            return Some(format!(
                "{what}: {} in the record, {} in the row",
                of(&record),
                of(&row)
            ));
        }
    }
    let has = std::fs::metadata(directory.join("work.ext4"))
        .unwrap()
        .len();
    let as_said = match Rest::of(vm.state) {
        Some(Rest::Running | Rest::Paused) => has == vm.disk_size.bytes(),
        // It grows at the next start.
        _ => has <= vm.disk_size.bytes(),
    };
    if !as_said {
        let said = vm.disk_size;
        return Some(format!("a disk of {has} bytes that is said to have {said}"));
    }
    let is_up = matches!(Rest::of(vm.state), Some(Rest::Running | Rest::Paused));
    if !is_up || vm.engine == EngineKind::Fake {
        return None;
    }
    let slot = record["slot"].as_u64().unwrap();
    let nat = tap_reaches_outside(home, slot).await;
    (nat != Some(vm.nat)).then(|| format!("nat: {nat:?} at the tap, {} in the row", vm.nat))
}

/// Whether the tap of a slot is in the group of those that reach the outside. `None`: there is
/// no such tap.
async fn tap_reaches_outside(home: &Home, slot: u64) -> Option<bool> {
    let inventory = leaks::inventory(&home.paths(), &Config::default()).await;
    let holder = inventory.things.iter().find(|thing| {
        thing.kind == ThingKind::Process && thing.name.contains(banger_daemon::NET_HOLDER)
    })?;
    let (pid, _) = holder.name.split_once(':')?;
    let links = tokio::process::Command::new("nsenter")
        .args(["--target", pid, "--user", "--net", "--preserve-credentials"])
        .args(["ip", "-json", "link", "show"])
        .output()
        .await
        .unwrap();
    let links: serde_json::Value = serde_json::from_slice(&links.stdout).ok()?;
    let tap = links.as_array()?.iter().find(|link| {
        link["ifname"]
            .as_str()
            .is_some_and(|name| name.starts_with("bgr-") && name.ends_with(&format!("-{slot}")))
    })?;
    // The first group has a name (`/etc/iproute2/group`), the others have none.
    Some(tap["group"] != "default")
}

#[track_caller]
fn assert_marks_on_disk(disk: &str, history: &History) {
    let file = std::fs::File::open(disk).unwrap();
    for mark in &history.marks {
        let mut found = [0; MARK_SIZE as usize];
        file.read_exact_at(&mut found, mark * MARK_SIZE).unwrap();
        let text = String::from_utf8_lossy(&found);
        let expected = format!("mark {mark}");
        assert_eq!(
            text.trim_end(),
            expected,
            "of VM {}:\n{}",
            history.name,
            history.told
        );
    }
}

/// Starts a VM that is down, looks for all of its marks, and deletes it.
async fn finish(home: &Home, daemon: &Daemon, history: &mut History, setting: &Setting) {
    let name = history.nature().name.clone();
    if history.known() != Some(Rest::Running) {
        let end = ask(&daemon.client, &name, Act::Start, setting.engine).await;
        assert_eq!(
            end,
            End::Succeeded,
            "the start of {name} after:\n{}",
            history.told
        );
    }
    match setting.engine {
        EngineKind::Fake => {
            let vm = daemon.client.vm(&name).await.unwrap();
            assert_marks_on_disk(&disk_of(home)(vm.id.as_str()), history);
            assert_eq!(differs(home, &vm).await, None, "after:\n{}", history.told);
        }
        _ => {
            let read = run(
                &daemon.client,
                &name,
                &["sh", "-c", "cat /root/marks || true"],
            )
            .await;
            let (_, marks) = read.unwrap().expect("it comes to an end");
            let found: BTreeSet<&str> = marks.lines().collect();
            for mark in &history.marks {
                let line = format!("mark {mark}");
                assert!(
                    found.contains(&*line),
                    "{line} of {name} after:\n{}",
                    history.told
                );
            }
        }
    }
    let end = ask(&daemon.client, &name, Act::Delete, setting.engine).await;
    assert_eq!(end, End::Succeeded);
}
