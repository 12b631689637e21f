//! The BlindAI server: models behind a TLS port whose key the hardware vouches for.
//!
//! [`Server::start`] builds everything that can fail (configuration, library, ports, evidence);
//! [`Server::run`] serves until it is told to stop. [`service::Service`] is the product: its
//! methods are the verbs, and [`api`] spells them.
//!
//! What is *not* protected: that requests happen, when, how large they are and how long they take.
#![forbid(unsafe_code)]

pub mod api;
mod budget;
mod collateral;
pub mod config;
mod descriptors;
mod http;
mod identity;
mod model;
mod origin;
mod places;
mod reader;
mod registry;
mod residency;
pub mod service;
mod start;
mod statistics;
mod telemetry;
mod tls;

pub use config::{Config, ConfigError};
pub use start::{Server, StartError, StartKind};
