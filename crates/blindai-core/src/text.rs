/// Text that a stranger wrote, to be shown in one line: cut at `limit` bytes, and without the
/// characters that [`is_steering`] names. Line ends and tabs become spaces.
///
/// A terminal obeys what it is told to print: unverified peers and files could otherwise retitle the
/// window, overwrite the lines before, or turn a refusal into what reads as a success.
pub fn printable(text: &str, limit: usize) -> String {
    let cut = &text[..text.floor_char_boundary(limit)];
    let shown = cut.chars().map(|c| match c {
        '\n' | '\r' | '\t' => ' ',
        // One byte, as no replacement may make the text longer.
        c if is_steering(c) => '?',
        c => c,
    });
    shown.collect()
}

/// Whether a character steers a terminal or the order of reading instead of being seen: controls,
/// separators of lines and paragraphs, directions of writing, and what has no width.
pub fn is_steering(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_is_printed_and_letters_of_all_scripts_are() {
        let text =
            "ä 日本 \u{1b}]0;x\u{7} \u{9b}2J \u{202e}no\u{2069} a\r\nb\u{0}\u{200b}\u{e0041}";
        assert_eq!(printable(text, 100), "ä 日本 ?]0;x? ?2J ?no? a  b???");
        assert!(!printable(text, 100).contains(is_steering));
    }

    #[test]
    fn it_is_cut_between_characters() {
        assert_eq!(printable(&"ä".repeat(50), 5), "ää");
        assert_eq!(printable("", 5), "");
    }
}
