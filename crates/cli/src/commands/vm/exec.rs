//! `banger vm exec`

use banger_proto::agent::ExecRequest;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::args::ExecArgs;
use crate::complete;
use crate::failure::Outcome;
use crate::session::{PtyChoice, Session, local_pty};
use crate::settings::Settings;
use crate::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  banger vm exec calm-otter                       a shell
  banger vm exec calm-otter -- make test
  banger vm exec calm-otter -w /srv -e CI=1 -- env
  banger vm exec -T calm-otter -- tar c /etc > etc.tar";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Exec {
    /// The VM: its name, its id, or the first 4 or more digits of its id
    #[arg(value_parser = crate::args::vm_selector, add = ArgValueCandidates::new(complete::vm_names))]
    vm: String,
    #[command(flatten)]
    exec: ExecArgs,
}

impl Exec {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let session = Session {
            vm: &self.vm,
            request: request(&self.exec),
            limit: self.exec.timeout,
        };
        session.run(&client, &mut signals).await
    }
}

/// What to ask of the guest agent.
pub(super) fn request(args: &ExecArgs) -> ExecRequest {
    let here = |name: &str| std::env::var(name).ok();
    let variables = args.env.iter().filter_map(|(name, value)| {
        let value = value.clone().or_else(|| here(name))?;
        Some((name.clone(), value))
    });
    let choice = match (args.tty, args.no_tty) {
        (true, _) => PtyChoice::Always,
        (_, true) => PtyChoice::Never,
        (false, false) => PtyChoice::Automatic,
    };
    ExecRequest {
        command: args.command.clone(),
        env: variables.collect(),
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        pty: local_pty(choice),
        stdin: true,
        acknowledge_input: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Parsed {
        #[command(flatten)]
        exec: ExecArgs,
    }

    #[test]
    fn arguments_are_passed_as_they_are() {
        let words = [
            "x",
            "-T",
            "-e",
            "A=1=2",
            "-e",
            "BANGER_NOT_SET",
            "-w",
            "/srv",
            "-u",
            "nobody",
            "--",
            "sh",
            "-c",
            "echo \"$A\"",
            "--",
            "-t",
        ];
        let request = request(&Parsed::try_parse_from(words).unwrap().exec);
        insta::assert_json_snapshot!(request, @r#"
        {
          "command": [
            "sh",
            "-c",
            "echo \"$A\"",
            "--",
            "-t"
          ],
          "env": {
            "A": "1=2"
          },
          "cwd": "/srv",
          "user": "nobody",
          "pty": null,
          "stdin": true,
          "acknowledge_input": true
        }
        "#);
    }
}
