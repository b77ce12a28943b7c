//! What can go wrong in RADOS, and what class of failure it is.

use std::fmt;

/// Result of an operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation: what was tried, on what, and the error number that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    errno: i32,
    what: String,
}

/// How a failure is to be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// It may go away by itself: try again, later and later.
    Transient,
    /// This connection was blocklisted: nothing will work on it again; drop it and start over. A watch that was lost is no
    /// sign of that (ENOTCONN): whether the client is blocklisted shows when the watch is registered again.
    Fenced,
    /// An answer that the caller must judge.
    Permanent,
}

impl Error {
    /// A failure with the (positive) error number `errno`; `what` completes the sentence "cannot …".
    pub fn new(errno: i32, what: impl Into<String>) -> Self {
        Error { errno: errno.abs(), what: what.into() }
    }

    /// The (positive) error number.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// What was tried: completes the sentence "cannot …", or is one.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// True when the error number is `errno`.
    pub fn is(&self, errno: i32) -> bool {
        self.errno == errno
    }

    /// True for ENOENT.
    pub fn is_not_found(&self) -> bool {
        self.errno == libc::ENOENT
    }

    /// How to meet it.
    pub fn class(&self) -> ErrorClass {
        match self.errno {
            libc::ESHUTDOWN => ErrorClass::Fenced,
            libc::ETIMEDOUT
            | libc::EAGAIN
            | libc::EINTR
            | libc::EBUSY
            | libc::ENOTCONN
            | libc::ENOSPC
            | libc::EDQUOT => ErrorClass::Transient,
            _ => ErrorClass::Permanent,
        }
    }

    /// The same failure with more said about what was tried: "`context`: …".
    pub fn context(self, context: impl fmt::Display) -> Self {
        Error { errno: self.errno, what: format!("{context}: {}", self.what) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.errno {
            // Ceph's EBLOCKLISTED.
            libc::ESHUTDOWN => "this client is blocklisted".to_string(),
            errno => {
                let text = std::io::Error::from_raw_os_error(errno).to_string();
                text.split(" (os error").next().unwrap_or_default().to_lowercase()
            }
        };
        write!(f, "{}: {} (errno {})", self.what, reason, self.errno)
    }
}

impl std::error::Error for Error {}

/// Runs `f` on the error of a result to say more about what was tried.
pub trait ResultExt<T> {
    /// Adds context to the error.
    fn context(self, context: impl fmt::Display) -> Result<T>;
    /// `None` for ENOENT, the error for any other failure.
    fn optional(self) -> Result<Option<T>>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.context(context))
    }

    fn optional(self) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }
}
