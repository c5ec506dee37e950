//! Compiles the `.proto` files with protox, so that a build needs no `protoc`.

use std::path::PathBuf;

use prost::Message as _;

const PROTOS: [&str; 7] = [
    "proto/mvcc.proto",
    "proto/rpc.proto",
    "proto/lock.proto",
    "proto/election.proto",
    "proto/authpb.proto",
    "proto/auth.proto",
    "proto/peer.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;

    // The gateway's JSON: etcd's field names on output, either case on input, unknown fields ignored.
    pbjson_build::Builder::new()
        .register_descriptors(&descriptors.encode_to_vec())?
        .preserve_proto_field_names()
        .ignore_unknown_fields()
        .build(&[".mvccpb", ".authpb", ".etcdserverpb", ".v3lockpb", ".v3electionpb"])?;

    let file = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(file, descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .bytes(".")
        .build_transport(false)
        .codec_path("crate::codec::SmallBuffers")
        .compile_fds(descriptors)?;
    Ok(())
}
