//! `onggi volume`.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::{Value, json};

use super::each;
use super::spec;
use crate::assets::Assets;
use crate::cli::{PruneArgs, VolumeCommand, VolumeCreateArgs, VolumeListArgs};
use crate::error::{Explain, Failure};
use crate::output::{print, size};
use crate::state::Home;
use crate::state::volumes::{Error, NewVolume, Volume, Volumes, users};

/// Nobody was there to say yes.
#[derive(Debug, thiserror::Error)]
#[error("this removes data; nobody can be asked whether that is meant")]
pub struct Unconfirmed;

impl Explain for Unconfirmed {
    fn hint(&self) -> Option<String> {
        Some("say so with --force".to_owned())
    }
}

/// `onggi volume …`.
pub fn run(command: &VolumeCommand) -> Result<u8, Failure> {
    let home = Home::find()?;
    let volumes = Volumes::of(&home);
    match command {
        VolumeCommand::Create(args) => create(&volumes, args),
        VolumeCommand::Ls(args) => list(&home, &volumes, args),
        VolumeCommand::Inspect(args) => {
            let describe = |name: &String| Ok(describe(&volumes.find(name)?));
            let all = args
                .names
                .iter()
                .map(describe)
                .collect::<Result<Vec<_>, Error>>()?;
            print(&format!("{:#}\n", Value::Array(all)))?;
            Ok(0)
        }
        VolumeCommand::Rm(args) => {
            let containers = home.containers()?.list()?;
            each(&args.names, |name| {
                match volumes.remove(name, &containers) {
                    Err(Error::None(_)) if args.force => Ok(None),
                    Err(error) => Err(error.into()),
                    Ok(()) => Ok(Some(name.to_owned())),
                }
            })
        }
        VolumeCommand::Prune(args) => prune(&home, &volumes, args),
    }
}

fn create(volumes: &Volumes, args: &VolumeCreateArgs) -> Result<u8, Failure> {
    let assets = Assets::find()?;
    let new = NewVolume {
        name: args.name.clone(),
        size: args.size.map(|size| size.0),
        labels: spec::labels(&[], &args.label, &Default::default())?,
    };
    let volume = volumes.create(new, &assets.volume)?;
    print(&format!("{}\n", volume.record.name))?;
    Ok(0)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    name: String,
    driver: &'static str,
    size: String,
    used: String,
    links: usize,
}

const COLUMNS: [(&str, &str); 4] = [
    ("VOLUME NAME", "Name"),
    ("SIZE", "Size"),
    ("USED", "Used"),
    ("CONTAINERS", "Links"),
];

fn list(home: &Home, volumes: &Volumes, args: &VolumeListArgs) -> Result<u8, Failure> {
    let containers = home.containers()?.list()?;
    let found = volumes.list()?;
    let row = |volume: &Volume| Row {
        name: volume.record.name.clone(),
        driver: "local",
        size: size(volume.record.size),
        used: size(volume.used()),
        links: users(&volume.record.name, &containers).len(),
    };
    let rows: Vec<Row> = found.iter().map(row).collect();
    let text = match args.quiet {
        true => rows.iter().map(|row| format!("{}\n", row.name)).collect(),
        false => args.format.render(&rows, &COLUMNS, COLUMNS.len())?,
    };
    print(&text)?;
    Ok(0)
}

fn describe(volume: &Volume) -> Value {
    json!({
        "Name": volume.record.name,
        "Driver": "local",
        "CreatedAt": volume.record.created,
        "Mountpoint": volume.data(),
        "Labels": volume.record.labels,
        "Options": {"size": volume.record.size.to_string()},
        "Scope": "local",
    })
}

fn prune(home: &Home, volumes: &Volumes, args: &PruneArgs) -> Result<u8, Failure> {
    if !args.force {
        confirm("This removes all volumes that no container has.")?;
    }
    let containers = home.containers()?.list()?;
    let mut freed = 0;
    for volume in volumes.list()? {
        let name = &volume.record.name;
        if (args.all || volume.record.anonymous) && users(name, &containers).is_empty() {
            let used = volume.used();
            volumes.remove(name, &containers)?;
            freed += used;
            print(&format!("{name}\n"))?;
        }
    }
    print(&format!("Total reclaimed space: {}\n", size(freed)))?;
    Ok(0)
}

/// Asks on the terminal.
///
/// # Errors
/// There's none, or the answer is no.
pub fn confirm(warning: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Unconfirmed.into());
    }
    let _ = write!(io::stderr(), "{warning} Go on? [y/N] ");
    let mut answer = String::new();
    let _ = io::stdin().read_line(&mut answer);
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Unconfirmed.into()),
    }
}
