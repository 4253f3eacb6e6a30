//! One target of `ingest::fuzzing`, named by `WEIR_FUZZ_TARGET`, under libFuzzer. `WEIR_FUZZ_FOLDER` is where the inputs to begin with are
//! written: `seeds`, and a dictionary beside it.

#![no_main]

use std::cell::LazyCell;
use std::fs;
use std::path::Path;

use ingest::fuzzing::{check, corpus, dictionary, seeds, Changes, Door, Random, Target};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate, Corpus};

thread_local! {
    static DOOR: LazyCell<(Door, Target)> = LazyCell::new(|| {
        let name = std::env::var("WEIR_FUZZ_TARGET").expect("WEIR_FUZZ_TARGET names a target");
        (Door::new(), Target::of_name(&name).unwrap_or_else(|| panic!("{name} is none of {:?}", Target::ALL)))
    });
}

thread_local! {
    static CHANGES: LazyCell<Changes> = LazyCell::new(Changes::new);
}

/// Writes the inputs to begin with.
fn write_seeds() {
    let Some(folder) = std::env::var_os("WEIR_FUZZ_FOLDER") else { return };
    let folder = Path::new(&folder);
    let into = folder.join("seeds");
    fs::create_dir_all(&into).expect("a folder");
    let target = DOOR.with(|door| door.1);
    let mut inputs = corpus(target);
    inputs.extend(seeds().into_iter().filter(|input| target.takes_input(input)));
    for (number, input) in inputs.iter().enumerate() {
        fs::write(into.join(format!("{number:05}")), input).expect("written");
    }
    fs::write(folder.join("words"), dictionary()).expect("written");
}

fuzz_target!(
    init: write_seeds(),
    |input: &[u8]| -> Corpus {
        match DOOR.with(|door| check(&door.0, door.1, input)) {
            Some(_) => Corpus::Keep,
            None => Corpus::Reject,
        }
    }
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = Random::new(u64::from(seed));
    // What libFuzzer does by itself breaks most bodies, and finds what nobody thought of.
    if random.below(3) == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let mut input = data[..size].to_vec();
    for _ in 0..=random.below(3) {
        CHANGES.with(|changes| changes.change(&mut input, &mut random));
    }
    input.truncate(max_size);
    data[..input.len()].copy_from_slice(&input);
    input.len()
});
