//! Which options librados knows, asked of librados itself: a command line can then tell a flag from an option whose
//! value is the next word.

use std::ptr;
use std::sync::{Mutex, PoisonError};

use ceph::rados as c;

use super::connection::{Handle, conf_get};
use crate::cluster::OptionKind;

/// A handle that is never connected, shared by all questions. It stays until the process ends: freeing it would wait
/// for nothing, but gain nothing either.
static HANDLE: Mutex<Option<Handle>> = Mutex::new(None);

/// The kind of `option` (a name with underscores); `None` when librados knows no such option.
pub(crate) fn kind(option: &str) -> Option<OptionKind> {
    let mut shared = HANDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = match *shared {
        Some(handle) => handle,
        None => {
            let mut created = ptr::null_mut();
            // SAFETY: `created` is a valid place for the handle; a null name means the default client.
            if unsafe { c::rados_create(&mut created, ptr::null()) } < 0 {
                return None;
            }
            *shared.insert(Handle(created))
        }
    };
    // Defaults are asked for: of a flag it is one of these words, and of no other option.
    match conf_get(handle, option)?.as_str() {
        "true" | "false" => Some(OptionKind::Flag),
        _ => Some(OptionKind::Value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librados_tells_its_options() {
        assert_eq!(kind("log_to_stderr"), Some(OptionKind::Flag));
        assert_eq!(kind("rbd_validate_names"), Some(OptionKind::Flag));
        assert_eq!(kind("rbd_default_pool"), Some(OptionKind::Value));
        assert_eq!(kind("debug_rbd"), Some(OptionKind::Value));
        assert_eq!(kind("no_such_option"), None);
        assert_eq!(kind("a\0b"), None);
    }
}
