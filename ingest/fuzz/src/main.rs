//! One target of `ingest::fuzzing`, named by `WEIR_FUZZ_TARGET`, under libFuzzer. `WEIR_FUZZ_FOLDER` is where the inputs to begin with are
//! written: `seeds`, and a dictionary beside it.

#![no_main]

use std::cell::LazyCell;
use std::fs;
use std::path::Path;

use ingest::fuzzing::{check, corpus, dictionary, seeds, Door, Target};
use libfuzzer_sys::{fuzz_target, Corpus};

thread_local! {
    static DOOR: LazyCell<(Door, Target)> = LazyCell::new(|| {
        let name = std::env::var("WEIR_FUZZ_TARGET").expect("WEIR_FUZZ_TARGET names a target");
        (Door::new(), Target::of_name(&name).unwrap_or_else(|| panic!("{name} is none of {:?}", Target::ALL)))
    });
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
