//! What is said of a node that fails: its operator and its name, as the model's owner wrote them.

use std::collections::HashMap;

use blindai_core::{Code, Error};
use tract_onnx::pb::{GraphProto, ModelProto};
use tract_onnx::prelude::TractError;

use crate::protocol::Failure;

/// The operator of each node, by the name under which tract knows the node.
pub(super) struct Nodes(HashMap<String, String>);

impl Nodes {
    pub(super) fn new(model: &ModelProto) -> Self {
        let mut nodes = HashMap::new();
        if let Some(graph) = &model.graph {
            add(graph, &mut nodes);
        }
        Self(nodes)
    }

    /// tract's own texts may quote tensors, so nothing is taken out of them but names that stand in
    /// the file.
    pub(super) fn refusal(&self, error: &TractError) -> Error {
        match self.culprit(error) {
            Some((name, operator)) => refused_at(operator, name),
            None => Error::new(Code::ModelUnsupported, REFUSED),
        }
    }

    /// Name and operator of the node that an error speaks of.
    fn culprit(&self, error: &TractError) -> Option<(&str, &str)> {
        let mut texts = error.chain().map(ToString::to_string);
        texts.find_map(|text| {
            let built = text.strip_prefix("Building node ");
            match built.and_then(|text| text.rsplit_once(" (")) {
                // A node without a name.
                Some(("", rest)) => {
                    let mut operators = self.0.values();
                    let found = operators.find(|operator| rest.strip_suffix(')') == Some(operator));
                    Some(("", found?.as_str()))
                }
                Some((name, _)) => self.find(name),
                None => {
                    let mut quoted = text.split('"').skip(1).step_by(2);
                    quoted.find_map(|name| self.find(name))
                }
            }
        })
    }

    pub(super) fn failure_of(&self, error: &TractError) -> Failure {
        failure(self.culprit(error))
    }

    pub(super) fn failure_at(&self, name: Option<&str>) -> Failure {
        failure(name.and_then(|name| self.find(name)))
    }

    /// A plan's nodes are named after those of the file, with a suffix for each part.
    fn find(&self, name: &str) -> Option<(&str, &str)> {
        let mut name = name;
        loop {
            if let Some((name, operator)) = self.0.get_key_value(name) {
                return Some((name.as_str(), operator.as_str()));
            }
            name = name.rsplit_once('.')?.0;
        }
    }
}

fn failure(node: Option<(&str, &str)>) -> Failure {
    match node {
        Some((name, operator)) => Failure::Node {
            operator: operator.to_owned(),
            name: name.to_owned(),
        },
        None => Failure::Other,
    }
}

pub(super) fn refused_at(operator: &str, name: &str) -> Error {
    let fact = format!("{REFUSED}: it does not take node {name:?} (operator {operator:?})");
    Error::new(Code::ModelUnsupported, fact)
}

pub(super) const REFUSED: &str = "the engine tract cannot run the model";

fn add(graph: &GraphProto, nodes: &mut HashMap<String, String>) {
    for node in &graph.node {
        let first = node.output.first();
        let name = Some(&node.name).filter(|name| !name.is_empty()).or(first);
        if let Some(name) = name {
            nodes.insert(name.clone(), node.op_type.clone());
        }
        for attribute in &node.attribute {
            let inner = attribute.g.iter().chain(&attribute.graphs);
            inner.for_each(|graph| add(graph, nodes));
        }
    }
}
