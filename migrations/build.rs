//! Makes cargo build this crate again when a file of SQL is added.

fn main() {
    println!("cargo:rerun-if-changed=sql");
}
