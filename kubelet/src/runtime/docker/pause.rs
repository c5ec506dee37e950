//! The image that sandboxes are made of, put together here because nothing can be pulled for it.
//!
//! It holds one program of a few instructions that waits for ever, and empty directories to mount
//! volumes at. The archive is the same to the byte wherever and whenever it is made, so its image has
//! the same id everywhere, and loading it again changes nothing.
//!
//! The program is a complete ELF executable: a file header, one program header that maps the whole
//! file readable and executable, and the code. As the first process of its container it has no
//! default action for signals, so only SIGKILL ends it.

use serde_json::json;
use sha2::{Digest, Sha256};

/// The image's name. The tag changes when the image does.
pub(super) const IMAGE: &str = "miniku/pause:1";
/// Directories that everybody may write, `/volumes/0` and so on: a new volume that is mounted there
/// takes over their mode.
pub(super) const VOLUME_DIRS: usize = 16;

/// Where the kernel maps the program.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// `loop { pause() }`: system call 34.
const CODE_AMD64: &[u8] = &[
    0xb8, 0x22, 0x00, 0x00, 0x00, // mov eax, 34
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp to the start
];

/// `loop { ppoll(NULL, 0, NULL, NULL) }`: system call 73; there is no pause on this architecture.
const CODE_ARM64: &[u32] = &[
    0xd280_0000, // mov x0, 0
    0xd280_0001, // mov x1, 0
    0xd280_0002, // mov x2, 0
    0xd280_0003, // mov x3, 0
    0xd280_0928, // mov x8, 73
    0xd400_0001, // svc 0
    0x17ff_fffa, // b to the start
];

/// The program, for an architecture by Go's name of it.
fn program(architecture: &str) -> Option<Vec<u8>> {
    let (machine, code): (u16, Vec<u8>) = match architecture {
        "amd64" => (62, CODE_AMD64.to_vec()),
        "arm64" => (183, CODE_ARM64.iter().flat_map(|word| word.to_le_bytes()).collect()),
        _ => return None,
    };
    let size = HEADERS + code.len() as u64;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"); // 64 bits, little-endian, version 1
    elf.extend(2u16.to_le_bytes()); // an executable
    elf.extend(machine.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    elf.extend((BASE + HEADERS).to_le_bytes()); // the entry point
    elf.extend(64u64.to_le_bytes()); // where the program header is
    elf.extend(0u64.to_le_bytes()); // no section headers
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes()); // sizes and numbers of headers
    }
    elf.extend(1u32.to_le_bytes()); // to be loaded
    elf.extend(5u32.to_le_bytes()); // readable and executable
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes()); // offset, addresses, sizes, alignment
    }
    elf.extend(code);
    Some(elf)
}

/// The image as `docker load` takes it; nothing for an architecture without a program.
pub(super) fn archive(architecture: &str) -> Option<Vec<u8>> {
    let program = program(architecture)?;
    Some(pack(architecture, &program).expect("writing to memory does not fail"))
}

fn pack(architecture: &str, program: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    add(&mut layer, "pause", tar::EntryType::Regular, 0o555, program)?;
    add(&mut layer, "volumes/", tar::EntryType::Directory, 0o755, &[])?;
    for number in 0..VOLUME_DIRS {
        let path = format!("volumes/{number}/");
        add(&mut layer, &path, tar::EntryType::Directory, 0o777, &[])?;
    }
    let layer = layer.into_inner()?;
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "miniku"}],
    });
    let config = config.to_string();
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let manifest =
        json!([{"Config": config_name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]).to_string();
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, &config_name, tar::EntryType::Regular, 0o444, config.as_bytes())?;
    add(&mut archive, "layer.tar", tar::EntryType::Regular, 0o444, &layer)?;
    add(&mut archive, "manifest.json", tar::EntryType::Regular, 0o444, manifest.as_bytes())?;
    archive.into_inner()
}

fn add(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_always_the_same_and_holds_a_program() {
        for architecture in ["amd64", "arm64"] {
            let archive = archive(architecture).unwrap();
            assert_eq!(super::archive(architecture).unwrap(), archive);
            let mut names = Vec::new();
            for entry in tar::Archive::new(&*archive).entries().unwrap() {
                names.push(entry.unwrap().path().unwrap().display().to_string());
            }
            assert!(names[0].ends_with(".json"), "{names:?}");
            assert_eq!(names[1..], ["layer.tar", "manifest.json"]);
        }
        assert_eq!(archive("riscv64"), None);
    }

    #[test]
    fn the_program_is_as_long_as_its_headers_say() {
        let elf = program("amd64").unwrap();
        assert_eq!(elf.len(), 129);
        assert_eq!(u64::from_le_bytes(elf[96..104].try_into().unwrap()), 129);
        let arm = program("arm64").unwrap();
        assert_eq!(&arm[18..20], 183u16.to_le_bytes());
        assert_eq!(arm.len(), 120 + 28);
    }

    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[test]
    fn the_program_runs_until_it_is_killed() {
        use std::os::unix::fs::PermissionsExt;
        use std::os::unix::process::ExitStatusExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        std::fs::write(&path, program("amd64").unwrap()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
