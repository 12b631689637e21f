//! The inputs that fuzzing kept, and what a store holds, through the fuzzed function.

#[path = "../../../fuzz/src/store.rs"]
mod fuzz;

use std::fs;
use std::path::Path;

#[test]
fn store() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/store");
    let inputs = fs::read_dir(&folder).expect("the corpus is kept");
    let mut count = 0;
    for input in inputs {
        let data = fs::read(input.unwrap().path()).unwrap();
        fuzz::store(&data);
        count += 1;
    }
    assert!(count > 3, "{} is nearly empty", folder.display());
}
