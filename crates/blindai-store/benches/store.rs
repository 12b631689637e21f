//! What sealing and loading a model costs, beside reading it and digesting it: `make bench-store`.
//!
//! The model lies in memory, as an upload does; the store is a folder. Rounds of all are interleaved.
//! With a path as argument that file is the model, otherwise it is 378 MB of noise.
#![allow(clippy::print_stdout, reason = "a benchmark tells its results")]

use std::fs::{self, File};
use std::io::{Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blindai_core::Digest;
use blindai_store::{Location, Options, Store, StoreKey};
use object_store::local::LocalFileSystem;
use sha2::{Digest as _, Sha256};

const ROUNDS: usize = 7;
const MODEL_BYTES: u64 = 378_000_000;

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = Model::new();
    let durable = Location::parse(folder.path().join("store").to_str().unwrap()).unwrap();
    let durable = Store::open(&durable, key(), Options::default())
        .await
        .unwrap();
    // Without waiting for the disk, whose speed is its own.
    fs::create_dir(folder.path().join("quick")).unwrap();
    let quick = LocalFileSystem::new_with_prefix(folder.path().join("quick")).unwrap();
    let quick = Store::on(std::sync::Arc::new(quick), key(), None)
        .await
        .unwrap();
    let mut rounds = [const { Vec::new() }; 5];
    for _ in 0..ROUNDS {
        rounds[0].push(measure(async || model.digest()).await);
        rounds[1].push(measure(async || model.put(&quick).await).await);
        rounds[2].push(measure(async || model.load(&quick).await).await);
        model.forget(&quick).await;
        rounds[3].push(measure(async || model.write_and_sync(folder.path())).await);
        rounds[4].push(measure(async || model.put(&durable).await).await);
        model.forget(&durable).await;
    }
    report(&rounds.map(|mut round| middle(&mut round)));
}

fn key() -> StoreKey {
    StoreKey::new(&[7; 32])
}

fn report(medians: &[(Duration, u64)]) {
    let names = [
        "read + SHA-256",
        "sealing",
        "loading",
        "write + fsync",
        "sealing, durable",
    ];
    println!("{:18} {:>8} {:>7} {:>10}", "", "ms", "ratio", "peak MiB");
    for (name, (time, peak)) in names.iter().zip(medians) {
        let ratio = time.as_secs_f64() / medians[0].0.as_secs_f64();
        println!(
            "{name:18} {:8} {ratio:7.2} {:10}",
            time.as_millis(),
            peak >> 20
        );
    }
}

/// The time it takes, and by how much memory grows meanwhile.
async fn measure(what: impl AsyncFnOnce()) -> (Duration, u64) {
    // Sets the peak back to what is resident now.
    fs::write("/proc/self/clear_refs", "5").expect("Linux");
    let before = status("VmRSS:");
    let begun = Instant::now();
    what().await;
    (begun.elapsed(), status("VmHWM:").saturating_sub(before))
}

fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .expect("Linux");
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

fn middle(round: &mut [(Duration, u64)]) -> (Duration, u64) {
    round.sort();
    let peak = round.iter().map(|(_, peak)| *peak).max().unwrap();
    (round[round.len() / 2].0, peak)
}

struct Model {
    file: PathBuf,
    digest: Digest,
    size: u64,
}

impl Model {
    fn new() -> Self {
        let file = PathBuf::from(format!("/dev/shm/blindai-bench-{}", std::process::id()));
        let given = std::env::args()
            .nth(1)
            .filter(|argument| !argument.starts_with("--"));
        let mut source: Box<dyn Read> = match given {
            Some(path) => Box::new(File::open(path).expect("the model")),
            None => Box::new(File::open("/dev/urandom").unwrap().take(MODEL_BYTES)),
        };
        let size = std::io::copy(&mut source, &mut File::create(&file).unwrap()).unwrap();
        let digest = digest(&file);
        Self { file, digest, size }
    }

    fn open(&self) -> File {
        File::open(&self.file).unwrap()
    }

    fn digest(&self) {
        assert_eq!(digest(&self.file), self.digest);
    }

    async fn put(&self, store: &Store) {
        let record = serde_json::Value::Null;
        store
            .put(self.open(), self.digest, self.size, record)
            .await
            .unwrap();
    }

    /// Into memory that is in no file system of a disk, as the server does.
    async fn load(&self, store: &Store) {
        let entry = store.entries().pop().unwrap();
        let copy = tempfile::tempfile_in("/dev/shm").unwrap();
        let mut copy = store.read(&entry, copy).await.unwrap();
        assert_eq!(copy.stream_position().unwrap(), self.size);
    }

    async fn forget(&self, store: &Store) {
        let ids: Vec<_> = store.entries().iter().map(|entry| entry.id()).collect();
        store.remove(&ids).await.unwrap();
    }

    /// What the disk costs without us.
    fn write_and_sync(&self, folder: &Path) {
        let path = folder.join("plain");
        let mut file = File::create(&path).unwrap();
        std::io::copy(&mut self.open(), &mut file).unwrap();
        file.flush().unwrap();
        file.sync_all().unwrap();
        fs::remove_file(path).unwrap();
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

fn digest(file: &Path) -> Digest {
    let mut file = File::open(file).unwrap();
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).unwrap() {
            0 => return Digest::from_bytes(hash.finalize().into()),
            length => hash.update(&piece[..length]),
        }
    }
}
