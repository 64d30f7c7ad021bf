//! The `slotcast` command as an example: unlike the binary, it shares the compiled dependencies of the tests.
//! `deploy/check image` links it statically.

include!("../../src/main.rs");
