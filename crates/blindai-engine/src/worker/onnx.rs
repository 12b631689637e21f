//! A look at the model before ONNX Runtime gets it, over the bytes as they lie: nothing is copied
//! and nothing is allocated by a number that the file names.

use std::collections::HashMap;

use blindai_core::{Code, Error, Result};

/// What the file says of its graph that ONNX Runtime does not repeat.
#[derive(Default)]
pub(super) struct Graph<'a> {
    shaped: Vec<&'a [u8]>,
    functions: Vec<&'a [u8]>,
    /// Inputs of which some dimension may be any size.
    open_inputs: usize,
}

impl Graph<'_> {
    /// The names of the model's own functions.
    #[cfg_attr(not(feature = "tract"), allow(dead_code))]
    pub(super) fn functions(&self) -> impl Iterator<Item = String> {
        self.functions.iter().map(|name| lossy(name))
    }

    /// Whether the input or output states its dimensions, be there none.
    pub(super) fn has_shape(&self, name: &str) -> bool {
        self.shaped.contains(&name.as_bytes())
    }

    /// Whether every input has one size only, so that every run is like the last.
    pub(super) fn is_fixed(&self) -> bool {
        self.open_inputs == 0
    }
}

/// Checks that the file is an ONNX model, complete in itself, that only takes and gives tensors and
/// stays within bounds that ONNX Runtime would follow without end.
///
/// # Errors
/// [`Code::ModelInvalid`] or [`Code::ModelUnsupported`], naming the culprit.
pub(super) fn check(model: &[u8]) -> Result<Graph<'_>> {
    if model.get(4..8) == Some(b"ORTM") {
        let fact = "the file is in ONNX Runtime's own format";
        return Err(Error::new(Code::ModelUnsupported, fact).with_remedy("send the ONNX file"));
    }
    let mut walk = Walk::default();
    let mut functions = Vec::new();
    let mut has_graph = false;
    let mut seen = Graph::default();
    at_most_once(model, &[MODEL_GRAPH])?;
    for field in fields(model) {
        match field? {
            (MODEL_GRAPH, Value::Bytes(graph)) => {
                has_graph = true;
                walk.graph(graph, 0)?;
                check_values(graph, &mut seen)?;
            }
            (MODEL_TRAINING, Value::Bytes(training)) => walk.training(training)?,
            (MODEL_FUNCTION, Value::Bytes(function)) => functions.push(function),
            _ => {}
        }
    }
    if !has_graph {
        return Err(invalid("it has no graph"));
    }
    walk.functions(&functions)?;
    let called = Functions::new(&functions)?;
    called.check_expansion(model)?;
    seen.functions = called.bodies.keys().map(|[_, name, _]| *name).collect();
    Ok(seen)
}

/// The most nodes of a model, functions expanded. The largest real graphs have a few ten thousand.
const MOST_NODES: u64 = 1_000_000;
/// The deepest nesting of graphs in attributes, and of functions that call each other.
const DEEPEST: usize = 32;
const MOST_FUNCTIONS: usize = 10_000;

// Field numbers of onnx.proto.
const MODEL_GRAPH: u64 = 7;
const MODEL_TRAINING: u64 = 20;
const MODEL_FUNCTION: u64 = 25;
const TRAINING_GRAPHS: [u64; 2] = [1, 2];
const GRAPH_NODE: u64 = 1;
const GRAPH_INITIALIZER: u64 = 5;
const GRAPH_INPUT: u64 = 11;
const GRAPH_OUTPUT: u64 = 12;
const GRAPH_SPARSE: u64 = 15;
const NODE_OPERATOR: u64 = 4;
const NODE_ATTRIBUTE: u64 = 5;
const NODE_DOMAIN: u64 = 7;
const NODE_OVERLOAD: u64 = 8;
const ATTRIBUTE_TENSORS: [u64; 2] = [5, 10];
const ATTRIBUTE_GRAPHS: [u64; 2] = [6, 11];
const ATTRIBUTE_SPARSE: [u64; 2] = [22, 23];
/// A tensor, a graph and a sparse tensor; of the others there may be many.
const ATTRIBUTE_SINGLE: [u64; 3] = [5, 6, 22];
const SPARSE_TENSORS: [u64; 2] = [1, 2];
const FUNCTION_NAME: u64 = 1;
const FUNCTION_NODE: u64 = 7;
const FUNCTION_DOMAIN: u64 = 10;
const FUNCTION_ATTRIBUTE: u64 = 11;
const FUNCTION_OVERLOAD: u64 = 13;
const TENSOR_DIMS: u64 = 1;
const TENSOR_NAME: u64 = 8;
const TENSOR_EXTERNAL: u64 = 13;
const TENSOR_LOCATION: u64 = 14;
const VALUE_NAME: u64 = 1;
const VALUE_TYPE: u64 = 2;
const TYPE_TENSOR: u64 = 1;
const TENSOR_SHAPE: u64 = 2;
const SHAPE_DIM: u64 = 1;
const DIM_VALUE: u64 = 1;
/// Of value and name the last one counts.
const DIM_NAME: u64 = 2;
const OTHER_TYPES: [(u64, &str); 5] = [
    (4, "a sequence"),
    (5, "a map"),
    (7, "opaque"),
    (8, "a sparse tensor"),
    (9, "optional"),
];

/// Visits every tensor and counts every node, functions not expanded.
#[derive(Default)]
struct Walk {
    nodes: u64,
}

impl Walk {
    fn graph(&mut self, graph: &[u8], depth: usize) -> Result<()> {
        if depth > DEEPEST {
            return Err(invalid(&format!(
                "its graphs are nested over {DEEPEST} deep"
            )));
        }
        for field in fields(graph) {
            match field? {
                (GRAPH_NODE, Value::Bytes(node)) => self.node(node, depth)?,
                (GRAPH_INITIALIZER, Value::Bytes(tensor)) => check_tensor(tensor)?,
                (GRAPH_SPARSE, Value::Bytes(sparse)) => check_sparse(sparse)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &[u8], depth: usize) -> Result<()> {
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            return Err(invalid(&format!("it has over {MOST_NODES} nodes")));
        }
        for field in fields(node) {
            if let (NODE_ATTRIBUTE, Value::Bytes(attribute)) = field? {
                self.attribute(attribute, depth)?;
            }
        }
        Ok(())
    }

    fn attribute(&mut self, attribute: &[u8], depth: usize) -> Result<()> {
        at_most_once(attribute, &ATTRIBUTE_SINGLE)?;
        for field in fields(attribute) {
            let (number, Value::Bytes(bytes)) = field? else {
                continue;
            };
            if ATTRIBUTE_TENSORS.contains(&number) {
                check_tensor(bytes)?;
            } else if ATTRIBUTE_GRAPHS.contains(&number) {
                self.graph(bytes, depth + 1)?;
            } else if ATTRIBUTE_SPARSE.contains(&number) {
                check_sparse(bytes)?;
            }
        }
        Ok(())
    }

    fn training(&mut self, training: &[u8]) -> Result<()> {
        for field in fields(training) {
            match field? {
                (number, Value::Bytes(graph)) if TRAINING_GRAPHS.contains(&number) => {
                    self.graph(graph, 0)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn functions(&mut self, functions: &[&[u8]]) -> Result<()> {
        for function in functions {
            for field in fields(function) {
                match field? {
                    (FUNCTION_NODE, Value::Bytes(node)) => self.node(node, 0)?,
                    (FUNCTION_ATTRIBUTE, Value::Bytes(attribute)) => {
                        self.attribute(attribute, 0)?
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The graph's own inputs and outputs: each a tensor, or of a type to be inferred.
fn check_values<'a>(graph: &'a [u8], seen: &mut Graph<'a>) -> Result<()> {
    for field in fields(graph) {
        let (number, Value::Bytes(value)) = field? else {
            continue;
        };
        let role = match number {
            GRAPH_INPUT => "input",
            GRAPH_OUTPUT => "output",
            _ => continue,
        };
        let name = last_bytes(value, VALUE_NAME)?.unwrap_or_default();
        at_most_once(value, &[VALUE_TYPE])?;
        let kind = last_bytes(value, VALUE_TYPE)?.unwrap_or_default();
        if let Some(shape) = check_type(role, name, kind)? {
            seen.shaped.push(name);
            seen.open_inputs += usize::from(role == "input" && !is_fixed(shape)?);
        } else {
            seen.open_inputs += usize::from(role == "input");
        }
    }
    Ok(())
}

/// The shape, when the type states one.
fn check_type<'a>(role: &str, name: &[u8], kind: &'a [u8]) -> Result<Option<&'a [u8]>> {
    for field in fields(kind) {
        let (number, Value::Bytes(_)) = field? else {
            continue;
        };
        if let Some((_, kind)) = OTHER_TYPES.iter().find(|(other, _)| *other == number) {
            let fact = format!("{role} {:?} is {kind}, not a tensor", lossy(name));
            return Err(Error::new(Code::ModelUnsupported, fact));
        }
    }
    at_most_once(kind, &[TYPE_TENSOR])?;
    let tensor = last_bytes(kind, TYPE_TENSOR)?.unwrap_or_default();
    at_most_once(tensor, &[TENSOR_SHAPE])?;
    last_bytes(tensor, TENSOR_SHAPE)
}

/// Whether every dimension is a number.
fn is_fixed(shape: &[u8]) -> Result<bool> {
    for field in fields(shape) {
        if let (SHAPE_DIM, Value::Bytes(dim)) = field? {
            let mut known = false;
            for field in fields(dim) {
                match field? {
                    // Some exporters write -1 for any.
                    (DIM_VALUE, Value::Number(size)) => known = size < 1 << 63,
                    (DIM_NAME, Value::Bytes(_)) => known = false,
                    _ => {}
                }
            }
            if !known {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn check_sparse(sparse: &[u8]) -> Result<()> {
    at_most_once(sparse, &SPARSE_TENSORS)?;
    for field in fields(sparse) {
        match field? {
            (number, Value::Bytes(tensor)) if SPARSE_TENSORS.contains(&number) => {
                check_tensor(tensor)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// No data outside the file, which ONNX Runtime would look for in the file system, and no dimensions
/// whose product overflows.
fn check_tensor(tensor: &[u8]) -> Result<()> {
    let mut external = false;
    let mut elements = Some(1u64);
    let mut dim = |value: u64| elements = elements.and_then(|n| n.checked_mul(value.max(1)));
    for field in fields(tensor) {
        match field? {
            (TENSOR_EXTERNAL, Value::Bytes(_)) => external = true,
            (TENSOR_LOCATION, Value::Number(location)) => external |= location != 0,
            (TENSOR_DIMS, Value::Number(value)) => dim(value),
            (TENSOR_DIMS, Value::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    dim(number(&mut packed)?);
                }
            }
            _ => {}
        }
    }
    let name = || last_bytes(tensor, TENSOR_NAME).map(|name| lossy(name.unwrap_or_default()));
    if external {
        let fact = format!(
            "tensor {:?} has its data in another file; save the model with its weights inside",
            name()?
        );
        return Err(Error::new(Code::ModelUnsupported, fact));
    }
    // A negative dimension is a huge one here.
    if elements.is_none_or(|elements| elements > i64::MAX as u64) {
        return Err(invalid(&format!(
            "tensor {:?} has impossible dimensions",
            name()?
        )));
    }
    Ok(())
}

/// The model's own functions. ONNX Runtime expands each call: forty functions that each call the
/// next one twice make 2^40 nodes.
struct Functions<'a> {
    bodies: HashMap<Identifier<'a>, &'a [u8]>,
}

/// Domain, name, overload.
type Identifier<'a> = [&'a [u8]; 3];

impl<'a> Functions<'a> {
    fn new(functions: &[&'a [u8]]) -> Result<Self> {
        if functions.len() > MOST_FUNCTIONS {
            return Err(invalid(&format!("it has over {MOST_FUNCTIONS} functions")));
        }
        let mut bodies = HashMap::new();
        for &body in functions {
            let fields = [FUNCTION_DOMAIN, FUNCTION_NAME, FUNCTION_OVERLOAD];
            if bodies.insert(identifier(body, fields)?, body).is_some() {
                return Err(invalid("two of its functions have one name"));
            }
        }
        Ok(Self { bodies })
    }

    fn check_expansion(&self, model: &'a [u8]) -> Result<()> {
        if self.bodies.is_empty() {
            return Ok(());
        }
        let mut known = HashMap::new();
        for field in fields(model) {
            if let (MODEL_GRAPH, Value::Bytes(graph)) = field? {
                self.body(graph, GRAPH_NODE, &mut known, 0)?;
            }
        }
        Ok(())
    }

    /// The size of a graph or function body, expanded.
    fn body(
        &self,
        body: &'a [u8],
        number: u64,
        known: &mut HashMap<Identifier<'a>, Size>,
        depth: usize,
    ) -> Result<Size> {
        let mut size = Size::default();
        // Checked on the way down too, or a function that calls itself would never end.
        size.check(depth)?;
        for field in fields(body) {
            if let (found, Value::Bytes(node)) = field?
                && found == number
            {
                size.nodes += 1;
                self.node(node, known, depth, &mut size)?;
                size.check(depth)?;
            }
        }
        Ok(size)
    }

    /// Adds what a node holds and calls.
    fn node(
        &self,
        node: &'a [u8],
        known: &mut HashMap<Identifier<'a>, Size>,
        depth: usize,
        size: &mut Size,
    ) -> Result<()> {
        for field in fields(node) {
            let (NODE_ATTRIBUTE, Value::Bytes(attribute)) = field? else {
                continue;
            };
            for field in fields(attribute) {
                match field? {
                    (number, Value::Bytes(graph)) if ATTRIBUTE_GRAPHS.contains(&number) => {
                        size.add(self.body(graph, GRAPH_NODE, known, depth + 1)?);
                    }
                    _ => {}
                }
            }
        }
        let called = identifier(node, [NODE_DOMAIN, NODE_OPERATOR, NODE_OVERLOAD])?;
        if let Some(body) = self.bodies.get(&called) {
            let expanded = match known.get(&called) {
                Some(expanded) => *expanded,
                None => self.body(body, FUNCTION_NODE, known, depth + 1)?,
            };
            known.insert(called, expanded);
            size.add(expanded);
        }
        Ok(())
    }
}

/// Of a body with everything in it expanded.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: u64,
    height: usize,
}

impl Size {
    fn add(&mut self, inner: Size) {
        self.nodes = self.nodes.saturating_add(inner.nodes);
        self.height = self.height.max(inner.height + 1);
    }

    fn check(self, depth: usize) -> Result<()> {
        if depth + self.height > DEEPEST {
            let fact = format!("its functions and graphs are nested over {DEEPEST} deep");
            return Err(invalid(&fact));
        }
        if self.nodes > MOST_NODES {
            let fact = format!("it has over {MOST_NODES} nodes with its functions expanded");
            return Err(invalid(&fact));
        }
        Ok(())
    }
}

fn identifier(message: &[u8], numbers: [u64; 3]) -> Result<Identifier<'_>> {
    let mut parts: Identifier<'_> = [b"", b"", b""];
    for field in fields(message) {
        let (found, Value::Bytes(bytes)) = field? else {
            continue;
        };
        if let Some(i) = numbers.iter().position(|number| *number == found) {
            parts[i] = bytes;
        }
    }
    // Two spellings of one domain.
    if parts[0] == b"ai.onnx" {
        parts[0] = b"";
    }
    Ok(parts)
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a protobuf message, as they come.
fn fields(message: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>)>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = field(&mut rest);
        if field.is_err() {
            rest = &[];
        }
        Some(field)
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Value<'a>)> {
    let key = key(rest)?;
    let value = match key & 7 {
        0 => Value::Number(number(rest)?),
        1 => take(rest, 8).map(|_| Value::Other)?,
        2 => {
            let length = length(rest)?;
            Value::Bytes(take(rest, length)?)
        }
        5 => take(rest, 4).map(|_| Value::Other)?,
        // Groups: ONNX has none, and nothing else exists.
        _ => return Err(not_onnx()),
    };
    match key >> 3 {
        0 => Err(not_onnx()),
        field => Ok((field, value)),
    }
}

/// Field number and wire type, only as every writer spells them. Protobuf reads 32 bits and drops
/// what is above: a wider key is an unknown field here and external data there.
fn key(rest: &mut &[u8]) -> Result<u64> {
    let before = rest.len();
    let key = number(rest)?;
    let shortest = 1 + key.max(1).ilog2() / 7;
    match key <= u32::MAX.into() && before - rest.len() == shortest as usize {
        true => Ok(key),
        false => Err(not_onnx()),
    }
}

/// A length that protobuf reads as the same one: at most 31 bits, in at most five bytes.
fn length(rest: &mut &[u8]) -> Result<u64> {
    let before = rest.len();
    let length = number(rest)?;
    match length <= i32::MAX as u64 && before - rest.len() <= 5 {
        true => Ok(length),
        false => Err(not_onnx()),
    }
}

fn number(rest: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or_else(not_onnx)?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(not_onnx())
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8]> {
    let length = usize::try_from(length).map_err(|_| not_onnx())?;
    let (taken, tail) = rest.split_at_checked(length).ok_or_else(not_onnx)?;
    *rest = tail;
    Ok(taken)
}

/// Refuses messages of which there may be one and are two: protobuf makes one of them, and what was
/// checked in each is something else in both together.
fn at_most_once(message: &[u8], numbers: &[u64]) -> Result<()> {
    let mut seen = 0u64;
    for field in fields(message) {
        let (number, Value::Bytes(_)) = field? else {
            continue;
        };
        if numbers.contains(&number) {
            if seen & 1 << number != 0 {
                return Err(invalid("a part of which it may have one is there twice"));
            }
            seen |= 1 << number;
        }
    }
    Ok(())
}

/// The bytes of a field that is not a message: as protobuf has it, the last one counts. Of messages there
/// must be [one](at_most_once).
fn last_bytes(message: &[u8], number: u64) -> Result<Option<&[u8]>> {
    let mut last = None;
    for field in fields(message) {
        match field? {
            (found, Value::Bytes(bytes)) if found == number => last = Some(bytes),
            _ => {}
        }
    }
    Ok(last)
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(128)]).into_owned()
}

fn not_onnx() -> Error {
    invalid("it is cut short, or not ONNX")
}

fn invalid(fact: &str) -> Error {
    Error::new(
        Code::ModelInvalid,
        format!("the file is not a model that can be run: {fact}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u64, content: &[u8]) -> Vec<u8> {
        let mut message = varint(number << 3 | 2);
        message.extend(varint(content.len() as u64));
        message.extend(content);
        message
    }

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    fn call(operator: &str) -> Vec<u8> {
        let operator = bytes(NODE_OPERATOR, operator.as_bytes());
        [operator, bytes(NODE_DOMAIN, b"local")].concat()
    }

    /// A model whose graph calls these functions, each of which calls others.
    fn model(calls: &[&str], functions: &[(&str, &[&str])]) -> Vec<u8> {
        let nodes = |number, calls: &[&str]| -> Vec<u8> {
            calls
                .iter()
                .flat_map(|callee| bytes(number, &call(callee)))
                .collect()
        };
        let mut model = bytes(MODEL_GRAPH, &nodes(GRAPH_NODE, calls));
        for (name, calls) in functions {
            let name = bytes(FUNCTION_NAME, name.as_bytes());
            let domain = bytes(FUNCTION_DOMAIN, b"local");
            let function = [name, domain, nodes(FUNCTION_NODE, calls)].concat();
            model.extend(bytes(MODEL_FUNCTION, &function));
        }
        model
    }

    fn fact(model: &[u8]) -> String {
        let error = check(model).err().unwrap();
        assert_eq!(error.code(), Code::ModelInvalid);
        error.fact().to_owned()
    }

    #[test]
    fn functions_may_call_each_other_but_not_themselves() {
        check(&model(&["F", "F"], &[("F", &["G", "G"]), ("G", &["Relu"])]))
            .unwrap_or_else(|e| panic!("{e}"));
        assert!(fact(&model(&["F"], &[("F", &["F"])])).contains("nested"));
        assert!(fact(&model(&["F"], &[("F", &["G"]), ("G", &["F", "F"])])).contains("nested"));
        assert!(fact(&model(&["F"], &[("F", &[]), ("F", &[])])).contains("one name"));
    }

    #[test]
    fn a_deep_chain_is_found_in_whatever_order_it_is_called() {
        let names: Vec<String> = (0..60).map(|i| format!("F{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let functions: Vec<(&str, &[&str])> =
            names.windows(2).map(|pair| (pair[0], &pair[1..])).collect();
        assert!(fact(&model(&["F0"], &functions)).contains("nested"));
        let upwards: Vec<&str> = names.iter().rev().copied().collect();
        assert!(fact(&model(&upwards, &functions)).contains("nested"));
    }

    #[test]
    fn impossible_dimensions_are_refused() {
        let dims = |values: &[u64]| {
            let packed: Vec<u8> = values.iter().flat_map(|value| varint(*value)).collect();
            let tensor = [bytes(TENSOR_DIMS, &packed), bytes(TENSOR_NAME, b"w")].concat();
            bytes(MODEL_GRAPH, &bytes(GRAPH_INITIALIZER, &tensor))
        };
        check(&dims(&[1 << 20, 1 << 20])).unwrap_or_else(|e| panic!("{e}"));
        for values in [&[u64::MAX][..], &[1 << 40, 1 << 40], &[0, u64::MAX]] {
            assert!(fact(&dims(values)).contains("\"w\" has impossible dimensions"));
        }
    }

    #[test]
    fn what_protobuf_would_merge_is_refused() {
        let graph = |content: &[u8]| bytes(MODEL_GRAPH, content);
        let attribute = |content: &[u8]| {
            let node = bytes(NODE_ATTRIBUTE, content);
            graph(&bytes(GRAPH_NODE, &node))
        };
        let input = |content: &[u8]| graph(&bytes(GRAPH_INPUT, content));
        let kind = |content: &[u8]| input(&bytes(VALUE_TYPE, content));
        // Each passes, and both together have 2^80 elements.
        let tensor = bytes(TENSOR_DIMS, &varint(1 << 40));
        let sparse = |content: &[u8]| graph(&bytes(GRAPH_SPARSE, content));
        let dim = bytes(SHAPE_DIM, &[&[8][..], &varint(2)].concat());
        let shape = bytes(TENSOR_SHAPE, &dim);
        type Around<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
        let singular: [(Around<'_>, u64, &[u8]); 9] = [
            (&|content| content.to_vec(), MODEL_GRAPH, &[]),
            (&attribute, 5, &tensor),
            (&attribute, 6, &[]),
            (&attribute, 22, &bytes(1, &tensor)),
            (&sparse, 1, &tensor),
            (&sparse, 2, &tensor),
            (&input, VALUE_TYPE, &bytes(TYPE_TENSOR, &shape)),
            (&kind, TYPE_TENSOR, &shape),
            (
                &|content| kind(&bytes(TYPE_TENSOR, content)),
                TENSOR_SHAPE,
                &dim,
            ),
        ];
        for (around, number, content) in singular {
            let one = bytes(number, content);
            check(&around(&one)).unwrap_or_else(|e| panic!("{number}: {e}"));
            assert!(fact(&around(&one.repeat(2))).contains("twice"), "{number}");
        }
        let many = [10, 11, 23].map(|number| bytes(number, &[])).concat();
        check(&attribute(&many.repeat(2))).unwrap_or_else(|e| panic!("{e}"));
    }

    #[test]
    fn a_dimension_is_what_it_was_called_last() {
        let (two, any, name) = (
            &[8, 2][..],
            &[&[8][..], &varint(u64::MAX)].concat(),
            &[18, 1, b'n'],
        );
        for (dims, fixed) in [
            (vec![two], true),
            (vec![name, two], true),
            (vec![any, two], true),
            (vec![any], false),
            (vec![two, any], false),
            (vec![two, name], false),
            (vec![], false),
        ] {
            let shape = bytes(TENSOR_SHAPE, &bytes(SHAPE_DIM, &dims.concat()));
            let value = bytes(VALUE_TYPE, &bytes(TYPE_TENSOR, &shape));
            let model = bytes(MODEL_GRAPH, &bytes(GRAPH_INPUT, &value));
            let graph = check(&model).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(graph.is_fixed(), fixed, "{dims:?}");
        }
    }

    #[test]
    fn external_data_is_found_and_cannot_hide_behind_a_key_that_protobuf_would_shorten() {
        let model = |field: &[u8]| bytes(MODEL_GRAPH, &bytes(GRAPH_INITIALIZER, field));
        let plain: [&[u8]; 2] = [&[0x6a, 0], &[0x70, 1]];
        for field in plain {
            let error = check(&model(field)).err().unwrap();
            assert_eq!(error.code(), Code::ModelUnsupported, "{error}");
        }
        let disguised: [&[u8]; 8] = [
            // Bits above the 32nd, in five bytes and in ten.
            &[0xea, 0x80, 0x80, 0x80, 0x10, 0],
            &[0xf0, 0x80, 0x80, 0x80, 0x10, 1],
            &[0xea, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0],
            // The same number in more bytes than it needs; the last has bits above the 64th.
            &[0xea, 0, 0],
            &[0xea, 0x80, 0x80, 0x80, 0, 0],
            &[0xea, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2, 0],
            // Groups, whose content would have to be walked as well.
            &[0x6b, 0x6c],
            // Field 0.
            &[0x02, 0],
        ];
        for field in disguised {
            assert!(fact(&model(field)).contains("not ONNX"), "{field:x?}");
            let hidden_graph = [model(&[]), field.to_vec()].concat();
            assert!(fact(&hidden_graph).contains("not ONNX"), "{field:x?}");
        }
    }

    #[test]
    fn a_length_that_protobuf_reads_otherwise_is_refused() {
        let graph = bytes(MODEL_GRAPH, b"");
        check(&graph).unwrap_or_else(|e| panic!("{e}"));
        check(&[0x3a, 0x80, 0x80, 0x80, 0x80, 0]).unwrap_or_else(|e| panic!("{e}"));
        let key = varint(MODEL_GRAPH << 3 | 2);
        for length in [
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0][..],
            &varint(1 << 31),
            &varint(1 << 32),
        ] {
            let model = [&graph, &key, length].concat();
            assert!(fact(&model).contains("not ONNX"), "{length:x?}");
        }
    }

    #[test]
    fn every_cut_of_a_message_is_refused_or_read() {
        let whole = model(&["F"], &[("F", &["G"]), ("G", &["Relu"])]);
        let accepted = (0..whole.len())
            .filter(|end| check(&whole[..*end]).is_ok())
            .count();
        // Only where one of the model's own three fields ends.
        assert_eq!(accepted, 2);
    }
}
