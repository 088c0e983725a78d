//! What banger has on this host, and whose each thing is: `bangerd doctor --leaks`, and the end
//! of every crash test.
//!
//! It works with and without a running daemon and changes nothing. While a daemon runs, things
//! come and go, and what a dead one was starting ends by itself: what seems to be left over is
//! looked for again before it is told.

mod files;
mod judge;
mod look;

use std::collections::BTreeSet;
use std::time::Duration;

use banger_config::{Config, Paths, instance};
use banger_proto::doctor::{Inventory, Thing};
use banger_proto::id::InstanceId;

use self::look::Sight;
use crate::store::{Rows, StoreError, schema, vms};

/// How often what seems to be left over is looked for again, and the pauses between: about a
/// second together.
const LOOKS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);

/// Everything of the banger with these directories, with its owner.
pub async fn inventory(paths: &Paths, config: &Config) -> Inventory {
    let mut inventory = look_once(paths, config).await;
    for _ in 0..LOOKS {
        if inventory.leaks().next().is_none() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        let again = look_once(paths, config).await;
        let still: BTreeSet<Thing> = again.leaks().cloned().collect();
        let passing = |thing: &Thing| thing.owner.is_none() && !still.contains(thing);
        inventory.things.retain(|thing| !passing(thing));
    }
    inventory
}

/// An inventory as text: what was left over, with what to do, and a count of the rest.
pub fn render(inventory: &Inventory) -> String {
    let mut text = String::new();
    for leak in inventory.leaks() {
        text.push_str(&format!(
            "LEFT  {} {}: it has no owner\n",
            leak.kind.as_str(),
            leak.name
        ));
        if let Some(fix) = &leak.fix {
            text.push_str(&format!("      fix: {fix}\n"));
        }
    }
    for unseen in &inventory.unseen {
        text.push_str(&format!("warn  {unseen}\n"));
    }
    let owned = inventory.things.len() - inventory.leaks().count();
    let owned = match inventory.unseen.is_empty() {
        true => format!("{owned} things have an owner"),
        false => format!("of {owned} things the owner may not be known"),
    };
    let left = match inventory.leaks().count() {
        0 => "nothing is left over".to_owned(),
        1 => "1 thing is left over".to_owned(),
        count => format!("{count} things are left over"),
    };
    text.push_str(&format!("{owned}; {left}\n"));
    text
}

async fn look_once(paths: &Paths, config: &Config) -> Inventory {
    let mut unseen = Vec::new();
    let id = instance::read(&paths.instance()).unwrap_or_else(|error| {
        unseen.push(format!("could not read the instance's id: {error}"));
        None
    });
    let sight = Sight::take(paths, config, id.as_ref(), &mut unseen).await;
    // After the host: a VM has its row before it has anything else.
    let rows = read_rows(paths);
    let known = rows.is_ok();
    let rows = rows.unwrap_or_else(|error| {
        unseen.push(format!(
            "could not read the database, so that VMs are not known: {error}"
        ));
        Rows::default()
    });
    let lost = files::lost(paths, &rows);
    let mut things = judge::judge(&sight, &rows, &lost);
    things.extend(files::things(paths, &sight, &rows, &lost, &mut unseen));
    if !known {
        // Whatever runs may be a VM's.
        for thing in &mut things {
            thing.owner.get_or_insert_with(|| "not known".to_owned());
            thing.fix = None;
        }
    }
    things.sort();
    finish(paths, id, things, unseen)
}

fn read_rows(paths: &Paths) -> Result<Rows, StoreError> {
    match schema::open_to_read(&paths.database())? {
        Some(connection) => vms::read_all(&connection),
        None => Ok(Rows::default()),
    }
}

fn finish(
    paths: &Paths,
    instance: Option<InstanceId>,
    things: Vec<Thing>,
    unseen: Vec<String>,
) -> Inventory {
    Inventory {
        version: banger_proto::VERSION.to_owned(),
        state_dir: paths.state.display().to_string(),
        instance,
        things,
        unseen,
    }
}
