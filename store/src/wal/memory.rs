//! A directory in memory whose power can be cut, and whose files can fail and be damaged.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::files::{DirLock, LogDir, LogFile};

/// What is written as a whole or not at all: less than on any disk, so that small records tear too.
const SECTOR_BYTES: usize = 32;

/// The directory. Clones are one directory.
#[derive(Clone, Default)]
pub(crate) struct MemoryDir {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// What has changed since the directory was last synced.
    unsynced_names: Vec<NameChange>,
    files: Vec<Content>,
    locked: bool,
    operations: u64,
    syncs: u64,
    fault: Option<Fault>,
}

#[derive(Clone)]
enum NameChange {
    Added(String, usize),
    Removed(String),
    Renamed { from: String, to: String, file: usize },
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Added(name, file) => {
                names.insert(name.clone(), *file);
            }
            Self::Removed(name) => {
                names.remove(name);
            }
            Self::Renamed { from, to, file } => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }
}

#[derive(Clone, Default)]
struct Content {
    data: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

/// What is to go wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The operation with this number, counted from now and from 0, and all after it fail. If it is
    /// a write, its data may still reach the disk.
    PowerCut(u64),
    /// The sync of a file with this number, counted from now and from 0, fails; all else works.
    Sync(u64),
}

impl MemoryDir {
    /// Makes something go wrong.
    pub(crate) fn inject(&self, fault: Fault) {
        let mut state = self.state.lock();
        state.fault = Some(match fault {
            Fault::PowerCut(operation) => Fault::PowerCut(state.operations + operation),
            Fault::Sync(sync) => Fault::Sync(state.syncs + sync),
        });
    }

    /// What the next process finds after this one was killed: all that was done, synced or not.
    pub(crate) fn kill(&self) {
        self.state.lock().fault = None;
    }

    /// What is found after a power cut. Of what was not synced, `survives` decides for each sector
    /// and each change of the directory whether it is there.
    pub(crate) fn power_cut(&self, mut survives: impl FnMut() -> bool) -> Self {
        let state = self.state.lock();
        let mut names = state.durable_names.clone();
        for change in state.unsynced_names.iter().filter(|_| survives()) {
            change.apply(&mut names);
        }
        let files: Vec<Content> = state
            .files
            .iter()
            .map(|file| {
                let mut durable = file.durable.clone();
                for (offset, data) in &file.unsynced {
                    let mut at = *offset;
                    let mut rest = &data[..];
                    while !rest.is_empty() {
                        let len = rest.len().min(SECTOR_BYTES - at % SECTOR_BYTES);
                        let (sector, after) = rest.split_at(len);
                        if survives() {
                            overwrite(&mut durable, sector, at);
                        }
                        at += len;
                        rest = after;
                    }
                }
                Content { data: durable.clone(), durable, unsynced: Vec::new() }
            })
            .collect();
        let state =
            State { names: names.clone(), durable_names: names.clone(), files, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The names of the segments.
    pub(crate) fn segments(&self) -> Vec<String> {
        let names = self.list().unwrap();
        names.into_iter().filter(|name| name.ends_with(".wal")).collect()
    }

    /// What is in a file.
    pub(crate) fn contents(&self, name: &str) -> Vec<u8> {
        let state = self.state.lock();
        state.files[state.names[name]].data.clone()
    }

    /// Changes a file as no program did.
    pub(crate) fn damage(&self, name: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        let file = state.names[name];
        let file = &mut state.files[file];
        damage(&mut file.data);
        file.durable.clone_from(&file.data);
    }
}

impl State {
    fn operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fault {
            Some(Fault::PowerCut(at)) if self.operations > at => {
                Err(io::Error::other("the power is cut"))
            }
            _ => Ok(()),
        }
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }
}

fn overwrite(file: &mut Vec<u8>, data: &[u8], offset: usize) {
    let end = offset + data.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(data);
}

struct Unlock(Arc<Mutex<State>>);

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.lock().locked = false;
    }
}

impl LogDir for MemoryDir {
    fn lock(&self) -> io::Result<Option<DirLock>> {
        let mut state = self.state.lock();
        if state.locked {
            return Ok(None);
        }
        state.locked = true;
        Ok(Some(Box::new(Unlock(Arc::clone(&self.state)))))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state.lock().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let mut state = self.state.lock();
        state.operation()?;
        let file = state.files.len();
        state.files.push(Content::default());
        state.change_names(NameChange::Added(name.to_owned(), file));
        Ok(Arc::new(MemoryFile { state: Arc::clone(&self.state), file }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let state = self.state.lock();
        let file = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(MemoryFile { state: Arc::clone(&self.state), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operation()?;
        let file = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        let (from, to) = (from.to_owned(), to.to_owned());
        state.change_names(NameChange::Renamed { from, to, file });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operation()?;
        state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        state.change_names(NameChange::Removed(name.to_owned()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operation()?;
        state.durable_names = state.names.clone();
        state.unsynced_names.clear();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("memory").join(name)
    }
}

struct MemoryFile {
    state: Arc<Mutex<State>>,
    file: usize,
}

impl LogFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().files[self.file].data.len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state.lock();
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let data = state.files[self.file].data.get(offset..offset + buf.len());
        buf.copy_from_slice(data.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let outcome = state.operation();
        let first_without_power = match state.fault {
            Some(Fault::PowerCut(at)) => state.operations == at + 1,
            _ => false,
        };
        if outcome.is_ok() || first_without_power {
            let offset = usize::try_from(offset).map_err(io::Error::other)?;
            let file = &mut state.files[self.file];
            overwrite(&mut file.data, data, offset);
            file.unsynced.push((offset, data.to_vec()));
        }
        outcome
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operation()?;
        state.syncs += 1;
        if let Some(Fault::Sync(at)) = state.fault
            && state.syncs == at + 1
        {
            return Err(io::Error::other("the disk cannot write"));
        }
        let file = &mut state.files[self.file];
        for (offset, data) in std::mem::take(&mut file.unsynced) {
            overwrite(&mut file.durable, &data, offset);
        }
        Ok(())
    }
}
