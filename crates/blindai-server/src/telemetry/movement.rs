use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a model was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadCause {
    Start,
    Upload,
    /// It was out of memory, and somebody wanted to run it.
    Request,
    /// It was out of memory, and somebody asked for it.
    Repository,
}

/// Why a model left memory that can be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnloadCause {
    /// Another one needed its room.
    Pressure,
    /// Somebody asked for it.
    Repository,
}

/// A closed set of causes.
pub trait Cause: Copy + PartialEq + 'static {
    const ALL: &'static [(Self, &'static str)];
}

impl Cause for LoadCause {
    const ALL: &'static [(Self, &'static str)] = &[
        (Self::Start, "start"),
        (Self::Upload, "upload"),
        (Self::Request, "request"),
        (Self::Repository, "repository"),
    ];
}

impl Cause for UnloadCause {
    const ALL: &'static [(Self, &'static str)] = &[
        (Self::Pressure, "pressure"),
        (Self::Repository, "repository"),
    ];
}

/// How often something happened, by its cause.
pub struct Counts<C> {
    counts: Box<[AtomicU64]>,
    causes: PhantomData<C>,
}

impl<C: Cause> Default for Counts<C> {
    fn default() -> Self {
        Self {
            counts: C::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            causes: PhantomData,
        }
    }
}

impl<C: Cause> Counts<C> {
    /// It happened once more.
    pub fn add(&self, cause: C) {
        let known = C::ALL.iter().zip(&self.counts);
        for (_, count) in known.filter(|((known, _), _)| *known == cause) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every cause with its count.
    pub fn read(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        C::ALL.iter().map(|(_, name)| *name).zip(counts)
    }
}
