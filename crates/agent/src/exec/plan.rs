//! What exactly will be executed: a request and the settings made into C strings.

use std::collections::BTreeMap;
use std::ffi::CString;

use banger_proto::agent::{Configure, ExecRequest, Pty};
use rustix::process::geteuid;

use super::Refusal;
use super::user::User;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All that the new process needs; nothing is left to look up after the fork.
#[derive(Debug)]
pub(super) struct Plan {
    /// The command as the client wrote it.
    pub command: String,
    /// Files to try in order, as `execvp(3)` would.
    pub candidates: Vec<CString>,
    pub arguments: Vec<CString>,
    pub environment: Vec<CString>,
    /// Directories to try in order.
    pub directories: Vec<CString>,
    /// Who to become; `None`: the command runs as who the agent runs as.
    pub user: Option<User>,
    pub terminal: Option<Pty>,
    /// Whether there will be input.
    pub input: bool,
}

impl Plan {
    pub(super) fn new(request: &ExecRequest, configure: &Configure) -> Result<Self, Refusal> {
        let user = choose_user(request.user.as_deref(), &configure.user)?;
        let environment = environment(request, configure, &user);
        let (command, candidates, arguments) = if request.command.is_empty() {
            login_shell(&user)
        } else {
            let command = request.command[0].clone();
            let path = environment.get("PATH").map_or(PATH, String::as_str);
            (
                command.clone(),
                candidates(&command, path),
                request.command.clone(),
            )
        };
        if command.is_empty() {
            return Err(Refusal::NotFound(
                "the command is an empty string".to_owned(),
            ));
        }
        let directories = match &request.cwd {
            Some(cwd) => vec![cwd.clone()],
            None => {
                let mut defaults = vec![user.home.clone(), "/".to_owned()];
                if let Some(workdir) = &configure.workdir {
                    defaults.insert(0, workdir.clone());
                }
                defaults
            }
        };
        let variables = environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        Ok(Self {
            command,
            candidates: c_strings(candidates)?,
            arguments: c_strings(arguments)?,
            environment: c_strings(variables)?,
            directories: c_strings(directories)?,
            user: geteuid().is_root().then_some(user),
            terminal: request.pty.clone(),
            input: request.stdin,
        })
    }
}

/// An agent that is not root can only run commands as itself.
fn choose_user(requested: Option<&str>, configured: &str) -> Result<User, Refusal> {
    let unusable = |error: super::UserError| Refusal::Unusable(error.to_string());
    let own = geteuid();
    if own.is_root() {
        let configured = if configured.is_empty() {
            "root"
        } else {
            configured
        };
        return User::find(requested.unwrap_or(configured)).map_err(unusable);
    }
    let own = User::find(&own.as_raw().to_string()).map_err(unusable)?;
    match requested {
        None => Ok(own),
        Some(name) => match User::find(name).map_err(unusable)? {
            user if user.uid == own.uid => Ok(user),
            user => Err(Refusal::Unusable(format!(
                "the agent runs as `{}` and cannot become `{}`",
                own.name, user.name
            ))),
        },
    }
}

fn environment(
    request: &ExecRequest,
    configure: &Configure,
    user: &User,
) -> BTreeMap<String, String> {
    let defaults = [
        ("PATH", PATH),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
        ("LANG", "C.UTF-8"),
    ];
    let mut environment: BTreeMap<String, String> = defaults
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Some(terminal) = &request.pty {
        environment.insert("TERM".to_owned(), terminal.term.clone());
    }
    environment.extend(configure.env.clone());
    environment.extend(request.env.clone());
    environment
}

fn login_shell(user: &User) -> (String, Vec<String>, Vec<String>) {
    let shell = user.shell_file().unwrap_or_else(|| user.shell.clone());
    let name = format!("-{}", shell.rsplit('/').next().unwrap_or(&shell));
    (shell.clone(), vec![shell], vec![name])
}

fn candidates(command: &str, path: &str) -> Vec<String> {
    if command.contains('/') {
        return vec![command.to_owned()];
    }
    path.split(':')
        .map(|directory| match directory {
            "" => format!("./{command}"),
            directory => format!("{directory}/{command}"),
        })
        .collect()
}

fn c_strings(texts: Vec<String>) -> Result<Vec<CString>, Refusal> {
    let nul =
        |_| Refusal::Unusable("an argument, variable or directory contains a zero byte".to_owned());
    texts
        .into_iter()
        .map(CString::new)
        .collect::<Result<_, _>>()
        .map_err(nul)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_wins_over_the_image_and_the_image_over_the_defaults() {
        let variables = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let configure = Configure {
            env: variables(&[("LANG", "de_DE.UTF-8"), ("EDITOR", "vi")]),
            ..Configure::default()
        };
        let request = ExecRequest {
            command: vec!["true".to_owned()],
            env: variables(&[("EDITOR", "ed"), ("PATH", "/opt/bin::/bin")]),
            ..ExecRequest::default()
        };
        let plan = Plan::new(&request, &configure).unwrap();
        let has = |text: &str| plan.environment.iter().any(|it| it.to_str() == Ok(text));
        assert!(
            has("LANG=de_DE.UTF-8") && has("EDITOR=ed"),
            "{:?}",
            plan.environment
        );
        assert_eq!(
            plan.candidates,
            [c"/opt/bin/true", c"./true", c"/bin/true"].map(CString::from)
        );
    }

    #[test]
    fn a_zero_byte_is_refused() {
        let request = ExecRequest {
            command: vec!["echo".to_owned(), "a\0b".to_owned()],
            ..ExecRequest::default()
        };
        let refusal = Plan::new(&request, &Configure::default()).unwrap_err();
        assert!(matches!(refusal, Refusal::Unusable(_)), "{refusal}");
    }
}
