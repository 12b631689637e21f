//! What sealing and loading a model costs, beside reading it and digesting it: `make bench-store`.
//!
//! The model lies in memory, as an upload does; the store is a folder of the disk that holds the temporary
//! files. Everything is done once in each round, and a ratio is to a reading of the same round: that of a
//! file in memory, or of one on the disk for what comes from there. With a path as argument that file is
//! the model, otherwise it is 378 MB of noise.
#![allow(clippy::print_stdout, reason = "a benchmark tells its results")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blindai_core::Digest;
use blindai_store::{Folder, Store, StoreKey};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

const ROUNDS: usize = 9;
const MODEL_BYTES: u64 = 378_000_000;
const PIECE_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = Model::new();
    let ours = store(Folder::at(&folder.path().join("ours")).unwrap()).await;
    let theirs = store(local(folder.path(), "theirs").with_fsync(true)).await;
    let unflushed = store(local(folder.path(), "unflushed")).await;
    let mut rounds = [const { Vec::new() }; ROWS.len()];
    for _ in 0..ROUNDS {
        rounds[0].push(measure(async || model.digest()).await);
        rounds[1].push(measure(async || model.put(&ours).await).await);
        rounds[2].push(measure(async || model.load(&ours).await).await);
        rounds[3].push(measure(async || model.load(&ours).await).await);
        model.forget(&ours).await;
        rounds[4].push(measure(async || model.put(&theirs).await).await);
        model.forget(&theirs).await;
        rounds[5].push(measure(async || model.put(&unflushed).await).await);
        model.forget(&unflushed).await;
        let plain = OFlags::empty();
        rounds[6].push(measure(async || model.copy(folder.path(), plain)).await);
        fs::remove_file(folder.path().join("plain")).unwrap();
        rounds[7].push(measure(async || model.copy(folder.path(), OFlags::DIRECT)).await);
        // None of it is in the page cache now.
        let copied = folder.path().join("plain");
        rounds[8].push(measure(async || _ = digest(&copied)).await);
        fs::remove_file(folder.path().join("plain")).unwrap();
    }
    report(&rounds);
}

async fn store(backend: impl ObjectStore) -> Store {
    let key = StoreKey::new(&[7; 32]);
    Store::on(Arc::new(backend), key, None).await.unwrap()
}

fn local(folder: &Path, name: &str) -> LocalFileSystem {
    fs::create_dir(folder.join(name)).unwrap();
    LocalFileSystem::new_with_prefix(folder.join(name)).unwrap()
}

/// What is done in each round, and which of them each is compared with.
const ROWS: [(&str, usize); 9] = [
    ("read + SHA-256", 0),
    ("sealing, on the disk", 0),
    ("loading, from the disk", 8),
    ("loading, from the page cache", 0),
    ("sealing, flushed at the end", 0),
    ("sealing, not flushed", 0),
    ("plain write + fsync", 0),
    ("direct write + fsync", 0),
    ("read + SHA-256, from the disk", 8),
];

fn report(rounds: &[Vec<(Duration, u64)>]) {
    let cores = std::thread::available_parallelism().unwrap();
    println!("{cores} cores, {ROUNDS} rounds");
    println!(
        "{:30} {:>7} {:>7}  {:13} {:>8}",
        "", "ms", "ratio", "  from to", "peak MiB"
    );
    for ((name, beside), round) in ROWS.iter().zip(rounds) {
        let mut times: Vec<_> = round.iter().map(|(time, _)| *time).collect();
        let read = rounds[*beside].iter().map(|(time, _)| time.as_secs_f64());
        let mut ratios: Vec<_> = read.zip(&times).map(|(r, t)| t.as_secs_f64() / r).collect();
        times.sort();
        ratios.sort_by(f64::total_cmp);
        let peak = round.iter().map(|(_, peak)| peak >> 20).max().unwrap();
        println!(
            "{name:30} {:7} {:7.2}  {:4.2} to {:4.2} {peak:9}",
            times[ROUNDS / 2].as_millis(),
            ratios[ROUNDS / 2],
            ratios[0],
            ratios[ROUNDS - 1],
        );
    }
}

/// The time it takes, and by how much memory grows meanwhile.
async fn measure(what: impl AsyncFnOnce()) -> (Duration, u64) {
    // What earlier rounds left to be written is none of this one's.
    rustix::fs::sync();
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

    /// What the disk costs without us. `OFlags::DIRECT` leaves the page cache out.
    fn copy(&self, folder: &Path, how: OFlags) {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        options.custom_flags(how.bits().cast_signed());
        let mut file = options.open(folder.join("plain")).unwrap();
        let mut buffer = vec![0; PIECE_BYTES + PAGE_BYTES];
        // Direct writes are of whole pages, out of whole pages.
        let start = buffer.as_ptr().align_offset(PAGE_BYTES);
        let buffer = &mut buffer[start..start + PIECE_BYTES];
        let mut model = self.open();
        let mut left = self.size as usize;
        while left > 0 {
            let length = left.min(PIECE_BYTES);
            model.read_exact(&mut buffer[..length]).unwrap();
            file.write_all(&buffer[..length.next_multiple_of(PAGE_BYTES)])
                .unwrap();
            left -= length;
        }
        file.sync_all().unwrap();
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
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece).unwrap() {
            0 => return Digest::from_bytes(hash.finalize().into()),
            length => hash.update(&piece[..length]),
        }
    }
}
