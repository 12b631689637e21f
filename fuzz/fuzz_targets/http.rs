#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blindai_fuzz::http(data));
