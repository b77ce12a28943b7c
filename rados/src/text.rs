//! Text of others on its way to people. Names, descriptions and errors may come from a remote cluster; on a terminal a
//! control character in them moves the cursor, and in a log it ends the line.

use std::borrow::Cow;
use std::fmt::Write;

/// The text with every control character (C0 and C1, line ends among them) and every one that changes the direction of
/// writing in a visible form: `\n`, `\u{1b}`.
pub fn visible(text: &str) -> Cow<'_, str> {
    visible_but(text, &[])
}

/// The same, leaving these characters as they are.
pub fn visible_but<'a>(text: &'a str, kept: &[char]) -> Cow<'a, str> {
    let hidden = |c: char| is_hidden(c) && !kept.contains(&c);
    if !text.chars().any(hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hidden(c) {
            // Writing to a string cannot fail.
            let _ = write!(shown, "{}", c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_visible() {
        assert!(matches!(visible("an image, für alle"), Cow::Borrowed(_)));
        assert_eq!(visible("a\x1b[2Jb\nc\u{9b}d\u{202e}"), "a\\u{1b}[2Jb\\nc\\u{9b}d\\u{202e}");
        assert_eq!(visible_but("a\tb\n\r", &['\n', '\t']), "a\tb\n\\r");
    }
}
