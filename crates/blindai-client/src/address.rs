use std::fmt;
use std::net::Ipv6Addr;

use rustls::pki_types::ServerName;

use crate::ClientError;

/// The attested port of a server.
pub const DEFAULT_PORT: u16 = 50051;

/// Where a server is: a host name or an IP address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

impl Address {
    /// Reads `host`, `host:port`, `1.2.3.4:port`, `::1`, `[::1]` or `[::1]:port`.
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        let refuse = || ClientError::address_invalid(text);
        let (host, port) = split(text).ok_or_else(refuse)?;
        let port = match port {
            Some(digits) => parse_port(digits).ok_or_else(refuse)?,
            None => DEFAULT_PORT,
        };
        // What rustls takes as a name is also fit for a `Host` header: no space, slash or newline.
        let name = ServerName::try_from(host).map_err(|_| refuse())?.to_owned();
        let host = host.to_owned();
        Ok(Self { host, port, name })
    }

    /// What the resolver takes.
    pub fn target(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// The name for TLS. The evidence says who the server is; the name only helps routing.
    pub fn server_name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

fn split(text: &str) -> Option<(&str, Option<&str>)> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Some((text, None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        return match rest {
            "" => Some((host, None)),
            _ => Some((host, Some(rest.strip_prefix(':')?))),
        };
    }
    match text.split_once(':') {
        Some((host, port)) => Some((host, Some(port))),
        None => Some((text, None)),
    }
}

fn parse_port(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&port| plain && port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_every_form() {
        let cases = [
            ("localhost", "localhost:50051"),
            ("localhost:1234", "localhost:1234"),
            ("models.example.org:443", "models.example.org:443"),
            ("127.0.0.1", "127.0.0.1:50051"),
            ("127.0.0.1:65535", "127.0.0.1:65535"),
            ("::1", "[::1]:50051"),
            ("[::1]", "[::1]:50051"),
            ("[2001:db8::7]:99", "[2001:db8::7]:99"),
        ];
        for (text, full) in cases {
            assert_eq!(Address::parse(text).unwrap().to_string(), full, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_a_remedy() {
        let bad = [
            "",
            ":50051",
            "host:",
            "host:0",
            "host:+1",
            "host:65536",
            "host:1:2",
            "https://host:1",
            "host/path",
            "ho st",
            "host\r\nx:1",
            "[::1",
            "[::1]1",
            "[host]:1",
        ];
        for text in bad {
            let error = Address::parse(text).unwrap_err();
            assert_eq!(error.code(), "address-invalid", "{text:?}");
            assert!(error.remedy().contains("host:port"));
        }
    }
}
