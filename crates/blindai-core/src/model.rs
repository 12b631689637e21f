use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::tensor::ShapeText;
use crate::{Code, DType, Digest, Error, NamedTensor, Result, Tensor};

/// The longest model name or version, in bytes.
const NAME_BYTES: usize = 128;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                check_identifier($what, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

identifier! {
    /// A model's name: 1 to 128 letters, digits, `.`, `_` or `-`, not starting with a dot.
    ModelName, "model name"
}

identifier! {
    /// A model's version: like a name; the server's own versions count 1, 2, 3…
    ModelVersion, "model version"
}

// Names stand in URLs and in file names: nothing that either would interpret.
fn check_identifier(what: &str, text: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let valid = (1..=NAME_BYTES).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(allowed);
    if valid {
        return Ok(());
    }
    let shown: String = text.chars().take(NAME_BYTES).collect();
    Err(
        Error::new(Code::InvalidRequest, format!("{shown:?} is not a {what}"))
            .with_remedy("use 1 to 128 letters, digits, '.', '_' or '-', not starting with a dot"),
    )
}

/// One dimension of a signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// Exactly this size.
    Fixed(usize),
    /// Any size; dimensions of one name need not agree, as in ONNX.
    Symbolic(String),
}

impl Dim {
    /// The size, or -1 for any, as the Open Inference Protocol writes it.
    pub fn to_oip(&self) -> i64 {
        match self {
            Dim::Fixed(size) => i64::try_from(*size).unwrap_or(i64::MAX),
            Dim::Symbolic(_) => -1,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(size) => write!(f, "{size}"),
            Dim::Symbolic(name) if name.is_empty() => f.write_str("?"),
            Dim::Symbolic(name) => f.write_str(name),
        }
    }
}

/// What a model says of one of its inputs or outputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: DType,
    /// `None` when the model leaves even the number of dimensions open.
    pub shape: Option<Vec<Dim>>,
    /// The model has a default for this input: it may be left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

impl TensorSpec {
    fn check(&self, given: &NamedTensor) -> Result<()> {
        let name = &self.name;
        let (want, got) = (self.dtype, given.tensor.dtype());
        if want != got {
            let fact = format!("input {name:?} takes {want}, got {got}");
            return Err(Error::new(Code::InputDType, fact));
        }
        let Some(want) = &self.shape else {
            return Ok(());
        };
        let got = given.tensor.shape();
        let fits = want.len() == got.len()
            && want
                .iter()
                .zip(got)
                .all(|(want, got)| !matches!(want, Dim::Fixed(size) if size != got));
        if fits {
            return Ok(());
        }
        let (want, got) = (ShapeText(want), ShapeText(got));
        let fact = format!("input {name:?} takes the shape {want}, got {got}");
        Err(Error::new(Code::InputShape, fact))
    }
}

/// The inputs and outputs of a model, in the model's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
}

impl Signature {
    /// Checks inputs before they reach an engine: every name once, none missing, none unknown,
    /// types and shapes as the model says.
    ///
    /// # Errors
    /// [`Code::InputUnknown`], [`Code::InputMissing`], [`Code::InputDType`],
    /// [`Code::InputShape`]; each names the input, what it takes and what came.
    pub fn check_inputs(&self, inputs: &[NamedTensor]) -> Result<()> {
        for (i, given) in inputs.iter().enumerate() {
            let name = &given.name;
            if inputs[..i].iter().any(|earlier| earlier.name == *name) {
                let fact = format!("input {name:?} was sent twice");
                return Err(Error::new(Code::InvalidRequest, fact));
            }
            match self.inputs.iter().find(|spec| spec.name == *name) {
                Some(spec) => spec.check(given)?,
                None => return Err(self.unknown_input(name)),
            }
        }
        let sent = |spec: &&TensorSpec| !inputs.iter().any(|given| given.name == spec.name);
        match self.inputs.iter().filter(|s| !s.optional).find(sent) {
            Some(missing) => Err(missing_input(missing)),
            None => Ok(()),
        }
    }

    /// The only input, from nothing but its bytes: their number says the one size that is open.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for a model whose input needs to be described, [`Code::InputShape`] for
    /// bytes that fill no such tensor.
    pub fn raw_input(&self, data: Bytes) -> Result<NamedTensor> {
        let described = || {
            let fact = "bytes alone do not say what this model takes";
            Error::new(Code::InvalidRequest, fact).with_remedy("describe the inputs in JSON")
        };
        let [spec] = &self.inputs[..] else {
            return Err(described());
        };
        let (size, shape) = spec
            .dtype
            .size()
            .zip(spec.shape.as_ref())
            .ok_or_else(described)?;
        let fixed = shape.iter().filter_map(|dim| match dim {
            Dim::Fixed(size) => Some(*size),
            _ => None,
        });
        if fixed.clone().count() + 1 < shape.len() {
            return Err(described());
        }
        let known = fixed.fold(size, usize::saturating_mul);
        let open = data.len() / known.max(1);
        let shape = shape.iter().map(|dim| match dim {
            Dim::Fixed(size) => *size,
            _ => open,
        });
        Tensor::new(spec.dtype, shape.collect(), data)
            .map(|tensor| NamedTensor::new(&spec.name, tensor))
            .map_err(|error| Error::new(Code::InputShape, error.fact()))
    }

    /// Checks the names of the outputs that were asked for.
    ///
    /// # Errors
    /// [`Code::OutputUnknown`]
    pub fn check_outputs(&self, wanted: &[String]) -> Result<()> {
        let unknown = |name: &&String| !self.outputs.iter().any(|spec| spec.name == **name);
        match wanted.iter().find(unknown) {
            Some(name) => {
                let names = names(&self.outputs);
                let fact = format!("there is no output {name:?}; the model has {names}");
                Err(Error::new(Code::OutputUnknown, fact))
            }
            None => Ok(()),
        }
    }

    fn unknown_input(&self, name: &str) -> Error {
        let names = names(&self.inputs);
        let fact = format!("there is no input {name:?}; the model takes {names}");
        Error::new(Code::InputUnknown, fact)
    }
}

fn missing_input(spec: &TensorSpec) -> Error {
    let shape = match &spec.shape {
        Some(shape) => ShapeText(shape).to_string(),
        None => " of any shape".to_owned(),
    };
    let fact = format!(
        "input {:?} is missing; it takes {}{shape}",
        spec.name, spec.dtype
    );
    Error::new(Code::InputMissing, fact)
}

fn names(specs: &[TensorSpec]) -> String {
    let names: Vec<_> = specs
        .iter()
        .map(|spec| format!("{:?}", spec.name))
        .collect();
    names.join(", ")
}

/// What runs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// ONNX Runtime: C++, the fastest, and takes nearly everything.
    #[default]
    OnnxRuntime,
    /// tract: Rust, the smallest trusted base.
    Tract,
}

impl EngineKind {
    /// Its name: `onnxruntime` or `tract`.
    pub fn as_str(self) -> &'static str {
        match self {
            EngineKind::OnnxRuntime => "onnxruntime",
            EngineKind::Tract => "tract",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the server says of a model it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    pub name: ModelName,
    pub version: ModelVersion,
    /// SHA-256 of the model file: its identity.
    pub digest: Digest,
    pub size_bytes: u64,
    pub signature: Signature,
    /// What runs it.
    pub engine: EngineKind,
    /// When the upload was complete, in seconds since 1970.
    pub uploaded_at: u64,
    /// Whether it is in memory. Otherwise the next request for it is answered when it is again.
    #[serde(default = "loaded")]
    pub loaded: bool,
    /// The number under which the server's metrics count this model, `model="3"`, so that they need
    /// not name it. `None` where there are no metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_slot: Option<u32>,
    /// Whether it is there after a restart, and what keeps it. `None` where it is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// How a model is kept at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// Sealed by the platform.
    Sealed,
    /// Sealed by a simulation, whose key lies in a file: it protects nothing.
    Simulated,
}

impl Kept {
    /// As it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Simulated => "simulated",
        }
    }
}

/// Of servers that say nothing of it: what they hold is in memory.
fn loaded() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: Option<Vec<Dim>>) -> TensorSpec {
        TensorSpec {
            name: name.into(),
            dtype: DType::U8,
            shape,
            optional: false,
        }
    }

    fn given(name: &str, shape: &[usize]) -> NamedTensor {
        let data = vec![0; shape.iter().product()];
        NamedTensor::new(
            name,
            Tensor::new(DType::U8, shape.to_vec(), data.into()).unwrap(),
        )
    }

    fn signature() -> Signature {
        let any = Dim::Symbolic("batch".into());
        Signature {
            inputs: vec![spec("a", Some(vec![any, Dim::Fixed(3)])), spec("b", None)],
            outputs: vec![spec("y", None)],
        }
    }

    #[test]
    fn inputs_that_fit_pass() {
        let inputs = [given("b", &[7]), given("a", &[2, 3])];
        signature().check_inputs(&inputs).unwrap();
    }

    #[test]
    fn each_misfit_has_its_code_and_names_the_input() {
        let cases = [
            (vec![given("a", &[2, 3])], Code::InputMissing, "\"b\""),
            (vec![given("c", &[1])], Code::InputUnknown, "\"c\""),
            (vec![given("a", &[2, 4])], Code::InputShape, "[batch,3]"),
            (vec![given("a", &[3])], Code::InputShape, "[3]"),
            (
                vec![given("b", &[1]), given("b", &[1])],
                Code::InvalidRequest,
                "twice",
            ),
        ];
        for (inputs, code, word) in cases {
            let error = signature().check_inputs(&inputs).unwrap_err();
            assert_eq!(error.code(), code);
            assert!(error.fact().contains(word), "{error}");
        }
    }

    #[test]
    fn names_cannot_climb_out_of_a_folder_or_a_url() {
        for bad in [
            "",
            ".",
            "..",
            ".x",
            "a/b",
            "a b",
            "ä",
            "a%2fb",
            &"x".repeat(129),
        ] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad}");
        }
        assert!("resnet50-v1.5_int8".parse::<ModelName>().is_ok());
    }

    #[test]
    fn bytes_say_the_one_size_that_is_open() {
        let of = |shape: Option<Vec<Dim>>, bytes: usize| {
            let signature = Signature {
                inputs: vec![TensorSpec {
                    dtype: DType::U16,
                    ..spec("x", shape)
                }],
                outputs: Vec::new(),
            };
            let read = signature.raw_input(vec![0; bytes].into());
            read.map(|input| input.tensor.shape().to_vec())
                .map_err(|error| error.code())
        };
        let open = Dim::Symbolic("n".into());
        let rows = || Some(vec![open.clone(), Dim::Fixed(3)]);
        assert_eq!(of(rows(), 12), Ok(vec![2, 3]));
        assert_eq!(of(rows(), 0), Ok(vec![0, 3]));
        assert_eq!(of(rows(), 13), Err(Code::InputShape));
        assert_eq!(of(Some(vec![Dim::Fixed(3)]), 6), Ok(vec![3]));
        assert_eq!(of(Some(vec![Dim::Fixed(3)]), 8), Err(Code::InputShape));
        assert_eq!(
            of(Some(vec![Dim::Fixed(0), open.clone()]), 2),
            Err(Code::InputShape)
        );
        assert_eq!(
            of(Some(vec![open.clone(), open.clone()]), 6),
            Err(Code::InvalidRequest)
        );
        assert_eq!(of(None, 6), Err(Code::InvalidRequest));
        let many = signature().raw_input(Bytes::new());
        assert_eq!(many.unwrap_err().code(), Code::InvalidRequest);
    }
}
