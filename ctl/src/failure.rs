//! Why a command failed: a sentence for people, and a code for programs.
//!
//! As with `rbd`, the process ends with 1 when the command line makes no sense, and otherwise with the error number of
//! what went wrong, of which the operating system keeps the low eight bits.

use std::{fmt, io};

/// The exit code for a command line that makes no sense.
pub const EXIT_USAGE: i32 = 1;

/// A failed command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: i32,
    sentence: String,
}

impl Failure {
    /// A failure with this exit code (an error number, or [`EXIT_USAGE`]).
    pub fn new(code: i32, sentence: impl Into<String>) -> Failure {
        Failure { code: code.abs(), sentence: sentence.into() }
    }

    /// An input that cannot be used.
    pub fn invalid(sentence: impl Into<String>) -> Failure {
        Failure::new(libc::EINVAL, sentence)
    }

    /// A failure of the operating system: "cannot do `what`: reason".
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Failure {
        // Errors that libraries have wrapped keep no number, but their kind.
        let errno = error.raw_os_error().unwrap_or(match error.kind() {
            io::ErrorKind::NotFound => libc::ENOENT,
            io::ErrorKind::PermissionDenied => libc::EACCES,
            _ => libc::EIO,
        });
        Failure::new(errno, format!("cannot {what}: {error}"))
    }

    /// The error number.
    pub fn code(&self) -> i32 {
        self.code
    }

    /// What the process ends with; never 0.
    pub fn exit_code(&self) -> u8 {
        match (self.code & 0xff) as u8 {
            0 => EXIT_USAGE as u8,
            code => code,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Failure {}

impl From<rados::Error> for Failure {
    fn from(error: rados::Error) -> Failure {
        Failure::new(error.errno(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_what_the_operating_system_keeps() {
        assert_eq!(Failure::invalid("x").exit_code(), 22);
        assert_eq!(Failure::new(-2, "x").exit_code(), 2);
        assert_eq!(Failure::new(512, "x").exit_code(), 1);
        assert_eq!(Failure::from(rados::Error::new(libc::EBUSY, "cannot do it")).exit_code(), 16);
    }
}
