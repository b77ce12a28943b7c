//! Opening files as root in folders that belong to somebody else.
//!
//! The log and the pid file lie in folders that the user `ceph` owns, and are opened before the daemon becomes that user.
//! Whoever is that user could put links there, and have root write to, and give away, any file. So:
//!
//! 1. They are opened with the rights of the user that the daemon is going to be.
//! 2. Where these do not suffice, root opens them, if the folder is root's alone; and where root stays root, in any folder.
//!    Then no link is followed, and what is opened must be an ordinary file with one name.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use nix::unistd::Uid;

use crate::process::Identity;

/// Opens a file, creating it when there is none, for a process that is going to be `identity` (or stays who it is). To be
/// called before the first thread is started.
pub fn open(path: &Path, options: &OpenOptions, identity: Option<&Identity>) -> anyhow::Result<File> {
    let options = options.clone();
    let root = Uid::effective().is_root();
    let other = identity.filter(|identity| root && !identity.uid.is_root());
    if let Some(identity) = other {
        match identity.acting(|| options.open(path))? {
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                refuse_open_folder(path).with_context(|| format!("user {} may not open it", identity.uid))?;
            }
            opened => return Ok(opened?),
        }
    }
    if root { Ok(open_as_root(path, options)?) } else { Ok(options.open(path)?) }
}

fn open_as_root(path: &Path, mut options: OpenOptions) -> io::Result<File> {
    // Whether it is a file is seen only when it is open: a pipe must not keep us.
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path)?;
    let opened = file.metadata()?;
    match opened.is_file() && opened.nlink() == 1 {
        true => Ok(file),
        false => Err(io::Error::new(ErrorKind::InvalidInput, "it is no ordinary file, or has another name")),
    }
}

/// Fails unless only root may change what is in the folder of `path`.
fn refuse_open_folder(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let found =
        std::fs::metadata(folder).with_context(|| format!("cannot look at '{}'", folder.display()))?;
    if found.uid() != 0 || found.mode() & 0o022 != 0 {
        bail!("others than root may write to its folder, so root does not open it either");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn append() -> OpenOptions {
        OpenOptions::new().create(true).append(true).clone()
    }

    /// As root: a link in a folder of another user's leads root nowhere.
    #[test]
    fn links_of_others_are_not_followed() -> anyhow::Result<()> {
        if !Uid::effective().is_root() {
            return Ok(());
        }
        let folder = tempfile::tempdir()?;
        let (target, link, hard) =
            (folder.path().join("shadow"), folder.path().join("log"), folder.path().join("hard"));
        std::fs::write(&target, "root's")?;
        symlink(&target, &link)?;
        std::fs::hard_link(&target, &hard)?;
        assert!(open(&link, &append(), None).is_err(), "root followed a link");
        assert!(open(&hard, &append(), None).is_err(), "root opened a file with two names");

        let ceph = Identity::resolve(Some("64045"), Some("64045"))?.context("an identity")?;
        let owned = folder.path().join("var");
        std::fs::create_dir(&owned)?;
        nix::unistd::chown(&owned, Some(ceph.uid), Some(ceph.gid))?;
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        symlink(&target, owned.join("log"))?;
        let opened = open(&owned.join("log"), &append(), Some(&ceph));
        assert!(opened.is_err(), "a file that only root may write to was opened for another user");
        let file = open(&owned.join("log2"), &append(), Some(&ceph))?;
        assert_eq!(file.metadata()?.uid(), 64045, "it belongs to the user who is going to write to it");
        // In a folder of root's alone it is root who makes it.
        assert_eq!(open(&folder.path().join("log3"), &append(), Some(&ceph))?.metadata()?.uid(), 0);
        assert_eq!(std::fs::read_to_string(&target)?, "root's");
        assert!(Uid::effective().is_root(), "root is root again");
        Ok(())
    }
}
