#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| onggi_fuzz::rest(input));
