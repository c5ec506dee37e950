//! Making what happened to a directory's entries durable.

use std::fs::File;
use std::io;
use std::path::Path;

/// Has on the disk which files were created in a directory, renamed and removed. Blocks.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
