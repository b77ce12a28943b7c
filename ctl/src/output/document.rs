//! JSON and XML as Ceph's formatters write them, byte for byte.
//!
//! One tree of named sections and values; JSON leaves the names of an array's elements out, XML makes no difference
//! between objects and arrays and writes no declaration. Compact documents end with a line break; so do pretty ones in
//! JSON, while pretty XML ends with two.
//!
//! Escapes: in JSON `"`, `\`, tab and line feed by a letter, other control characters (and DEL) as `\u00xx`; in XML the
//! five entities, and control characters but tab and line feed as `&#xNN;`.
//!
//! Reference: `src/common/Formatter.cc`, `src/common/escape.cc`.

use std::fmt::{Display, Write};

/// A document being written.
#[derive(Debug)]
pub struct Document {
    style: Style,
    pretty: bool,
    text: String,
    sections: Vec<Section>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Json,
    Xml,
}

#[derive(Debug)]
struct Section {
    name: String,
    array: bool,
    entries: usize,
}

impl Document {
    /// An empty JSON document.
    pub fn json(pretty: bool) -> Document {
        Document { style: Style::Json, pretty, text: String::new(), sections: Vec::new() }
    }

    /// An empty XML document.
    pub fn xml(pretty: bool) -> Document {
        Document { style: Style::Xml, ..Document::json(pretty) }
    }

    /// Writes an object, whose entries `fill` writes.
    pub fn object(&mut self, name: &str, fill: impl FnOnce(&mut Document)) {
        self.section(name, false, fill);
    }

    /// Writes an array, whose elements `fill` writes.
    pub fn array(&mut self, name: &str, fill: impl FnOnce(&mut Document)) {
        self.section(name, true, fill);
    }

    /// Writes a string.
    pub fn string(&mut self, name: &str, value: &str) {
        match self.style {
            Style::Json => {
                self.json_name(name);
                self.text.push('"');
                escape_json(&mut self.text, value);
                self.text.push('"');
            }
            Style::Xml => self.xml_value(name, |text| escape_xml(text, value)),
        }
    }

    /// Writes a number or a truth value.
    pub fn bare(&mut self, name: &str, value: impl Display) {
        match self.style {
            Style::Json => {
                self.json_name(name);
                // Writing to a string cannot fail.
                let _ = write!(self.text, "{value}");
            }
            Style::Xml => self.xml_value(name, |text| _ = write!(text, "{value}")),
        }
    }

    /// The finished text.
    pub fn finish(mut self) -> String {
        if !self.pretty || self.style == Style::Xml {
            self.text.push('\n');
        }
        self.text
    }

    fn section(&mut self, name: &str, array: bool, fill: impl FnOnce(&mut Document)) {
        match self.style {
            Style::Json => {
                self.json_name(name);
                self.text.push(if array { '[' } else { '{' });
            }
            Style::Xml => {
                self.indent(" ", self.sections.len());
                let _ = write!(self.text, "<{name}>");
                self.line_break();
            }
        }
        self.sections.push(Section { name: name.to_string(), array, entries: 0 });
        fill(self);
        let Some(section) = self.sections.pop() else { return };
        match self.style {
            Style::Json => {
                if self.pretty && section.entries > 0 {
                    self.text.push('\n');
                    self.indent("    ", self.sections.len());
                }
                self.text.push(if array { ']' } else { '}' });
                if self.sections.is_empty() {
                    self.line_break();
                }
            }
            Style::Xml => {
                self.indent(" ", self.sections.len());
                let _ = write!(self.text, "</{}>", section.name);
                self.line_break();
            }
        }
    }

    /// Begins an entry: the comma behind the one before, the indentation, and in an object the name.
    fn json_name(&mut self, name: &str) {
        let depth = self.sections.len();
        let Some(section) = self.sections.last_mut() else { return };
        let array = section.array;
        if section.entries > 0 {
            self.text.push(',');
        }
        section.entries += 1;
        if self.pretty {
            self.text.push('\n');
            self.indent("    ", depth);
        }
        if !array {
            let _ = write!(self.text, "\"{name}\"{}", if self.pretty { ": " } else { ":" });
        }
    }

    fn xml_value(&mut self, name: &str, value: impl FnOnce(&mut String)) {
        self.indent(" ", self.sections.len());
        let _ = write!(self.text, "<{name}>");
        value(&mut self.text);
        let _ = write!(self.text, "</{name}>");
        self.line_break();
    }

    fn indent(&mut self, unit: &str, depth: usize) {
        if self.pretty {
            self.text.extend(std::iter::repeat_n(unit, depth));
        }
    }

    fn line_break(&mut self) {
        if self.pretty {
            self.text.push('\n');
        }
    }
}

fn escape_json(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\t' => text.push_str("\\t"),
            '\n' => text.push_str("\\n"),
            c if is_control(c) => _ = write!(text, "\\u{:04x}", u32::from(c)),
            c => text.push(c),
        }
    }
}

fn escape_xml(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '&' => text.push_str("&amp;"),
            '\'' => text.push_str("&apos;"),
            '"' => text.push_str("&quot;"),
            '\t' | '\n' => text.push(c),
            c if is_control(c) => _ = write!(text, "&#x{:02x};", u32::from(c)),
            c => text.push(c),
        }
    }
}

fn is_control(c: char) -> bool {
    c < ' ' || c == '\x7f'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(mut document: Document) -> String {
        document.object("image", |d| {
            d.string("name", "a<\"b\\\n\x01");
            d.bare("size", 7);
            d.array("peers", |d| {
                d.string("peer", "x");
                d.object("peer", |d| d.bare("up", true));
                d.array("none", |_| {});
            });
            d.object("empty", |_| {});
        });
        document.finish()
    }

    #[test]
    fn json() {
        assert_eq!(
            sample(Document::json(false)),
            concat!(r#"{"name":"a<\"b\\\n\u0001","size":7,"peers":["x",{"up":true},[]],"empty":{}}"#, "\n")
        );
        assert_eq!(
            sample(Document::json(true)),
            r#"{
    "name": "a<\"b\\\n\u0001",
    "size": 7,
    "peers": [
        "x",
        {
            "up": true
        },
        []
    ],
    "empty": {}
}
"#
        );
        assert!(serde_json::from_str::<serde_json::Value>(&sample(Document::json(true))).is_ok());
    }

    #[test]
    fn xml() {
        assert_eq!(
            sample(Document::xml(false)),
            "<image><name>a&lt;&quot;b\\\n&#x01;</name><size>7</size><peers><peer>x</peer><peer><up>true</up></peer>\
             <none></none></peers><empty></empty></image>\n"
        );
        assert_eq!(
            sample(Document::xml(true)),
            "<image>\n <name>a&lt;&quot;b\\\n&#x01;</name>\n <size>7</size>\n <peers>\n  <peer>x</peer>\n  <peer>\n   \
             <up>true</up>\n  </peer>\n  <none>\n  </none>\n </peers>\n <empty>\n </empty>\n</image>\n\n"
        );
    }
}
