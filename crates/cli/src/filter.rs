//! `--filter`: which VMs are meant. What is given for one key is a choice, and different keys
//! must all hold: `state=stopped state=failed label=team=a` are the stopped and failed VMs of
//! team a.

use banger_proto::api::Vm;
use clap::Args;

/// All filters of a command.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Filters {
    /// Only VMs with name=GLOB, state=STATE, image=GLOB, engine=ENGINE, label=KEY or
    /// label=KEY=VALUE; may be given several times: same keys are a choice, different ones must
    /// all hold
    #[arg(long = "filter", short = 'F', value_name = "KEY=VALUE", value_parser = parse)]
    filters: Vec<Filter>,
}

/// One filter.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Name(String),
    State(String),
    Image(String),
    Engine(String),
    Label { key: String, value: Option<String> },
}

const STATES: [&str; 7] = [
    "created", "starting", "running", "paused", "stopping", "stopped", "failed",
];
const ENGINES: [&str; 3] = ["qemu", "firecracker", "fake"];

fn parse(text: &str) -> Result<Filter, String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if value.is_empty() {
        return Err(match key {
            "label" => "write label=KEY or label=KEY=VALUE".into(),
            "name" | "image" => format!("write {key}=GLOB, such as {key}=debian-*"),
            "state" => format!("write state=STATE: {}", STATES.join(", ")),
            "engine" => format!("write engine=ENGINE: {}", ENGINES.join(", ")),
            _ => "write KEY=VALUE, such as state=running".into(),
        });
    }
    if key == "label" && value.starts_with('=') {
        return Err("write label=KEY=VALUE: this one has no key".into());
    }
    let value = value.to_owned();
    match key {
        "name" => Ok(Filter::Name(value)),
        "state" => one_of("state", &STATES, value).map(Filter::State),
        "image" => Ok(Filter::Image(value)),
        "engine" => one_of("engine", &ENGINES, value).map(Filter::Engine),
        "label" => Ok(match value.split_once('=') {
            Some((key, value)) => Filter::Label {
                key: key.to_owned(),
                value: Some(value.to_owned()),
            },
            None => Filter::Label {
                key: value,
                value: None,
            },
        }),
        _ => Err("the keys are name, state, image, engine and label".into()),
    }
}

fn one_of(key: &str, known: &[&str], value: String) -> Result<String, String> {
    match known.contains(&value.as_str()) {
        true => Ok(value),
        false => Err(format!("a {key} is one of {}", known.join(", "))),
    }
}

impl Filters {
    /// Whether a VM is meant.
    pub(crate) fn match_vm(&self, vm: &Vm) -> bool {
        self.filters.iter().all(|filter| {
            // What stands for the same key may hold in this one's place.
            let same = self
                .filters
                .iter()
                .filter(|other| other.key() == filter.key());
            same.into_iter().any(|filter| filter.holds(vm))
        })
    }
}

impl Filter {
    fn key(&self) -> &'static str {
        match self {
            Self::Name(_) => "name",
            Self::State(_) => "state",
            Self::Image(_) => "image",
            Self::Engine(_) => "engine",
            Self::Label { .. } => "label",
        }
    }

    fn holds(&self, vm: &Vm) -> bool {
        match self {
            Self::Name(glob) => matches(glob, vm.name.as_str()),
            Self::State(state) => vm.state.as_str() == state,
            Self::Image(glob) => matches(glob, vm.image.as_str()),
            Self::Engine(engine) => vm.engine.as_str() == engine,
            Self::Label { key, value } => match (vm.labels.get(key), value) {
                (Some(has), Some(wanted)) => has == wanted,
                (Some(_), None) => true,
                (None, _) => false,
            },
        }
    }
}

/// Whether all of `text` fits `glob`, in which `*` stands for anything and `?` for one letter.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    // Where the last `*` was, and what it stands for so far ends; it may always take more.
    let mut star: Option<(usize, usize)> = None;
    let (mut g, mut t) = (0, 0);
    while t < text.len() {
        match glob.get(g) {
            Some('*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(letter) if *letter == '?' || *letter == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((place, taken)) => {
                    *taken += 1;
                    (g, t) = (*place + 1, *taken);
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|letter| *letter == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::vm::tests::vm;
    use banger_proto::api::VmState;
    use proptest::prelude::*;

    fn filters(words: &[&str]) -> Filters {
        Filters {
            filters: words.iter().map(|word| parse(word).unwrap()).collect(),
        }
    }

    #[test]
    fn one_key_is_a_choice_and_different_keys_must_all_hold() {
        // Labelled `team=a` by its maker.
        let otter = vm("calm-otter", VmState::Running);
        for (words, meant) in [
            (&[][..], true),
            (&["state=running"], true),
            (&["state=stopped"], false),
            (&["state=stopped", "state=running"], true),
            (&["state=running", "name=dev*"], false),
            (&["state=running", "name=dev*", "name=calm-*"], true),
            (&["label=team"], true),
            (&["label=team=a"], true),
            (&["label=team=b"], false),
            (&["label=tea"], false),
            (&["image=debian-*", "engine=qemu"], true),
            (&["engine=firecracker"], false),
        ] {
            assert_eq!(filters(words).match_vm(&otter), meant, "{words:?}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "state",
            "state=",
            "state=up",
            "engine=bochs",
            "colour=red",
            "=x",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let words = ["label=", "label==x", "name=", "state", "engine=", "", "x="];
        let told = words.map(|text| format!("{text:9} {}", parse(text).unwrap_err()));
        insta::assert_snapshot!(told.join("\n"), @"
        label=    write label=KEY or label=KEY=VALUE
        label==x  write label=KEY=VALUE: this one has no key
        name=     write name=GLOB, such as name=debian-*
        state     write state=STATE: created, starting, running, paused, stopping, stopped, failed
        engine=   write engine=ENGINE: qemu, firecracker, fake
                  write KEY=VALUE, such as state=running
        x=        write KEY=VALUE, such as state=running
        ");
    }

    #[test]
    fn stars_take_what_they_must() {
        for (glob, text, fits) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("*ab", "aab", true),
            ("?b", "ab", true),
            ("?", "", false),
            ("ä*", "äö", true),
        ] {
            assert_eq!(matches(glob, text), fits, "{glob} {text}");
        }
    }

    proptest! {
        #[test]
        fn a_part_replaced_by_a_star_still_fits(text in "[a-z]{0,12}", from in 0..12usize, to in 0..12usize) {
            let (from, to) = (from.min(text.len()), to.min(text.len()));
            let (from, to) = (from.min(to), from.max(to));
            let glob = format!("{}*{}", &text[..from], &text[to..]);
            prop_assert!(matches(&glob, &text));
        }
    }
}
