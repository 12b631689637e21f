use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::{Code, Digest, Error, Result};

/// What every token begins with, so that people and scanners of source code know one when they see it.
const PREFIX: &str = "blindai_";
/// Random bytes of a token.
const RANDOM_BYTES: usize = 32;
/// Bytes of the checksum behind them, which tells a mistyped token from one that is not known.
const CHECK_BYTES: usize = 4;

/// A bearer token: `blindai_` and 72 hexadecimal digits, 64 of them random and 8 a checksum.
///
/// It is shown nowhere, and wiped when it is dropped. A server keeps only its [`Token::digest`], and a
/// plain SHA-256 is right for that: nobody guesses 256 random bits, so there is nothing that a slow
/// hash or a salt would make harder. No other form is taken, so nobody can make a password a token.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// A token of these bytes, which must be random.
    pub fn from_random(bytes: &[u8; RANDOM_BYTES]) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(LENGTH));
        text.push_str(PREFIX);
        text.push_str(&Zeroizing::new(hex::encode(bytes)));
        let check = checksum(&text);
        text.push_str(&check);
        Self(text)
    }

    /// SHA-256 of the text: what stands in a server's configuration.
    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// The secret text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

const LENGTH: usize = PREFIX.len() + 2 * (RANDOM_BYTES + CHECK_BYTES);

impl FromStr for Token {
    type Err = Error;

    /// # Errors
    /// [`Code::InvalidRequest`], which says nothing of the text: it may be another secret.
    fn from_str(text: &str) -> Result<Self> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_token = text.len() == LENGTH
            && text
                .strip_prefix(PREFIX)
                .is_some_and(|rest| rest.bytes().all(is_digit))
            && checksum(&text[..LENGTH - 2 * CHECK_BYTES]) == text[LENGTH - 2 * CHECK_BYTES..];
        match is_token {
            true => Ok(Self(Zeroizing::new(text.to_owned()))),
            false => Err(Error::new(
                Code::InvalidRequest,
                "what was given as a token is none, or was mistyped",
            )
            .with_remedy("a token is blindai_ and 72 hexadecimal digits in small letters")),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

fn checksum(text: &str) -> String {
    hex::encode(&Sha256::digest(text.as_bytes())[..CHECK_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_shows_nothing() {
        let token = Token::from_random(&[7; 32]);
        let text = token.expose();
        assert_eq!(text.len(), LENGTH);
        let back: Token = text.parse().unwrap();
        assert_eq!(back.digest(), Digest::of(text.as_bytes()));
        assert_eq!(format!("{token:?}"), "Token(..)");
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_repeated() {
        let good = Token::from_random(&[7; 32]).expose().to_owned();
        let digits = good.strip_prefix(PREFIX).unwrap();
        for text in [
            String::new(),
            "password".to_owned(),
            digits.to_owned(),
            format!("{good} "),
            good.to_uppercase(),
            good.replace("07", "08"),
            good[..good.len() - 1].to_owned(),
            format!("{}ä", &good[..good.len() - 2]),
        ] {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(text.is_empty() || !error.contains(&text), "{text}");
        }
    }
}
