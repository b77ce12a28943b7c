//! How data is printed: data to standard output, everything else to standard error.

pub mod bar;
pub mod document;
pub mod table;
pub mod time;

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};

use rados::text::visible_but;

pub use bar::Bar;
pub use document::Document;
pub use table::Table;

use crate::failure::Failure;
use crate::grammar::PROGRAM;
use crate::grammar::rbd::{Format, FormatArgs};

/// The document that the options ask for; `None` for plain text.
pub fn document(args: &FormatArgs) -> Result<Option<Document>, Failure> {
    match args.format {
        Some(Format::Json) => Ok(Some(Document::json(args.pretty_format))),
        Some(Format::Xml) => Ok(Some(Document::xml(args.pretty_format))),
        _ if args.pretty_format => {
            Err(Failure::invalid("--pretty-format goes with --format json or --format xml only"))
        }
        _ => Ok(None),
    }
}

/// Prints data. That nobody reads it (any more) is no failure.
pub fn put(text: &str) -> Result<(), Failure> {
    put_if_read(&shown(text)).map(drop)
}

/// Data as a terminal may show it: names and descriptions in it may come from another site. Programs get it as it is.
pub fn shown(text: &str) -> Cow<'_, str> {
    if std::io::stdout().is_terminal() { visible_but(text, &['\n', '\t']) } else { Cow::Borrowed(text) }
}

/// Prints data; false when nobody reads it (any more).
pub fn put_if_read(text: &str) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::io("write the output", &e)),
    }
}

/// Prints a sentence for people.
pub fn complain(sentence: &str) {
    // There is nowhere left to say that this failed.
    let _ = writeln!(std::io::stderr().lock(), "{PROGRAM}: {}", visible_but(sentence, &['\n', '\t']));
}
