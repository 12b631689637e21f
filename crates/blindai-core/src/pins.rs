//! Which models a caller accepts: what its policy pins, its requests carry and the server compares.
//!
//! As text, `resnet50=sha256:…; bert/2=sha256:…; *=refuse` is one list. Lists between commas, and in
//! several headers, must all accept: whoever adds one in between can only narrow what was accepted.

use std::fmt;
use std::str::FromStr;

use crate::{Code, Digest, Error, ModelInfo, ModelName, ModelVersion, Result};

/// The HTTP header, and the entry of gRPC's metadata, that says which models the caller accepts.
pub const MODELS: &str = "blindai-models";
/// The HTTP header that tells a caller who said so which digest has answered.
pub const MODEL: &str = "blindai-model";
/// The longest text of the pins of a policy, in bytes: it goes with each request of a proxy, in a head
/// of 32 KiB at most.
pub const MODELS_BYTES: usize = 16 * 1024;
/// In place of a name: whatever is not listed.
pub const OTHERS: &str = "*";
/// What may be said of the others on the wire.
const REFUSE: &str = "refuse";

/// Which models a caller accepts; by default all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelPins(Vec<List>);

/// One content that may answer under a name, in this version or in any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPin {
    pub name: ModelName,
    pub version: Option<ModelVersion>,
    pub digest: Digest,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct List {
    pins: Vec<ModelPin>,
    only_listed: bool,
}

impl ModelPins {
    /// Of each name that is listed, only what one of its pins allows; of other names anything, unless
    /// `only_listed`.
    pub fn new(pins: Vec<ModelPin>, only_listed: bool) -> Self {
        let list = List { pins, only_listed };
        Self(if list.is_empty() { vec![] } else { vec![list] })
    }

    /// Under this name only this digest; without one anything.
    pub fn digest(name: &ModelName, digest: Option<Digest>) -> Self {
        let pin = |digest| ModelPin {
            name: name.clone(),
            version: None,
            digest,
        };
        Self::new(digest.into_iter().map(pin).collect(), false)
    }

    /// Accepts what both accept.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Whether all models are accepted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All pins.
    pub fn pins(&self) -> impl Iterator<Item = &ModelPin> {
        self.0.iter().flat_map(|list| &list.pins)
    }

    /// What is said of models of this name: as much as a request for one of them has to carry.
    pub fn about(&self, name: &ModelName) -> Self {
        let lists = self.0.iter().map(|list| list.about(name));
        Self(lists.filter(|list| !list.is_empty()).collect())
    }

    /// Checks that a model is accepted.
    ///
    /// # Errors
    /// [`Code::ModelNotAccepted`], which names the digest.
    pub fn accept(&self, name: &ModelName, version: &ModelVersion, digest: &Digest) -> Result<()> {
        let refusing = |list: &&List| !list.accepts(name, version, digest);
        match self.0.iter().find(refusing) {
            Some(list) => Err(list.refusal(name, version, digest)),
            None => Ok(()),
        }
    }

    /// Checks that the model of this description is accepted.
    ///
    /// # Errors
    /// As for [`ModelPins::accept`].
    pub fn accept_model(&self, info: &ModelInfo) -> Result<()> {
        self.accept(&info.name, &info.version, &info.digest)
    }
}

impl List {
    fn is_empty(&self) -> bool {
        self.pins.is_empty() && !self.only_listed
    }

    fn about(&self, name: &ModelName) -> Self {
        let pins = self.of(name).cloned().collect::<Vec<_>>();
        Self {
            // Of a name that is listed, the pins say all.
            only_listed: self.only_listed && pins.is_empty(),
            pins,
        }
    }

    fn of(&self, name: &ModelName) -> impl Iterator<Item = &ModelPin> {
        self.pins.iter().filter(move |pin| pin.name == *name)
    }

    fn accepts(&self, name: &ModelName, version: &ModelVersion, digest: &Digest) -> bool {
        let mut pins = self.of(name).peekable();
        if pins.peek().is_none() {
            return !self.only_listed;
        }
        pins.any(|pin| pin.is_for(version) && pin.digest == *digest)
    }

    fn refusal(&self, name: &ModelName, version: &ModelVersion, digest: &Digest) -> Error {
        let listed = self.of(name).next().is_some();
        let allowed = self.of(name).filter(|pin| pin.is_for(version));
        let allowed: Vec<_> = allowed.map(|pin| pin.digest.to_string()).collect();
        let wanted = match (listed, allowed.is_empty()) {
            (false, _) => "no model of this name".to_owned(),
            (true, true) => "other versions of it only".to_owned(),
            (true, false) => allowed.join(" or "),
        };
        let fact = format!("{name} version {version} is {digest}; accepted is {wanted}");
        Error::new(Code::ModelNotAccepted, fact)
    }
}

impl ModelPin {
    fn is_for(&self, version: &ModelVersion) -> bool {
        self.version.as_ref().is_none_or(|only| only == version)
    }

    /// Reads what a digest is pinned for: `NAME`, or `NAME/VERSION`.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`]
    pub fn parse_key(key: &str) -> Result<(ModelName, Option<ModelVersion>)> {
        match key.split_once('/') {
            Some((name, version)) => Ok((name.parse()?, Some(version.parse()?))),
            None => Ok((key.parse()?, None)),
        }
    }
}

impl fmt::Display for ModelPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some(version) = &self.version {
            write!(f, "/{version}")?;
        }
        write!(f, "={}", self.digest)
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others = self.only_listed.then(|| format!("{OTHERS}={REFUSE}"));
        let pins = self.pins.iter().map(ModelPin::to_string).chain(others);
        f.write_str(&pins.collect::<Vec<_>>().join("; "))
    }
}

impl fmt::Display for ModelPins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists: Vec<_> = self.0.iter().map(List::to_string).collect();
        f.write_str(&lists.join(", "))
    }
}

impl FromStr for ModelPins {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let lists = text.split(',').map(read_list);
        Ok(Self(lists.collect::<Result<_>>()?))
    }
}

// A list without entries would accept everything, and nobody sends one who means that.
fn read_list(text: &str) -> Result<List> {
    let mut list = List::default();
    for entry in text.split(';').map(str::trim) {
        match entry.split_once('=') {
            Some((OTHERS, REFUSE)) => list.only_listed = true,
            Some((key, digest)) => {
                let digest = digest.parse().map_err(|_| malformed())?;
                let (name, version) = ModelPin::parse_key(key).map_err(|_| malformed())?;
                list.pins.push(ModelPin {
                    name,
                    version,
                    digest,
                });
            }
            None => return Err(malformed()),
        }
    }
    Ok(list)
}

fn malformed() -> Error {
    let fact = format!("{MODELS} is not of the form NAME=sha256:<64 hex>; …; *=refuse");
    Error::new(Code::InvalidRequest, fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    fn read(text: &str) -> ModelPins {
        let text = text.replace("AA", &hex("aa")).replace("BB", &hex("bb"));
        text.parse().unwrap()
    }

    /// Which of `m/1`, `m/2` and `n/1` are accepted as AA.
    fn accepted(pins: &ModelPins) -> String {
        let digest: Digest = hex("aa").parse().unwrap();
        let accepts = |name: &str, version: &str| {
            let (name, version) = (name.parse().unwrap(), version.parse().unwrap());
            let result = pins.accept(&name, &version, &digest);
            // What a request for this model carries decides as the whole does.
            assert_eq!(result, pins.about(&name).accept(&name, &version, &digest));
            assert!(result.is_ok() || result.unwrap_err().fact().contains(&hex("aa")));
            pins.accept(&name, &version, &digest).is_ok()
        };
        let models = [("m", "1"), ("m", "2"), ("n", "1")];
        let accepted = models
            .iter()
            .filter(|(name, version)| accepts(name, version));
        let accepted = accepted.map(|(name, version)| format!("{name}/{version}"));
        accepted.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn of_a_listed_name_only_what_is_listed_is_accepted() {
        assert_eq!(accepted(&ModelPins::default()), "m/1 m/2 n/1");
        for (text, models) in [
            ("m=AA", "m/1 m/2 n/1"),
            ("m=BB", "n/1"),
            ("m=BB; m=AA", "m/1 m/2 n/1"),
            ("m/1=AA", "m/1 n/1"),
            ("m/1=AA; m=BB", "m/1 n/1"),
            ("m/2=BB; m=AA", "m/1 m/2 n/1"),
            ("m=AA; *=refuse", "m/1 m/2"),
            ("n=BB; *=refuse", ""),
            ("*=refuse", ""),
        ] {
            assert_eq!(accepted(&read(text)), models, "{text}");
        }
    }

    #[test]
    fn a_list_that_is_added_narrows_and_never_widens() {
        for (text, models) in [
            ("m=BB, m=AA", "n/1"),
            ("m=AA; *=refuse, n=AA", "m/1 m/2"),
            ("m=AA, m/2=AA", "m/2 n/1"),
            ("m=BB, *=refuse", ""),
        ] {
            assert_eq!(accepted(&read(text)), models, "{text}");
            let (one, other) = text.split_once(", ").unwrap();
            assert_eq!(read(one).and(read(other)), read(text));
        }
    }

    #[test]
    fn what_is_written_reads_as_the_same() {
        for text in ["m=AA", "m/1.0=AA; m=BB; *=refuse", "*=refuse, a-b.c=AA"] {
            let pins = read(text);
            assert_eq!(pins.to_string().parse(), Ok(pins));
        }
        let two = format!("m={};n={} , *=refuse", hex("aa"), hex("bb"));
        assert_eq!(two.parse(), Ok(read("m=AA; n=BB, *=refuse")));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for text in [
            "",
            " ",
            ",",
            "m",
            "m=",
            "m=AA;",
            "m=AA,",
            "=AA",
            "m=sha256:00",
            "m/=AA",
            "m/1/2=AA",
            "*=accept",
            "*",
            "m=refuse",
            "../m=AA",
            "m =AA",
        ] {
            let text = text.replace("AA", &hex("aa"));
            let error = text.parse::<ModelPins>().unwrap_err();
            assert_eq!(error.code(), Code::InvalidRequest, "{text}");
        }
    }
}
