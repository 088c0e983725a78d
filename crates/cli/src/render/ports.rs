//! Ports of guests as a table.

use banger_proto::api::Port;

use crate::render::table::Table;

/// Most of a command that a row shows.
const COMMAND_MAX: usize = 40;

/// The table of `vm ports`.
pub(crate) fn ports_table(ports: &[Port]) -> String {
    let mut table = Table::new([
        "VM", "PORT", "ADDRESS", "PROCESS", "ENDPOINT", "URL", "COMMAND",
    ]);
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for port in ports {
        let process = port.process.as_ref();
        let addresses = port.addresses.iter().map(ToString::to_string);
        table.row([
            port.vm.to_string(),
            format!("{}/{}", port.port, port.protocol),
            addresses.collect::<Vec<_>>().join(","),
            or_none(process.map(|process| format!("{} ({})", legible(&process.name), process.pid))),
            or_none(port.endpoint.map(|endpoint| endpoint.to_string())),
            or_none(port.url.clone()),
            or_none(process.map(|process| shortened(&legible(&process.command)))),
        ]);
    }
    table.render()
}

/// Why ports are not where they are looked for, each reason once.
pub(crate) fn notes(ports: &[Port]) -> Vec<String> {
    let noted = ports.iter().filter_map(|port| {
        let note = legible(port.note.as_ref()?);
        Some(match port.endpoint {
            Some(endpoint) => format!(
                "port {} of VM `{}` is at {endpoint}: {note}",
                port.port, port.vm
            ),
            None => format!(
                "port {} of VM `{}` is not forwarded: {note}",
                port.port, port.vm
            ),
        })
    });
    let mut notes: Vec<String> = noted.collect();
    notes.dedup();
    notes
}

/// Without what would move a terminal's cursor: the guest chose the letters.
fn legible(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(COMMAND_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::agent::ListenerProcess;
    use banger_proto::port::Protocol;

    fn port(port: u16, protocol: Protocol) -> Port {
        Port {
            vm: "calm-otter".parse().unwrap(),
            port,
            protocol,
            addresses: vec![[0, 0, 0, 0].into()],
            process: None,
            endpoint: None,
            note: None,
            url: None,
        }
    }

    #[test]
    fn ports_line_up_and_what_is_elsewhere_says_why() {
        let ports = [
            Port {
                addresses: vec![[0, 0, 0, 0].into(), "::".parse().unwrap()],
                endpoint: Some("127.77.28.1:10080".parse().unwrap()),
                note: Some("only root may open port 80 here".into()),
                url: Some("http://127.77.28.1:10080/".into()),
                process: Some(ListenerProcess {
                    pid: 412,
                    name: "nginx".into(),
                    command: "nginx: master process /usr/sbin/nginx -g daemon on; ".into(),
                }),
                ..port(80, Protocol::Tcp)
            },
            Port {
                note: Some("127.77.28.1:60000 is in use by `x\u{7}` (process 1)".into()),
                ..port(60_000, Protocol::Tcp)
            },
            port(68, Protocol::Udp),
        ];
        insta::assert_snapshot!(ports_table(&ports));
        insta::assert_snapshot!(notes(&ports).join("\n"));
    }
}
