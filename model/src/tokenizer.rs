//! Text to token ids: one byte, one token.

/// Number of token ids of [`ByteTokenizer`].
pub const BYTE_VOCABULARY: usize = 256;

/// Maps every byte of UTF-8 text to the token id of the same value; there are no special tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteTokenizer;

impl ByteTokenizer {
    /// Returns the number of token ids.
    #[must_use]
    pub fn vocab_size(self) -> usize {
        BYTE_VOCABULARY
    }

    /// Returns the token ids of a text.
    #[must_use]
    pub fn encode(self, text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    /// Returns the text of token ids; bytes that are not UTF-8, and ids that are not bytes, become U+FFFD.
    #[must_use]
    pub fn decode(self, tokens: &[u32]) -> String {
        // 0xFF never occurs in UTF-8, so an id out of range decodes to the replacement character too.
        let bytes: Vec<u8> = tokens.iter().map(|token| u8::try_from(*token).unwrap_or(0xFF)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_a_round_trip() {
        let text = "naïve — 日本\n";
        assert_eq!(ByteTokenizer.decode(&ByteTokenizer.encode(text)), text);
        assert_eq!(ByteTokenizer.encode("A"), [65]);
    }

    #[test]
    fn ids_that_are_no_text_decode_to_the_replacement_character() {
        assert_eq!(ByteTokenizer.decode(&[72, 0xFF, 999]), "H\u{FFFD}\u{FFFD}");
    }
}
