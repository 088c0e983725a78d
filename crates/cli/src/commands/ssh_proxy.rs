//! `banger ssh-proxy`: what `banger vm ssh` and `banger ssh-config` give ssh as its ProxyCommand.

use banger_proto::error::{ApiError, ErrorKind};
use clap::Args;
use tokio::io::{AsyncWriteExt, BufReader, copy_buf, stdin, stdout};

use crate::failure::{Failure, Outcome};
use crate::near;
use crate::settings::Settings;

/// How much is moved at once.
const BUFFER: usize = 64 << 10;

#[derive(Debug, Args)]
pub(crate) struct SshProxy {
    /// The VM: its name, its id, or the beginning of its id; or NAME.vm
    vm: String,
}

impl SshProxy {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        // No name and no id has a dot.
        let vm = self.vm.strip_suffix(".vm").unwrap_or(&self.vm);
        let stream = match client.ssh(vm).await {
            Ok(stream) => stream,
            Err(error) => return Err(near::explain(&client, vm, error).await),
        };
        let (reader, mut writer) = stream.into_split();
        let up = async {
            copy_buf(&mut BufReader::with_capacity(BUFFER, stdin()), &mut writer).await?;
            writer.shutdown().await
        };
        let down = async {
            let mut stdout = stdout();
            copy_buf(&mut BufReader::with_capacity(BUFFER, reader), &mut stdout).await?;
            stdout.flush().await
        };
        // The connection is over when the guest's server ends it, whatever ssh still sends.
        let ended = tokio::select! {
            ended = down => ended,
            Err(broken) = up => Err(broken),
        };
        ended.map_err(|error| -> Failure {
            ApiError::new(
                ErrorKind::Unavailable,
                format!("the ssh connection to VM `{vm}` broke"),
            )
            .caused_by(&error)
            .into()
        })?;
        Ok(0)
    }
}
