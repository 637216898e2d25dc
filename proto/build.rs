//! Compiles the contract with a compiler written in Rust: nobody needs protoc.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;
use protox::Compiler;
use protox::file::{
    ChainFileResolver, DescriptorSetFileResolver, GoogleFileResolver, IncludeFileResolver,
};

const FILES: [&str; 6] = [
    "redenvelope/v1/money.proto",
    "redenvelope/v1/envelope.proto",
    "redenvelope/v1/envelope_service.proto",
    "redenvelope/v1/account_service.proto",
    "redenvelope/v1/info_service.proto",
    "redenvelope/v1/admin_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=redenvelope");

    let mut resolver = ChainFileResolver::new();
    resolver.add(GoogleFileResolver::new());
    resolver.add(DescriptorSetFileResolver::new(google_rpc()?));
    resolver.add(IncludeFileResolver::new(PathBuf::from(".")));
    let mut compiler = Compiler::with_file_resolver(resolver);
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_files(FILES)?;

    // Reflection serves this; comments stay out of it, they would triple the binary's copy.
    let mut descriptors = compiler.file_descriptor_set();
    #[expect(
        clippy::disallowed_methods,
        reason = "cargo tells a build script where to write through the environment"
    )]
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let with_comments = descriptors.clone();
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    std::fs::write(
        out.join("redenvelope.v1.binpb"),
        descriptors.encode_to_vec(),
    )?;

    tonic_prost_build::configure()
        .extern_path(".google.rpc", "::tonic_types::pb")
        .btree_map(".")
        .compile_fds(with_comments)?;
    Ok(())
}

/// `google.rpc` as tonic-types carries it, under the paths by which protobuf files import it.
fn google_rpc() -> Result<prost_types::FileDescriptorSet, Box<dyn Error>> {
    let mut set = prost_types::FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET)?;
    for file in &mut set.file {
        if let Some(name @ ("status.proto" | "error_details.proto")) = file.name.as_deref() {
            file.name = Some(format!("google/rpc/{name}"));
        }
    }
    Ok(set)
}
