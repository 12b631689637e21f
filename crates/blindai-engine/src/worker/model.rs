//! A model in the engine that was chosen for it.

#[cfg(feature = "tract")]
use std::sync::atomic::{AtomicBool, Ordering};

use blindai_core::{Code, Error, Result, Signature};
use ort::environment::Environment;
use ort::session::RunOptions;

use super::onnx::Graph;
use super::session;
#[cfg(feature = "tract")]
use super::tract;
use super::work::Outputs;
use crate::EngineKind;
use crate::protocol::{Failure, Place, Run, Setup};

pub(super) enum Model {
    OnnxRuntime(session::Model),
    #[cfg(feature = "tract")]
    Tract(Box<tract::Model>),
}

impl Model {
    /// `environment` is that of ONNX Runtime, where its library was handed over.
    pub(super) fn load(
        environment: Option<&Environment>,
        model: &[u8],
        graph: &Graph<'_>,
        setup: &Setup,
    ) -> Result<Self> {
        match (setup.engine, environment) {
            (EngineKind::OnnxRuntime, Some(environment)) => {
                session::Model::load(environment, model, graph, setup).map(Self::OnnxRuntime)
            }
            (EngineKind::OnnxRuntime, None) => {
                Err(Error::new(Code::Internal, "ONNX Runtime is missing"))
            }
            #[cfg(not(feature = "tract"))]
            (EngineKind::Tract, _) => Err(crate::engine::no_tract()),
            #[cfg(feature = "tract")]
            (EngineKind::Tract, _) => {
                let model = tract::Model::load(model, graph, setup)?;
                Ok(Self::Tract(Box::new(model)))
            }
        }
    }

    pub(super) fn signature(&self) -> &Signature {
        match self {
            Self::OnnxRuntime(model) => model.signature(),
            #[cfg(feature = "tract")]
            Self::Tract(model) => model.signature(),
        }
    }

    /// What stops one run of this model.
    pub(super) fn stop(&self) -> Result<Stop, Failure> {
        match self {
            Self::OnnxRuntime(_) => {
                let options = RunOptions::new().map_err(|_| Failure::Other)?;
                Ok(Stop::OnnxRuntime(options))
            }
            #[cfg(feature = "tract")]
            Self::Tract(_) => Ok(Stop::Tract(AtomicBool::new(false))),
        }
    }

    pub(super) fn run(
        &mut self,
        run: &Run,
        inputs: &[u8],
        outputs: &dyn Outputs,
        stop: &Stop,
    ) -> Result<Vec<Place>, Failure> {
        match (self, stop) {
            (Self::OnnxRuntime(model), Stop::OnnxRuntime(options)) => {
                model.run(run, inputs, outputs, options)
            }
            #[cfg(feature = "tract")]
            (Self::Tract(model), Stop::Tract(stop)) => model.run(run, inputs, outputs, stop),
            #[cfg(feature = "tract")]
            _ => Err(Failure::Other),
        }
    }
}

/// The word to stop a run, from another thread.
pub(super) enum Stop {
    OnnxRuntime(RunOptions),
    /// Looked at between two nodes.
    #[cfg(feature = "tract")]
    Tract(AtomicBool),
}

impl Stop {
    pub(super) fn set(&self) {
        match self {
            Self::OnnxRuntime(options) => {
                // Should it fail, the parent's patience ends soon.
                let _ = options.terminate();
            }
            #[cfg(feature = "tract")]
            Self::Tract(stop) => stop.store(true, Ordering::Relaxed),
        }
    }
}
