//! The directory of a member's engine, and what to do when it has lost data.
//!
//! ```text
//! state/CURRENT                    names the engine that is in use: engine-0000000000000002
//! state/engine-0000000000000002/   sled's files, and those of the blocks
//! state/aside-0000000000000001/    the last one that was found damaged, for whoever wants to know
//! ```
//! An engine is filled and made durable under a new number and then put behind `CURRENT` by a
//! rename. So at any moment `CURRENT` names a whole one.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Limits, Moved, Mvcc};
use crate::engine::{Engine, EngineError, SledEngine};
use crate::raft::types::LogId;
use crate::snapshot::SnapshotMeta;
use crate::sync_dir::sync_dir;

const CURRENT: &str = "CURRENT";
const CURRENT_TEMPORARY: &str = "CURRENT.tmp";
const ENGINE_PREFIX: &str = "engine-";
const ASIDE_PREFIX: &str = "aside-";
/// For those who still read from an engine that was replaced. Its files go later if it is not enough.
const LAST_READERS: Duration = Duration::from_secs(10);

/// What opening the engine came to.
#[derive(Debug)]
pub(crate) enum Opened {
    /// The state after some entry at or behind the checkpoint; the log has the rest.
    Ready(Mvcc),
    /// The engine has lost data that was once durable.
    NeedsRebuild {
        /// What was found, for the log of the process.
        reason: String,
    },
}

/// The directory that holds the engine of a member. All calls block on the disk.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    limits: Limits,
    /// Held while `CURRENT` and the engine in memory change together, so that they name the same.
    pub(super) replacing: Mutex<()>,
    in_use: Mutex<InUse>,
}

/// An engine that was replaced, and its directory.
type Retired = (Weak<dyn Engine>, PathBuf);

/// Engines beside the one that `CURRENT` names.
#[derive(Debug, Default)]
struct InUse {
    /// Those that were replaced: they can go when nobody reads any more.
    retired: Vec<Retired>,
    /// Those that are being filled.
    filling: Vec<PathBuf>,
}

impl StateDir {
    /// Takes a directory, creating it if it is not there.
    pub(crate) fn new(path: &Path, limits: Limits) -> Result<Self, EngineError> {
        fs::create_dir_all(path).map_err(EngineError::io("create", path))?;
        Ok(Self {
            path: path.to_owned(),
            limits,
            replacing: Mutex::default(),
            in_use: Mutex::default(),
        })
    }

    /// Opens the engine that `CURRENT` names, or a new one.
    ///
    /// `checkpoint` is the last entry that the engine was once flushed with: one that is behind it
    /// has lost data, also if it opens empty and without complaint.
    ///
    /// # Errors
    ///
    /// What a rebuild would not help against: the directory cannot be read or written, or another
    /// process has it open.
    pub(crate) fn open(&self, checkpoint: Option<&LogId>) -> Result<Opened, EngineError> {
        let engine = match self.current()? {
            Current::Named(path) => SledEngine::open(&path),
            Current::None => self.create().and_then(|(fresh, engine)| {
                self.point_to(&fresh.name)?;
                Ok(engine)
            }),
            Current::Unreadable(text) => {
                let reason = format!("{CURRENT} names no engine but {text:?}");
                return Ok(Opened::NeedsRebuild { reason });
            }
        };
        self.remove_unused()?;
        let opened = engine.and_then(|engine| Mvcc::open(Arc::new(engine), self.limits));
        let mvcc = match opened {
            Ok(mvcc) => mvcc,
            Err(error) if is_damage(&error) => {
                return Ok(Opened::NeedsRebuild { reason: with_causes(&error) });
            }
            Err(error) => return Err(error),
        };
        let (applied, _) = mvcc.applied();
        if applied.as_ref() < checkpoint {
            let place = |log_id: Option<&LogId>| log_id.map_or(0, LogId::index);
            let reason = format!(
                "it was at entry {} of the log once and has come back at {}",
                place(checkpoint),
                place(applied.as_ref()),
            );
            return Ok(Opened::NeedsRebuild { reason });
        }
        Ok(Opened::Ready(mvcc))
    }

    /// Puts the engine aside and makes a new one: from a snapshot, or empty when there is none and
    /// the log reaches back to its first entry.
    pub(crate) fn set_aside_and_rebuild(
        &self,
        snapshot: Option<&Path>,
    ) -> Result<Mvcc, EngineError> {
        let damaged = self.current()?;
        let (fresh, engine) = self.create()?;
        let engine: Arc<dyn Engine> = Arc::new(engine);
        let mvcc = match snapshot {
            Some(snapshot) => Mvcc::from_snapshot(snapshot, engine, self.limits)?,
            None => Mvcc::open(engine, self.limits)?,
        };
        self.point_to(&fresh.name)?;
        if let Current::Named(path) = damaged {
            self.set_aside(&path)?;
        }
        self.remove_unused()?;
        Ok(mvcc)
    }

    /// Replaces the state of `mvcc`, which came from here, by a snapshot. See
    /// [`Mvcc::restore_from`]: after an error the old state is still there, in memory and on disk.
    pub(crate) fn restore(
        &self,
        mvcc: &Mvcc,
        snapshot: &Path,
    ) -> Result<SnapshotMeta, EngineError> {
        let _replacing = self.replacing.lock();
        let old = self.in_use_by(mvcc)?;
        let (fresh, engine) = self.create()?;
        let meta = mvcc.restore_from(snapshot, Arc::new(engine), || self.point_to(&fresh.name))?;
        self.in_use.lock().retired.extend(old);
        self.remove_unused()?;
        Ok(meta)
    }

    /// Moves the state of `mvcc`, which came from here, into fresh files; see [`Mvcc::move_to`].
    pub(crate) fn defragment(
        &self,
        mvcc: &Mvcc,
        is_stopping: impl Fn() -> bool,
    ) -> Result<Moved, EngineError> {
        let (fresh, engine) = self.create()?;
        let mut replacing = None;
        let mut old = None;
        let moved = mvcc.move_to(Arc::new(engine), is_stopping, || {
            // Whoever restores holds it for long, and has the last word.
            replacing = self.replacing.try_lock();
            if replacing.is_none() {
                return Ok(false);
            }
            old = self.in_use_by(mvcc)?;
            self.point_to(&fresh.name)?;
            Ok(true)
        });
        drop(replacing);
        drop(fresh);
        if let Some((engine, path)) = old {
            self.in_use.lock().retired.push((Weak::clone(&engine), path));
            // Those who read from it do so for a moment only.
            let deadline = Instant::now() + LAST_READERS;
            while engine.strong_count() > 0 && Instant::now() < deadline {
                std::thread::park_timeout(LAST_READERS / 100);
            }
        }
        self.remove_unused()?;
        moved
    }

    /// The engine of `mvcc` and its directory.
    fn in_use_by(&self, mvcc: &Mvcc) -> Result<Option<Retired>, EngineError> {
        Ok(match self.current()? {
            Current::Named(path) => Some((Arc::downgrade(&mvcc.shared.state.read().engine), path)),
            Current::None | Current::Unreadable(_) => None,
        })
    }

    fn current(&self) -> Result<Current, EngineError> {
        let path = self.path.join(CURRENT);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Current::None),
            Err(error) => return Err(EngineError::io("read", &path)(error)),
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(match number_of(text.trim_end(), ENGINE_PREFIX) {
            Some(_) => Current::Named(self.path.join(text.trim_end())),
            None => Current::Unreadable(text),
        })
    }

    /// A new engine under a number that was never used.
    fn create(&self) -> Result<(Fresh<'_>, SledEngine), EngineError> {
        let mut in_use = self.in_use.lock();
        let used = self.names()?;
        let number = |name: &String| {
            number_of(name, ENGINE_PREFIX).or_else(|| number_of(name, ASIDE_PREFIX))
        };
        let next = used.iter().filter_map(number).max().unwrap_or(0) + 1;
        let name = format!("{ENGINE_PREFIX}{next:016}");
        let path = self.path.join(&name);
        fs::create_dir(&path).map_err(EngineError::io("create", &path))?;
        in_use.filling.push(path.clone());
        drop(in_use);
        let fresh = Fresh { dir: self, name };
        let engine = SledEngine::open(&path)?;
        Ok((fresh, engine))
    }

    fn point_to(&self, name: &str) -> Result<(), EngineError> {
        let temporary = self.path.join(CURRENT_TEMPORARY);
        let write = |file: &mut File| {
            file.write_all(name.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()
        };
        File::create(&temporary)
            .and_then(|mut file| write(&mut file))
            .map_err(EngineError::io("write", &temporary))?;
        fs::rename(&temporary, self.path.join(CURRENT))
            .map_err(EngineError::io("rename", &temporary))?;
        sync_dir(&self.path).map_err(EngineError::io("sync", &self.path))
    }

    fn set_aside(&self, engine: &Path) -> Result<(), EngineError> {
        for name in self.names()?.iter().filter(|name| name.starts_with(ASIDE_PREFIX)) {
            let path = self.path.join(name);
            fs::remove_dir_all(&path).map_err(EngineError::io("remove", &path))?;
        }
        let name = engine.file_name().unwrap_or_default().to_string_lossy();
        let aside = self.path.join(name.replace(ENGINE_PREFIX, ASIDE_PREFIX));
        match fs::rename(engine, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(EngineError::io("rename", engine)),
        }
    }

    /// Removes engines that `CURRENT` does not name: restores that were cut off, and replaced ones
    /// that nobody reads any more.
    fn remove_unused(&self) -> Result<(), EngineError> {
        let Current::Named(current) = self.current()? else { return Ok(()) };
        let mut in_use = self.in_use.lock();
        let InUse { retired, filling } = &mut *in_use;
        retired.retain(|(engine, _)| engine.strong_count() > 0);
        for name in self.names()? {
            let path = self.path.join(&name);
            let is_in_use = path == current
                || filling.contains(&path)
                || retired.iter().any(|(_, used)| *used == path);
            if number_of(&name, ENGINE_PREFIX).is_some() && !is_in_use {
                fs::remove_dir_all(&path).map_err(EngineError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, EngineError> {
        let entries = fs::read_dir(&self.path).map_err(EngineError::io("list", &self.path))?;
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
        };
        entries.map(name).collect::<Result<_, _>>().map_err(EngineError::io("list", &self.path))
    }
}

/// An engine's directory that nobody else removes while this lives.
struct Fresh<'a> {
    dir: &'a StateDir,
    name: String,
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        let path = self.dir.path.join(&self.name);
        self.dir.in_use.lock().filling.retain(|filling| *filling != path);
    }
}

enum Current {
    Named(PathBuf),
    None,
    Unreadable(String),
}

fn number_of(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix)?.parse().ok()
}

/// Whether the files are bad, as opposed to the disk, the rights, or another process being in the
/// way.
fn is_damage(error: &EngineError) -> bool {
    match error {
        EngineError::Sled(sled::Error::Io(error)) => {
            matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
        }
        EngineError::Sled(_) | EngineError::Panicked { .. } | EngineError::Damaged(_) => true,
        EngineError::Io { .. }
        | EngineError::Snapshot(_)
        | EngineError::Entry { .. }
        | EngineError::Failed => false,
    }
}

fn with_causes(error: &EngineError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
