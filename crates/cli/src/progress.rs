//! How far operations are: moving lines on a terminal, plain lines elsewhere.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use banger_proto::api::{OperationEvent, Progress as Step, ProgressUnit};
use banger_proto::size::ByteSize;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::process::getpgrp;
use rustix::stdio::stderr;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

use crate::render::lists::rounded;
use crate::render::time::took;
use crate::render::vm::stages_in_short;
use crate::ui::Ui;

/// How often a long step says how far it is where nothing can move.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// How often spinners turn.
const TICK: Duration = Duration::from_millis(100);

/// Whether the user wants to see progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// Yes.
    Normal,
    /// `--quiet`.
    Quiet,
}

impl Verbosity {
    pub(crate) fn from_quiet(quiet: bool) -> Self {
        match quiet {
            true => Self::Quiet,
            false => Self::Normal,
        }
    }
}

/// How much of an operation is worth a line where nothing can move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Its stages and long steps.
    Stages,
    /// That it goes on: it is one of several.
    Title,
}

/// The progress of all operations of one command.
#[derive(Debug)]
pub(crate) struct Display {
    ui: Ui,
    verbosity: Verbosity,
    bars: Option<MultiProgress>,
    /// What the live operations share.
    silence: RefCell<Weak<KeySilence>>,
}

impl Display {
    pub(crate) fn new(ui: Ui, verbosity: Verbosity) -> Self {
        let live = ui.live && verbosity == Verbosity::Normal;
        Self {
            ui,
            verbosity,
            bars: live.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr())),
            silence: RefCell::default(),
        }
    }

    /// Begins to show one operation; `title` says what it does, such as ``creating `a` ``.
    pub(crate) fn operation(&self, title: &str, detail: Detail) -> Progress {
        match (&self.bars, self.verbosity) {
            (_, Verbosity::Quiet) => Progress::Silent,
            (Some(bars), _) => {
                let mut live = Live::new(bars.clone(), title, detail);
                live._silence = self.silence();
                Progress::Live(live)
            }
            (None, _) => {
                self.ui.note(title);
                match detail {
                    Detail::Stages => Progress::Lines(self.ui, Lines::default()),
                    Detail::Title => Progress::Silent,
                }
            }
        }
    }

    fn silence(&self) -> Option<Rc<KeySilence>> {
        let mut shared = self.silence.borrow_mut();
        let silence = shared
            .upgrade()
            .or_else(|| KeySilence::begin().map(Rc::new))?;
        *shared = Rc::downgrade(&silence);
        Some(silence)
    }

    /// Says something without disturbing what moves.
    pub(crate) fn note(&self, text: &str) {
        if self.verbosity == Verbosity::Normal {
            self.suspended(|ui| ui.note(text));
        }
    }

    /// Says an error without disturbing what moves; also when quiet.
    pub(crate) fn error(&self, error: &banger_proto::error::ApiError) {
        self.suspended(|ui| ui.error(error));
    }

    fn suspended(&self, say: impl FnOnce(&Ui)) {
        match &self.bars {
            Some(bars) => bars.suspend(|| say(&self.ui)),
            None => say(&self.ui),
        }
    }
}

/// The progress of one operation. What moves is gone when this is dropped.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Nobody wants to know.
    Silent,
    /// One line per event of note.
    Lines(Ui, Lines),
    /// Lines that move.
    Live(Live),
}

impl Progress {
    /// Shows what happened.
    pub(crate) fn event(&mut self, event: &OperationEvent) {
        match self {
            Self::Silent => {}
            Self::Lines(ui, lines) => {
                if let Some(line) = lines.line(event, Instant::now()) {
                    ui.note(&line);
                }
            }
            Self::Live(live) => live.event(event),
        }
        if let OperationEvent::Done(operation) = event {
            for warning in &operation.warnings {
                self.warn(warning);
            }
        }
    }

    fn warn(&self, text: &str) {
        match self {
            Self::Silent => {}
            Self::Lines(ui, _) => ui.warn(text),
            Self::Live(live) => live.say(&format!("warning: {text}")),
        }
    }

    /// Says something about the operation.
    pub(crate) fn note(&self, text: &str) {
        match self {
            Self::Silent => {}
            Self::Lines(ui, _) => ui.note(&format!("  {text}")),
            Self::Live(live) => live.title.set_message(text.to_owned()),
        }
    }

    /// Says something that stays, when the operation is over.
    pub(crate) fn conclude(&self, text: &str) {
        match self {
            Self::Silent => {}
            Self::Lines(ui, _) => ui.note(text),
            Self::Live(live) => live.say(text),
        }
    }
}

/// Which lines an operation is worth where nothing can move.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// When each step last had a line, and whether that said it is complete.
    said: HashMap<String, (Instant, bool)>,
}

impl Lines {
    fn line(&mut self, event: &OperationEvent, now: Instant) -> Option<String> {
        match event {
            OperationEvent::Stage { .. } | OperationEvent::Done(_) => None,
            OperationEvent::Output { text } => Some(text.trim_end().to_owned()),
            OperationEvent::StageDone(stage) => {
                let failed = if stage.failed { " failed after" } else { "" };
                let time = took(millis(stage.took_ms));
                Some(format!("  {}{failed} {time}", stage.stage))
            }
            OperationEvent::Progress(step) => {
                let complete = step.total.is_some_and(|total| step.done >= total);
                let due = match self.said.get(&step.what) {
                    None => true,
                    Some((_, true)) => false,
                    Some((last, false)) => complete || now.duration_since(*last) >= LINE_EVERY,
                };
                if !due {
                    return None;
                }
                self.said.insert(step.what.clone(), (now, complete));
                Some(format!("  {}: {}", step.what, how_far(step)))
            }
        }
    }
}

/// Which bar a step moves: `build the image x: unpack` and `build the image x: install` are parts
/// of one thing, and one bar.
fn bar_of(what: &str) -> &str {
    what.split(": ").next().unwrap_or(what)
}

fn how_far(step: &Step) -> String {
    let amount = |number: u64| match step.unit {
        ProgressUnit::Bytes => rounded(ByteSize::from_bytes(number)),
        ProgressUnit::Items => number.to_string(),
    };
    match step.total {
        Some(total) => format!("{} of {}", amount(step.done), amount(total)),
        None => amount(step.done),
    }
}

fn millis(millis: f64) -> Duration {
    Duration::try_from_secs_f64(millis / 1000.0).unwrap_or_default()
}

/// Keeps the terminal from showing `^C` while lines move, until this is dropped: the letters
/// would push the lines, and one of them would stay on the screen for ever.
#[derive(Debug)]
pub(crate) struct KeySilence {
    before: Termios,
}

impl KeySilence {
    /// `None` where the terminal's modes are not ours to change: a process in the background
    /// would be stopped for it (tcsetattr(3), SIGTTOU).
    pub(crate) fn begin() -> Option<Self> {
        if tcgetpgrp(stderr()).ok()? != getpgrp() {
            return None;
        }
        let before = tcgetattr(stderr()).ok()?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHOCTL);
        tcsetattr(stderr(), OptionalActions::Now, &silent).ok()?;
        Some(Self { before })
    }
}

impl Drop for KeySilence {
    fn drop(&mut self) {
        if tcgetpgrp(stderr()).is_ok_and(|foreground| foreground == getpgrp()) {
            // A terminal that is gone needs no restoring.
            let _ = tcsetattr(stderr(), OptionalActions::Now, &self.before);
        }
    }
}

/// Moving lines: the operation, its stages, and the bars of long steps.
#[derive(Debug)]
pub(crate) struct Live {
    bars: MultiProgress,
    title: ProgressBar,
    detail: Detail,
    stages: HashMap<String, ProgressBar>,
    steps: HashMap<String, ProgressBar>,
    /// Held for its drop.
    _silence: Option<Rc<KeySilence>>,
}

impl Live {
    fn new(bars: MultiProgress, title: &str, detail: Detail) -> Self {
        let bar = bars.add(ProgressBar::new_spinner());
        bar.set_style(style("{spinner} {prefix} {elapsed} {msg}"));
        bar.set_prefix(title.to_owned());
        bar.enable_steady_tick(TICK);
        Self {
            bars,
            title: bar,
            detail,
            stages: HashMap::new(),
            steps: HashMap::new(),
            _silence: None,
        }
    }

    fn event(&mut self, event: &OperationEvent) {
        match event {
            OperationEvent::Stage { stage } => {
                let bar = self.add_below(ProgressBar::new_spinner());
                bar.set_style(style("  {spinner} {prefix} {elapsed}"));
                bar.set_prefix(stage.clone());
                bar.enable_steady_tick(TICK);
                self.stages.insert(stage.clone(), bar);
            }
            OperationEvent::StageDone(stage) => {
                if let Some(bar) = self.stages.get(&stage.stage) {
                    let mark = if stage.failed { "✗" } else { "✓" };
                    bar.set_style(style(&format!("  {mark} {{prefix}} {{msg}}")));
                    bar.finish_with_message(took(millis(stage.took_ms)));
                }
                // Steps belong to the stage that is over, or to one that makes new ones.
                for (_, bar) in self.steps.drain() {
                    bar.finish_and_clear();
                }
            }
            OperationEvent::Progress(step) => self.step(step),
            OperationEvent::Output { text } => self.say(text.trim_end()),
            OperationEvent::Done(operation) => {
                self.clear();
                // What was shown stays in short, unless it was one line anyway.
                if self.detail == Detail::Stages && operation.stages.len() > 1 {
                    self.say(&stages_in_short(&operation.stages));
                }
            }
        }
    }

    fn say(&self, text: &str) {
        // A terminal that is gone shows nothing.
        let _ = self.bars.println(text);
    }

    fn step(&mut self, step: &Step) {
        let key = bar_of(&step.what);
        if !self.steps.contains_key(key) {
            self.steps.retain(|_, before| {
                let goes_on = before
                    .length()
                    .is_some_and(|length| before.position() < length);
                if !goes_on {
                    before.finish_and_clear();
                }
                goes_on
            });
            let bar = self.add_below(ProgressBar::no_length());
            bar.set_style(step_style(step));
            self.steps.insert(key.to_owned(), bar);
        }
        let bar = &self.steps[key];
        bar.set_prefix(step.what.clone());
        if step.total.is_some() && bar.length() != step.total {
            bar.set_length(step.total.unwrap_or_default());
            bar.set_style(step_style(step));
        }
        bar.set_position(step.done);
    }

    fn add_below(&self, bar: ProgressBar) -> ProgressBar {
        let others = self.steps.values().chain(self.stages.values());
        // Below the last of this operation's own, so that operations do not mix.
        match others.count() {
            0 => self.bars.insert_after(&self.title, bar),
            _ => self.bars.add(bar),
        }
    }

    fn clear(&mut self) {
        for (_, bar) in self.steps.drain().chain(self.stages.drain()) {
            bar.finish_and_clear();
        }
        self.title.finish_and_clear();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A bar of bytes that nobody sees until it is given where to be drawn.
pub(crate) fn bytes_bar(what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    bar.set_style(style("{prefix} {binary_bytes}, {binary_bytes_per_sec}"));
    bar.set_prefix(what.to_owned());
    bar
}

/// Tells a bar of bytes how many there will be.
pub(crate) fn expect_bytes(bar: &ProgressBar, total: u64) {
    bar.set_length(total);
    bar.set_style(style(
        "{prefix} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}",
    ));
}

fn step_style(step: &Step) -> ProgressStyle {
    match (step.unit, step.total) {
        (ProgressUnit::Bytes, Some(_)) => style(
            "    {prefix} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}",
        ),
        (ProgressUnit::Bytes, None) => style("    {prefix} {binary_bytes}, {binary_bytes_per_sec}"),
        (ProgressUnit::Items, Some(_)) => style("    {prefix} {wide_bar} {pos} of {len}"),
        (ProgressUnit::Items, None) => style("    {prefix} {pos}"),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constants")
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::api::StageTime;

    fn step(done: u64) -> OperationEvent {
        OperationEvent::Progress(Step {
            what: "download linux-image".into(),
            done: done << 20,
            total: Some(70 << 20),
            unit: ProgressUnit::Bytes,
        })
    }

    #[test]
    fn a_long_step_says_now_and_then_how_far_it_is() {
        let mut lines = Lines::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let said: Vec<String> = [(0, 0), (3, 20), (12, 40), (13, 70), (14, 70)]
            .into_iter()
            .filter_map(|(seconds, done)| lines.line(&step(done), at(seconds)))
            .collect();
        assert_eq!(
            said,
            [
                "  download linux-image: 0B of 70M",
                "  download linux-image: 40M of 70M",
                "  download linux-image: 70M of 70M"
            ]
        );
    }

    #[test]
    fn a_stage_is_one_line_when_it_is_over() {
        let mut lines = Lines::default();
        let begun = OperationEvent::Stage {
            stage: "engine".into(),
        };
        assert_eq!(lines.line(&begun, Instant::now()), None);
        let done = OperationEvent::StageDone(StageTime {
            stage: "engine".into(),
            begin_ms: 1.0,
            took_ms: 2210.0,
            failed: false,
        });
        assert_eq!(
            lines.line(&done, Instant::now()).as_deref(),
            Some("  engine 2.2 s")
        );
    }

    #[test]
    fn parts_of_one_thing_share_a_bar_and_what_is_done_goes() {
        let hidden = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let mut live = Live::new(hidden, "creating", Detail::Stages);
        let mut items = |what: &str, done| {
            live.event(&OperationEvent::Progress(Step {
                what: what.into(),
                done,
                total: Some(7),
                unit: ProgressUnit::Items,
            }));
            let mut bars: Vec<String> = live.steps.values().map(ProgressBar::prefix).collect();
            bars.sort();
            bars
        };
        assert_eq!(items("build x: unpack", 1), ["build x: unpack"]);
        assert_eq!(items("build x: install", 2), ["build x: install"]);
        assert_eq!(items("fetch y", 7), ["build x: install", "fetch y"]);
        assert_eq!(items("fetch z", 1), ["build x: install", "fetch z"]);
    }

    #[test]
    fn every_template_is_valid() {
        for unit in [ProgressUnit::Bytes, ProgressUnit::Items] {
            for total in [None, Some(3)] {
                step_style(&Step {
                    what: "x".into(),
                    done: 1,
                    total,
                    unit,
                });
            }
        }
        expect_bytes(&bytes_bar("x"), 3);
        let mut live = Live::new(
            MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            "creating",
            Detail::Stages,
        );
        live.event(&OperationEvent::Stage {
            stage: "image".into(),
        });
        live.event(&step(3));
        live.event(&OperationEvent::StageDone(StageTime {
            stage: "image".into(),
            begin_ms: 0.0,
            took_ms: 1.0,
            failed: false,
        }));
        assert!(live.steps.is_empty());
    }
}
