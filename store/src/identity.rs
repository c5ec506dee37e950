//! Whose data a directory holds. A member that is started on another member's data, or with other
//! members around it than at its first start, would be counted twice in a quorum: it is refused.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const FILE_NAME: &str = "member.json";

/// Who a data directory belongs to. Ids are written as etcd prints them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) cluster_id: String,
    pub(crate) member_id: String,
}

/// A directory that is not this member's.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Reading or writing the file failed.
    #[error("{} cannot be read or written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file says something else than a member's identity.
    #[error("{} does not hold a member's identity", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The directory belongs to somebody else.
    #[error(
        "{} belongs to member {found_member} of cluster {found_cluster}, but the flags describe \
         member {member} of cluster {cluster}: use another --data-dir, or the --name and \
         --initial-cluster that it was first started with",
        path.display()
    )]
    Other {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found_member: String,
        /// Whose it is.
        found_cluster: String,
        /// What the flags say.
        member: String,
        /// What the flags say.
        cluster: String,
    },
}

impl Identity {
    pub(crate) fn new(cluster_id: u64, member_id: u64) -> Self {
        Self { cluster_id: format!("{cluster_id:x}"), member_id: format!("{member_id:x}") }
    }

    /// Takes possession of `data_dir` at the first start, and checks it at every later one.
    pub(crate) fn claim(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let path = data_dir.join(FILE_NAME);
        let failed = |source| IdentityError::Io { path: path.clone(), source };
        match fs::read(&path) {
            Ok(json) => {
                let found: Self = serde_json::from_slice(&json)
                    .map_err(|source| IdentityError::Format { path: path.clone(), source })?;
                if found == *self {
                    return Ok(());
                }
                Err(IdentityError::Other {
                    path: path.clone(),
                    found_member: found.member_id,
                    found_cluster: found.cluster_id,
                    member: self.member_id.clone(),
                    cluster: self.cluster_id.clone(),
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.write(data_dir, &path).map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Whole or not at all: written beside, synced, renamed.
    fn write(&self, data_dir: &Path, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(data_dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_stays_with_its_first_member() {
        let dir = tempfile::tempdir().unwrap();
        Identity::new(1, 2).claim(dir.path()).unwrap();
        Identity::new(1, 2).claim(dir.path()).unwrap();
        let error = Identity::new(1, 3).claim(dir.path()).unwrap_err().to_string();
        assert!(error.contains("belongs to member 2 of cluster 1"), "{error}");
        assert!(error.contains("--data-dir"), "{error}");
    }
}
