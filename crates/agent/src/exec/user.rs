//! Who a command runs as: `/etc/passwd` and `/etc/group`, read by hand.
//!
//! The agent is a static binary, so the C library's name services are not to be had.

use std::fs;
use std::io;
use std::path::Path;

/// Shell of those who have none: `login(1)`'s choice.
const DEFAULT_SHELL: &str = "/bin/sh";

/// A user that a command can run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name; the uid in digits if it has none.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// All groups, the own one included.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Not in `/etc/passwd`.
    #[error("no user `{0}` in /etc/passwd")]
    UnknownUser(String),
    /// Not in `/etc/group`.
    #[error("no group `{0}` in /etc/group")]
    UnknownGroup(String),
    /// The file is there but cannot be read.
    #[error("could not read {path}")]
    Read {
        /// Which of the two.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl User {
    /// Finds `name`, `uid`, `name:group`, ...
    ///
    /// A uid that no user has is taken as it is, with group 0, as container engines do.
    ///
    /// # Errors
    /// There is no such user or group.
    pub fn find(text: &str) -> Result<Self, UserError> {
        let passwd = read("/etc/passwd")?;
        let group = read("/etc/group")?;
        find_in(text, &passwd, &group)
    }

    /// The login shell, or another if it is not there; `None` in an image without shells.
    pub fn shell_file(&self) -> Option<String> {
        let shells = [self.shell.as_str(), DEFAULT_SHELL];
        shells
            .into_iter()
            .find(|shell| Path::new(shell).exists())
            .map(str::to_owned)
    }
}

fn find_in(text: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (name, group_name) = match text.split_once(':') {
        Some((name, group_name)) => (name, Some(group_name)),
        None => (text, None),
    };
    let entry = passwd.lines().filter_map(Entry::parse);
    let by_name = entry.clone().find(|entry| entry.name == name);
    let uid = name.parse().ok();
    let by_uid = || entry.clone().find(|entry| Some(entry.uid) == uid);
    let mut user = match (by_name.or_else(by_uid), uid) {
        (Some(entry), _) => entry.to_user(),
        (None, _) if name == "root" => nobody_in_passwd(0),
        (None, Some(uid)) => nobody_in_passwd(uid),
        (None, None) => return Err(UserError::UnknownUser(name.to_owned())),
    };
    let groups = || group.lines().filter_map(Group::parse);
    if let Some(group_name) = group_name {
        let known = groups().find(|group| group.name == group_name);
        user.gid = match (known, group_name.parse()) {
            (Some(group), _) => group.gid,
            (None, Ok(gid)) => gid,
            (None, Err(_)) => return Err(UserError::UnknownGroup(group_name.to_owned())),
        };
    }
    user.groups = vec![user.gid];
    let others = groups().filter(|group| group.members.split(',').any(|it| it == user.name));
    for group in others {
        if !user.groups.contains(&group.gid) {
            user.groups.push(group.gid);
        }
    }
    Ok(user)
}

fn nobody_in_passwd(uid: u32) -> User {
    User {
        name: if uid == 0 {
            "root".to_owned()
        } else {
            uid.to_string()
        },
        uid,
        gid: 0,
        groups: Vec::new(),
        home: if uid == 0 {
            "/root".to_owned()
        } else {
            "/".to_owned()
        },
        shell: DEFAULT_SHELL.to_owned(),
    }
}

/// A line of `passwd(5)`.
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        Some(Self {
            name: fields.next().filter(|name| !name.is_empty())?,
            uid: fields.nth(1)?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
            home: fields.nth(1)?,
            shell: fields.next()?.trim_end(),
        })
    }

    fn to_user(&self) -> User {
        let or =
            |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
        User {
            name: self.name.to_owned(),
            uid: self.uid,
            gid: self.gid,
            groups: Vec::new(),
            home: or(self.home, "/"),
            shell: or(self.shell, DEFAULT_SHELL),
        }
    }
}

/// A line of `group(5)`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        Some(Self {
            name: fields.next().filter(|name| !name.is_empty())?,
            gid: fields.nth(1)?.parse().ok()?,
            members: fields.next().unwrap_or_default().trim_end(),
        })
    }
}

/// A file that is missing has no lines: images without any users are common.
fn read(path: &'static str) -> Result<String, UserError> {
    match fs::read(Path::new(path)) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(UserError::Read { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        # a comment\n\
        dev:x:1000:1000:Dev,,,:/home/dev:\n\
        broken:x:no:1000::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:syslog,dev\ndev:x:1000:dev\ndocker:x:998:dev,x\n";

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let dev = find_in("dev", PASSWD, GROUP).unwrap();
        assert_eq!(
            (dev.uid, dev.gid, dev.shell.as_str()),
            (1000, 1000, "/bin/sh")
        );
        assert_eq!(dev.groups, [1000, 4, 998]);
        assert_eq!(find_in("1000", PASSWD, GROUP).unwrap(), dev);
        assert_eq!(find_in("root", PASSWD, GROUP).unwrap().shell, "/bin/bash");
    }

    #[test]
    fn a_group_can_be_named() {
        assert_eq!(find_in("dev:docker", PASSWD, GROUP).unwrap().gid, 998);
        assert_eq!(find_in("dev:7", PASSWD, GROUP).unwrap().gid, 7);
        assert!(matches!(
            find_in("dev:nope", PASSWD, GROUP),
            Err(UserError::UnknownGroup(name)) if name == "nope"
        ));
    }

    #[test]
    fn an_image_without_users_has_root_and_every_number() {
        let root = find_in("root", "", "").unwrap();
        assert_eq!((root.uid, root.home.as_str()), (0, "/root"));
        assert_eq!(find_in("65532", "", "").unwrap().uid, 65532);
        assert!(matches!(
            find_in("dev", "", ""),
            Err(UserError::UnknownUser(_))
        ));
    }
}
