//! Generates the gRPC code. `protox` compiles the protos in Rust, so that no `protoc` has to be installed.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

/// The files to compile; the files that they import are compiled too.
const FILES: [&str; 3] = ["slotcast/v1/service.proto", "slotcast/v1/admin.proto", "slotcast/v1/errors.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(false).open_files(FILES)?;
    // For server reflection and for `slotcast call`.
    fs::write(out.join("slotcast.bin"), compiler.encode_file_descriptor_set())?;
    // With comments, from which tests/reference.rs generates docs/reference.md.
    compiler.include_source_info(true);
    fs::write(out.join("slotcast_with_comments.bin"), compiler.encode_file_descriptor_set())?;
    let has = |feature: &str| env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    tonic_prost_build::configure()
        .build_client(has("CLIENT"))
        .build_server(has("SERVER"))
        .codec_path("crate::wire::codec::SmallBufferCodec")
        .compile_fds(files)?;
    Ok(())
}
