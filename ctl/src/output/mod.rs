//! How data is printed.

pub mod document;
pub mod table;
pub mod time;

pub use document::Document;
pub use table::Table;

use crate::failure::Failure;
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
