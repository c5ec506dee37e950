//! Whose data a directory holds. A member that is started on another member's data, or with other
//! members around it than at its first start, would be counted twice in a quorum: it is refused.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::stable_hash;
use crate::sync_dir::sync_dir;

const FILE_NAME: &str = "member.json";

/// Who a data directory belongs to. Ids are written as etcd prints them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) cluster_id: String,
    pub(crate) member_id: String,
    /// What it was restored from, if it was: the SHA-256 of a backup, and what was changed in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restored_from: Option<String>,
    /// The name that it was first started with.
    #[serde(default)]
    pub(crate) name: Option<String>,
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
         --initial-cluster that it was first started with; if the cluster's members have changed \
         since, --initial-cluster-state existing",
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
    pub(crate) fn new(cluster_id: u64, member_id: u64, name: &str) -> Self {
        Self {
            cluster_id: format!("{cluster_id:x}"),
            member_id: format!("{member_id:x}"),
            restored_from: None,
            name: Some(name.to_owned()),
        }
    }

    /// A member that is made from a backup. Its cluster's id is made of what the flags say and of the
    /// backup, so that it is another one than that of the cluster where the backup was taken, and
    /// than that of any other backup.
    pub(crate) fn restored(flags_cluster_id: u64, member_id: u64, origin: String) -> Self {
        let cluster_id = cluster_id_after_restore(flags_cluster_id, &origin);
        Self { restored_from: Some(origin), name: None, ..Self::new(cluster_id, member_id, "") }
    }

    /// The id of the cluster to which flags that describe `flags_cluster_id` refer in this directory.
    pub(crate) fn cluster_id_in(
        data_dir: &Path,
        flags_cluster_id: u64,
    ) -> Result<u64, IdentityError> {
        let origin = Self::read(data_dir)?.and_then(|found| found.restored_from);
        Ok(origin
            .map_or(flags_cluster_id, |origin| cluster_id_after_restore(flags_cluster_id, &origin)))
    }

    /// The ids of the cluster and of the member.
    pub(crate) fn ids(&self) -> Option<(u64, u64)> {
        let id = |text: &str| u64::from_str_radix(text, 16).ok();
        Some((id(&self.cluster_id)?, id(&self.member_id)?))
    }

    /// Whose `data_dir` is, if it is somebody's.
    pub(crate) fn read(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = data_dir.join(FILE_NAME);
        match fs::read(&path) {
            Ok(json) => match serde_json::from_slice(&json) {
                Ok(found) => Ok(Some(found)),
                Err(source) => Err(IdentityError::Format { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::Io { path, source }),
        }
    }

    /// Takes possession of `data_dir` at the first start, and checks it at every later one.
    pub(crate) fn claim(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let path = data_dir.join(FILE_NAME);
        match Self::read(data_dir)? {
            Some(found) if found.is_same(self) => Ok(()),
            Some(found) => Err(self.is_not(found, path)),
            None => self
                .write(data_dir, &path)
                .map_err(|source| IdentityError::Io { path: path.clone(), source }),
        }
    }

    /// Whether it can be this one under the name that it is started with now.
    pub(crate) fn may_be_called(&self, name: &str) -> bool {
        self.name.as_deref().is_none_or(|known| known == name)
    }

    /// What is wrong when `self` was expected and `found` stands there.
    pub(crate) fn is_not(&self, found: Self, path: PathBuf) -> IdentityError {
        IdentityError::Other {
            path,
            found_member: found.described(),
            found_cluster: found.cluster_id,
            member: self.described(),
            cluster: self.cluster_id.clone(),
        }
    }

    fn described(&self) -> String {
        match &self.name {
            Some(name) => format!("{} ({name})", self.member_id),
            None => self.member_id.clone(),
        }
    }

    /// Files of earlier versions tell no name.
    fn is_same(&self, other: &Self) -> bool {
        self.cluster_id == other.cluster_id && self.member_id == other.member_id
    }

    /// Whole or not at all: written beside, synced, renamed.
    fn write(&self, data_dir: &Path, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_dir(data_dir)
    }
}

fn cluster_id_after_restore(flags_cluster_id: u64, origin: &str) -> u64 {
    stable_hash(&[&format!("{flags_cluster_id:x}"), origin])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_restored_belongs_to_another_cluster() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::cluster_id_in(dir.path(), 1).unwrap(), 1);
        let restored = Identity::restored(1, 2, "07".to_owned());
        restored.claim(dir.path()).unwrap();
        let cluster_id = Identity::cluster_id_in(dir.path(), 1).unwrap();
        assert_eq!(format!("{cluster_id:x}"), restored.cluster_id);
        Identity::new(cluster_id, 2, "n1").claim(dir.path()).unwrap();
        assert!(Identity::new(1, 2, "n1").claim(dir.path()).is_err());
        assert_ne!(restored.cluster_id, Identity::restored(1, 2, "08".to_owned()).cluster_id);
        // Flags that describe another cluster are still found out.
        assert_ne!(Identity::cluster_id_in(dir.path(), 3).unwrap(), cluster_id);
    }

    #[test]
    fn a_directory_stays_with_its_first_member() {
        let dir = tempfile::tempdir().unwrap();
        Identity::new(1, 2, "n1").claim(dir.path()).unwrap();
        Identity::new(1, 2, "n1").claim(dir.path()).unwrap();
        let error = Identity::new(1, 3, "n3").claim(dir.path()).unwrap_err().to_string();
        assert!(error.contains("belongs to member 2 (n1) of cluster 1"), "{error}");
        assert!(error.contains("--data-dir"), "{error}");
        let found = Identity::read(dir.path()).unwrap().unwrap();
        assert_eq!(found.ids(), Some((1, 2)));
        assert!(found.may_be_called("n1") && !found.may_be_called("n3"));
    }
}
