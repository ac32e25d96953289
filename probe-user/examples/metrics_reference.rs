//! Prints `docs/metrics.md`; `cargo xtask docs` writes it.

fn main() {
    print!("{}", probe_user::export::reference::markdown());
}
