//! What a worker process can reach, and what happens around its life.

#[macro_use]
mod support;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt as _, symlink};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blindai_core::{Code, EngineKind};
use blindai_engine::{Batching, Engine, EngineOptions, Isolation, LoadedModel, ModelOptions};
use object::{Object as _, ObjectSymbol as _};
use rustix::process::{Pid, Signal};
use support::*;

on_every_engine! {
    a_worker_has_no_environment_and_no_descriptors_but_its_own,
    nothing_of_a_warm_up_stays,
    a_worker_is_bounded_and_cannot_gain_rights,
    a_worker_has_no_capabilities_and_its_system_calls_are_filtered,
    a_worker_leaves_what_the_kernel_lets_it_leave,
    signals_to_the_server_leave_its_workers_alone,
    what_a_worker_started_ends_with_it,
    a_killed_worker_is_replaced,
    a_worker_that_does_not_listen_is_replaced,
    a_dropped_model_leaves_no_process,
    a_load_that_takes_too_long_is_stopped,
    a_worker_that_ends_at_once_is_a_crash_whenever_it_is_noticed,
}

async fn a_worker_has_no_environment_and_no_descriptors_but_its_own(on: On) {
    // One that is open in the parent and, against Rust's habit, would survive an exec.
    let stray = fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
    let model = load(on, "identity_FP32").await;
    run(&model, vec![f32s("x", &[1], &[1.0])]).await.unwrap();

    // Where tests do not run as root, the worker hides these even from its own user.
    if let Some(environment) = visible(fs::read(proc(&model, "environ"))) {
        let environment = String::from_utf8_lossy(&environment);
        assert_eq!(
            environment.trim_end_matches('\0'),
            "GLIBC_TUNABLES=glibc.malloc.hugetlb=1\0ORT_DISABLE_TELEMETRY=1"
        );
    }
    if let Some(descriptors) = visible(fs::read_dir(proc(&model, "fd"))) {
        let mut kinds: Vec<_> = descriptors.map(|fd| kind(&fd.unwrap().path())).collect();
        kinds.sort();
        let own = [
            "/dev/null",
            "/dev/null",
            "/dev/null",
            "outputs",
            "socket",
            "socket",
        ];
        assert_eq!(kinds, own);
    }
    if let Some(folder) = visible(fs::read_link(proc(&model, "cwd"))) {
        assert!(folder.to_str().unwrap().ends_with(" (deleted)"));
        let inside = proc(&model, "cwd/file");
        let error = fs::write(inside, "x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
    drop(stray);
}

async fn nothing_of_a_warm_up_stays(on: On) {
    // It divides ones by ones.
    let model = load(on, "div").await;
    wait_for_zeros(&model);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_batch_stays_that_was_not_read() {
    let options = EngineOptions {
        batching: Some(Batching {
            max_rows: 8,
            max_delay: PATIENCE,
            across_callers: true,
        }),
        ..options(EngineKind::OnnxRuntime)
    };
    // Fewer rows come out than go in, which is found before anything is read.
    let model = load_with(options, "fewer_rows").await;
    let ask = |x: [i64; 4]| run(&model, vec![i64s("x", &[4], &x)]);
    let (one, other) = tokio::join!(ask([5, 5, 6, 7]), ask([8, 9, 10, 10]));
    assert_eq!(one.unwrap(), [i64s("y", &[3], &[5, 6, 7])]);
    assert_eq!(other.unwrap(), [i64s("y", &[3], &[8, 9, 10])]);
    wait_for_zeros(&model);
}

/// Where the worker puts its outputs: the answer goes out before they are forgotten.
fn wait_for_zeros(model: &LoadedModel) {
    if let Some(descriptors) = visible(fs::read_dir(proc(model, "fd"))) {
        let mut paths = descriptors.map(|fd| fd.unwrap().path());
        let outputs = paths.find(|path| kind(path) == "outputs").unwrap();
        let outputs = fs::File::open(outputs).unwrap();
        wait_until(|| {
            let mut start = [1; 4096];
            outputs.read_exact_at(&mut start, 0).unwrap();
            start == [0; 4096]
        });
    }
}

fn kind(descriptor: &Path) -> String {
    let target = fs::read_link(descriptor)
        .unwrap()
        .to_string_lossy()
        .into_owned();
    match target.split_once(':') {
        Some(("socket", _)) => "socket".to_owned(),
        Some(("/memfd", name)) => name.replace("blindai-", "").replace(" (deleted)", ""),
        _ => target,
    }
}

async fn a_worker_is_bounded_and_cannot_gain_rights(on: On) {
    let model = load(on, "identity_FP32").await;
    let status = fs::read_to_string(proc(&model, "status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let limits = fs::read_to_string(proc(&model, "limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..]
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    let data: u64 = limit("Max data size").parse().unwrap();
    let allowed = options(on).memory_bytes;
    assert!((allowed..allowed + (256 << 20)).contains(&data), "{data}");
    let file: u64 = limit("Max file size").parse().unwrap();
    assert_eq!(file, options(on).output_bytes);
}

async fn a_worker_has_no_capabilities_and_its_system_calls_are_filtered(on: On) {
    let model = load(on, "identity_FP32").await;
    let tasks = fs::read_dir(proc(&model, "task")).unwrap();
    for task in tasks {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        // 2: by a filter. What it lets through is tested where it is written.
        assert!(status.contains("Seccomp:\t2"), "{status}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(
                status.contains(&format!("{set}:\t0000000000000000")),
                "{status}"
            );
        }
    }
}

async fn a_worker_leaves_what_the_kernel_lets_it_leave(on: On) {
    let options = EngineOptions {
        isolation: Isolation::Full,
        ..options(on)
    };
    let engine = Engine::new(options).unwrap();
    let left = engine.barriers().await.unwrap().left;
    let file = model_file(&model_bytes("identity_FP32"));
    let model = engine.load(file).await.unwrap();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let its = fs::read_to_string(proc(&model, "status")).unwrap();
    let user = |status: &str| {
        let line = status.lines().find(|line| line.starts_with("Uid:"));
        line.map(str::to_owned)
    };
    assert_eq!(left.user, user(&own) != user(&its), "{its}");
    for kind in ["user", "net", "mnt", "ipc", "uts"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{kind}"));
        if let Some(its) = visible(of(&pid(&model).to_string())) {
            assert_eq!(left.namespaces, its != of("self").unwrap(), "{kind}");
        }
    }
    run(&model, vec![f32s("x", &[1], &[1.0])]).await.unwrap();
}

async fn signals_to_the_server_leave_its_workers_alone(on: On) {
    let model = load(on, "identity_FP32").await;
    let worker = pid(&model);
    let group = rustix::process::getpgid(Some(process(worker))).unwrap();
    assert_ne!(group, rustix::process::getpgrp());
    // A terminal tells the group, but systemd tells every process.
    for to_end in [Signal::INT, Signal::TERM, Signal::HUP] {
        signal(worker, to_end);
    }
    let outputs = run(&model, vec![f32s("x", &[1], &[1.0])]).await.unwrap();
    assert_eq!(outputs, [f32s("y", &[1], &[1.0])]);
    assert_eq!(pid(&model), worker);
}

async fn what_a_worker_started_ends_with_it(on: On) {
    let forked = |model: &LoadedModel| {
        let mut sleep = Command::new("sleep");
        let group = pid(model) as i32;
        sleep.arg("1000").process_group(group).spawn().unwrap()
    };
    let model = load(on, "div").await;
    let mut with_a_crash = forked(&model);
    match on.kind {
        EngineKind::OnnxRuntime => {
            let inputs = vec![i64s("a", &[1], &[i64::MIN]), i64s("b", &[1], &[-1])];
            let error = run(&model, inputs).await.unwrap_err();
            assert_eq!(error.code(), Code::WorkerCrashed);
        }
        // No request is known that does it.
        EngineKind::Tract => kill(pid(&model)),
    }
    let inputs = vec![i64s("a", &[1], &[4]), i64s("b", &[1], &[2])];
    run(&model, inputs).await.unwrap();
    let mut with_the_model = forked(&model);
    drop(model);
    for child in [&mut with_a_crash, &mut with_the_model] {
        let ended = wait_for(child).signal();
        assert_eq!(ended, Some(Signal::KILL.as_raw()));
    }
}

async fn a_killed_worker_is_replaced(on: On) {
    let model = load(on, "identity_FP32").await;
    let input = f32s("x", &[2], &[1.0, 2.0]);
    let first = pid(&model);
    kill(first);
    let outputs = run(&model, vec![input.clone()]).await.unwrap();
    assert_eq!(outputs[0].tensor, input.tensor);
    assert_ne!(pid(&model), first);
    assert!(model.status().resident_bytes > 1 << 20);
    assert_eq!(model.status().restarts, 1);
}

async fn a_worker_that_does_not_listen_is_replaced(on: On) {
    let options = EngineOptions {
        grace: Duration::from_millis(50),
        ..options(on)
    };
    let model = load_with(options, "identity_FP32").await;
    let first = pid(&model);
    signal(first, Signal::STOP);
    let input = || vec![f32s("x", &[1], &[1.0])];
    let error = run_within(&model, input(), Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert_eq!(
        run(&model, input()).await.unwrap(),
        [f32s("y", &[1], &[1.0])]
    );
    assert_ne!(pid(&model), first);
}

async fn a_dropped_model_leaves_no_process(on: On) {
    let slow = Slow::on(on);
    let model = load(on, slow.model).await;
    let pid = pid(&model);
    let endless = run(&model, slow.endless());
    assert!(
        tokio::time::timeout(Duration::from_millis(50), endless)
            .await
            .is_err()
    );
    drop(model);
    wait_until(|| !fs::exists(format!("/proc/{pid}")).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_does_not_say_which_model_lost_its_worker() {
    let on = EngineKind::OnnxRuntime;
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .init();
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("worker-to-be-removed");
    let _ = fs::remove_file(&program);
    let mut options = options(on);
    symlink(&options.worker.program, &program).unwrap();
    options.worker.program = program.clone();
    let file = model_file(&model_bytes("identity_FP32"));
    let model = Engine::new(options).unwrap().load(file.clone()).await;
    let model = model.unwrap();
    fs::remove_file(&program).unwrap();
    kill(pid(&model));
    let inputs = vec![f32s("x", &[1], &[1.0])];
    let error = run(&model, inputs).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal, "{error}");
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("worker not restarted"), "{log}");
    let digest = file.digest().to_string();
    let (_, hex) = digest.split_once(':').unwrap();
    assert!(!log.contains(&hex[..16]), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_wrong_earlier_is_not_told_later() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("worker-that-comes-back");
    let _ = fs::remove_file(&program);
    let mut options = options(EngineKind::OnnxRuntime);
    let worker = std::mem::replace(&mut options.worker.program, program.clone());
    symlink(&worker, &program).unwrap();
    let model = load_with(options, "identity_FP32").await;
    fs::remove_file(&program).unwrap();
    kill(pid(&model));
    let inputs = || vec![f32s("x", &[1], &[1.0])];
    let error = run(&model, inputs()).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal, "{error}");
    // It tried once more for whoever comes next, who comes when all is well.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    symlink(&worker, &program).unwrap();
    run(&model, inputs()).await.unwrap();
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn a_load_that_takes_too_long_is_stopped(on: On) {
    let options = EngineOptions {
        load_timeout: Duration::ZERO,
        ..options(on)
    };
    let engine = Engine::new(options).unwrap();
    let error = engine
        .load(model_file(&model_bytes("identity_FP32")))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
}

async fn a_worker_that_ends_at_once_is_a_crash_whenever_it_is_noticed(on: On) {
    let mut options = options(on);
    options.worker.program = "/bin/true".into();
    let engine = Engine::new(options).unwrap();
    for _ in 0..20 {
        let model = model_file(&model_bytes("identity_FP32"));
        let error = engine.load(model).await.unwrap_err();
        assert_eq!(error.code(), Code::WorkerCrashed, "{error}");
    }
}

#[test]
fn only_the_pinned_library_is_accepted() {
    let missing = Engine::new(EngineOptions::new("/nowhere/libonnxruntime.so"));
    let error = missing.err().unwrap();
    assert!(
        error.fact().contains("/nowhere/libonnxruntime.so"),
        "{error}"
    );
    assert!(error.remedy().contains("BLINDAI_ONNXRUNTIME"), "{error}");

    let other = Engine::new(EngineOptions::new("/proc/self/exe"));
    let error = other.err().unwrap();
    assert!(error.fact().contains("expected sha256:"), "{error}");
}

#[cfg(feature = "tract")]
#[tokio::test]
async fn without_the_library_there_is_tract_and_nothing_else() {
    let options = options(EngineKind::Tract);
    assert_eq!(options.onnxruntime, None);
    let engine = Engine::new(options).unwrap();
    let file = model_file(&model_bytes("identity_FP32"));
    let own = EngineOptions::new("").of_a_model();
    let error = engine.load_with(&own, file.clone()).await;
    assert_eq!(error.unwrap_err().code(), Code::Internal);
    let model = engine.load(file).await.unwrap();
    if let Some(maps) = visible(fs::read_to_string(proc(&model, "maps"))) {
        assert!(maps.contains("blindai-inputs"), "the maps were read");
        assert!(!maps.contains("onnxruntime"), "{maps}");
        assert!(!maps.contains("stdc++"), "{maps}");
    }
}

#[cfg(feature = "tract")]
#[tokio::test]
async fn one_engine_runs_models_on_both() {
    let engine = Engine::new(options(EngineKind::OnnxRuntime)).unwrap();
    for kind in [EngineKind::OnnxRuntime, EngineKind::Tract] {
        let file = model_file(&model_bytes("identity_FP32"));
        let own = ModelOptions {
            kind,
            ..options(kind).of_a_model()
        };
        let model = engine.load_with(&own, file).await.unwrap();
        let uses_library = visible(fs::read_to_string(proc(&model, "maps")))
            .is_none_or(|maps| maps.contains("onnxruntime") == (kind == EngineKind::OnnxRuntime));
        assert!(uses_library, "{kind}");
        kill(pid(&model));
        let outputs = run(&model, vec![f32s("x", &[1], &[1.0])]).await.unwrap();
        assert_eq!(outputs, [f32s("y", &[1], &[1.0])]);
    }
}

#[cfg(not(feature = "tract"))]
#[tokio::test]
async fn an_engine_that_is_not_built_in_is_refused() {
    let error = Engine::new(options(EngineKind::Tract)).err().unwrap();
    assert!(error.fact().contains("without tract"), "{error}");
    let engine = Engine::new(options(EngineKind::OnnxRuntime)).unwrap();
    let file = model_file(&model_bytes("identity_FP32"));
    let own = ModelOptions {
        kind: EngineKind::Tract,
        ..options(EngineKind::OnnxRuntime).of_a_model()
    };
    let error = engine.load_with(&own, file).await.unwrap_err();
    assert!(error.fact().contains("without tract"), "{error}");
}

#[test]
fn the_library_knows_no_network() {
    let bytes = fs::read(onnxruntime()).unwrap();
    let library = object::File::parse(&*bytes).unwrap();
    let imports = library
        .dynamic_symbols()
        .filter(|symbol| symbol.is_undefined());
    let imports: HashSet<_> = imports.filter_map(|symbol| symbol.name().ok()).collect();
    assert!(imports.contains("malloc"), "the imports were read");
    let network = [
        "socket",
        "connect",
        "getaddrinfo",
        "gethostbyname",
        "sendto",
        "curl_easy_init",
    ];
    for name in network {
        assert!(!imports.contains(name), "{name}");
    }
}

fn proc(model: &LoadedModel, file: &str) -> String {
    format!("/proc/{}/{file}", pid(model))
}

fn visible<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            assert!(!rustix::process::geteuid().is_root());
            None
        }
        result => Some(result.unwrap()),
    }
}

fn kill(pid: u32) {
    signal(pid, Signal::KILL);
    // The first thread may be gone while others still hold the descriptors.
    let dead = || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        threads <= 1 && stat.map_or(true, |stat| stat.contains(") Z "))
    };
    wait_until(dead);
}

fn signal(pid: u32, signal: Signal) {
    rustix::process::kill_process(process(pid), signal).unwrap();
}

fn process(pid: u32) -> Pid {
    Pid::from_raw(pid as i32).unwrap()
}

/// A test that fails leaves no process behind.
fn wait_for(child: &mut Child) -> ExitStatus {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    panic!("a child outlived its worker");
}

fn wait_until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(2));
    }
}
