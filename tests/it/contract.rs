//! Clients that know nothing but the proto files: Python's gRPC, reflection, health.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Hot, World, on_both_stores};

on_both_stores! {
    a_client_written_from_the_proto_files_alone_sends_grabs_streams_and_watches,
}

/// The Python that `make test` prepared (grpcio, grpcio-tools), or the one on the PATH.
pub fn python() -> PathBuf {
    let named = std::env::var_os("RED_ENVELOPE_PYTHON").map(PathBuf::from);
    named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python"))
}

async fn a_client_written_from_the_proto_files_alone_sends_grabs_streams_and_watches(hot: Hot) {
    let mut world = World::on(hot).await;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let server = &world.server;
    let run = Command::new(python())
        .arg(here.join("tests/it/client.py"))
        .arg(here.join("proto"))
        .args([server.grpc().to_string(), server.ports.admin.to_string()])
        .output()
        .expect("`make test` prepares a Python with grpcio");
    let said = String::from_utf8_lossy(&run.stdout);
    let complained = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}\n{complained}");
    for step in [
        "deposited",
        "sent",
        "grabbed",
        "streamed",
        "watched",
        "refused",
        "reflected",
        "healthy",
        "audited",
    ] {
        assert!(
            said.lines().any(|line| line == step),
            "{step} is missing:\n{said}\n{complained}"
        );
    }
    world.audit_when_quiet().await;
}
