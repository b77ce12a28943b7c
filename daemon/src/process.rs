//! The process as the system sees it: background, pid file, user and group.
//!
//! All of it happens before the first thread is started (the allocator's own apart), in this order: open the log, go to the
//! background, write the pid file, give up privileges. Both files are opened as [`private_file`] tells.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Group, Uid, User};

use crate::private_file;

/// Goes to the background: detaches from terminal and session, stdio becomes `/dev/null`. The working directory stays,
/// as relative paths may have been configured.
pub fn daemonize() -> anyhow::Result<()> {
    nix::unistd::daemon(true, false).context("cannot go to the background")
}

/// A pid file, locked as long as the daemon lives and removed when it ends.
pub struct PidFile {
    path: PathBuf,
    _lock: Flock<File>,
}

impl PidFile {
    /// Writes the id of this process, which is going to be `identity`, to `path`. Refused when another running process
    /// holds the file.
    pub fn write(path: &Path, identity: Option<&Identity>) -> anyhow::Result<Self> {
        let what = || format!("cannot write the pid file '{}'", path.display());
        let options = OpenOptions::new().create(true).truncate(false).write(true).clone();
        let file = private_file::open(path, &options, identity).with_context(what)?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!(
                "the pid file '{}' is held by another running process; is this daemon running already?",
                path.display()
            );
        };
        lock.set_len(0).with_context(what)?;
        writeln!(&*lock, "{}", std::process::id()).with_context(what)?;
        Ok(PidFile { path: path.to_path_buf(), _lock: lock })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Nothing is left to do about a file that cannot be removed; the next daemon overwrites it.
        std::fs::remove_file(&self.path).ok();
    }
}

/// The user and group to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: Uid,
    /// Group.
    pub gid: Gid,
    /// The user's name, when it has one: its supplementary groups are taken on.
    name: Option<std::ffi::CString>,
}

impl Identity {
    /// Looks up what `setuser` and `setgroup` name (names or numbers); `None` when neither is given.
    pub fn resolve(setuser: Option<&str>, setgroup: Option<&str>) -> anyhow::Result<Option<Self>> {
        let user = setuser.filter(|name| !name.is_empty()).map(find_user).transpose()?;
        let group = setgroup.filter(|name| !name.is_empty()).map(find_group).transpose()?;
        if user.is_none() && group.is_none() {
            return Ok(None);
        }
        let (uid, primary, name) = user.unwrap_or((Uid::current(), None, None));
        Ok(Some(Identity { uid, gid: group.or(primary).unwrap_or_else(Gid::current), name }))
    }

    /// Does `work` with the rights of this user, from root. To be called before the first thread is started.
    pub fn acting<T>(&self, work: impl FnOnce() -> T) -> anyhow::Result<T> {
        let (uid, gid, groups) = (Uid::effective(), Gid::effective(), nix::unistd::getgroups()?);
        let what = || format!("cannot act as user {} and group {}", self.uid, self.gid);
        self.take_groups().with_context(what)?;
        let acted = nix::unistd::setegid(self.gid).and_then(|()| nix::unistd::seteuid(self.uid));
        let done = acted.map(|()| work());
        // What cannot be taken back must not go on.
        nix::unistd::seteuid(uid).context("cannot be root again")?;
        nix::unistd::setegid(gid).context("cannot be of root's group again")?;
        nix::unistd::setgroups(&groups).context("cannot be of root's groups again")?;
        done.with_context(what)
    }

    fn take_groups(&self) -> nix::Result<()> {
        match &self.name {
            Some(name) => nix::unistd::initgroups(name, self.gid),
            None => nix::unistd::setgroups(&[self.gid]),
        }
    }

    /// Becomes this user for good. Nothing happens when the process already is.
    pub fn assume(&self) -> anyhow::Result<()> {
        if self.uid == Uid::effective() && self.gid == Gid::effective() {
            return Ok(());
        }
        let what = || format!("cannot become user {} and group {}; only root can", self.uid, self.gid);
        self.take_groups().with_context(what)?;
        nix::unistd::setgid(self.gid).with_context(what)?;
        nix::unistd::setuid(self.uid).with_context(what)
    }
}

type FoundUser = (Uid, Option<Gid>, Option<std::ffi::CString>);

fn find_user(name: &str) -> anyhow::Result<FoundUser> {
    let found = match name.parse() {
        Ok(number) => match User::from_uid(Uid::from_raw(number))? {
            Some(user) => Some(user),
            None => return Ok((Uid::from_raw(number), None, None)),
        },
        Err(_) => User::from_name(name)?,
    };
    let user = found.with_context(|| format!("there is no user '{name}', which setuser names"))?;
    Ok((user.uid, Some(user.gid), std::ffi::CString::new(user.name).ok()))
}

fn find_group(name: &str) -> anyhow::Result<Gid> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let group = Group::from_name(name)?
        .with_context(|| format!("there is no group '{name}', which setgroup names"))?;
    Ok(group.gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_number() -> anyhow::Result<()> {
        assert_eq!(Identity::resolve(None, Some(""))?, None);
        let root = Identity::resolve(Some("root"), None)?.context("no identity")?;
        assert_eq!((root.uid.as_raw(), root.gid.as_raw()), (0, 0));
        let numbers = Identity::resolve(Some("4001"), Some("4002"))?.context("no identity")?;
        assert_eq!((numbers.uid.as_raw(), numbers.gid.as_raw()), (4001, 4002));
        assert!(Identity::resolve(Some("no-such-user"), None).is_err());
        Ok(())
    }

    #[test]
    fn a_pid_file_is_held_and_removed() -> anyhow::Result<()> {
        let path = std::env::temp_dir().join(format!("rbd-mirror-pid-{}", std::process::id()));
        let held = PidFile::write(&path, None)?;
        assert_eq!(std::fs::read_to_string(&path)?.trim(), std::process::id().to_string());
        assert!(PidFile::write(&path, None).is_err());
        drop(held);
        assert!(!path.exists());
        Ok(())
    }
}
